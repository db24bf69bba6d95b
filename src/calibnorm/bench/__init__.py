"""`calibnorm bench`: times of layers and of training steps against plain BatchNorm.

Read in this order: cases, authors, impls, values, clock, timings, networks, config, layer, model, summary, run and
command.
It needs torch alone, and draws where there is matplotlib: ``PYTHONPATH=src python -m calibnorm.bench layer``.
"""

"""`calibnorm bench`: times of layers, of training steps and of inference against plain BatchNorm.

Read in this order: cases, authors, impls, values, clock, timings, networks, config, layer, model, inference, summary,
run and command.
It needs torch alone, and draws where there is matplotlib: ``PYTHONPATH=src python -m calibnorm.bench layer``.
"""

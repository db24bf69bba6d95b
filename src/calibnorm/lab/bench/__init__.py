"""`calibnorm bench`: layer times and training step times against plain BatchNorm.

Read in this order: cases, authors, impls, values, clock, config, table, targets, summary, plots, layer, model, run,
start.
Everything but plots and the command line needs torch alone: ``PYTHONPATH=src python -m calibnorm.lab.bench layer``.
"""

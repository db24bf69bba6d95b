"""`calibnorm compare` and `calibnorm table`: many runs, their statistics, and the papers' figures beside ours.

Read in this order: published, statistics, grid, cells, workers, summary, plots, report, compare; then tables.
"""

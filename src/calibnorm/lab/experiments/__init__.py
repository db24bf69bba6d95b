"""`calibnorm compare` and `calibnorm table`: many runs, their statistics, and the papers' figures beside ours.

Read in this order: config, grid, outcomes, checks, worker_process, workers; statistics, summary, texts, plots, origins,
report; then experiment, compare and tables. average_gates is a command of its own.
"""

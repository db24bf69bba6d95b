"""`calibnorm demo`: BN, IEBN and RBN trained side by side on scikit-learn's handwritten digits.

Read in this order: config, data, model, training, gates, parallel, results, plots, report, folder, run.
"""

"""`calibnorm table`: the papers' tables of classification, run again, with what was printed beside.

Read in this order: published, definitions, scales, report, run.
"""

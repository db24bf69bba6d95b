"""`calibnorm table`: the papers' tables of classification, run again, with what was printed beside.

Read in this order: definitions, scales, extras, report, run.
"""

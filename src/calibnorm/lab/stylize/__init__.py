"""`calibnorm stylize`: networks that put photographs into a style are trained, applied, compared and exported.

Training is that of every task; here is what pictures need besides.
"""

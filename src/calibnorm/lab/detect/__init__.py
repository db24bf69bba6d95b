"""`calibnorm detect`: detectors are trained, evaluated and shown, and the miniature in COCO's layout is made.

Training is that of every task; here is what pictures with objects need besides.
"""

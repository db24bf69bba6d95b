"""Pictures with objects in COCO's layout: the folder, its checks, masks, batches, and a miniature.

Read in this order: masks, folder, panoptic, feed, miniature.
"""

"""Image sets: where they are found on disk, and the batches made of them.

Small sets live whole, as bytes, on the device that trains; batches are cut and standardized there.
"""

from calibnorm.lab.data.feed import Feed, test_feed, train_feed
from calibnorm.lab.data.sets import ImageSet, Info, Split, info, load, names

__all__ = ["Feed", "ImageSet", "Info", "Split", "info", "load", "names", "test_feed", "train_feed"]

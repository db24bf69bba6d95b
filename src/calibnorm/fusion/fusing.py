"""``cn.fuse`` and ``cn.unfuse``: the network stays the user's own, its norms do what followed them."""

from __future__ import annotations

import logging
from collections.abc import Callable

from torch import nn

from calibnorm.conversion import sources
from calibnorm.fusion import forwards
from calibnorm.fusion.report import FusionReport
from calibnorm.fusion.rewiring import Rewiring
from calibnorm.methods import BN
from calibnorm.nn import CalibratedNorm

log = logging.getLogger("calibnorm")


def fuse(model: nn.Module, *, report: Callable[[FusionReport], object] | None = None) -> nn.Module:
    """Let every norm do the ReLU, or the addition and the ReLU, that follows it, in place, and return the network.

    ``relu(norm(x))`` and ``relu(norm(x) + residual)`` become one call of the layer, whose kernels add and rectify on
    their way: fewer passes over the pixels, and nothing kept for the ReLU's gradient but what the norm keeps. Plain
    BatchNorms become the child of a :class:`BN2d`, and only those that are fused. Calibrated layers stay themselves:
    fusing and converting may come in either order.

    What stays: the function and its gradient (to rounding), the module tree (plain BatchNorms move to ``.bn``), hooks,
    modes, deepcopy, pickle, and the state dict, whose keys are those of the network before. What changes: a block
    whose forward has to be another one gets a subclass of its class. That forward follows the settings that the
    network has now, so fuse last, and call :func:`unfuse` before changing a block's structure or settings such as
    a drop rate. A hook that is put on a fused norm later sees the rectified output.

    Args:
        model: The network. Fuse before wrapping it for distributed training, compiling it or making the optimizer.
        report: Called with a :class:`FusionReport`, which says layer by layer what was fused and why the rest was
            left: ``print``, say.

    Returns:
        The network; where it is itself a BatchNorm with a ReLU of its own (timm's BatchNormAct2d), the new layer.

    Raises:
        TypeError: The model is no module, or ``report`` cannot be called.
        ValueError: The network is wrapped (DistributedDataParallel, FSDP, torch.compile, torch.jit).

    >>> import torchvision, calibnorm as cn
    >>> net = cn.fuse(cn.convert(torchvision.models.resnet18(), "rbn"))
    >>> net.layer1[0].bn1.extra_repr(), net.layer1[0].bn2.fused.pattern
    ("64, act='relu'", 'norm+add+relu')
    """
    sources.check_unwrapped(model)
    if report is not None and not callable(report):
        raise TypeError(f"report={report!r} must be a function of a FusionReport, such as print")
    fusing = Rewiring(model)
    root = fusing.run()
    made = fusing.report(root)
    log.info("%s", made)
    if report is not None:
        report(made)
    return root


def unfuse(model: nn.Module) -> nn.Module:
    """Undo :func:`fuse`, in place, and return the network: ReLUs and additions are on their own again.

    Whatever has happened to the layers since stays: parameters, statistics, conversion to another method.

    Args:
        model: The network, or a part that holds what was fused with its layers.

    Returns:
        The network; where it is itself a fused layer, what that was before.

    Raises:
        TypeError: The model is no module.
        ValueError: The network is wrapped, or something changed the class of a block since.

    >>> import torchvision, calibnorm as cn
    >>> net = cn.unfuse(cn.fuse(torchvision.models.resnet18()))
    >>> type(net.layer1[0].bn1).__name__
    'BatchNorm2d'
    """
    sources.check_unwrapped(model)
    rewritten = [(name, module) for name, module in model.named_modules() if forwards.is_rewritten(module)]
    for name, module in rewritten:
        if forwards.is_buried(module):
            raise ValueError(f"{name}: its class was changed after cn.fuse; undo that (parametrize, say) first")
    for _, module in rewritten:
        forwards.restore_forward(module)
    root = model
    for entry in sources.find(model):
        layer = entry.module
        if isinstance(layer, CalibratedNorm) and layer.fused is not None:
            before = _apart(layer)
            sources.replace(entry, before)
            root = before if layer is model else root
    return root


def _apart(layer: CalibratedNorm) -> nn.Module:
    """Return what a fused layer was before: itself without the ReLU, or its BatchNorm."""
    mark = layer.fused
    assert mark is not None
    drop, act = (nn.Identity(), nn.ReLU(inplace=True)) if mark.own_act else (None, None)
    layer.act, layer.fused = None, None
    if not (mark.plain and isinstance(layer.method, BN) and not layer.options()):
        layer.drop, layer.act = drop, act
        return layer
    plain = sources.put_together(layer.bn, drop, act)
    sources.move_hooks(layer, plain)
    return plain

"""``cn.fuse``: every forward is followed and rewritten first, and then all of them are put in."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from torch import Tensor, nn

from calibnorm.fusion import calls, matching, rewiring, tracing
from calibnorm.networks import finding, reporting
from calibnorm.networks.reporting import Report
from calibnorm.nn import CalibratedNorm
from calibnorm.nn import child as children
from calibnorm.nn.hooks import has_hooks
from calibnorm.nn.plain_modules import is_relu

TIMMS = "timm.layers.norm_act.BatchNormAct2d"


def fuse(model: nn.Module, *, report: Report = None) -> nn.Module:
    r"""Let every norm do the ReLU, or the addition and the ReLU, that follows it, in place, and return the network.

    ::

        relu(norm(x))               one call, one pass over the pixels less each way
        relu(norm(x) + residual)    one call, two passes less

    It serves plain BatchNorm in training mode too, with this library's kernels, and timm's BatchNormAct2d. The
    function, the gradients and the running statistics are the same up to rounding.

    What changes is the forward of the modules that call a norm: each gets a subclass of its class. Layers, names,
    parameters, hooks, modes and the state dict, keys included, stay as they are, so that ``cn.convert``, ``cn.revert``,
    ``cn.plan`` and checkpoints work before and after as they do without it. A copy is fused; a pickle (``torch.save``
    of a whole network) holds the network as it was: fuse it again after loading.

    Where a layer has been replaced, frozen or watched by a hook since, or a block's settings (its flags, numbers and
    strings) have changed, the calls are made one by one, as the network wrote them. The same happens under
    torch.compile, export and tracing, which have fusers of their own, and for plain BatchNorm in eval mode and on
    planes so small that torch's own is quicker. What a forward does beside computing (printing, say) is not repeated.

    A norm is left alone where anything but an addition and a ReLU follows it (ReLU6, SiLU, dropout, attention), where
    its output is used several times, or where it has hooks. SyncBatchNorm, frozen and split BatchNorm are left alone
    too, and all norms in forwards that torch.fx cannot follow: those that depend on the mode or on values, take
    optional arguments, draw random numbers or set attributes.

    Args:
        model: The network. Fuse before wrapping it for distributed training or compiling it. A network that is fused
            already is fused anew.
        report: Called with a text that says, layer by layer, what was fused and why the rest was left: ``print``, say.

    Returns:
        The network.

    Raises:
        TypeError: The model is no module, or ``report`` cannot be called.
        ValueError: The network is wrapped (DistributedDataParallel, FSDP, torch.compile, torch.jit).

    >>> import torchvision, calibnorm as cn
    >>> net = cn.convert(torchvision.models.resnet18(), "rbn")
    >>> texts = []
    >>> net = cn.fuse(net, report=texts.append)
    >>> print(*texts[0].splitlines()[:4], sep="\n")
    20 normalizations: 17 fused, 3 left
    bn1: RBN2d, fused: norm + ReLU
    layer1.0.bn1: RBN2d, fused: norm + ReLU
    layer1.0.bn2: RBN2d, fused: norm + add + ReLU
    """
    finding.check_unwrapped(model)
    reporting.check_report(report)
    before = {module: type(module) for module in model.modules()}
    try:
        for module, kind in before.items():
            if rewiring.original(kind) is not kind:
                module.__class__ = rewiring.original(kind)
        planned = _Plan(model)
        for module, kind in planned.kinds.items():
            module.__class__ = kind
    except BaseException:
        for module, kind in before.items():
            module.__class__ = kind
        raise
    reporting.tell(planned.text(), report)
    return model


class _Plan:
    """The new class of every module that gets one, and what becomes of every norm; nothing has changed yet."""

    def __init__(self, model: nn.Module) -> None:
        self.norms = finding.find_norms(model)
        self.kinds: dict[nn.Module, type[nn.Module]] = {}
        self.fused: dict[nn.Module, str] = {}
        self.left: dict[nn.Module, str] = {}
        for entry in self.norms:
            self._own_relu(entry.module)
        # From the inside out, so that the reason of the nearest forward counts.
        for name, module in reversed(list(_callers(model))):
            why = self._within(module)
            for norm in finding.find_norms(module) if why else ():
                where = f"the forward of {name or 'the model'} ({type(module).__name__})"
                self.left.setdefault(norm.module, f"{where} {why}")

    def _own_relu(self, norm: nn.Module) -> None:
        """Fuse a norm that has its activation within itself."""
        if not calls.own_relu(norm):
            return
        if isinstance(norm, CalibratedNorm):
            self.fused[norm] = "norm + ReLU, by itself"
        elif f"{type(norm).__module__}.{type(norm).__name__}" == TIMMS and finding.refusal(norm) is None:
            self.kinds[norm] = rewiring.rewired(rewiring.Rewiring(type(norm), _batchnorm_act(type(norm))))
            self.fused[norm] = "norm + ReLU"

    def _within(self, module: nn.Module) -> str:
        """Fuse what one forward calls; return why that cannot be, or ""."""
        if module._compiled_call_impl is not None:
            return "is compiled"
        try:
            trace = tracing.follow(module)
        except tracing.Untraceable as error:
            return str(error)
        found = matching.find(module, trace.graph, _unfusable)
        matches = [(norm, match) for norm, match in found if isinstance(match, matching.Match)]
        for norm, match in found:
            if isinstance(match, str):
                self.left.setdefault(norm, match)
        if not matches:
            return ""
        if why := rewiring.why_not(module):
            return f"would have to change, and {why}"
        for _, match in matches:
            matching.rewrite(trace.graph, match)
        try:
            self.kinds[module] = rewiring.traced(module, trace)
        except SyntaxError:
            return "holds a constant that has no literal"
        self.fused.update({norm: match.pattern for norm, match in matches})
        return ""

    def text(self) -> str:
        """Return the report."""
        lines = []
        for entry in self.norms:
            why = self.left.get(entry.module, "no forward that could be followed calls it")
            what = f"fused: {self.fused[entry.module]}" if entry.module in self.fused else f"left: {why}"
            lines.append(f"{entry.title}: {type(entry.module).__name__}, {what}")
        done = len(self.fused)
        return "\n".join([f"{len(lines)} normalizations: {done} fused, {len(lines) - done} left", *lines])


def _callers(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yield the modules whose own forward may call a norm, by name."""
    inside = {m for entry in finding.find_norms(model) for m in entry.module.modules()}
    for name, module in model.named_modules():
        forward: Any = type(module).forward
        torchs = str(forward.__module__).startswith("torch.nn.") and forward is not nn.Sequential.forward
        if module not in inside and not torchs and any(m in inside for m in module.modules()):
            yield name, module


def _unfusable(norm: nn.Module) -> str:
    """Return why a norm cannot take over what follows it, or ""."""
    if has_hooks(norm):
        return "has hooks, which would see another output"
    if isinstance(norm, CalibratedNorm):
        return "" if calls.takes_relu(norm) else "has an activation or dropout of its own"
    if type(norm) in calls.PLAIN:
        return "" if norm.momentum is not None else "keeps a cumulative average (momentum=None)"
    if getattr(norm, "act", None) is not None and not is_relu(norm.act):
        return f"its own activation is {type(norm.act).__name__}, not a ReLU"
    frozen = children.is_frozen(norm)
    return f"is a {type(norm).__name__}, " + ("whose statistics are constants" if frozen else "which is not understood")


def _batchnorm_act(original: type[nn.Module]) -> Callable[[Any, Tensor], Tensor]:
    """Return the forward of timm's BatchNormAct2d with its ReLU in the same pass."""

    def run(self: Any, x: Tensor) -> Tensor:
        y = calls.batchnorm_relu(self, x) if calls.own_relu(self) else None
        return original.forward(self, x) if y is None else y

    return run

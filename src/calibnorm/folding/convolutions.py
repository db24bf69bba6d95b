"""BatchNorm into the convolution before it, by torch's own formula, where torch.fx sees that nothing else notices."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import torch
from torch import fx, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.nn.utils.fusion import fuse_conv_bn_weights

from calibnorm.conversion import sources
from calibnorm.folding.lines import Line
from calibnorm.folding.prices import plain_copy
from calibnorm.fusion import tracing
from calibnorm.networks import finding
from calibnorm.networks.finding import Found
from calibnorm.nn import CalibratedNorm
from calibnorm.nn import child as children
from calibnorm.nn.hooks import has_hooks

FORWARDS = tuple(
    kind.forward
    for kind in (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
)


class Pairs(NamedTuple):
    """What becomes of a network's BatchNorms and convolutions; nothing has changed yet."""

    instead: dict[nn.Module, nn.Module]
    """By BatchNorm or layer, what takes its place: an Identity, or its activation."""
    convolutions: dict[nn.Module, tuple[nn.Parameter, nn.Parameter]]
    """By convolution, its new weight and bias."""
    why: dict[nn.Module, str]
    """By BatchNorm or layer that stays, the reason."""

    def put_in(self) -> None:
        """Give the convolutions their new weights and biases."""
        for convolution, (weight, bias) in self.convolutions.items():
            convolution.weight, convolution.bias = weight, bias

    def text(self, found: Iterable[Found]) -> str:
        """Return the report."""
        norms = [entry for entry in found if finding.is_norm(entry.module)]
        left = [f"{entry.title}: left, {self.why[entry.module]}" for entry in norms if entry.module in self.why]
        return "\n".join(
            [f"{len(norms)} normalizations: {len(self.instead)} folded into the convolution before", *left]
        )


def find(model: nn.Module, folded: Mapping[nn.Module, Line | None]) -> Pairs:
    """Return which BatchNorms go into convolutions, once some layers have been folded.

    Args:
        model: The network before the fold; it stays as it is.
        folded: The layers that become plain, and the lines that they compute.
    """
    calls, forwards = _calls(model)
    shared = sources.tied(model)
    pairs = Pairs({}, {}, {})
    for entry in finding.find_norms(model):
        norm = entry.module
        if isinstance(norm, CalibratedNorm) and norm not in folded:
            pairs.why[norm] = "is calibrated"
            continue
        before = _convolution(norm, calls, forwards, shared)
        if isinstance(before, str):
            pairs.why[norm] = before
            continue
        plain: Any = plain_copy(norm, folded[norm]) if isinstance(norm, CalibratedNorm) else norm
        batchnorm = finding.batchnorm_of(plain)
        if batchnorm.running_mean is None:
            pairs.why[norm] = "keeps no running statistics"
            continue
        pairs.convolutions[before] = _fused(before, batchnorm)
        pairs.instead[norm] = _after(plain, norm.training)
    return pairs


class _Called(NamedTuple):
    node: fx.Node
    within: nn.Module


def _calls(model: nn.Module) -> tuple[dict[nn.Module, list[_Called]], dict[nn.Module, str]]:
    """Return the calls of every module in forwards that can be followed; by norm, why the nearest other one cannot."""
    calls: dict[nn.Module, list[_Called]] = {}
    why: dict[nn.Module, str] = {}
    inside = {m for entry in finding.find_norms(model) for m in entry.module.modules()}
    for name, module in model.named_modules():
        if module in inside or not any(inner in inside for inner in module.modules()):
            continue
        try:
            graph = tracing.follow(module).graph
        except tracing.Untraceable as error:
            reason = f"the forward of {name or 'the model'} ({type(module).__name__}) {error}"
            why |= {norm.module: reason for norm in finding.find_norms(module)}
            continue
        for node in graph.nodes:
            if node.op == "call_module":
                calls.setdefault(module.get_submodule(str(node.target)), []).append(_Called(node, module))
    return calls, why


def _convolution(
    norm: nn.Module, calls: Mapping[nn.Module, list[_Called]], untraced: Mapping[nn.Module, str], shared: set[int]
) -> Any:
    """Return the convolution whose output a norm alone takes, or the reason why there is none."""
    if why := finding.refusal(norm):
        return why
    if norm not in calls:
        return untraced.get(norm, "no forward that could be followed calls it")
    if len(calls[norm]) > 1:
        return f"is called {len(calls[norm])} times"
    (call,) = calls[norm]
    source = call.node.args[0] if len(call.node.args) == 1 and not call.node.kwargs else None
    module = (
        call.within.get_submodule(str(source.target))
        if isinstance(source, fx.Node) and source.op == "call_module"
        else None
    )
    if not isinstance(module, _ConvNd):
        return "does not follow a convolution"
    kind = type(module).__name__
    if not _is_plain(module):
        return f"follows a {kind}, whose forward is not torch's, or which computes its weight"
    if isinstance(module, _ConvTransposeNd) and module.groups > 1:
        return f"follows a {kind} with groups"
    if len(calls[module]) > 1 or len(source.users) > 1:  # type: ignore[union-attr]
        return "follows a convolution whose output is used elsewhere, too"
    if any(id(p) in shared for p in module.parameters()):
        return "follows a convolution that shares its weight with another"
    if has_hooks(module) or has_hooks(norm) or has_hooks(finding.batchnorm_of(norm)):
        return "has hooks, or follows a convolution that has, which would see another output"
    return module


def _is_plain(module: nn.Module) -> bool:
    """Whether a convolution does nothing with its weight and bias but convolve: torch's, and timm's that pads first."""
    kind = type(module)
    known = kind.forward in FORWARDS or (kind.__name__ == "Conv2dSame" and kind.__module__.startswith("timm."))
    return known and "forward" not in vars(module) and {"weight", "bias"} <= module._parameters.keys()


@torch.no_grad()
def _fused(convolution: Any, batchnorm: Any) -> tuple[nn.Parameter, nn.Parameter]:
    """Return weight and bias of a convolution that does what it and the BatchNorm behind it do in evaluation."""
    mean, var = batchnorm.running_mean.double(), batchnorm.running_var.double()  # rounded once, at the end
    bias, transposed = convolution.bias, isinstance(convolution, _ConvTransposeNd)
    return fuse_conv_bn_weights(
        convolution.weight, bias, mean, var, batchnorm.eps, batchnorm.weight, batchnorm.bias, transposed
    )


def _after(plain: Any, training: bool) -> nn.Module:
    """Return what is left of a plain layer: its dropout and its activation, or nothing."""
    carries = isinstance(plain, CalibratedNorm) or finding.has_act(plain) or children.is_split(plain)
    steps = [getattr(plain, name, None) for name in ("drop", "act")] if carries else []
    modules = [nn.ReLU() if step == "relu" else step for step in steps if step is not None]
    modules = [module for module in modules if not isinstance(module, nn.Identity)]
    after = nn.Identity() if not modules else modules[0] if len(modules) == 1 else nn.Sequential(*modules)
    return after.train(training)

"""The hooks of a child ``bn``, run around what the layer does in its place, as torch runs them around a call.

Tools find a BatchNorm by its class and put hooks on it. The layer does the child's work and never calls it, so it runs
these hooks itself, and those that torch runs for every module.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any

from torch import Tensor, nn
from torch.nn.modules import module as calls
from torch.nn.utils.prune import BasePruningMethod
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm
from torch.utils.hooks import BackwardHook

COMPUTE_WEIGHT = (BasePruningMethod, SpectralNorm, WeightNorm)
"""Hooks that compute the child's weight: part of reading the child, also where nobody runs a forward."""


def has_hooks(module: nn.Module) -> bool:
    """Whether the module has hooks, or every module has, which would miss a call that is not made."""
    held = module.__dict__  # an attribute takes five times as long, and every forward asks
    return bool(
        held["_forward_hooks"]
        or held["_forward_pre_hooks"]
        or held["_backward_hooks"]
        or held["_backward_pre_hooks"]
        or calls._global_forward_hooks
        or calls._global_forward_pre_hooks
        or calls._global_backward_hooks
        or calls._global_backward_pre_hooks
    )


def call(child: Any, x: Tensor, compute: Callable[[Tensor], Tensor], seen: Tensor, where: str) -> Tensor:
    """Return ``compute(x)``, run between the hooks of the child.

    Args:
        child: The module that the hooks take for the one that is called.
        x: The layer's input.
        compute: What the layer does with its input.
        seen: The input as hooks see it, whose statistics the child keeps.
        where: The layer, for messages.

    Raises:
        RuntimeError: A pre-hook replaces ``seen`` where that is not the layer's input.
    """
    args: tuple[Any, ...] = (seen,)
    for key, hook in (*calls._global_forward_pre_hooks.items(), *child._forward_pre_hooks.items()):
        if isinstance(hook, COMPUTE_WEIGHT):
            continue
        with_kwargs = key in child._forward_pre_hooks_with_kwargs
        given = hook(child, args, {}) if with_kwargs else hook(child, args)
        if given is not None:
            args = (given[0] if with_kwargs else given) if isinstance(given, tuple) else (given,)
    if args[0] is not seen:
        if seen is not x:
            raise RuntimeError(
                f"{where}: a forward pre-hook of its child `bn` replaces the input, which the layer has centred by "
                "then; put that hook on the layer itself"
            )
        x = args[0]
    backward, of_nodes = child._get_backward_hooks()
    before_backward = child._get_backward_pre_hooks()
    watch: Any = BackwardHook(child, backward, before_backward) if backward or before_backward else None
    if watch is not None:
        (x,) = watch.setup_input_hook((x,))
    left = {**calls._global_forward_hooks, **child._forward_hooks}
    y = None
    try:
        y = compute(x)
        for key in list(left):
            given = _forward_hook(child, key, left.pop(key), args, y)
            y = y if given is None else given
    except Exception:
        for key, hook in left.items():
            if key in child._forward_hooks_always_called or key in calls._global_forward_hooks_always_called:
                with suppress(Exception):
                    _forward_hook(child, key, hook, args, y)
        raise
    if watch is not None:
        y = watch.setup_output_hook(y)
    if of_nodes and isinstance(y, Tensor) and y.grad_fn is not None:
        for hook in of_nodes:
            y.grad_fn.register_hook(calls._WrappedHook(hook, child))
    return y


def _forward_hook(child: Any, key: int, hook: Callable[..., Any], args: tuple[Any, ...], y: Any) -> Any:
    """Run one forward hook; return what it puts in the place of y, or None."""
    if key in child._forward_hooks_with_kwargs or key in calls._global_forward_hooks_with_kwargs:
        return hook(child, args, {}, y)
    return hook(child, args, y)

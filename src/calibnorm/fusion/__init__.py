"""``relu(norm(x))`` and ``relu(norm(x) + residual)`` of a network, each in one call: ``cn.fuse``.

Nothing but forwards changes. Every module's own forward is traced by torch.fx with its children as leaves
(``tracing``), the patterns are found in the graph (``matching``), and the module's class becomes a subclass of itself
whose forward is the traced one with the fused calls in it (``rewiring``). Layers, names, parameters, hooks and the
state dict stay.

Every assumption is checked again where it is used: a fused call makes the calls that it stands for one by one where a
layer has been replaced or is watched by a hook (``calls``), and a module whose settings or children have changed, or
that is compiled, traced or exported, runs its original forward. So a network's function holds whatever happens later.
"""

from __future__ import annotations

from calibnorm.fusion.fusing import fuse

__all__ = ["fuse"]

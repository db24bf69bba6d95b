"""A network's norm -> ReLU and norm -> add -> ReLU, each in one layer: ``cn.fuse`` rewires, ``cn.unfuse`` undoes.

The plan:

1. **Find by torch.fx, one forward at a time** (``tracing``, ``matching``). Every module's own forward is traced with
   its children as leaves, so that a network whose outer forward cannot be traced still has blocks that can. What
   depends on the mode, on grad mode or on the type of the input shows as several graphs. A forward that draws random
   numbers, changes the module, switches grad mode or autocast, or branches on values is not followed.
2. **Rewire in place** (``rewiring``, ``forwards``). A ReLU module that serves nothing else becomes a pass-through, and
   its norm gets ``act="relu"``. Where the ReLU is a function or one instance serves several places, or a residual must reach
   the norm, the instance's class becomes a subclass of its own class whose forward is the traced one with the fused
   calls in it. The module tree, names, hooks, modes, ``isinstance``, deepcopy and pickle stay. The network is never
   turned into one flat graph.
3. **Leave what is not understood** and say why: a norm with hooks, one used twice or shared, DropPath or attention
   between norm and add, an addition into a tensor that others may hold, SyncBatchNorm, GraphModules, compiled parts.
4. **Checkpoints do not change.** A plain BatchNorm becomes the child of a ``cn.BN2d``, whose state dict goes on having
   plain BatchNorm's keys; the marker ``layer.fused`` says what ``cn.unfuse``, ``cn.convert``, ``cn.revert`` and
   ``cn.plan`` need: fusion is a matter of how a network runs, and no part of a plan.
"""

from __future__ import annotations

from calibnorm.fusion.fusing import fuse, unfuse
from calibnorm.fusion.report import FusionReport

__all__ = ["FusionReport", "fuse", "unfuse"]

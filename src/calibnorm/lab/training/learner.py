"""What learns: a network with its optimizer and the average of its weights, and a step of them."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any, Generic, TypeVar, cast

import torch
import torch.distributed as dist
from lightning.fabric import Fabric
from torch import Tensor, nn

import calibnorm as cn
from calibnorm.errors import Setting, UsageError
from calibnorm.lab.recipes import Recipe
from calibnorm.lab.tasks import Feeds, Network, Task
from calibnorm.lab.training.average import Average
from calibnorm.lab.training.clock import Clock
from calibnorm.lab.training.seeds import derive
from calibnorm.nn import CalibratedNorm

Batch = TypeVar("Batch")


MOMENTA = {"momentum_buffer", "exp_avg", "exp_avg_sq", "max_exp_avg_sq"}
"""What torch's optimizers hold of a parameter, in its shape."""


def initial_network(task: Task[Batch], feeds: Feeds[Batch]) -> nn.Module:
    """Return the task's network with initial weights that the seed alone determines, equal for all norms."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive(task.recipe.seed, "weights"))
        return task.network(feeds)


class Learner(Generic[Batch]):
    """A network, its optimizer, and what a checkpoint must hold of both.

    Args:
        task: What it learns.
        fabric: Device, processes and precision.
        bare: The network as `initial_network` returned it; trained in place.
    """

    def __init__(self, task: Task[Batch], fabric: Fabric, bare: nn.Module) -> None:
        recipe = task.recipe
        self.task, self.recipe, self.fabric, self.bare = task, recipe, fabric, bare
        self.parameters = sum(p.numel() for p in bare.parameters() if p.requires_grad)
        self.synchronized = fabric.world_size > 1 and recipe.sync_statistics
        self._wrapped = synchronizable(bare) if self.synchronized and fabric.device.type == "cpu" else []
        if recipe.channels_last:
            bare.to(memory_format=torch.channels_last)
        # Fabric takes the compilation off, wraps for its processes, and compiles again.
        module = cast("nn.Module", torch.compile(bare)) if recipe.compile else bare
        self.network, self.optimizer = fabric.setup(module, task.optimizer(bare))
        if self.synchronized:
            # After the wrapping: DDP refuses SyncBatchNorm on a CPU, though ours runs there (docs/distributed.md).
            nn.SyncBatchNorm.convert_sync_batchnorm(bare)  # type: ignore[no-untyped-call]
        self.average = None if recipe.ema is None else Average(bare, recipe.ema)

    def set_rate(self, rate: float) -> None:
        """Set the learning rate of the next step."""
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group.get("lr_scale", 1.0)

    def step(self, batch: Batch, clock: Clock) -> tuple[Tensor, Tensor]:
        """Update the weights by a batch; return its loss () and sums as `Task.loss` does, without history."""
        recipe = self.recipe
        loss, sums = self.task.loss(self._laid_out(self.network), batch)
        clock.mark()
        self.fabric.backward(loss)
        clock.mark()
        if recipe.clip_norm is not None:
            # A gradient that overflows in float16 is no error: the scaler passes over that step.
            self.fabric.clip_gradients(
                self.network, self.optimizer, max_norm=recipe.clip_norm, error_if_nonfinite=False
            )
        self.optimizer.step()
        self.optimizer.zero_grad()
        if self.average is not None:
            self.average.update()
        return loss.detach(), sums

    def before_tests(self) -> None:
        """Switch to evaluation; where processes keep their own statistics, all of them test with those of process 0.

        As under DDP, which copies process 0's buffers to the others before each forward: a mean would add the others'
        last batch. They are also all that a checkpoint holds, so that a resumed run tests the same network.
        """
        if self.fabric.world_size > 1 and not self.synchronized:
            for buffer in self.tested.buffers():
                dist.broadcast(buffer, 0)
        self.network.eval()
        self.tested.eval()

    @property
    def tested(self) -> nn.Module:
        """The network that is tested: the average of the weights where there is one."""
        return self.bare if self.average is None else self.average.module

    def call_tested(self, *inputs: Any) -> Any:
        """Call the tested network in the run's precision; it is never compiled, as the last batch has another size."""
        with self.fabric.autocast():
            return self._laid_out(self.tested)(*inputs)

    def _laid_out(self, network: Network) -> Network:
        """Return the network for inputs of any memory layout: those of four dimensions get the recipe's."""
        return (lambda *inputs: network(*map(channels_last, inputs))) if self.recipe.channels_last else network

    def finite(self) -> bool:
        """Return whether every weight, statistic and momentum is a number."""
        tensors = [t for t in self.bare.state_dict().values() if t.is_floating_point()]
        tensors += [v for state in self.optimizer.state.values() for v in state.values() if isinstance(v, Tensor)]
        return bool(torch.stack([t.isfinite().all() for t in tensors]).all())  # one wait for the device

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint holds, by the names of `initial_network`'s, whatever the number of processes is."""
        average = self.average
        return {
            "network": unwrapped(self.bare.state_dict(), self._wrapped),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.fabric.strategy.precision.state_dict(),
            "average": average
            and {"updates": average.updates, "network": unwrapped(average.module.state_dict(), self._wrapped)},
        }

    def weights(self) -> dict[str, Tensor]:
        """Return the tested network's state, for `initial_network`'s on a machine of any kind."""
        state = unwrapped(self.tested.state_dict(), self._wrapped)
        state.update({name: value.cpu() for name, value in state.items()})
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go back to what `state_dict` returned; the optimizer's settings stay those of the recipe."""
        self.bare.load_state_dict(state["network"])
        settings = [{k: v for k, v in group.items() if k != "params"} for group in self.optimizer.param_groups]
        self.optimizer.load_state_dict(state["optimizer"])
        for parameter, own in self.optimizer.state.items():
            for name in MOMENTA & own.keys():
                if own[name] is not None and own[name].shape != parameter.shape:
                    raise ValueError(f"{name} is of shape {[*own[name].shape]} for one of {[*parameter.shape]}")
        for group, own in zip(self.optimizer.param_groups, settings, strict=True):
            group.update(own)
        self.fabric.strategy.precision.load_state_dict(state["scaler"])
        if self.average is not None:
            if state["average"] is None:
                raise ValueError("it has no average of the weights")
            self.average.module.load_state_dict(state["average"]["network"])
            self.average.updates = state["average"]["updates"]


def channels_last(value: Any) -> Any:
    """Return images (N, C, H, W) with their channels last in memory, and anything else as it is."""
    four = isinstance(value, Tensor) and value.ndim == 4
    return value.contiguous(memory_format=torch.channels_last) if four else value


def check_statistics(recipe: Recipe, network: nn.Module, processes: int) -> None:
    """Raise UsageError for ghost batches in several processes: their statistics cannot be those of all of them."""
    ghosts = (m for m in network.modules() if isinstance(m, CalibratedNorm) and m.method.ghost_size is not None)
    if processes > 1 and recipe.sync_statistics and any(ghosts):
        reason = f"ghost batches are small on purpose, and statistics of {processes} processes are not; add "
        remedy = (Setting("sync_statistics", False), ", and each process has ghost batches of its own")
        raise UsageError(Setting("norm", recipe.norm), reason, *remedy)


def synchronizable(network: nn.Module) -> list[str]:
    """Make the plain BatchNorm layers of a network ours: torch's SyncBatchNorm does not run on a CPU.

    Returns:
        The names of those layers. Their state has other names now, but they also load what they were.
    """
    before = {name for name, module in network.named_modules() if isinstance(module, CalibratedNorm)}
    owned = {id(child) for name in before for child in network.get_submodule(name).modules()}
    if any(isinstance(m, nn.BatchNorm2d) and id(m) not in owned for m in network.modules()):
        cn.convert(network, "bn", where=lambda name, module: id(module) not in owned)
    after = network.named_modules(remove_duplicate=False)
    return [name for name, module in after if isinstance(module, CalibratedNorm) and name not in before]


def unwrapped(state: dict[str, Any], wrapped: Sequence[str]) -> dict[str, Any]:
    """Return a network's state by the names from before `synchronizable`, which returned ``wrapped``."""
    if not wrapped:
        return state
    plain = {f"{name}.bn": name for name in wrapped}
    named: dict[str, Any] = OrderedDict()
    for name, value in state.items():
        layer, _, tensor = name.rpartition(".")
        named[f"{plain.get(layer, layer)}.{tensor}" if layer else tensor] = value
    versions = state._metadata  # type: ignore[attr-defined]  # of each layer's state, as torch keeps them
    kept = {plain.get(name, name): version for name, version in versions.items() if name not in wrapped}
    named._metadata = kept  # type: ignore[attr-defined]
    return named

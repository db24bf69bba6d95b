"""The average of the weights: torch's own to the bit, without its waiting."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils._python_dispatch import TorchDispatchMode

from calibnorm.lab.training.average import Average
from lab.training import tiny
from lab.training.tiny import TINY

RECIPE = replace(TINY, norm="rbn", ema=0.75)


def move(network: nn.Module) -> None:
    """Change everything, as a step does."""
    for tensor in (*network.parameters(), *network.buffers()):
        tensor.data += torch.randn(tensor.shape).to(tensor.dtype) if tensor.is_floating_point() else 1


def test_it_is_torchs_average_to_the_bit_and_counters_are_copied() -> None:
    torch.manual_seed(0)
    network = tiny.network(RECIPE)
    ours = Average(network, 0.75)
    theirs = AveragedModel(network, multi_avg_fn=get_ema_multi_avg_fn(0.75), use_buffers=True)
    for _ in range(4):
        move(network)
        ours.update()
        theirs.update_parameters(network)
    expected, now = theirs.module.state_dict(), network.state_dict()
    assert list(ours.module.state_dict()) == list(expected)
    for name, value in ours.module.state_dict().items():
        assert torch.equal(value, (expected if value.is_floating_point() else now)[name]), name
        assert not value.is_floating_point() or not torch.equal(value, now[name]), name


def test_a_step_moves_it_by_one_call_and_asks_no_device_for_anything() -> None:
    class Calls(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            seen.append(func.overloadpacket.__name__)
            return func(*args, **(kwargs or {}))

    seen: list[str] = []
    learner = tiny.learner(RECIPE)
    assert learner.average is not None
    for expected in (["_foreach_copy_", "_foreach_copy_"], ["_foreach_lerp_", "_foreach_copy_"]):
        seen.clear()
        with Calls():
            learner.average.update()
        assert seen == expected


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_no_step_of_a_gpu_waits_for_it() -> None:
    network = tiny.network(RECIPE).cuda()
    average = Average(network, 0.75)
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(2):
            average.update()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    for ours, theirs in zip(average.module.parameters(), network.parameters(), strict=True):
        assert torch.equal(ours, theirs)

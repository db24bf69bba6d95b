"""A module that is called again and again as it is now, whatever its calls change."""

from __future__ import annotations

import random
from types import TracebackType
from typing import Self

import torch
from torch import nn

from calibnorm.networks.finding import like


class Held:
    """Lets every call of a module meet the same buffers and the same random numbers, while the context is open.

    So running statistics, dropout masks and dropped paths are those of now in every call. The module works on copies of
    its buffers; its own, and the random states of Python, the CPU and its device, are back at the end, whatever
    happens.

    Args:
        module: The network, or a layer.
    """

    def __init__(self, module: nn.Module) -> None:
        owned = [(part._buffers, name, buffer) for part in module.modules() for name, buffer in part._buffers.items()]
        self._places = [(place, name, buffer) for place, name, buffer in owned if buffer is not None]
        self._own = [buffer for _, _, buffer in self._places]
        self._copies = [buffer.clone() for buffer in self._own]
        tensor = like(module)
        self._gpu = None if tensor is None or tensor.device.type != "cuda" else tensor.device
        self._random = random.getstate(), torch.get_rng_state()
        self._random_of_gpu = None if self._gpu is None else torch.cuda.get_rng_state(self._gpu)

    @torch.no_grad()
    def again(self) -> None:
        """Begin a call: put everything back."""
        if self._own:
            torch._foreach_copy_(self._copies, self._own)
        for (place, name, _), copy in zip(self._places, self._copies, strict=True):
            place[name] = copy  # a module may have put another tensor there
        random.setstate(self._random[0])
        torch.set_rng_state(self._random[1])
        if self._gpu is not None and self._random_of_gpu is not None:
            torch.cuda.set_rng_state(self._random_of_gpu, self._gpu)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.again()
        for place, name, buffer in self._places:
            place[name] = buffer

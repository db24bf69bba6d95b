"""What a layer reads through to its child ``bn``: nothing of a BatchNorm is kept twice."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from calibnorm.nn import child as children


class BatchNormOwner(nn.Module):
    """Shows gamma, beta, eps and momentum of the child ``bn`` as its own; setting them sets the child's.

    A loop over ``modules()`` that asks for ``m.weight`` meets gamma here and at the child: an optimizer that is made so
    has it twice. Ask every module for its ``named_parameters(recurse=False)``, or use ``cn.param_groups``.
    """

    bn: nn.Module

    @property
    def num_features(self) -> int:
        """C, as the child has it."""
        return children.num_features(self._modules["bn"])

    @property
    def weight(self) -> Tensor | None:
        """The child's gamma, (C,)."""
        return self.bn.weight  # type: ignore[return-value]

    @property
    def bias(self) -> Tensor | None:
        """The child's beta, (C,)."""
        return self.bn.bias  # type: ignore[return-value]

    def __getattr__(self, name: str) -> Any:
        """Say of what tools that fold a BatchNorm into a convolution ask for why it is not here."""
        if name in ("running_mean", "running_var"):
            raise AttributeError(
                f"{type(self).__name__!r} object has no attribute {name!r}: that belongs to its child `bn`. A layer "
                "whose gate depends on the image cannot be folded into a convolution; first call cn.revert(model), "
                "which is exact while the gates are constant (with lossy=True the gates of an average image stay), or "
                "cn.fold(model, images, into_convolutions=True)"
            )
        return super().__getattr__(name)

    def __setattr__(self, name: str, value: Any) -> None:
        """Hand gamma and beta through to the child; a property alone cannot, since nn.Module takes parameters first."""
        if name in ("weight", "bias"):
            setattr(self.bn, name, value)
        else:
            super().__setattr__(name, value)

    @property
    def eps(self) -> float:
        """The child's eps."""
        return self.bn.eps  # type: ignore[return-value]

    @eps.setter
    def eps(self, value: float) -> None:
        self.bn.eps = value  # type: ignore[assignment]

    @property
    def momentum(self) -> float | None:
        """The child's momentum."""
        return self.bn.momentum  # type: ignore[return-value]

    @momentum.setter
    def momentum(self, value: float | None) -> None:
        self.bn.momentum = value  # type: ignore[assignment]

    @property
    def affine(self) -> bool:
        """Whether the child has gamma."""
        return self.weight is not None

    @property
    def track_running_stats(self) -> bool:
        """Whether the child keeps running statistics."""
        return bool(getattr(self.bn, "track_running_stats", True))

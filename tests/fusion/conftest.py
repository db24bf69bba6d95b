"""What the tests of fusing share; plain BatchNorm is fused at the sizes that make quick tests, too."""

from __future__ import annotations

import pytest

from calibnorm.fusion import calls
from fusion.helpers import calls_of


@pytest.fixture(autouse=True)
def small_planes_too(monkeypatch):
    monkeypatch.setattr(calls, "SMALLEST", 1)


@pytest.fixture
def done(monkeypatch):
    """The fused calls that ran at once, as they come."""
    return calls_of(monkeypatch)

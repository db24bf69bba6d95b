"""Plain BatchNorm is fused at the sizes that make quick tests, too."""

from __future__ import annotations

import pytest

from calibnorm.fusion import calls


@pytest.fixture(autouse=True)
def small_planes_too(monkeypatch):
    monkeypatch.setattr(calls, "SMALLEST", 1)

"""The classes of methods that users registered: here, by name, so that their layers pickle."""

from __future__ import annotations

from typing import Any


def __getattr__(name: str) -> Any:
    """Say what is missing: whoever unpickles a layer must have registered its method."""
    if not name[:1].isupper():  # no class: somebody only looks
        raise AttributeError(name)
    # Not an AttributeError, whose text pickle replaces by its own.
    raise ImportError(f"{name} is not registered in this process; import what calls cn.register_method first")

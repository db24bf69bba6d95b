"""The names of folders: what may be one, and how settings become one.

A comparison and a table have a folder for each condition and in it one for each norm, such as ``noise_0.5,0.2/iebn``
(``slug``); a run that is trained by itself has one, such as ``iebn-noise0.5,0.2-seed3`` (``slug`` with "-"). Runs that
are on people's disks are found again by these names, so they never change.
"""

from __future__ import annotations

import re

from calibnorm.errors import Setting, UsageError

_PLAIN = re.compile(r"[A-Za-z0-9_][\w.,=+-]*")


def slug(text: str, mark: str = "_") -> str:
    """Return a text as a folder's name, without what shells and file systems treat in a way of their own.

    Args:
        text: Such as a norm with its options.
        mark: What stands for such a character; parentheses go without one.

    >>> slug("iebn:init=(0,-1)"), slug("noise 0.5,0.2"), slug("bn:gamma_init=0.269", "-")
    ('iebn_init=0,-1', 'noise_0.5,0.2', 'bn-gamma_init=0.269')
    """
    return re.sub(r"[^\w.,=+-]", mark, re.sub(r"[()]", "", text))


def check_name(name: str) -> str:
    """Return what ``--name`` gave where it is a single plain folder; raise UsageError for others, such as "../x"."""
    if not _PLAIN.fullmatch(name):
        reason = "must begin with a letter or digit and hold letters, digits and _ . , = + - alone; "
        raise UsageError(Setting("name", name), reason, Setting("out"), " takes a path")
    return name

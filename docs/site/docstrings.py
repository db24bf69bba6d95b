"""What the docstrings of the package are on the site: Markdown, links between names, and equations as MathML."""

from __future__ import annotations

import inspect
import re
from pathlib import Path
from typing import Any

import griffe
from latex2mathml.converter import convert

import calibnorm
from calibnorm.nn import CalibratedNorm

SHOWN = set(re.findall(r"^::: (\S+)", (Path(__file__).parents[1] / "api.md").read_text(encoding="utf-8"), re.MULTILINE))
"""What has an entry, and can be linked to."""


def markdown(text: str) -> str:
    r"""Return a docstring's text as Markdown.

    >>> markdown("See :func:`calibnorm.convert` and :func:`calibnorm.no_name`::")
    'See [`calibnorm.convert`][calibnorm.convert] and `calibnorm.no_name`:'
    >>> print(markdown("Text.\n\n>>> 1\n1\n\nMore."))
    Text.
    <BLANKLINE>
    ```pycon
    >>> 1
    1
    ```
    <BLANKLINE>
    More.
    """
    text = re.sub(r":math:`([^`]*)`", lambda found: _equation(" ".join(found[1].split())), text)
    text = re.sub(r":(?:class|func|meth|mod):`~?([^`]*)`", lambda found: _linked(found[1]), text)
    text = re.sub(r"::(?=\n|$)", ":", text)
    return re.sub(
        r"^(?P<indent> *)>>> (?:.*\n?)(?:(?P=indent)\S.*\n?|(?P=indent) +.*\n?)*", _fenced, text, flags=re.MULTILINE
    )


def _equation(tex: str) -> str:
    return f'<span class="equation">{convert(tex)}</span>'  # a box that can be scrolled on narrow screens


def _linked(name: str) -> str:
    return f"[`{name}`][{name}]" if name in SHOWN else f"`{name}`"


def _fenced(example: re.Match[str]) -> str:
    indent = example["indent"]
    return f"{indent}```pycon\n{example[0].rstrip()}\n{indent}```\n"


class Docstrings(griffe.Extension):
    """Reads the layers' arguments and text where they are made, and turns every docstring into Markdown."""

    def on_package(self, *, pkg: griffe.Module, **_: Any) -> None:
        """Give the layers what their constructors take."""
        for name in calibnorm.__all__:
            layer = getattr(calibnorm, name)
            if isinstance(layer, type) and issubclass(layer, CalibratedNorm):
                shown = pkg[f"{layer.__module__}.{name}".removeprefix("calibnorm.")]
                shown.docstring = griffe.Docstring(inspect.getdoc(layer) or "", parent=shown)
                arguments = inspect.signature(layer.__init__).parameters.values()
                shown["__init__"] = griffe.Function(
                    "__init__", parameters=griffe.Parameters(*map(_parameter, arguments))
                )
        for found in _documented(pkg):
            assert found.docstring is not None
            found.docstring.value = markdown(found.docstring.value)


def _parameter(argument: inspect.Parameter) -> griffe.Parameter:
    default = None if argument.default is argument.empty else repr(argument.default)
    annotation = None if argument.annotation is argument.empty else str(argument.annotation)
    kind = griffe.ParameterKind(argument.kind.description)
    return griffe.Parameter(argument.name, annotation=annotation, kind=kind, default=default)


def _documented(found: Any) -> Any:
    if found.is_alias:
        return
    if found.docstring is not None:
        yield found
    for member in found.members.values():
        yield from _documented(member)

"""Pictures side by side with names above and beside them: what a table of photographs is."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING

from torch import Tensor

from calibnorm.report.files import png

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TILE = 1.25
"""Width of a tile in inches."""


@dataclass(frozen=True)
class Mosaic:
    """Pictures in rows and columns.

    Args:
        columns: Their names.
        rows: By name, a picture (3, H, W) in uint8 for every column, all of one size; None where there is none.
    """

    columns: Sequence[str]
    rows: Mapping[str, Sequence[Tensor | None]]

    def figure(self) -> Figure:
        """Return it as a figure of matplotlib, which is imported then."""
        from matplotlib.figure import Figure

        across, deep = len(self.columns), len(self.rows)
        made = Figure(figsize=(TILE * across + 0.3, TILE * deep + 0.3), layout="constrained")
        made.get_layout_engine().set(w_pad=0.01, h_pad=0.01, wspace=0, hspace=0)  # type: ignore[union-attr, call-arg]
        grid = made.subplots(deep, across, squeeze=False)
        for first, (name, tiles) in zip(grid, self.rows.items(), strict=True):
            for axes, tile in zip(first, tiles, strict=True):
                axes.set(xticks=[], yticks=[])
                axes.spines[:].set_visible(False)
                if tile is not None:
                    axes.imshow(tile.permute(1, 2, 0).numpy(), interpolation="lanczos")
            first[0].set_ylabel(name, fontsize="small")
        for axes, name in zip(grid[0], self.columns, strict=True):
            axes.set_title(name, fontsize="small")
        return made

    def html(self) -> str:
        """Return it as a table for a page, with the pictures in it."""
        head = "".join(f'<th scope="col">{escape(name)}</th>' for name in ("", *self.columns))
        body = "".join(self._row(name, tiles) for name, tiles in self.rows.items())
        box = '<div class="box" role="region" tabindex="0" aria-label="pictures">'
        return f'{box}<table class="mosaic"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'

    def _row(self, name: str, tiles: Sequence[Tensor | None]) -> str:
        cells = [f'<th scope="row">{escape(name)}</th>']
        for column, tile in zip(self.columns, tiles, strict=True):
            data = "" if tile is None else base64.b64encode(png(tile)).decode()
            says = escape(f"{column}, {name}")
            cells.append(f'<td><img alt="{says}" src="data:image/png;base64,{data}"></td>' if data else "<td></td>")
        return f"<tr>{''.join(cells)}</tr>"

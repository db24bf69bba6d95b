"""Whether the mean of a 1x1 convolution's output is better taken from the mean of its input.

python docs/results/deployment/means.py        ResNet-50's widening convolutions, one image, one thread

The mean of the output is the weight times the mean of the input, which has a quarter of the channels. So a layer behind
such a convolution could leave out its own first reading. The table has, in microseconds of processor time (medians of
calls in turns): the convolution, BatchNorm and IEBN behind it in evaluation, and the mean taken either way.
"""

from __future__ import annotations

import torch
from measure import ProcessorClock, nothing
from torch import nn

import calibnorm as cn
from calibnorm.bench.clock import measure
from calibnorm.report import screen
from calibnorm.report.document import Document, Section, Table

REPEATS = 300


def row(narrow: int, size: int) -> dict[str, float | str]:
    """Return the times behind one convolution."""
    wide, pixels = 4 * narrow, (2, 3)
    conv, plain, layer = nn.Conv2d(narrow, wide, 1, bias=False), nn.BatchNorm2d(wide).eval(), cn.IEBN2d(wide).eval()
    x = torch.randn(1, narrow, size, size)
    y, weight = conv(x), conv.weight.flatten(1).T.contiguous()
    torch.testing.assert_close(x.mean(pixels) @ weight, y.mean(pixels), rtol=1e-4, atol=1e-5)
    calls = {
        "convolution": lambda: conv(x),
        "BatchNorm": lambda: plain(y),
        "IEBN": lambda: layer(y),
        "mean of the output": lambda: y.mean(pixels),
        "mean of the input, product": lambda: x.mean(pixels) @ weight,
    }
    times = measure({name: (nothing, call) for name, call in calls.items()}, ProcessorClock(), REPEATS)
    found = {name: round(1000 * times[name].quantiles[1], 1) for name in calls}
    return {"input": f"{narrow}x{size}x{size}", "output": f"{wide}x{size}x{size}"} | found


if __name__ == "__main__":
    torch.set_num_threads(1)
    with torch.no_grad():
        rows = [row(64, 56), row(128, 28), row(256, 14), row(512, 7)]
    screen.show(Document("Means behind 1x1 convolutions", [Section("", [Table.of(rows, left=2)])]))

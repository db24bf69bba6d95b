"""The table of a network's normalizations."""

from __future__ import annotations

from torch import nn
from torchvision.ops.misc import FrozenBatchNorm2d

import calibnorm as cn
from conversion.helpers import convert, small


def test_rows_of_a_mixed_network():
    net = convert(small(), "rbn", include="layer1.*", restrict="tanh").train()
    convert(net, "iebn", include="down*", noise=None, operator="fc")
    cn.freeze_stats(net.downsample)
    net.frozen = cn.convert(FrozenBatchNorm2d(4), "iebn", noise=(0.8, 0.5))
    net.plain_frozen = FrozenBatchNorm2d(4)
    net.sync = nn.SyncBatchNorm(4)
    net.bare = cn.BN1d(3, affine=False, track_running_stats=False).eval()
    net.eval_only = nn.BatchNorm3d(2).eval()
    rows = cn.summary(net)
    assert [tuple(row) for row in rows] == [
        ("bn1", "BatchNorm2d", 4, 8, 0, "batch", ""),
        ("layer1.1", "RBN2d", 6, 30, 18, "batch", "restrict='tanh'"),
        ("downsample.1", "IEBN2d", 6, 31, 19, "frozen", "operator='fc'"),
        ("frozen", "IEBN2d", 4, 8, 8, "frozen", "noise=(0.8, 0.5)"),
        ("plain_frozen", "FrozenBatchNorm2d", 4, 0, 0, "frozen", ""),
        ("sync", "SyncBatchNorm", 4, 8, 0, "batch, synchronized", ""),
        ("bare", "BN1d", 3, 0, 0, "batch", ""),
        ("eval_only", "BatchNorm3d", 2, 4, 0, "running", ""),
    ]
    text = str(rows)
    assert repr(rows) == text
    lines = text.splitlines()
    assert len(lines) == len(rows) + 4
    assert lines[-1].split() == ["8", "layers", "89", "45"]
    assert lines[0].split() == ["name", "layer", "channels", "parameters", "gates", "statistics", "options"]
    at = lines[0].index("channels") + len("channels")
    assert all(line[at - 2 : at].strip().isdigit() for line in lines[2:-2]), "numbers are not under their heading"


def test_a_shared_layer_is_one_row_and_a_root_has_a_name():
    net = convert(small(), "iebn")
    net.again = net.bn1
    assert [row.name for row in cn.summary(net)] == ["bn1", "layer1.1", "downsample.1"]
    assert [row.name for row in cn.summary(nn.BatchNorm2d(3))] == ["(model)"]


def test_a_network_without_normalization():
    assert list(cn.summary(nn.Linear(2, 2))) == []
    assert str(cn.summary(nn.Linear(2, 2))).splitlines()[-1].split() == ["0", "layers", "0", "0"]

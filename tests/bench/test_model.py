"""`calibnorm bench model`: tiny networks measured for real, and which networks it has."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import nn
from torch._dynamo.testing import CompileCounter

import calibnorm as cn
from bench.helpers import COLUMNS, CPU, read
from calibnorm.bench import cases, config, model, networks, timings
from lab.calling import main


@pytest.mark.usefixtures("pinned")
def test_model_times_training_steps(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    # timm's smallest: a step of resnet18 takes ten times as long.
    args = ["bench", "model", "--network", "test_resnet", "--batch-size", "2", "--image-size", "32", *CPU]
    args += ["--layouts", "channels_last", "--impls", "cn.RBN2d", "fused:cn.RBN2d"]
    assert main([*args, "--out", str(tmp_path)]) == 0
    rows = read(tmp_path / "model-test_resnet.csv")
    assert list(rows[0]) == COLUMNS
    assert [row["impl"] for row in rows] == ["nn.BatchNorm2d", "cn.RBN2d", "fused:cn.RBN2d"]
    assert [row["shape"] for row in rows] == ["2x3x32x32"] * 3
    assert {row["mode"] for row in rows} == {"training step"}
    for row in rows:
        ratio = float(row["p50_ms"]) / float(rows[0]["p50_ms"])
        assert float(row["ratio_to_bn"]) == pytest.approx(ratio, rel=1e-3)
        assert 0.5 < float(row["peak_mib"]) / float(rows[0]["peak_mib"]) < 1.1
    assert "cn.fuse, test_resnet: " in capsys.readouterr().out


def test_a_model_that_differs_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    def networks(broken: str) -> dict[str, nn.Module]:
        found = {}
        for name in ("nn.BatchNorm2d", "cn.RBN2d"):
            torch.manual_seed(0)
            network = nn.Sequential(nn.Conv2d(3, 10, 3), nn.BatchNorm2d(10), nn.AdaptiveAvgPool2d(1), nn.Flatten())
            if name == broken:
                with torch.no_grad():
                    network[1].bias[0] = math.nan if name == "nn.BatchNorm2d" else 3
            found[name] = network
        return found

    settings = config.ModelConfig(network="resnet18", batch_size=2, image_size=8, impls=("cn.RBN2d",), device="cpu")
    place = timings.Place.here(torch.device("cpu"))
    for broken, timed in (("cn.RBN2d", ["nn.BatchNorm2d"]), ("nn.BatchNorm2d", [])):
        monkeypatch.setattr(model, "networks", lambda *_, broken=broken: networks(broken))
        rows, wrong, _ = model.run_case(settings, place, "float32", "NCHW")
        assert [row.impl for row in rows] == timed
        assert wrong[0].startswith(f"{broken}, resnet18 float32 NCHW: the first loss is ")


def test_a_fused_network_is_held_against_the_unfused_one_too() -> None:
    losses = {"nn.BatchNorm2d": 1.0, "cn.RBN2d": 1.0009, "fused:cn.RBN2d": 0.9995, "fused:cn.IEBN2d": 1.0005}
    assert model.unlike("fused:cn.RBN2d", losses, 1e-3) == "the first loss is 0.999500 instead of 1.000900"
    assert model.unlike("fused:cn.RBN2d", losses, 2e-3) == ""
    assert [model.unlike(name, losses, 1e-3) for name in ("cn.RBN2d", "fused:cn.IEBN2d")] == ["", ""]
    assert "nan" in model.unlike("fused:cn.RBN2d", losses | {"fused:cn.RBN2d": math.nan}, 1.0)


def test_fused_networks_are_fused_and_keep_the_state_dict() -> None:
    settings = config.ModelConfig(network="test_resnet", impls=("fused:nn.BatchNorm2d", "fused:cn.IEBN2d"))
    found = model.networks(settings, [*settings.names(), "cn.IEBN2d"])
    plain = {type(module) for module in found["nn.BatchNorm2d"].modules()}
    for name in ("fused:nn.BatchNorm2d", "fused:cn.IEBN2d"):
        unfused = found[name.removeprefix("fused:")]
        assert {type(module) for module in found[name].modules()} - {type(module) for module in unfused.modules()}
        for (key, tensor), (other, expected_) in zip(
            found[name].state_dict().items(), unfused.state_dict().items(), strict=True
        ):
            assert key == other
            assert torch.equal(tensor, expected_)
    assert nn.BatchNorm2d in plain


def test_resnet164_is_that_of_the_papers() -> None:
    network = networks.NETWORKS["resnet164"]()
    main_path = [m for name, m in network.named_modules() if "downsample" not in name]
    assert sum(isinstance(m, nn.Conv2d | nn.Linear) for m in main_path) == 164
    # The IEBN paper's Table 1, "#P(M)": 1.70 and 1.73 for 10 and 100 classes with BN; with IEBN 1.73 and 1.75.
    count = sum(p.numel() for p in network.parameters())
    hundred = 90 * (256 + 1)
    assert (f"{count / 1e6:.2f}", f"{(count + hundred) / 1e6:.2f}") == ("1.70", "1.73")
    shapes: set[tuple[int, int]] = set()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.register_forward_hook(lambda m, args, y: shapes.add((y.shape[1], y.shape[2])))
    with torch.no_grad():
        assert network.eval()(torch.zeros(1, 3, 32, 32)).shape == (1, 10)
    assert shapes >= set(cases.RESNET164)
    converted = sum(p.numel() for p in cn.convert(network, "iebn").parameters())
    assert (f"{converted / 1e6:.2f}", f"{(converted + hundred) / 1e6:.2f}") == ("1.73", "1.75")


def test_resnet50_is_torchvisions() -> None:
    torchvision = pytest.importorskip("torchvision")
    ours, theirs = networks.NETWORKS["resnet50"]().eval(), torchvision.models.resnet50().eval()
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(ours(x), theirs(x))


def test_image_size_by_network() -> None:
    sizes = [config.ModelConfig(network=name).pixels for name in ("resnet164", "resnet50", "resnet18")]
    assert sizes == [32, 224, 224]
    assert config.ModelConfig(network="resnet164", image_size=64).to_dict()["image_size"] == 64
    assert config.ModelConfig(network="resnet164").to_dict()["image_size"] == 32


@pytest.mark.usefixtures("pinned")
def test_compiled_networks_without_a_compiler(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(model, "compile_problem", lambda: "no compiler")
    settings = config.ModelConfig(network="test_resnet", modes=("compiled",), device="cpu")
    assert model.run_model(settings, timings.Place.here(torch.device("cpu"))) == ([], [], {})
    assert "skipped, compiled networks: no compiler" in capsys.readouterr().out


@pytest.mark.untraced
@pytest.mark.usefixtures("pinned")
def test_compiled_networks(monkeypatch: pytest.MonkeyPatch) -> None:
    counter, compile_ = CompileCounter(), nn.Module.compile
    monkeypatch.setattr(nn.Module, "compile", lambda self, **kwargs: compile_(self, backend=counter, **kwargs))
    monkeypatch.setitem(networks.NETWORKS, "resnet164", lambda: networks.ResNet((1,), 4, 10))
    settings = config.ModelConfig("resnet164", 2, 8, impls=("fused:cn.RBN2d",), modes=("compiled",), device="cpu")
    place = timings.Place.here(torch.device("cpu"))
    rows, wrong, _ = model.run_case(settings, place, "float32", "NCHW", "compiled")
    torch.compiler.reset()
    assert wrong == []
    assert [(row.impl, row.mode) for row in rows] == [
        ("nn.BatchNorm2d", "training step, compiled"),
        ("fused:cn.RBN2d", "training step, compiled"),
    ]
    assert counter.frame_count == 2  # one graph each

"""torch's quantization: layers stay in floating point, and a network that is prepared for it is not converted."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.ao import quantization
from torch.ao.quantization import DeQuantStub, QuantStub, quantize_fx

import calibnorm as cn
from ecosystem.nets import images, stir

# The module is torch's own, and deprecated in favour of a package that torch does not bring.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore:.*quant.*")

METHODS = ["iebn", "rbn", "gn"]
MODES = [False, True]
"""Post-training quantization and training with fake quantization."""


class Stubbed(nn.Sequential):
    """Convolutions and norms with stubs around the norms, as eager quantization wants them around what stays float."""

    def __init__(self, stubs: bool = True) -> None:
        out, back = ([DeQuantStub()], [QuantStub()]) if stubs else ([], [])
        super().__init__(
            QuantStub(),
            nn.Conv2d(3, 8, 3),
            *out,
            nn.BatchNorm2d(8),
            *back,
            nn.ReLU(),
            nn.Conv2d(8, 5, 3),
            DeQuantStub(),
        )


def plain() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 5, 3))


def converted(model: nn.Module, method: str) -> nn.Module:
    cn.convert(model, method)
    return stir(model) if method != "gn" else model


def prepared(model: nn.Module, training: bool) -> nn.Module:
    model.train(training)
    model.qconfig = quantization.get_default_qat_qconfig() if training else quantization.get_default_qconfig()
    return (quantization.prepare_qat if training else quantization.prepare)(model)


def prepared_fx(model: nn.Module, training: bool) -> nn.Module:
    if training:
        return quantize_fx.prepare_qat_fx(model.train(), quantization.get_default_qat_qconfig_mapping(), (images(),))
    return quantize_fx.prepare_fx(model.eval(), quantization.get_default_qconfig_mapping(), (images(),))


def calibrate(model: nn.Module) -> nn.Module:
    for seed in range(4):
        model(images(seed=seed))
    return model.eval()


def assert_close_to(quantized: nn.Module, model: nn.Module) -> None:
    """Eight bits are worth a few hundredths of the range."""
    got, expected = quantized(images()), model.eval()(images())
    assert (got - expected).abs().max() < 0.1 * expected.abs().max()


@pytest.mark.parametrize("training", MODES)
@pytest.mark.parametrize("method", METHODS)
def test_eager_quantization_leaves_the_layer_in_floating_point(method, training):
    torch.manual_seed(0)
    model = converted(Stubbed(), method)
    quantized = quantization.convert(calibrate(prepared(copy.deepcopy(model), training)))
    layer = next(m for m in quantized.modules() if type(m) is type(model[3]))
    assert type(layer.bn) is nn.BatchNorm2d
    assert not layer.bn._forward_hooks
    assert type(quantized[1]) is torch.ao.nn.quantized.Conv2d  # the tool did its work
    if not training:  # where the statistics have moved, the float network is another
        assert_close_to(quantized, model)
    assert quantized(images()).isfinite().all()


@pytest.mark.parametrize("training", MODES)
@pytest.mark.parametrize("method", METHODS)
def test_a_quantized_input_is_refused_with_what_to_put_around(method, training):
    quantized = quantization.convert(calibrate(prepared(converted(Stubbed(stubs=False), method), training)))
    with pytest.raises(TypeError, match=r"input has dtype torch.quint8; put a .*DeQuantStub before.*QuantStub behind"):
        quantized(images())


@pytest.mark.parametrize("training", MODES)
@pytest.mark.parametrize("method", METHODS)
def test_fx_quantization_leaves_the_layer_in_floating_point(method, training):
    torch.manual_seed(0)
    model = converted(plain(), method)
    convert = quantize_fx.convert_fx
    quantized = convert(calibrate(prepared_fx(copy.deepcopy(model), training)))
    assert any(type(m) is type(model[1]) for m in quantized.modules())
    if not training:
        assert_close_to(quantized, model)
    assert quantized(images()).isfinite().all()


@pytest.mark.parametrize("method", METHODS)
def test_a_child_that_was_quantized_alone_is_refused_by_name(method):
    model = converted(plain(), method).eval()
    model[1].bn = torch.ao.nn.quantized.BatchNorm2d(8)
    with pytest.raises(TypeError, match=r"child `bn` is a torch\.ao\..*floating point: set the child's qconfig = None"):
        model(images())


def fused(training: bool) -> nn.Module:
    model = plain().train(training)
    groups = [["0", "1", "2"]]
    return quantization.fuse_modules_qat(model, groups) if training else model


HELD = {
    "prepare": lambda: prepared(plain(), False),
    "prepare_qat": lambda: prepared(plain(), True),
    "fuse_modules_qat": lambda: fused(True),
    "fuse_modules_qat, prepare_qat": lambda: prepared(fused(True), True),
    "prepare_fx": lambda: prepared_fx(nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.BatchNorm2d(8)), False),
    "prepare_qat_fx": lambda: prepared_fx(plain(), True),
    "prepare, convert": lambda: quantization.convert(calibrate(prepared(plain(), False))),
}


@pytest.mark.parametrize("name", HELD)
@pytest.mark.parametrize("method", METHODS)
def test_a_prepared_network_is_refused_before_anything_changes(method, name):
    model = HELD[name]()
    held = [(n, id(m)) for n, m in model.named_modules()]
    with pytest.raises(ValueError, match=r"(prepared for quantization|fused or prepared|torch\.ao\.nn\.quantized)"):
        cn.convert(model, method)
    assert [(n, id(m)) for n, m in model.named_modules()] == held


def test_a_part_that_nothing_observes_can_be_converted():
    """The BatchNorms of a network of which another part is prepared."""
    model = nn.Sequential(prepared(plain(), True), nn.BatchNorm2d(5))
    with pytest.raises(ValueError, match=r"^0\.1 has an observer: it is prepared for quantization"):
        cn.convert(model, "iebn")
    cn.convert(model, "iebn", include="1")
    assert model(images()).shape == (4, 5, 4, 4)

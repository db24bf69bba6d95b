"""segmentation-models-pytorch: its decoders around any encoder, converted."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import calibnorm as cn

smp = pytest.importorskip("segmentation_models_pytorch", reason="make ecosystem installs it")

pytestmark = pytest.mark.nightly

MODELS = {
    "Unet": "resnet18",
    "FPN": "resnet18",
    "DeepLabV3Plus": "resnet18",
    "PSPNet": "mobilenet_v2",
    "Linknet": "tu-resnet18",
    "UnetPlusPlus": "tu-efficientnet_b0",
}


@pytest.mark.parametrize("norm", ["iebn", "rbn"])
@pytest.mark.parametrize("name", MODELS)
def test_a_converted_network_keeps_its_function_trains_and_loads(name, norm):
    torch.manual_seed(0)

    def made() -> nn.Module:
        return getattr(smp, name)(MODELS[name], encoder_weights=None, classes=2)

    model, x = made(), torch.randn(2, 3, 64, 64)
    plain = [name for name, m in model.named_modules() if isinstance(m, nn.BatchNorm2d)]
    expected = model.eval()(x)
    model = cn.convert(model, norm, preserve=True)
    torch.testing.assert_close(model(x), expected, rtol=1e-3, atol=1e-4)
    layers = [name for name, m in model.named_modules() if isinstance(m, cn.IEBN2d | cn.RBN2d)]
    assert layers == plain
    assert len(layers) > 15
    masks = torch.randint(2, (2, 1, 64, 64)).expand(2, 2, 64, 64).float()
    optimizer = torch.optim.SGD(cn.param_groups(model, 1e-4), lr=0.1)
    losses = []
    for _ in range(6):
        loss = smp.losses.DiceLoss("multilabel")(model.train()(x), masks)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0]
    again = cn.convert(made(), cn.plan(model))
    again.load_state_dict(model.state_dict())
    torch.testing.assert_close(again.eval()(x), model.eval()(x))

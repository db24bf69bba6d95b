"""torchvision's networks: constructors, initialization, detection backbones, feature extraction."""

from __future__ import annotations

import copy

import pytest
import torch
import torchvision
from torch import nn
from torchvision.models.detection import FasterRCNN, fasterrcnn_resnet50_fpn
from torchvision.models.detection._utils import overwrite_eps
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
from torchvision.models.feature_extraction import create_feature_extractor, get_graph_node_names
from torchvision.ops import Conv2dNormActivation
from torchvision.ops.misc import FrozenBatchNorm2d

import calibnorm as cn
from ecosystem.nets import LAYERS, NAMES, assert_same, images, layers, network, oracle, statistics, stir


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("build", "count"),
    [(torchvision.models.resnet18, 20), (torchvision.models.mobilenet_v2, 52)],
    ids=["resnet18", "mobilenet_v2"],
)
def test_constructors_take_the_layer(name, build, count):
    model = build(weights=None, norm_layer=cn.norm_layer(name), num_classes=4)
    assert len(list(layers(model))) == count
    y = stir(model).train()(images(n=2, size=64))
    y.square().sum().backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in model.parameters())


@pytest.mark.parametrize("name", NAMES)
def test_zero_init_residual(name):
    build = torchvision.models.resnet50
    model = build(weights=None, norm_layer=cn.norm_layer(name), zero_init_residual=True)
    blocks = [m for m in model.modules() if hasattr(m, "bn3")]
    assert len(blocks) == 16
    for block in blocks:
        assert torch.equal(block.bn3.bn.weight, torch.zeros_like(block.bn3.bn.weight))
        assert torch.equal(block.bn2.bn.weight, torch.ones_like(block.bn2.bn.weight))
    converted = cn.convert(build(weights=None, zero_init_residual=True), name, preserve=True)
    assert not any(block.bn3.weight.any() for block in converted.modules() if hasattr(block, "bn3"))
    assert all(block.bn2.weight.all() for block in converted.modules() if hasattr(block, "bn3"))


@pytest.mark.parametrize("norm", LAYERS)
def test_a_zero_gamma_trains(norm):
    # The gate's gradient is 0 where gamma is 0, gamma's is not: nothing divides by gamma.
    model = network(norm).train()
    with torch.no_grad():
        model.bn3.weight.zero_()
        model.bn3.bias.zero_()
    model(images()).square().sum().backward()
    assert model.bn3.weight.grad.abs().sum() > 0
    assert all(torch.isfinite(p.grad).all() for p in model.parameters())
    assert all(torch.equal(g.grad, torch.zeros_like(g)) for n, g in model.bn3.gates().items() if n != "center_weight")


@pytest.mark.parametrize("norm", LAYERS)
def test_init_loops_over_batchnorm_reach_gamma_and_beta_alone(norm):
    model = network(norm)
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d | nn.GroupNorm):
            nn.init.constant_(module.weight, 0.25)
            nn.init.constant_(module.bias, 0.125)
    changed = {n for n, p in model.named_parameters() if not torch.equal(p, before[n])}
    assert changed == {f"bn{i}.bn.{name}" for i in (1, 2, 3) for name in ("weight", "bias")}
    assert model.bn1.weight.unique().tolist() == [0.25]


@pytest.mark.parametrize("name", NAMES)
def test_conv2d_norm_activation(name):
    block = stir(Conv2dNormActivation(3, 6, norm_layer=cn.norm_layer(name))).eval()
    assert block[0].bias is None  # no bias before a norm
    x = images()
    torch.testing.assert_close(block(x), oracle(block[1], block[0](x), batch=False).relu())


@pytest.mark.parametrize("norm", LAYERS)
def test_create_feature_extractor(norm):
    model, x = network(norm), images()
    train_names, eval_names = get_graph_node_names(model)
    assert {"bn1", "bn2", "bn3"} <= set(train_names) == set(eval_names)
    assert not any(n.startswith("bn1.") for n in train_names)
    extractor = create_feature_extractor(model, {"bn2": "norm", "fc": "y"})
    seen = []
    model.bn2.register_forward_hook(lambda m, args, y: seen.append(y))
    for training in (True, False):
        expected = copy.deepcopy(model).train(training)(x)
        got = extractor.train(training)(x)
        torch.testing.assert_close(got["y"], expected)
        torch.testing.assert_close(got["norm"], seen[-1])


@pytest.mark.parametrize("name", NAMES)
def test_create_feature_extractor_of_a_converted_resnet(name):
    model = torchvision.models.resnet18(weights=None).eval()
    x = images(n=1, size=32)
    expected = create_feature_extractor(model, ["layer2", "layer4"])(x)
    got = create_feature_extractor(cn.convert(model, name, preserve=True), ["layer2", "layer4"])(x)
    for key in expected:
        torch.testing.assert_close(got[key], expected[key], rtol=1e-4, atol=1e-5)


def detection_step(model):
    boxes = torch.tensor([[4.0, 4.0, 40.0, 40.0]])
    losses = model([images(n=1, size=64)[0]], [{"boxes": boxes, "labels": torch.tensor([1])}])
    sum(losses.values()).backward()
    return losses


@pytest.mark.parametrize("name", NAMES)
def test_a_frozen_detection_backbone_is_a_source(name):
    backbone = resnet_fpn_backbone(
        backbone_name="resnet18", weights=None, norm_layer=FrozenBatchNorm2d, trainable_layers=5
    )
    torch.manual_seed(0)
    for module in backbone.modules():
        if isinstance(module, FrozenBatchNorm2d):
            module.running_mean.uniform_(-0.2, 0.2)
            module.running_var.uniform_(0.5, 2.0)
    overwrite_eps(backbone, 0.0)
    x = images(n=1, size=64)
    expected = backbone(x)
    converted = cn.convert(backbone, name, preserve=True)
    found = list(layers(converted))
    assert len(found) == 20
    assert all(type(layer.bn) is FrozenBatchNorm2d and layer.eps == 0.0 for _, layer in found)
    assert not any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in converted.modules())
    for key, value in converted(x).items():
        torch.testing.assert_close(value, expected[key], rtol=1e-4, atol=1e-5)
    model = FasterRCNN(converted, num_classes=3, min_size=64, max_size=64).train()
    before = statistics(model)
    detection_step(model)
    assert_same(statistics(model), before)
    gate = "gate_bias" if name == "iebn" else "scale_bias"
    assert all(getattr(layer, gate).grad.abs().sum() > 0 for _, layer in found)
    assert not any(p.requires_grad for n, p in model.named_parameters() if n.endswith("center_weight"))


@pytest.mark.parametrize("name", NAMES)
def test_faster_rcnn(name):
    model = fasterrcnn_resnet50_fpn(
        weights=None, weights_backbone=None, num_classes=3, min_size=64, max_size=64, box_detections_per_img=5
    )
    assert cn.convert(model, name) is model
    assert len(list(layers(model))) == 53
    before = statistics(model)
    losses = detection_step(stir(model).train())
    assert all(torch.isfinite(value) for value in losses.values())
    gates = [p for _, layer in layers(model) for p in layer.gates().values() if p.requires_grad]
    assert all(p.grad is not None for p in gates)
    moved = [n for n, value in statistics(model).items() if not torch.equal(value, before[n])]
    assert len(moved) == len(before)
    (found,) = model.eval()([images(n=1, size=64)[0]])
    assert found.keys() == {"boxes", "labels", "scores"}


@pytest.mark.parametrize("name", NAMES)
def test_lazy_batchnorm_is_refused_by_name(name):
    model = nn.Sequential(nn.Conv2d(3, 6, 1), nn.LazyBatchNorm2d())
    with pytest.raises(
        ValueError, match=r"1 is a .*LazyBatchNorm2d, whose channels are not known yet; run one forward"
    ):
        cn.convert(model, name)
    assert isinstance(model[1], nn.LazyBatchNorm2d)
    model(images())
    assert type(model[1]) is nn.BatchNorm2d
    with pytest.warns(UserWarning, match="has been trained"):
        assert len(list(layers(cn.convert(model, name)))) == 1


@pytest.mark.parametrize("norm", LAYERS)
def test_around_refuses_what_it_cannot_follow(norm):
    for child in (nn.LazyBatchNorm2d(), nn.GroupNorm(2, 6), nn.Identity()):
        with pytest.raises(TypeError, match=rf"{norm.__name__}.around: {type(child).__name__} is no BatchNorm"):
            norm.around(child)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("build", ["fcn_resnet50", "deeplabv3_resnet50", "lraspp_mobilenet_v3_large"])
def test_a_builder_that_ignores_norm_layer_shows_in_the_summary_and_convert_reaches_all(name, build):
    options = {"weights": None, "weights_backbone": None, "num_classes": 3}
    model = torchvision.models.get_model(build, **options, norm_layer=cn.norm_layer(name))
    assert {row.layer for row in cn.summary(model)} == {"BatchNorm2d"}  # the argument was taken, and ignored
    count = len(cn.summary(model))
    assert len(list(layers(cn.convert(model, name)))) == count
    assert {row.layer for row in cn.summary(model)} == {f"{name.upper()}2d"}

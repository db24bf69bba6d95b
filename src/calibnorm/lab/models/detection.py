"""Faster R-CNN, Mask R-CNN and Panoptic FPN on ResNets, with any normalization in backbone, pyramid and heads.

The first two are torchvision's. Panoptic FPN (Kirillov et al., CVPR 2019) is Mask R-CNN with a semantic branch on the
same pyramid, written from the paper.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from calibnorm.errors import Setting, UsageError
from calibnorm.lab.models import placing
from calibnorm.lab.models.networks import Network
from calibnorm.lab.models.norms import parse_norm
from calibnorm.lab.models.pretrained import read_tensors

BACKBONES = ("resnet18", "resnet34", "resnet50", "resnet101", "resnet152", "resnext50_32x4d", "resnext101_32x8d")
TORCHVISION = "torchvision"
STAGES = ("conv1", "layer1", "layer2", "layer3", "layer4")
"""Of a ResNet; the norm behind the first convolution belongs to no stage, as torchvision has it."""
RATIOS = (0.5, 1.0, 2.0)
"""Height over width of the anchors."""
LEVELS = 5
"""Of the pyramid: four of the backbone's stages, and the last one at half its size."""
PREFIXES = ("", "backbone.body.", "body.", "backbone.", "module.")
"""What stands before the names of a ResNet's tensors in files: its own, those of a detector, or others' backbones."""
MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
"""Of a pixel of ImageNet, whose weights backbones begin with."""
VOID = 255


@dataclass(frozen=True)
class Sizes:
    """What a detector is besides its backbone; the defaults are torchvision's and the papers'.

    Args:
        image_size: Pixels of the shorter side: in training one of these at random, in tests the last.
        longest_side: Pixels that the longer side has at most.
        channels: Of the pyramid, and of the heads' convolutions.
        head_convs: 3 x 3 convolutions of the box head, and of the mask head.
        features: Outputs of the box head.
        anchor: Pixels a side of the smallest anchor; that of every level is twice that of the level before.
        rois: Regions of a picture that the box head learns from.
        proposals: Regions of a picture that go from the first to the second part; twice as many before they are
            suppressed.
        semantic_channels: Of the semantic branch.
    """

    image_size: tuple[int, ...] = (800,)
    longest_side: int = 1333
    channels: int = 256
    head_convs: int = 4
    features: int = 1024
    anchor: int = 32
    rois: int = 512
    proposals: int = 1000
    semantic_channels: int = 128


def detector(
    kind: str,
    *,
    backbone: str,
    things: int,
    stuff: int = 0,
    sizes: Sizes,
    norm: str = "bn",
    noise: tuple[float, float] | None = None,
    noise_in: str = "always",
    neck_norms: bool = True,
    frozen_batchnorm: bool = False,
    trained_stages: int = 5,
    weights: str | None = None,
    trained: bool = False,
) -> nn.Module:
    """Return a detector with random weights from torch's global generator and the normalization asked for.

    Args:
        kind: "box", "mask" or "panoptic".
        backbone: One of `BACKBONES`.
        things: Classes of objects, without the background.
        stuff: Classes of stuff.
        sizes: What else it is.
        norm: What every BatchNorm becomes, as :func:`calibnorm.lab.models.build` takes it.
        noise: The constant noise attack on every BatchNorm.
        noise_in: "always" or "train".
        neck_norms: Whether pyramid and heads have norms; torchvision's first detectors have none there.
        frozen_batchnorm: Whether the backbone's are torchvision's FrozenBatchNorm2d, before they are converted.
        trained_stages: Of the backbone's five, so many learn, the last ones.
        weights: Of the backbone: "torchvision", ImageNet's in torch's cache; a file; None for random ones.
        trained: Whether norms are made as for trained weights, which may be put in afterwards.

    Raises:
        UsageError: A norm or a file cannot be used.
    """
    from torchvision.models import get_model
    from torchvision.models.detection import FasterRCNN
    from torchvision.models.detection.backbone_utils import BackboneWithFPN
    from torchvision.models.detection.faster_rcnn import FastRCNNConvFCHead, FastRCNNPredictor
    from torchvision.models.detection.mask_rcnn import MaskRCNN, MaskRCNNHeads, MaskRCNNPredictor
    from torchvision.models.detection.rpn import AnchorGenerator
    from torchvision.ops import FrozenBatchNorm2d

    layer: Callable[..., nn.Module] = FrozenBatchNorm2d if frozen_batchnorm else nn.BatchNorm2d
    body = get_model(backbone, norm_layer=layer, num_classes=1)
    if weights is not None:
        load_backbone(body, backbone, weights)
    neck = nn.BatchNorm2d if neck_norms else None
    noises, chosen = {} if noise is None else {"noise": noise, "noise_in": noise_in}, parse_norm(norm)

    def placed(module: nn.Module) -> nn.Module:
        of = Network(lambda classes, in_channels: module, 4)
        try:
            return placing.place(module, of, chosen, None, noises, trained)
        except (TypeError, ValueError) as error:
            raise UsageError(Setting("norm", norm), f"a detector on {backbone} cannot have it: {error}") from error

    if chosen.method == "se":  # behind the last norm of every residual branch, which the backbone alone has
        if noises:
            given = "{:g},{:g}".format(*noise or ())
            raise UsageError(Setting("noise", given), "reaches no norm of pyramid and heads in a detector with se")
        body = placed(body)
    for name, parameter in body.named_parameters():
        parameter.requires_grad_(trained_stages == 5 or name.startswith(STAGES[5 - trained_stages :]))
    channels, widths = sizes.channels, [body.inplanes >> shift for shift in (3, 2, 1, 0)]
    levels = {name: str(number) for number, name in enumerate(STAGES[1:])}
    pyramid = BackboneWithFPN(body, levels, widths, channels, norm_layer=neck)
    convs = [channels] * sizes.head_convs
    anchors = AnchorGenerator(tuple((sizes.anchor << level,) for level in range(LEVELS)), (RATIOS,) * LEVELS)
    options: dict[str, Any] = {
        "min_size": sizes.image_size,
        "max_size": sizes.longest_side,
        "rpn_anchor_generator": anchors,
        "rpn_pre_nms_top_n_train": 2 * sizes.proposals,
        "rpn_post_nms_top_n_train": sizes.proposals,
        "rpn_pre_nms_top_n_test": sizes.proposals,
        "rpn_post_nms_top_n_test": sizes.proposals,
        "rpn_batch_size_per_image": max(1, sizes.rois // 2),
        "box_batch_size_per_image": sizes.rois,
        "box_head": FastRCNNConvFCHead((channels, 7, 7), convs, [sizes.features], norm_layer=neck),
        "box_predictor": FastRCNNPredictor(sizes.features, things + 1),
    }
    if kind != "box":
        options["mask_head"] = MaskRCNNHeads(channels, convs, 1, norm_layer=neck)
        options["mask_predictor"] = MaskRCNNPredictor(channels, channels, things + 1)
    if kind == "panoptic":
        options["semantic"] = SemanticBranch(channels, sizes.semantic_channels, stuff + 1, neck)
    made = {"box": FasterRCNN, "mask": MaskRCNN, "panoptic": panoptic_fpn}[kind]
    network: nn.Module = made(pyramid, **options)
    network.transform = from_bytes(sizes)
    return network if chosen.method == "se" else placed(network)


def from_bytes(sizes: Sizes) -> nn.Module:
    """Return what resizes and standardizes pictures of bytes, and takes boxes as the bits of their floats.

    Lightning makes every float that goes into a network one of the run's precision, and in bfloat16 a box of 1000
    pixels would be off by four. Boxes in float32 are taken, too.
    """
    from torchvision.models.detection.transform import GeneralizedRCNNTransform

    class FromBytes(GeneralizedRCNNTransform):  # type: ignore[misc]  # torchvision has no types
        def forward(self, images: list[Tensor], targets: list[dict[str, Tensor]] | None = None) -> Any:
            if targets is not None:
                targets = [target | {"boxes": target["boxes"].view(torch.float32)} for target in targets]
            return super().forward([image.float() / 255 for image in images], targets)

    return FromBytes(sizes.image_size, sizes.longest_side, MEAN, STD)


def weights_file(backbone: str, weights: str) -> Path:
    """Return where a backbone's trained weights lie.

    Raises:
        UsageError: They are not there; the text says where they go.
    """
    asked = Setting("backbone_weights", weights)
    if weights != TORCHVISION:
        if not (path := Path(weights)).is_file():
            raise UsageError(asked, f"is no file; name one, {TORCHVISION} or none")
        return path
    from torchvision.models import get_model_weights

    url: str = get_model_weights(backbone).IMAGENET1K_V1.url
    path = Path(torch.hub.get_dir()) / "checkpoints" / url.rpartition("/")[2]
    if not path.is_file():
        raise UsageError(asked, f"{path} is missing, and nothing is downloaded: put {url} there, or choose another")
    return path


def load_backbone(body: nn.Module, backbone: str, weights: str) -> None:
    """Put trained weights into a ResNet, whose last layer is not used.

    Raises:
        UsageError: The file is not there, or holds another network's.
    """
    path = weights_file(backbone, weights)
    own = {name: value for name, value in body.state_dict().items() if counts(name)}
    tensors = read_tensors(path, "backbone_weights")
    named = [{n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)} for prefix in PREFIXES]
    given = max(named, key=lambda tensors: len(own.keys() & tensors.keys()))
    asked = Setting("backbone_weights", weights)
    if missing := sorted(own.keys() - given.keys()):
        more = f" and {len(missing) - 1} more" if missing[1:] else ""
        raise UsageError(asked, f"{path.name} has no {missing[0]}{more}; these are not a {backbone}'s with BatchNorm")
    if unknown := sorted(name for name in given if name.startswith("layer") and counts(name) and name not in own):
        raise UsageError(asked, f"{path.name} has an unknown {unknown[0]}; these are not a {backbone}'s with BatchNorm")
    if other := [name for name in sorted(own) if given[name].shape != own[name].shape]:
        raise UsageError(asked, f"{path.name} has another shape of {other[0]}; these are not a {backbone}'s")
    if not next(body.parameters()).is_meta:
        body.load_state_dict({name: given[name] for name in own}, strict=False)


def counts(name: str) -> bool:
    """Return whether a ResNet's tensor is used: its last layer is not, nor how many batches were seen."""
    return not name.startswith("fc.") and not name.endswith("num_batches_tracked")


class SemanticBranch(nn.Module):
    """The semantic branch of Panoptic FPN: every level to a quarter of the picture's size, summed (section 3, Fig. 3).

    A level goes up by as many steps of a 3 x 3 convolution, a norm, ReLU and doubling as it needs; the first level, by
    one without doubling. The paper has group normalization there; here it is the detector's norm.

    Args:
        inputs: Channels of the pyramid.
        channels: Of the branch.
        classes: Kinds of stuff, and one more for all things.
        norm: Makes a norm; None for none.
    """

    def __init__(self, inputs: int, channels: int, classes: int, norm: Callable[..., nn.Module] | None) -> None:
        super().__init__()
        from torchvision.ops import Conv2dNormActivation

        block = partial(Conv2dNormActivation, kernel_size=3, norm_layer=norm)
        self.levels = nn.ModuleList()
        for level in range(LEVELS - 1):
            steps: list[nn.Module] = []
            for step in range(max(1, level)):
                steps.append(block(inputs if step == 0 else channels, channels))
                if level:
                    steps.append(nn.Upsample(scale_factor=2, mode="bilinear", align_corners=False))
            self.levels.append(nn.Sequential(*steps))
        self.scores = nn.Conv2d(channels, classes, 1)

    def forward(self, features: list[Tensor], size: tuple[int, int]) -> Tensor:
        """Return scores (N, classes, H, W) in float32 of the levels, finest first, for pictures of a size."""
        summed = torch.zeros(())
        for number, (level, feature) in enumerate(zip(self.levels, features, strict=True)):
            up = level(feature)
            summed = up if number == 0 else summed + up[..., : summed.shape[2], : summed.shape[3]]
        found: Tensor = self.scores(summed)
        return F.interpolate(found.float(), size, mode="bilinear", align_corners=False)


def panoptic_fpn(pyramid: nn.Module, semantic: SemanticBranch, **options: Any) -> nn.Module:
    """Return Mask R-CNN with a semantic branch.

    In training it takes targets with "semantic" and returns a "loss_semantic" too; in evaluation every picture's result
    has "semantic" (H, W), the kind of stuff of the highest score, the number of kinds for a thing.
    """
    from torchvision.models.detection.mask_rcnn import MaskRCNN

    class PanopticFPN(MaskRCNN):  # type: ignore[misc]  # torchvision has no types
        def __init__(self) -> None:
            super().__init__(pyramid, **options)
            self.semantic = semantic

        def forward(self, images: list[Tensor], targets: list[dict[str, Tensor]] | None = None) -> Any:
            before = [tuple(image.shape[-2:]) for image in images]
            maps = None if targets is None else [target["semantic"] for target in targets]
            batch, targets = self.transform(images, targets)
            features = self.backbone(batch.tensors)
            proposals, losses = self.rpn(batch, features, targets)
            results, more = self.roi_heads(features, proposals, batch.image_sizes, targets)
            scores = self.semantic([*features.values()][: LEVELS - 1], tuple(batch.tensors.shape[-2:]))
            if self.training:
                assert maps is not None
                return losses | more | {"loss_semantic": semantic_loss(scores, maps, batch.image_sizes)}
            results = self.transform.postprocess(results, batch.image_sizes, before)
            for result, of, (height, width), size in zip(results, scores, batch.image_sizes, before, strict=True):
                whole = F.interpolate(of[None, :, :height, :width], size, mode="bilinear", align_corners=False)
                result["semantic"] = whole[0].argmax(0).to(torch.uint8)
            return results

    return PanopticFPN()


def semantic_loss(scores: Tensor, maps: list[Tensor], sizes: list[tuple[int, int]]) -> Tensor:
    """Return the mean cross-entropy over the pixels that a map says something of.

    Args:
        scores: (N, classes, H, W) of a batch, which pads smaller pictures below and to the right.
        maps: (h, w) in uint8 of every picture, as it was before it was resized; 255 says nothing.
        sizes: What every picture was resized to.
    """
    wanted = torch.full((len(maps), *scores.shape[2:]), VOID, dtype=torch.int64, device=scores.device)
    for row, known, (height, width) in zip(wanted, maps, sizes, strict=True):
        row[:height, :width] = F.interpolate(known[None, None].float(), (height, width), mode="nearest")[0, 0].long()
    counted = (wanted != VOID).sum().clamp_min(1)
    return F.cross_entropy(scores, wanted, ignore_index=VOID, reduction="sum") / counted

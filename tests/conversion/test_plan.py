"""A plan is a plain dict that survives a JSON file and rebuilds the network that a checkpoint belongs to."""

from __future__ import annotations

import copy
import io
import json

import pytest
import torch
from torch import nn

import calibnorm as cn
from cases import randn
from conversion.helpers import Small, convert, norms, randomize_gates, small, snapshot

CONVERSIONS = {
    "iebn": [("iebn", {})],
    "preserve and options": [("iebn", {"preserve": True, "position": "both", "init": (0.0, 0.5)})],
    "fc": [("iebn", {"operator": "fc", "reduction": 2})],
    "noise": [("rbn", {"noise": (0.8, 0.5), "noise_in": "train", "skip": "shortcut"})],
    "two methods": [("iebn", {"include": "bn1"}), ("rbn", {"exclude": "bn1", "preserve": True})],
    "gamma_init and act": [("bn", {"gamma_init": 0.5, "act": "relu"})],
}


@pytest.mark.parametrize("steps", CONVERSIONS.values(), ids=CONVERSIONS)
def test_a_checkpoint_is_rebuilt_from_its_plan(steps):
    """Trained, saved with its plan as JSON, and rebuilt on a fresh network: equal outputs in both modes."""
    net = small()
    for method, options in steps:
        convert(net, method, **options)
    randomize_gates(net)
    made = cn.plan(net)
    file = io.BytesIO()
    torch.save(net.state_dict(), file)
    file.seek(0)
    read = json.loads(json.dumps(made))
    assert read == made

    fresh = cn.convert(Small(), read)
    assert cn.plan(fresh) == made
    fresh.load_state_dict(torch.load(file, weights_only=True), strict=True)
    x = randn(4, 3, 5, 5, seed=5)
    for training in (False, True):
        assert torch.equal(fresh.train(training)(x), net.train(training)(x))


@pytest.mark.parametrize("steps", list(CONVERSIONS.values())[:4], ids=list(CONVERSIONS)[:4])
def test_a_plan_made_before_is_the_plan_described_after(steps):
    ((method, options),) = steps
    net = small()
    made = cn.plan(net, method, **options)
    convert(net, made)
    after = cn.plan(net)
    assert (after["version"], after["layers"].keys()) == (made["version"], made["layers"].keys())
    for name, layer in made["layers"].items():
        assert after["layers"][name]["method"] == layer["method"]
        assert after["layers"][name]["preserve"] == layer["preserve"]
        assert after["layers"][name]["options"].items() <= layer["options"].items()


def test_planning_changes_nothing():
    net = small()
    before = snapshot(net)
    made = cn.plan(net, "iebn", preserve=True, exclude="bn1")
    assert snapshot(net) == before
    layer = {"method": "iebn", "options": {"gate_input": "standardized"}, "preserve": True, "features": 6}
    assert made == {"version": 1, "layers": {"layer1.1": layer, "downsample.1": layer}, "left": {"bn1": "in exclude"}}


def test_plan_of_a_plain_network():
    assert cn.plan(small()) == {
        "version": 1,
        "layers": {},
        "left": {"bn1": "plain BatchNorm2d", "layer1.1": "plain BatchNorm2d", "downsample.1": "plain BatchNorm2d"},
    }


def test_a_replay_on_the_converted_network_changes_nothing():
    net = convert(small(), "rbn", preserve=True, noise=(0.5, 0.1), noise_in="train")
    before = snapshot(net)
    cn.convert(net, json.loads(json.dumps(cn.plan(net))))
    assert snapshot(net) == before


def edited(**changes):
    def edit(made):
        made["layers"]["layer1.1"].update(changes)

    return edit


WRONG = [
    (lambda made: made.update(version=2), ValueError, r"plan\['version'\] is 2; this calibnorm reads version 1"),
    (lambda made: made.pop("version"), ValueError, r"plan\['version'\] is None"),
    (lambda made: made.pop("layers"), ValueError, r"plan\['layers'\] and plan\['left'\] must map names"),
    (
        lambda made: made["layers"].update(bn1="iebn"),
        ValueError,
        r"plan\['layers'\]\['bn1'\] must hold method, options",
    ),
    (edited(surprise=1), ValueError, r"\['layer1.1'\] must hold"),
    (edited(options=None), ValueError, r"\['layer1.1'\] must hold"),
    (edited(preserve=None), TypeError, r"\['preserve'\]=None must be True or False"),
    (edited(features=7), ValueError, "layer1.1: the plan was made for 7 channels, the network has 6"),
    (edited(method="ibn"), ValueError, "layer1.1: method='ibn' is not known"),
    (edited(options={"eps": 1}), ValueError, "layer1.1: eps=1 belongs to the BatchNorm"),
    (edited(options={"positoin": 1}), TypeError, "layer1.1: 'positoin' is not an option of 'iebn'"),
    (edited(preserve=True, options={"operator": "fc"}), ValueError, "preserve=True needs an initial gate"),
    (
        lambda made: made["layers"].update(layer9=made["layers"]["bn1"]),
        ValueError,
        "names 'layer9', which is no BatchNorm",
    ),
    (lambda made: made["left"].update(layer9="in exclude"), ValueError, "names 'layer9'"),
    (lambda made: made["layers"].pop("layer1.1"), ValueError, "the network has layer1.1, which the plan does not name"),
]


@pytest.mark.parametrize(("edit", "error", "message"), WRONG, ids=lambda v: v if isinstance(v, str) else "")
def test_a_wrong_plan_is_refused_before_anything_changes(edit, error, message):
    net = small()
    before, made = snapshot(net), copy.deepcopy(cn.plan(net, "iebn"))
    edit(made)
    with pytest.raises(error, match=message):
        cn.convert(net, made)
    assert snapshot(net) == before


def test_the_text_or_the_file_of_a_plan_is_refused_and_not_echoed(tmp_path):
    net = small()
    before, text = snapshot(net), json.dumps(cn.plan(net, "iebn"))
    for wrong in (text, f"\n {text}", text.encode(), "plan.json", tmp_path / "plan"):
        for call in (cn.convert, cn.plan):
            with pytest.raises(TypeError, match=r"^a plan is a dict.*read it with json.loads or json.load first$"):
                call(net, wrong)
    with pytest.raises(ValueError, match=r"'x{70,80}\.\.\. is not known; choose one of 'bn'"):
        cn.convert(net, "x" * 1000)
    assert snapshot(net) == before
    with pytest.warns(UserWarning, match="has been trained"):
        assert snapshot(cn.convert(net, json.loads(text))) != before


def test_the_plan_of_a_smaller_network_is_refused():
    """Every name of ResNet-18 is one of ResNet-34 too, with as many channels."""
    torchvision = pytest.importorskip("torchvision")
    made = cn.plan(torchvision.models.resnet18(), "iebn")
    with pytest.raises(
        ValueError, match=r"has layer1\.2\.bn1, which the plan does not name; was it made for another\?"
    ):
        cn.convert(torchvision.models.resnet34(), made)


@pytest.mark.parametrize(
    "beside", [{"preserve": True}, {"include": "bn1"}, {"position": "both"}, {"stages": 1}], ids=str
)
def test_nothing_goes_beside_a_plan(beside):
    net = small()
    with pytest.raises(ValueError, match="a plan says everything about the conversion"):
        cn.convert(net, cn.plan(net, "iebn"), **beside)
    with pytest.raises(ValueError, match="without a method the plan describes the model as it is"):
        cn.plan(net, **beside)


def test_the_plan_of_a_root():
    made = cn.plan(cn.convert(nn.BatchNorm3d(4), "rbn", restrict="tanh"))
    layer = cn.convert(nn.BatchNorm3d(4), json.loads(json.dumps(made)))
    assert isinstance(layer, cn.RBN3d)
    assert layer.options() == {"restrict": "tanh"}
    assert list(norms(layer)) == [""]


@pytest.mark.parametrize("preserve", [True, False])
def test_a_replay_on_layers_of_another_preserve_is_refused(preserve):
    net = convert(small(), "iebn", preserve=not preserve, gate_input="standardized")
    before, made = snapshot(net), cn.plan(small(), "iebn", preserve=preserve, gate_input="standardized")
    message = f"bn1: the plan says preserve={preserve}, but this IEBN2d was converted with preserve={not preserve}"
    with pytest.raises(ValueError, match=rf"{message}; call cn\.revert\(model\) first"):
        cn.convert(net, made)
    assert snapshot(net) == before
    convert(cn.revert(net), made)
    assert cn.plan(net)["layers"] == made["layers"]


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("second", [True, False])
def test_converting_again_stays_whatever_preserve_was(first, second):
    """Nothing changes, and the plan for it says how the layers are, so that it can be replayed."""
    net = convert(small(), "iebn", preserve=first)
    before, made = snapshot(net), cn.plan(net, "iebn", preserve=second)
    assert made == cn.plan(net)
    cn.convert(net, "iebn", preserve=second)
    cn.convert(net, made)
    assert snapshot(net) == before
    assert all(layer.compensated is first for layer in norms(net).values())


def test_preserve_means_nothing_without_a_gate():
    net = convert(small(), "bn", preserve=True)
    cn.convert(net, cn.plan(small(), "bn"))

"""Hugging Face: its Trainer, its safetensors, and how a converted network is loaded again."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import calibnorm as cn

transformers = pytest.importorskip("transformers", reason="make ecosystem installs it")
pytest.importorskip("accelerate", reason="make ecosystem installs it")

pytestmark = [pytest.mark.nightly, pytest.mark.parametrize("norm", ["iebn", "rbn"])]

CONFIG = {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "layer_type": "basic", "num_labels": 3}


class ConvertedForImageClassification(transformers.ResNetForImageClassification):
    """What makes from_pretrained rebuild the layers: the norm is in the config."""

    def __init__(self, config) -> None:
        super().__init__(config)
        cn.convert(self, config.norm)


Converted = ConvertedForImageClassification
"""By the end of its name the library knows its loss."""


class Pictures(torch.utils.data.Dataset):
    def __len__(self) -> int:
        return 12

    def __getitem__(self, number: int):
        return {"pixel_values": torch.full((3, 32, 32), number / 12.0), "labels": number % 3}


def trained(model: nn.Module, folder) -> transformers.Trainer:
    options = {"report_to": [], "save_strategy": "steps", "save_steps": 2, "use_cpu": True, "disable_tqdm": True}
    arguments = transformers.TrainingArguments(
        str(folder), per_device_train_batch_size=4, max_steps=4, learning_rate=0.01, weight_decay=0.1, **options
    )
    trainer = transformers.Trainer(model, arguments, train_dataset=Pictures())
    trainer.train()
    return trainer


def resnet(norm: str, kind: type = transformers.ResNetForImageClassification) -> nn.Module:
    torch.manual_seed(0)
    return kind(transformers.ResNetConfig(norm=norm, **CONFIG))


def gates(model: nn.Module) -> list[str]:
    kinds = (cn.IEBN2d, cn.RBN2d)
    return [f"{n}.{g}" for n, m in model.named_modules() if isinstance(m, kinds) for g in m.gates()]


def test_its_trainer_trains_saves_and_goes_on(norm, tmp_path):
    model = resnet(norm, Converted)
    start = {name: model.get_parameter(name).detach().clone() for name in gates(model)}
    assert start
    trainer = trained(model, tmp_path)
    assert any(not torch.equal(model.get_parameter(name), value) for name, value in start.items())
    again = resnet(norm, Converted)
    resumed = transformers.Trainer(again, trainer.args, train_dataset=Pictures())
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    for name, value in model.state_dict().items():
        torch.testing.assert_close(again.state_dict()[name], value, msg=name)


def test_a_class_that_converts_is_what_from_pretrained_loads(norm, tmp_path):
    model = resnet(norm, Converted)
    trained(model, tmp_path / "run").save_model(str(tmp_path / "saved"))
    again = Converted.from_pretrained(tmp_path / "saved")
    for name, value in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], value), name
    x = torch.rand(2, 3, 32, 32)
    assert torch.equal(again.eval()(x).logits, model.eval()(x).logits)


def test_a_plain_class_says_that_it_has_no_place_for_the_gates(norm, tmp_path):
    resnet(norm, Converted).save_pretrained(tmp_path)
    _, found = transformers.ResNetForImageClassification.from_pretrained(tmp_path, output_loading_info=True)
    assert {name.rpartition(".")[2] for name in found["unexpected_keys"]} & {"gate_weight", "scale_weight"}


def test_a_pretrained_network_is_converted_after_it_was_loaded(norm, tmp_path):
    resnet(norm).save_pretrained(tmp_path)
    plain = transformers.ResNetForImageClassification.from_pretrained(tmp_path).eval()
    x = torch.rand(2, 3, 32, 32)
    expected = plain(x).logits
    model = cn.convert(plain, norm, preserve=True)
    torch.testing.assert_close(model(x).logits, expected, rtol=1e-3, atol=1e-5)


def test_its_weight_decay_leaves_the_gates_alone_by_param_groups(norm, tmp_path):
    model = resnet(norm, Converted)
    decayed = transformers.Trainer(model).get_decay_parameter_names(model)
    assert {name for name in gates(model) if not name.endswith("bias")} <= {*decayed}  # by itself it decays them
    optimizer = torch.optim.AdamW(cn.param_groups(model, weight_decay=0.1), lr=0.01)
    options = {"report_to": [], "use_cpu": True, "disable_tqdm": True, "max_steps": 1, "save_strategy": "no"}
    arguments = transformers.TrainingArguments(str(tmp_path), **options)
    transformers.Trainer(model, arguments, train_dataset=Pictures(), optimizers=(optimizer, None)).train()
    free = next(group["params"] for group in optimizer.param_groups if group["weight_decay"] == 0)
    assert {id(model.get_parameter(name)) for name in gates(model)} <= {id(p) for p in free}

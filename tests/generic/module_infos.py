"""The layers as ``ModuleInfo`` of torch's generic module tests, with torch's own BatchNorm samples and our options."""

from __future__ import annotations

from functools import partial

import torch
from torch.testing import make_tensor
from torch.testing._internal.common_modules import FunctionInput, ModuleInfo, ModuleInput, module_db

import calibnorm as cn

BATCHNORM = {info.name: info for info in module_db if info.name.startswith("nn.BatchNorm")}
OPTIONS = {
    "bn": [{"noise": (0.8, 0.5)}, {"gamma_init": 0.5, "act": "relu"}],
    "iebn": [
        {"operator": "identity", "activation": "tanh"},
        {"operator": "fc", "position": "both"},
        {"position": "beta", "activation": "softmax"},
        {"noise": (0.8, 0.5), "init": (0.5, 1.0)},
    ],
    "rbn": [
        {"centering": False, "restrict": "tanh"},
        {"scaling": False, "center_stat": "spatial_mean"},
        {"center_stat": "std", "scale_stat": "std", "init": (0.3, -0.2, 0.5)},
        {"scale_stat": "spatial_std", "noise": (0.8, 0.5)},
    ],
}
SHAPES = {1: (4, 3, 5), 2: (2, 3, 4, 3), 3: (2, 3, 2, 2, 3)}


def _inputs(layer, module_info, device, dtype, requires_grad, training, **kwargs):
    """torch's samples, but for ``bias=False``, which calibnorm's layers do not take; then ours."""
    plain = BATCHNORM[f"nn.BatchNorm{layer.dims}d"]
    samples = plain.module_inputs_func(plain, device, dtype, requires_grad, training, **kwargs)
    samples = [s for s in samples if "bias" not in s.constructor_input.kwargs]
    assert len(samples) >= 5, "torch has changed its samples"
    make_input = partial(make_tensor, SHAPES[layer.dims], device=device, dtype=dtype, requires_grad=requires_grad)
    for options in OPTIONS[layer.method_type.name]:
        samples.append(ModuleInput(FunctionInput(3, **options), FunctionInput(make_input()), desc=str(options)))
    residual = FunctionInput(make_input(), make_input())
    return [*samples, ModuleInput(FunctionInput(3, act="relu"), residual, desc="residual")]


MODULE_INFOS = [
    ModuleInfo(layer, module_inputs_func=partial(_inputs, layer), train_and_eval_differ=True)
    for layer in (getattr(cn, f"{method}{dims}d") for method in ("BN", "IEBN", "RBN") for dims in (1, 2, 3))
]
HALVES = [torch.float16, torch.bfloat16]

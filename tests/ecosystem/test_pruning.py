"""Structured pruning, by what its tools read: hooks by class, and autograd's graph between them."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import calibnorm as cn
from ecosystem.nets import Net, images, loss

CUT = {
    "bn": {},
    "iebn": {"position": "both"},
    "rbn": {"center_stat": "std"},
    "in": {},
    "frn": {},
    "ghost": {"size": 2},
    "brn": {},
    "iebn over rbn": {"over": "rbn"},
}
"""Methods that treat every channel by itself: any channel can go."""


def leaves_before(grad_fn, modules):
    """The parameters that enter a node's output, and the modules whose outputs do: what pruning tools read."""
    parameters, before, stack = set(), [], [function for function, _ in grad_fn.next_functions if function]
    while stack:
        function = stack.pop()
        if function in modules:
            before.append(modules[function])
        elif hasattr(function, "variable"):
            parameters.add(function.variable)
        else:
            stack.extend(function for function, _ in function.next_functions if function)
    return parameters, before


@pytest.mark.parametrize("method", CUT)
def test_structured_pruning_finds_child_and_gates_in_the_graph_and_cuts_them(method):
    """As torch-pruning does: hooks by class, autograd's graph between them, and dimension 0 of every vector there."""
    torch.manual_seed(0)
    model, x = Net(nn.BatchNorm2d), images()
    cn.convert(model, method.split()[0], **CUT[method])
    model.train()(x)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.3 * torch.randn_like(p))
    found = {}
    kinds = (nn.Conv2d, nn.BatchNorm2d, nn.Linear)
    hooks = [
        m.register_forward_hook(lambda m, args, y: found.update({y.grad_fn: m}))
        for m in model.modules()
        if isinstance(m, kinds)
    ]
    model.eval()(x)
    for hook in hooks:
        hook.remove()
    layer = model.bn2
    (grad_fn,) = (function for function, m in found.items() if m is layer.bn)
    parameters, before = leaves_before(grad_fn, found)
    assert parameters == {p for p in layer.parameters() if p.requires_grad}
    assert before == [model.conv2]
    assert all(p.shape == (8,) for p in parameters)

    zeroed, keep = copy.deepcopy(model), torch.tensor([0, 2, 3, 4, 6, 7])
    with torch.no_grad():
        zeroed.conv3.weight[:, [1, 5]] = 0
    tensors = [(m, name, 0) for m in layer.modules() for name, p in m._parameters.items() if p is not None]
    for m, name, dim in [*tensors, (model.conv2, "weight", 0), (model.conv3, "weight", 1)]:
        setattr(m, name, nn.Parameter(getattr(m, name).detach().index_select(dim, keep)))
    layer.bn.num_features = 6
    layer.bn.running_mean, layer.bn.running_var = layer.bn.running_mean[keep], layer.bn.running_var[keep]
    torch.testing.assert_close(model(x), zeroed(x))
    loss(model.train()(x)).backward()
    assert all(p.grad is not None for p in layer.parameters())
    assert cn.plan(model)["layers"]["bn2"]["features"] == 6


@pytest.mark.parametrize(("method", "options"), [("se", {"include": "*"}), ("iebn", {"operator": "fc"}), ("an", {})])
def test_a_cut_of_what_mixes_channels_is_refused_with_what_works(method, options):
    def cut(batchnorm):
        model.conv2, model.conv3 = nn.Conv2d(8, 6, 3, padding=1), nn.Conv2d(6, 8, 3, padding=1)
        setattr(*batchnorm, nn.BatchNorm2d(6))

    model = cn.convert(Net(nn.BatchNorm2d), method, **options)
    kept = copy.deepcopy(model)
    cut((model.bn2, "bn"))
    with pytest.raises(
        ValueError, match=r"instead of .* 6 channels now, .* made with 8\. .*cn\.revert\(model, lossy=True\)"
    ):
        model(images())
    model = cn.revert(kept, lossy=True)
    cut((model, "bn2"))
    assert cn.convert(model, method, **options)(images()).isfinite().all()

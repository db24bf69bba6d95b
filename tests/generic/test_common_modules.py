"""PyTorch's own generic module tests, run on every layer.

The machinery (``ModuleInfo``, ``@modules``, ``instantiate_device_type_tests``) and BatchNorm's samples are those of
``torch.testing._internal``. The bodies are in torch's repository, not in its wheel, so that these are our own.
Not applicable: in-place variants (there are none), transfers between devices, and torch's opcheck (the library
registers no operator).
"""

from __future__ import annotations

import copy
import io
import pickle

import pytest
import torch
from torch.func import functional_call
from torch.testing import assert_close
from torch.testing._internal.common_device_type import instantiate_device_type_tests
from torch.testing._internal.common_modules import modules
from torch.testing._internal.common_utils import TestCase, freeze_rng_state, gradcheck, gradgradcheck

from generic.module_infos import HALVES, MODULE_INFOS
from tolerances import error, reduction

pytestmark = [pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:FutureWarning"), pytest.mark.untraced]


def samples(module_info, device, dtype, training, requires_grad=False):
    """Yield (new module, arguments of forward) for every sample."""
    inputs = module_info.module_inputs_func(
        module_info, device=device, dtype=dtype, requires_grad=requires_grad, training=training
    )
    for sample in inputs:
        args, kwargs = sample.constructor_input.args, sample.constructor_input.kwargs
        module = module_info.module_cls(*args, **kwargs, device=device, dtype=dtype).train(training)
        yield module, sample.forward_input.args, (args, kwargs)


def leaf(tensor, requires_grad=True):
    return tensor.detach().clone(memory_format=torch.preserve_format).requires_grad_(requires_grad)


def strided(tensor):
    """Return an equal tensor whose last dimension has stride 2 (or whose memory is shared, where there is none)."""
    doubled = torch.stack([tensor.detach(), torch.zeros_like(tensor)], -1)
    return doubled.flatten(-2)[..., ::2] if tensor.numel() else tensor.detach()


IN_2D = [info for info in MODULE_INFOS if info.name.endswith("2d")]
IN_1D_AND_3D = [info for info in MODULE_INFOS if info not in IN_2D]


class TestCommonModules(TestCase):
    @modules(MODULE_INFOS)
    def test_forward(self, device, dtype, module_info, training):
        for module, args, _ in samples(module_info, device, dtype, training):
            y = module(*args)
            assert y.shape == args[0].shape
            assert y.dtype == dtype
            assert y.isfinite().all()

    @modules(MODULE_INFOS, allowed_dtypes=[torch.float32])
    def test_repr(self, device, dtype, module_info, training):
        for module, _, _ in samples(module_info, device, dtype, training):
            assert repr(module).startswith(module_info.name)
            assert repr(module) == str(module)

    @modules(MODULE_INFOS, allowed_dtypes=[torch.float32])
    def test_factory_arguments(self, device, dtype, module_info, training):
        """Every tensor is made where and as it was asked for."""
        for _, _, (args, kwargs) in samples(module_info, device, dtype, training):
            for target in (torch.float64, torch.float16):
                for place in ("cpu", "meta"):
                    module = module_info.module_cls(*args, **kwargs, device=place, dtype=target)
                    for name, tensor in module.state_dict().items():
                        assert tensor.device.type == place
                        if not name.endswith("num_batches_tracked"):
                            assert tensor.dtype == target
            with torch.device("meta"):
                assert all(t.is_meta for t in module_info.module_cls(*args, **kwargs).state_dict().values())

    @modules(MODULE_INFOS)
    def test_pickle_and_deepcopy(self, device, dtype, module_info, training):
        for module, args, _ in samples(module_info, device, dtype, training):
            copies = [pickle.loads(pickle.dumps(module)), copy.deepcopy(module)]
            y = module(*args)
            for other in copies:
                assert other.training == training
                assert torch.equal(other(*args), y)
                assert_close(other.state_dict(), module.state_dict(), atol=0, rtol=0)

    @modules(MODULE_INFOS)
    def test_state_dict(self, device, dtype, module_info, training):
        for module, args, (c_args, kwargs) in samples(module_info, device, dtype, training):
            with torch.no_grad():
                for tensor in module.parameters():
                    tensor.uniform_(0.5, 1.5)
            file = io.BytesIO()
            torch.save(module.state_dict(), file)
            file.seek(0)
            other = module_info.module_cls(*c_args, **kwargs, device=device, dtype=dtype).train(training)
            other.load_state_dict(torch.load(file, weights_only=True), strict=True)
            assert torch.equal(other(*args), module(*args))

    @modules(MODULE_INFOS, allowed_dtypes=[torch.float32])
    def test_to_empty(self, device, dtype, module_info, training):
        for module, args, (c_args, kwargs) in samples(module_info, device, dtype, training):
            empty = module_info.module_cls(*c_args, **kwargs, device="meta", dtype=dtype).train(training)
            assert empty(*(a.to("meta") for a in args)).shape == args[0].shape
            empty.to_empty(device=device)
            with freeze_rng_state():
                empty.reset_parameters()
            with freeze_rng_state():
                module.reset_parameters()
            assert_close(empty.state_dict(), module.state_dict(), atol=0, rtol=0)
            assert torch.equal(empty(*args), module(*args))

    @modules(MODULE_INFOS, allowed_dtypes=[torch.float32])
    def test_to_other_dtypes(self, device, dtype, module_info, training):
        """.half() and .to() keep parameters parameters, and a forward of that dtype works."""
        for module, args, _ in samples(module_info, device, dtype, training):
            names = [name for name, _ in module.named_parameters()]
            for target in (*HALVES, torch.float64):
                moved = copy.deepcopy(module).to(target)
                assert [name for name, _ in moved.named_parameters()] == names
                y = moved(*(a.to(target) for a in args))
                assert y.dtype == target
                assert y.isfinite().all()

    @modules(MODULE_INFOS)
    def test_non_contiguous(self, device, dtype, module_info, training):
        """Strided inputs and strided incoming gradients give what contiguous ones give."""
        for module, args, _ in samples(module_info, device, dtype, training):
            results = []
            for change_input, change_grad in ((leaf, leaf), (strided, leaf), (leaf, strided), (strided, strided)):
                twin = copy.deepcopy(module)
                inputs = [change_input(a).detach().requires_grad_() for a in args]
                y = twin(*inputs)
                torch.manual_seed(0)
                y.backward(change_grad(torch.rand_like(y, memory_format=torch.contiguous_format)).detach())
                results.append([y, *(t.grad for t in (*inputs, *twin.parameters()))])
            for result in results[1:]:
                for a, b in zip(result, results[0], strict=True):
                    assert error(a, b) <= reduction(dtype, args[0].numel())

    @modules([info for info in MODULE_INFOS if not info.name.endswith("1d")])
    def test_memory_format(self, device, dtype, module_info, training):
        for module, args, _ in samples(module_info, device, dtype, training):
            layout = torch.channels_last if args[0].ndim == 4 else torch.channels_last_3d
            results = []
            for change in (torch.contiguous_format, layout):
                twin = copy.deepcopy(module).to(memory_format=change)
                inputs = [a.detach().contiguous(memory_format=change).requires_grad_() for a in args]
                y = twin(*inputs)
                assert y.is_contiguous(memory_format=change)
                y.sin().sum().backward()
                results.append([y, *(t.grad for t in (*inputs, *twin.parameters()))])
            for a, b in zip(*results, strict=True):
                assert error(a, b) <= reduction(dtype, args[0].numel())

    @modules(IN_2D, allowed_dtypes=[torch.float64])
    def test_grad(self, device, dtype, module_info, training):
        self._check_gradients(device, dtype, module_info, training, gradcheck, check_forward_ad=True)

    @modules(IN_2D, allowed_dtypes=[torch.float64])
    def test_gradgrad(self, device, dtype, module_info, training):
        self._check_gradients(device, dtype, module_info, training, gradgradcheck)

    # Nightly, at two seconds each: other dimensions differ in how space is flattened alone, which the tests above see.
    @pytest.mark.nightly
    @modules(IN_1D_AND_3D, allowed_dtypes=[torch.float64])
    def test_gradients_in_other_dimensions(self, device, dtype, module_info, training):
        self._check_gradients(device, dtype, module_info, training, gradcheck, check_forward_ad=True)
        self._check_gradients(device, dtype, module_info, training, gradgradcheck)

    def _check_gradients(self, device, dtype, module_info, training, check, **options):
        for module, args, _ in samples(module_info, device, dtype, training, requires_grad=True):
            if args[0].numel() == 0:
                continue  # gradcheck has nothing to perturb; test_a08 covers it
            count, names = len(args), [name for name, _ in module.named_parameters()]
            state = {name: t for name, t in module.named_buffers()}

            def call(*leaves, module=module, names=names, state=state, count=count):
                parameters = dict(zip(names, leaves[count:], strict=True))
                buffers = {name: t.clone() for name, t in state.items()}
                return functional_call(module, (parameters, buffers), leaves[:count])

            with torch.no_grad():
                parameters = [leaf(p + 0.1 * torch.rand_like(p)) for p in module.parameters()]
            assert check(call, [*(leaf(a) for a in args), *parameters], fast_mode=True, **options)

    @modules(MODULE_INFOS, allowed_dtypes=[torch.float32])
    def test_train_and_eval_differ(self, device, dtype, module_info, training):
        for module, args, _ in samples(module_info, device, dtype, training):
            if args[0].numel() and module.track_running_stats:
                before = module.bn.running_mean.clone()
                train, test = copy.deepcopy(module).train()(*args), copy.deepcopy(module).eval()(*args)
                assert not torch.equal(train, test)
                assert torch.equal(before, module.bn.running_mean)


instantiate_device_type_tests(TestCommonModules, globals(), only_for="cpu")

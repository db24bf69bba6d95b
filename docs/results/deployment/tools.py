"""A network in the tools that people deploy with: each function takes it, an example and images, and returns its call.

Every tool has one thread. The tools are optional packages; measure.py leaves out those that are not installed.
"""

from __future__ import annotations

import contextlib
import io
import tempfile
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from calibnorm.nn import CalibratedNorm

Answer = Callable[[Tensor], Tensor]
MIXED = ("Conv", "Gemm", "MatMul")
"""What onnxruntime quantizes when the layers are to stay in floating point."""


def eager(network: nn.Module, example: Tensor, images: Tensor) -> Answer:
    """Return the network itself."""
    return network


def torch_export(network: nn.Module, example: Tensor, images: Tensor) -> Answer:
    """Return a program of torch.export."""
    return torch.export.export(network, (example,)).module()


def aot_inductor(network: nn.Module, example: Tensor, images: Tensor) -> Answer:
    """Return a package of AOTInductor."""
    program = torch.export.export(network, (example,))
    with tempfile.TemporaryDirectory() as folder:
        path = torch._inductor.aoti_compile_and_package(program, package_path=f"{folder}/net.pt2")
        return torch._inductor.aoti_load_package(path)


def onnx_file(network: nn.Module, example: Tensor, folder: str) -> str:
    """Write an ONNX file and return its path."""
    path = f"{folder}/net.onnx"
    with contextlib.redirect_stdout(io.StringIO()):  # torch's exporter tells its steps
        torch.onnx.export(network, (example,), path, dynamo=True, external_data=False)
    return path


def onnx_session(path: str, optimized: str = "") -> Any:
    """Return onnxruntime's session of a file."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    options.optimized_model_filepath = optimized
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def onnx_answer(path: str) -> Answer:
    """Return the call of a file's session."""
    session = onnx_session(path)
    name = session.get_inputs()[0].name
    return lambda x: torch.from_numpy(session.run(None, {name: x.numpy()})[0])


def onnxruntime(network: nn.Module, example: Tensor, images: Tensor) -> Answer:
    """Return onnxruntime's session of the exported network."""
    with tempfile.TemporaryDirectory() as folder:
        return onnx_answer(onnx_file(network, example, folder))


def onnxruntime_nodes(network: nn.Module, example: Tensor) -> Counter[str]:
    """Return the operators that are left of a network in onnxruntime's optimized graph."""
    import onnx

    with tempfile.TemporaryDirectory() as folder:
        onnx_session(onnx_file(network, example, folder), f"{folder}/optimized.onnx")
        return Counter(node.op_type for node in onnx.load(f"{folder}/optimized.onnx").graph.node)


def onnxruntime_static(network: nn.Module, example: Tensor, images: Tensor, only: tuple[str, ...] = MIXED) -> Answer:
    """Quantize the named operators alone; by default the layers stay in float32."""
    from onnxruntime import quantization
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(quantization.CalibrationDataReader):
        def __init__(self, name: str) -> None:
            self.images = iter({name: image[None].numpy()} for image in images)

        def get_next(self) -> Any:
            return next(self.images, None)

    with tempfile.TemporaryDirectory() as folder:
        path, ready, made = onnx_file(network, example, folder), f"{folder}/ready.onnx", f"{folder}/int8.onnx"
        quant_pre_process(path, ready, skip_symbolic_shape=True)
        reader = Reader(onnx_session(ready).get_inputs()[0].name)
        quantization.quantize_static(ready, made, reader, op_types_to_quantize=list(only) or None, per_channel=True)
        return onnx_answer(made)


def onnxruntime_static_all(network: nn.Module, example: Tensor, images: Tensor) -> Answer:
    """Quantize every operator that onnxruntime can."""
    return onnxruntime_static(network, example, images, ())


def openvino(network: nn.Module, example: Tensor, images: Tensor) -> Answer:
    """Return OpenVINO's network of the ONNX file."""
    import openvino as ov

    with tempfile.TemporaryDirectory() as folder:
        settings = {"INFERENCE_NUM_THREADS": 1, "INFERENCE_PRECISION_HINT": "f32"}
        model = ov.compile_model(onnx_file(network, example, folder), "CPU", settings)
    return lambda x: torch.from_numpy(model(x.numpy())[0].copy())


def executorch(network: nn.Module, example: Tensor, images: Tensor) -> Answer:
    """Return ExecuTorch's program, XNNPACK where it can."""
    return xnnpack(torch.export.export(network, (example,)))


def xnnpack(program: torch.export.ExportedProgram) -> Answer:
    """Return the method of an exported program."""
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir import to_edge_transform_and_lower
    from executorch.runtime import Runtime

    made = to_edge_transform_and_lower(program, partitioner=[XnnpackPartitioner()]).to_executorch()
    loaded = Runtime.get().load_program(made.buffer)
    method = loaded.load_method("forward")

    def answer(x: Tensor, _: object = (made, loaded)) -> Tensor:  # the method reads what these two own
        return method.execute([x.contiguous()])[0].clone()

    return answer


def executorch_int8(network: nn.Module, example: Tensor, images: Tensor) -> Answer:
    """XNNPACK's quantizer of torchao's PT2E, told to leave the layers."""
    from executorch.backends.xnnpack.quantizer import xnnpack_quantizer as xnn
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

    quantizer = xnn.XNNPACKQuantizer().set_global(xnn.get_symmetric_quantization_config(is_per_channel=True))
    for kind in {type(module) for module in network.modules() if isinstance(module, CalibratedNorm)}:
        quantizer.set_module_type(kind, None)
    prepared = prepare_pt2e(torch.export.export(network, (example,)).module(), quantizer)
    for image in images:
        prepared(image[None])
    return xnnpack(torch.export.export(convert_pt2e(prepared), (example,)))


FLOAT = {
    "torch, eager": eager,
    "torch.export": torch_export,
    "AOTInductor": aot_inductor,
    "onnxruntime": onnxruntime,
    "OpenVINO": openvino,
    "ExecuTorch, XNNPACK": executorch,
}
INT8 = {
    "onnxruntime, static int8, layers in float32": onnxruntime_static,
    "onnxruntime, static int8, all operators": onnxruntime_static_all,
    "ExecuTorch, PT2E int8, layers in float32": executorch_int8,
}
PACKAGES = {"onnxruntime": "onnxruntime", "OpenVINO": "openvino", "ExecuTorch": "executorch"}
"""Of the tools that torch does not bring."""

"""How far can a model be quantized without changing its predictions?

32-bit weights become 8-bit integers, a quarter of the size. The head is not quantized: it is small, and the class
evidence depends on it.
"""

import logging
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
from onnx import helper, numpy_helper
from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_dynamic, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process
from torch import nn

# Requirements on the validation photos: agreement with the run in classes and in verdicts, and accuracy lost.
LEAST_AGREEMENT = 0.99
MOST_ACCURACY_LOST = 0.003


def quantization_methods(model: nn.Module) -> tuple[str, ...]:
    """The methods to try for this network, fastest first; the first that passes is kept.

    `static`: convolutions, with activation ranges taken from photos. `dynamic`: linear layers, with activation ranges
    measured at run time. `blocks`: linear layers in blocks of 32 weights, more accurate but not faster. `weights`: only
    the stored weights have 8 bits, and are computed with as floats; the most accurate, for a small file alone.
    """

    def weights(kind: type[nn.Module]) -> int:
        return sum(module.weight.numel() for module in model.modules() if isinstance(module, kind))

    convolutional = weights(nn.Conv2d) > weights(nn.Linear)
    return (*(("static",) if convolutional else ("dynamic", "blocks")), "weights")


def quantize(method: str, full: Path, small: Path, head: nn.Linear, batches: Iterator[np.ndarray]) -> None:
    """Write the 8-bit form of an ONNX file; `static` takes its ranges from `batches` of normalized pixels."""
    prepared = small.with_name("prepared.onnx")
    # ONNX Runtime logs needless warnings on the root logger, of zero channels and of missing preprocessing.
    logging.disable(logging.WARNING)
    try:
        quant_pre_process(full, prepared, skip_symbolic_shape=True)
        kept = _nodes_of_head(onnx.load(prepared).graph, head)
        if method == "static":
            # Signed 8-bit weights overflow on processors without VNNI; 7-bit weights do not and are fastest.
            types = {"activation_type": QuantType.QUInt8, "weight_type": QuantType.QInt8, "reduce_range": True}
            quantize_static(prepared, small, _Ranges(batches), per_channel=True, nodes_to_exclude=kept, **types)
        elif method == "dynamic":
            # Unsigned weights never overflow.
            types = {"op_types_to_quantize": ["MatMul", "Gemm"], "weight_type": QuantType.QUInt8}
            quantize_dynamic(prepared, small, per_channel=True, nodes_to_exclude=kept, **types)
        elif method == "blocks":
            _quantize_blocks(prepared, small, kept)
        else:
            _quantize_weights(prepared, small, kept)
    finally:
        logging.disable(logging.NOTSET)
        prepared.unlink(missing_ok=True)


def _quantize_blocks(prepared: Path, small: Path, kept: list[str]) -> None:
    root = logging.getLogger()
    level, handlers = root.level, list(root.handlers)
    # Imported here, since the import sends the logs of all libraries to the screen, which is undone below.
    from onnxruntime.quantization.matmul_nbits_quantizer import DefaultWeightOnlyQuantConfig, MatMulNBitsQuantizer

    root.setLevel(level)
    root.handlers[:] = handlers
    blocks = DefaultWeightOnlyQuantConfig(block_size=32, is_symmetric=True, accuracy_level=4, bits=8)
    quantizer = MatMulNBitsQuantizer(onnx.load(prepared), nodes_to_exclude=kept, algo_config=blocks)
    quantizer.process()
    quantizer.model.save_model_to_file(str(small), False)


def _quantize_weights(prepared: Path, small: Path, kept: list[str]) -> None:
    """Store the weights of convolutions and linear layers as 8-bit integers with a scale for each output channel."""
    model = onnx.load(prepared)
    graph = model.graph
    stored = {weight.name: weight for weight in graph.initializer if len(weight.dims) > 1}
    layers = [node for node in graph.node if node.op_type in ("Conv", "Gemm", "MatMul") and node.name not in kept]
    # A weight that two layers share is stored once.
    for name, node in {node.input[1]: node for node in layers if node.input[1] in stored}.items():
        transposed = any(attribute.name == "transB" and attribute.i for attribute in node.attribute)
        axis = 0 if node.op_type == "Conv" or transposed else len(stored[name].dims) - 1
        values = np.moveaxis(numpy_helper.to_array(stored[name]), axis, 0)
        scale = np.abs(values).reshape(len(values), -1).max(axis=1) / 127
        scale = np.maximum(scale, np.finfo(np.float32).tiny).astype(np.float32)
        integers = np.round(values / scale.reshape(-1, *(1,) * (values.ndim - 1))).astype(np.int8)
        integers = np.ascontiguousarray(np.moveaxis(integers, 0, axis))
        graph.initializer.remove(stored[name])
        graph.initializer.append(numpy_helper.from_array(integers, f"{name}_int8"))
        graph.initializer.append(numpy_helper.from_array(scale, f"{name}_scale"))
        inputs = [f"{name}_int8", f"{name}_scale"]
        graph.node.insert(0, helper.make_node("DequantizeLinear", inputs, [name], axis=axis))
    onnx.save(model, small)


def _nodes_of_head(graph: onnx.GraphProto, head: nn.Linear) -> list[str]:
    shape = sorted(head.weight.shape)
    weights = {weight.name for weight in graph.initializer if sorted(weight.dims) == shape}
    names = [node.name for node in graph.node if weights & set(node.input)]
    # ONNX Runtime splits a Gemm in two under another name before it applies the exclusions.
    return names + [f"{name}_MatMul" for name in names]


class _Ranges(CalibrationDataReader):
    """Batches in the class that ONNX Runtime requires."""

    def __init__(self, batches: Iterator[np.ndarray]):
        self.batches = batches

    def get_next(self) -> dict[str, np.ndarray] | None:
        pixels = next(self.batches, None)
        return None if pixels is None else {"pixel_values": pixels}


def refusal(agreement: float, verdict_agreement: float, accuracy_lost: float) -> str | None:
    """Why an 8-bit file is refused: other classes, other verdicts or less accuracy; None if it passes."""
    if agreement < LEAST_AGREEMENT:
        return f"it agrees with torch on only {agreement:.1%} of the photos; at least {LEAST_AGREEMENT:.0%} is required"
    if verdict_agreement < LEAST_AGREEMENT:
        return (
            f"with its own calibration it gives the verdict of the run for only {verdict_agreement:.1%} of the photos; "
            f"at least {LEAST_AGREEMENT:.0%} is required"
        )
    # Equal shares may differ by rounding.
    if accuracy_lost > MOST_ACCURACY_LOST + 1e-9:
        lost, most = 100 * accuracy_lost, 100 * MOST_ACCURACY_LOST
        return f"it loses {lost:.1f} points of accuracy; at most {most:.1f} is allowed"
    return None

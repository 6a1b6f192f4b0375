"""What runs a checkpoint's network: torch, or ONNX Runtime where it is faster.

Both take model inputs (n, length, channels), float32, and give outputs (n, outputs), float32. On one thread of a CPU
and for a window at a time ONNX Runtime needs a tenth to three quarters of torch's time, the less the smaller the
network is.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Literal, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from forecast.errors import UsageError
from forecast.likelihood import OUTPUTS
from forecast.training import forward_in_batches

if TYPE_CHECKING:
    import onnx

    from forecast.checkpoint import Checkpoint

logger = logging.getLogger(__name__)

Array = NDArray[np.float32]
Engine = Literal["auto", "onnx", "torch"]

TOLERANCE = 1e-5
"""Largest difference from torch, relative to the larger of the output and one, at which ONNX Runtime is used."""
CHECKED_WINDOWS = 64
"""Windows on which a network is compared with torch's before it is used."""

ONNX_OPSET = 17
ONNX_IR_VERSION = 8
"""Old enough for every ONNX Runtime that runs on a Python of today; the operators have not changed since."""


class Network(Protocol):
    """A network with its weights.

    Attributes:
        engine: ``torch`` or ``onnx``.
        device: where it runs.
    """

    engine: str
    device: torch.device

    def __call__(self, inputs: Array) -> Array:
        """Outputs (n, outputs) for inputs (n, length, channels)."""
        ...


class TorchNetwork:
    """The network as it was trained, on a CPU or a GPU."""

    engine = "torch"

    def __init__(self, checkpoint: Checkpoint, device: torch.device) -> None:
        self.device = device
        self._model = checkpoint.build_model().to(device)

    def __call__(self, inputs: Array) -> Array:
        """Outputs (n, outputs) for inputs (n, length, channels)."""
        outputs: Array = (
            forward_in_batches(self._model, torch.from_numpy(inputs).to(self.device)).cpu().numpy()
        )
        return outputs


class OnnxNetwork:
    """The same network in ONNX Runtime, on one thread of a CPU.

    Raises:
        UsageError: when onnx or onnxruntime is not installed.
    """

    engine = "onnx"
    device = torch.device("cpu")

    def __init__(self, checkpoint: Checkpoint) -> None:
        try:
            import onnxruntime

            graph = onnx_graph(checkpoint).SerializeToString()
        except ImportError as error:
            raise UsageError(
                f"engine=onnx: {error.name} is not installed; install it (pip install onnx onnxruntime), or use "
                "engine=torch"
            ) from error
        options = onnxruntime.SessionOptions()
        # More threads are slower for networks of this size, and replicas share the machine.
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        # Its pool of freed memory only grows, to the largest batch ever asked for.
        options.enable_cpu_mem_arena = False
        options.log_severity_level = 3
        self._session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])

    def __call__(self, inputs: Array) -> Array:
        """Outputs (n, outputs) for inputs (n, length, channels)."""
        outputs: Array = self._session.run(None, {"inputs": inputs})[0]
        return outputs


def onnx_graph(checkpoint: Checkpoint) -> onnx.ModelProto:
    """The checkpoint's network as an ONNX graph: inputs (n, length, channels) to outputs (n, outputs).

    Raises:
        ImportError: when onnx is not installed.
    """
    from onnx import TensorProto, checker, helper, numpy_helper

    layers = checkpoint.config.num_layers
    channels, outputs = checkpoint.encoding.channels, OUTPUTS[checkpoint.config.likelihood]
    weights = {name: value.numpy() for name, value in checkpoint.model_state.items()}
    constants = {
        "first": np.array([0], np.int64),
        "second": np.array([1], np.int64),
        "regressor_weight": weights["regressor.weight"].T,
        "regressor_bias": weights["regressor.bias"],
    }
    # ONNX Runtime's LSTM takes (length, n, features) and gives (length, directions, n, hidden).
    nodes = [helper.make_node("Transpose", ["inputs"], ["steps_0"], perm=[1, 0, 2])]
    for layer in range(layers):
        for name in ("weight_ih", "weight_hh"):
            constants[f"{name}_{layer}"] = _gates_in_onnx_order(weights[f"lstm.{name}_l{layer}"])[np.newaxis]
        biases = [_gates_in_onnx_order(weights[f"lstm.{name}_l{layer}"]) for name in ("bias_ih", "bias_hh")]
        constants[f"bias_{layer}"] = np.concatenate(biases)[np.newaxis]
        last = layer == layers - 1
        nodes.append(
            helper.make_node(
                "LSTM",
                [f"steps_{layer}", f"weight_ih_{layer}", f"weight_hh_{layer}", f"bias_{layer}"],
                ["", "hidden_by_direction"] if last else [f"steps_by_direction_{layer}"],
                hidden_size=checkpoint.config.hidden_size,
            )
        )
        if not last:
            nodes.append(
                helper.make_node("Squeeze", [f"steps_by_direction_{layer}", "second"], [f"steps_{layer + 1}"])
            )
    nodes += [
        helper.make_node("Squeeze", ["hidden_by_direction", "first"], ["hidden"]),
        helper.make_node("Gemm", ["hidden", "regressor_weight", "regressor_bias"], ["outputs"]),
    ]
    graph = helper.make_graph(
        nodes,
        "forecaster",
        [helper.make_tensor_value_info("inputs", TensorProto.FLOAT, ["n", "length", channels])],
        [helper.make_tensor_value_info("outputs", TensorProto.FLOAT, ["n", outputs])],
        [numpy_helper.from_array(np.ascontiguousarray(value), name) for name, value in constants.items()],
    )
    model = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", ONNX_OPSET)], ir_version=ONNX_IR_VERSION
    )
    checker.check_model(model)
    return model


def _gates_in_onnx_order(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """Torch's gates are input, forget, cell, output; ONNX's are input, output, forget, cell."""
    of_input, of_forget, of_cell, of_output = np.split(values, 4)
    return np.concatenate([of_input, of_output, of_forget, of_cell])


def build_network(checkpoint: Checkpoint, device: torch.device, engine: Engine) -> Network:
    """The network that answers fastest on ``device`` and answers as torch does.

    Args:
        checkpoint: the model.
        device: where it is to run.
        engine: ``auto`` is ONNX Runtime on a CPU, where it is installed and agrees with torch, else torch, with a
            warning in the log that says why.

    Raises:
        UsageError: when ``onnx`` is asked for by name and is not installed, disagrees, or is to run on a GPU.
    """
    by_torch = TorchNetwork(checkpoint, device)
    if engine == "torch" or (engine == "auto" and device.type != "cpu"):
        return by_torch
    try:
        if device.type != "cpu":
            raise UsageError(f"engine=onnx runs on a CPU, not on {device.type}; use engine=torch there")
        inputs = random_inputs(checkpoint, CHECKED_WINDOWS)
        try:
            by_onnx = OnnxNetwork(checkpoint)
            difference = disagreement(by_onnx, by_torch, inputs)
        except UsageError:
            raise
        except Exception as error:  # ONNX Runtime's errors have no common type of their own
            raise UsageError(f"engine=onnx cannot run this model ({error}); use engine=torch") from error
        if not difference <= TOLERANCE:
            raise UsageError(
                f"engine=onnx: ONNX Runtime differs from torch by {difference:.1e} for this model, more than "
                f"{TOLERANCE:.0e}; use engine=torch"
            )
    except UsageError as error:
        if engine == "onnx":
            raise
        logger.warning("forecasting with torch, which is slower: %s", error)
        return by_torch
    return by_onnx


def random_inputs(checkpoint: Checkpoint, count: int, seed: int = 0) -> Array:
    """Model inputs (count, length, channels) of random walks in and beyond the training range, the same each time."""
    encoding = checkpoint.encoding
    scales = [scaling.change_std for scaling in (encoding.normalization, *encoding.further)]
    shape = (count, checkpoint.config.sequence_length, len(scales))
    changes = np.random.default_rng(seed).standard_t(3, shape) * scales
    walks = np.random.default_rng(seed + 1).normal(0, 2, (count, 1, 1)) + np.cumsum(changes, axis=1)
    return encoding.inputs(walks)


def disagreement(one: Network, other: Network, inputs: Array) -> float:
    """Largest difference of two networks' outputs, relative to the larger of the output and one.

    One is about the unit of outputs: a standard deviation of the training's changes, or of its prices.
    """
    ours, theirs = one(inputs), other(inputs)
    return float(np.max(np.abs(ours - theirs) / np.maximum(1.0, np.abs(theirs)), initial=0.0))

"""Engines that run a checkpoint's networks: torch, or ONNX Runtime where it is faster.

Both take the inputs (n, length, channels), float32, of each of the members' distinct views of a window
(``forecast.model.forecaster.views``), and give outputs (n, members, outputs), float32. On one CPU thread and for one
window at a time, ONNX Runtime takes a tenth to three quarters of torch's time; the smaller the network, the less.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from forecast.errors import UsageError
from forecast.model.checkpoint import Checkpoint
from forecast.model.forecaster import networks, views
from forecast.model.market import COLUMNS as MARKET_COLUMNS
from forecast.model.network import onnx_graph

if TYPE_CHECKING:
    import onnx

logger = logging.getLogger(__name__)

Array = NDArray[np.float32]
EngineName = Literal["auto", "onnx", "torch"]

TOLERANCE = 1e-5
"""Largest difference from torch, relative to the larger of the output and one, at which ONNX Runtime is used."""
CHECKED_WINDOWS = 64
"""Number of windows on which ONNX Runtime is compared with torch before it is used."""


class Engine(Protocol):
    """Networks with their weights, ready to compute.

    Attributes:
        name: ``torch`` or ``onnx``.
        device: where it runs.
    """

    name: str
    device: torch.device

    def __call__(self, inputs: Sequence[Array]) -> Array:
        """Outputs (n, members, outputs) for the inputs (n, length, channels) of each view."""
        ...


class TorchEngine:
    """The networks as they were trained, on a CPU or a GPU."""

    name = "torch"

    def __init__(self, checkpoint: Checkpoint, device: torch.device) -> None:
        self.device = device
        self._run = networks(checkpoint, device)

    def __call__(self, inputs: Sequence[Array]) -> Array:
        """Outputs (n, members, outputs) for the inputs (n, length, channels) of each view."""
        return self._run(inputs)


class OnnxEngine:
    """The same networks in one graph in ONNX Runtime, on one CPU thread.

    Raises:
        UsageError: when onnx or onnxruntime is not installed, or only torch runs this network.
    """

    name = "onnx"
    device = torch.device("cpu")

    def __init__(self, checkpoint: Checkpoint) -> None:
        try:
            import onnxruntime

            graph = _pooled_graph(checkpoint).SerializeToString()
        except ImportError as error:
            raise UsageError(
                f"engine=onnx: {error.name} is not installed; install it (pip install onnx onnxruntime), or use "
                "engine=torch"
            ) from error
        options = onnxruntime.SessionOptions()
        # More threads are slower for networks of this size, and replicas share the machine.
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        # The arena never shrinks: it stays as large as the largest batch needed.
        options.enable_cpu_mem_arena = False
        options.log_severity_level = 3
        self._session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])

    def __call__(self, inputs: Sequence[Array]) -> Array:
        """Outputs (n, members, outputs) for the inputs (n, length, channels) of each view."""
        named = {f"inputs_{number}": values for number, values in enumerate(inputs)}
        outputs: Array = self._session.run(None, named)[0]
        return outputs


def _pooled_graph(checkpoint: Checkpoint) -> onnx.ModelProto:
    """One graph of all members: from the inputs of each view to outputs (n, members, outputs).

    Raises:
        ImportError: when onnx is not installed.
        UsageError: when only torch runs a member's network.
    """
    from onnx import TensorProto, checker, compose, helper, numpy_helper

    _, numbers = views(checkpoint.encodings)
    nodes, constants, inputs, names = [], [numpy_helper.from_array(np.array([1]), "members")], {}, []
    for index, (member, number) in enumerate(zip(checkpoint.members, numbers, strict=True)):
        model = compose.add_prefix(onnx_graph(member.config, member.model_state), f"{index}_")
        (taken,), (given,) = model.graph.input, model.graph.output
        channels = taken.type.tensor_type.shape.dim[2].dim_value
        # Of each view: a name that two dimensions share would say that they are equal.
        shape = ["n", f"length_{number}", channels]
        inputs[number] = helper.make_tensor_value_info(f"inputs_{number}", TensorProto.FLOAT, shape)
        nodes += [
            helper.make_node("Identity", [f"inputs_{number}"], [taken.name]),
            *model.graph.node,
            helper.make_node("Unsqueeze", [given.name, "members"], [f"{index}_member"]),
        ]
        constants += model.graph.initializer
        names.append(f"{index}_member")
    nodes.append(helper.make_node("Concat", names, ["outputs"], axis=1))
    graph = helper.make_graph(
        nodes,
        "members",
        list(inputs.values()),
        [helper.make_tensor_value_info("outputs", TensorProto.FLOAT, ["n", len(names), None])],
        constants,
    )
    pooled = helper.make_model(graph, opset_imports=model.opset_import, ir_version=model.ir_version)
    checker.check_model(pooled)
    return pooled


def build_engine(checkpoint: Checkpoint, device: torch.device, engine: EngineName) -> Engine:
    """Build the fastest engine on ``device`` whose outputs agree with torch's.

    Args:
        checkpoint: the model.
        device: where the network runs.
        engine: ``auto`` is ONNX Runtime on a CPU if it is installed and agrees with torch; otherwise torch, which on a
            CPU logs the reason as a warning.

    Raises:
        UsageError: when ``engine`` is ``onnx`` and it is not installed, disagrees, or cannot run on ``device``.
    """
    by_torch = TorchEngine(checkpoint, device)
    if engine == "torch" or (engine == "auto" and device.type != "cpu"):
        return by_torch
    try:
        return _agreeing_onnx(checkpoint, device, by_torch)
    except UsageError as error:
        if engine == "onnx":
            raise
        logger.warning("forecasting with torch, which is slower: %s", error)
        return by_torch


def _agreeing_onnx(checkpoint: Checkpoint, device: torch.device, by_torch: TorchEngine) -> OnnxEngine:
    """Build the ONNX engine and check that its outputs agree with torch's.

    Raises:
        UsageError: when it cannot run on ``device``, cannot run this model, or disagrees.
    """
    if device.type != "cpu":
        raise UsageError(f"engine=onnx runs on a CPU, not on {device.type}; use engine=torch")
    inputs = random_inputs(checkpoint, CHECKED_WINDOWS)
    try:
        by_onnx = OnnxEngine(checkpoint)
        difference = disagreement(by_onnx, by_torch, inputs)
    except UsageError:
        raise
    except Exception as error:  # ONNX Runtime's errors have no common base class
        raise UsageError(f"engine=onnx cannot run this model ({error}); use engine=torch") from error
    if not difference <= TOLERANCE:
        raise UsageError(
            f"engine=onnx: ONNX Runtime differs from torch by {difference:.1e} for this model, more than "
            f"{TOLERANCE:.0e}; use engine=torch"
        )
    return by_onnx


def random_inputs(checkpoint: Checkpoint, count: int, seed: int = 0) -> list[Array]:
    """Inputs (count, length, channels) of each view, of random walks in and beyond the training range."""
    distinct, _ = views(checkpoint.encodings)
    scales = checkpoint.normalization.change_stds
    shape = (count, checkpoint.rows_used, len(scales))
    changes = np.random.default_rng(seed).standard_t(3, shape) * scales
    walks = np.random.default_rng(seed + 1).normal(0, 2, (count, 1, 1)) + np.cumsum(changes, axis=1)
    market = np.random.default_rng(seed + 2).normal(0, 1, (*shape[:2], MARKET_COLUMNS))
    return [encoding.encode(encoding.with_market(walks, market))[0] for encoding in distinct]


def disagreement(one: Engine, other: Engine, inputs: Sequence[Array]) -> float:
    """Largest difference between two engines' outputs, relative to the larger of the output and one.

    One is the unit of outputs: a standard deviation of the training changes, or of the training prices.
    """
    ours, theirs = one(inputs), other(inputs)
    return float(np.max(np.abs(ours - theirs) / np.maximum(1.0, np.abs(theirs)), initial=0.0))

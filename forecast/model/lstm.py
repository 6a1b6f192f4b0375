"""The LSTM forecaster: its construction, its cost per window, and its ONNX graph."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from forecast.config import TrainConfig
from forecast.model.architecture import Architecture, lstm_size

if TYPE_CHECKING:
    import onnx

ONNX_OPSET = 17
ONNX_IR_VERSION = 8
"""Old enough for every ONNX Runtime of a supported Python; the operators have not changed since."""


class LSTM(Architecture):
    """The architecture of ``LSTMForecaster``."""

    def build(self, config: TrainConfig, channels: int, outputs: int) -> LSTMForecaster:
        """Build an untrained LSTM; with a residual target its outputs are exactly zero."""
        return LSTMForecaster(
            config.hidden_size,
            config.num_layers,
            config.dropout,
            channels=channels,
            outputs=outputs,
            zero_head=config.target == "residual",
        )

    def multiply_adds(self, config: TrainConfig) -> int:
        """Multiply-adds of one window through the layers.

        A layer's four gates each multiply its input and its hidden state at every step (Hochreiter & Schmidhuber 1997;
        Gers et al. 2000); the head, elementwise operations and channels beyond the first are left out.
        """
        hidden_size = config.hidden_size
        inputs = [1] + [hidden_size] * (config.num_layers - 1)
        return config.sequence_length * sum(4 * hidden_size * (width + hidden_size) for width in inputs)

    def onnx_graph(self, config: TrainConfig, state: dict[str, Tensor]) -> onnx.ModelProto:
        """Convert the trained LSTM to an ONNX graph.

        Raises:
            ImportError: when onnx is not installed.
        """
        return _onnx_graph(state)


class LSTMForecaster(nn.Module):
    """An LSTM over the window, then a linear head on its last hidden state.

    The submodules are called ``lstm`` and ``regressor`` so that weights of the original system load unchanged.
    """

    def __init__(
        self,
        hidden_size: int,
        num_layers: int,
        dropout: float = 0.0,
        *,
        channels: int = 1,
        outputs: int = 1,
        zero_head: bool,
    ) -> None:
        """Build the network.

        Args:
            hidden_size: width of each LSTM layer.
            num_layers: number of LSTM layers.
            dropout: dropout between layers; none with one layer.
            channels: number of inputs per step.
            outputs: number of outputs per window.
            zero_head: start with outputs of exactly zero, which for a residual target is persistence.
        """
        super().__init__()
        self.lstm = nn.LSTM(
            input_size=channels,
            hidden_size=hidden_size,
            num_layers=num_layers,
            batch_first=True,
            dropout=dropout if num_layers > 1 else 0.0,
        )
        self.regressor = nn.Linear(hidden_size, outputs)
        if zero_head:
            nn.init.zeros_(self.regressor.weight)
            nn.init.zeros_(self.regressor.bias)

    def forward(self, inputs: Tensor) -> Tensor:
        """Inputs of shape (n, length, channels) to outputs of shape (n, outputs)."""
        hidden, _ = self.lstm(inputs)
        outputs: Tensor = self.regressor(hidden[:, -1])
        return outputs


def _onnx_graph(state: dict[str, Tensor]) -> onnx.ModelProto:
    from onnx import TensorProto, checker, helper, numpy_helper

    weights = {name: value.numpy() for name, value in state.items()}
    hidden_size, layers = lstm_size(state)
    channels, outputs = weights["lstm.weight_ih_l0"].shape[1], len(weights["regressor.bias"])
    constants = {
        "first": np.array([0], np.int64),
        **({"second": np.array([1], np.int64)} if layers > 1 else {}),
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
                hidden_size=hidden_size,
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

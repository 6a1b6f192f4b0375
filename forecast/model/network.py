"""Networks by name: how each is built, what a window costs, and how ONNX Runtime runs it.

The rest of the project knows a network by its configuration alone. A package adds one by an entry point of the group
``forecast.networks``, or a process by ``ARCHITECTURES.add``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from forecast.config import TrainConfig
from forecast.errors import UsageError
from forecast.model.likelihood import OUTPUTS
from forecast.model.lstm import LSTMForecaster, lstm_multiply_adds, lstm_onnx_graph
from forecast.model.windows import channels
from forecast.registry import Registry

if TYPE_CHECKING:
    import onnx

INFERENCE_BATCH = 1024
"""Windows per forward pass without gradients: bounds memory, large enough to cost nothing."""


class Architecture(ABC):
    """One kind of network.

    A network takes inputs (n, length, channels) and gives outputs (n, outputs), both float32; what they mean is said by
    ``forecast.model.windows.Encoding`` and ``forecast.model.likelihood``.
    """

    @abstractmethod
    def build(self, config: TrainConfig, channels: int, outputs: int) -> nn.Module:
        """An untrained network; with a residual target its outputs are exactly zero, which is persistence."""

    @abstractmethod
    def multiply_adds(self, config: TrainConfig) -> int:
        """Multiply-adds of one window, to which the time of a trial and of a forecast is about proportional."""

    def onnx_graph(self, config: TrainConfig, state: dict[str, Tensor]) -> onnx.ModelProto:
        """A trained network as an ONNX graph from ``inputs`` to ``outputs``.

        Raises:
            ImportError: when onnx is not installed.
            UsageError: for a network that only torch runs, unless a subclass says otherwise.
        """
        raise UsageError(f"engine=onnx: the network {config.network} has no ONNX graph; use engine=torch")


class LSTM(Architecture):
    """An LSTM over the window, then a linear head on its last hidden state."""

    def build(self, config: TrainConfig, channels: int, outputs: int) -> LSTMForecaster:
        """An untrained LSTM."""
        return LSTMForecaster(
            config.hidden_size,
            config.num_layers,
            config.dropout,
            channels=channels,
            outputs=outputs,
            zero_head=config.target == "residual",
        )

    def multiply_adds(self, config: TrainConfig) -> int:
        """Those of its layers."""
        return lstm_multiply_adds(config.sequence_length, config.hidden_size, config.num_layers)

    def onnx_graph(self, config: TrainConfig, state: dict[str, Tensor]) -> onnx.ModelProto:
        """The same LSTM in ONNX."""
        return lstm_onnx_graph(state)


ARCHITECTURES: Registry[Architecture] = Registry("network", "forecast.networks", {"lstm": LSTM()})
"""Every network by the name that ``TrainConfig.network`` gives it."""


def build_network(config: TrainConfig) -> nn.Module:
    """The untrained network of a configuration.

    Raises:
        UsageError: when there is no network of that name.
    """
    architecture = ARCHITECTURES.find(config.network)
    return architecture.build(config, channels(config), OUTPUTS[config.likelihood])


def multiply_adds(config: TrainConfig) -> int:
    """Multiply-adds of one window through the network of a configuration."""
    return ARCHITECTURES.find(config.network).multiply_adds(config)


def onnx_graph(config: TrainConfig, state: dict[str, Tensor]) -> onnx.ModelProto:
    """A trained network as an ONNX graph: ``inputs`` (n, length, channels) to ``outputs`` (n, outputs).

    Raises:
        ImportError: when onnx is not installed.
        UsageError: when only torch runs this network.
    """
    return ARCHITECTURES.find(config.network).onnx_graph(config, state)


def forward_in_batches(network: nn.Module, inputs: Tensor) -> Tensor:
    """Outputs (n, outputs) for inputs (n, length, channels) without gradients or dropout.

    ``network`` is left in eval mode.
    """
    network.eval()
    with torch.inference_mode():
        return torch.cat([network(batch) for batch in inputs.split(INFERENCE_BATCH)])

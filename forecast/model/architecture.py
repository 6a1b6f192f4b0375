"""The interface between a kind of network and the rest of the project."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from forecast.config import TrainConfig
from forecast.errors import UsageError

if TYPE_CHECKING:
    import onnx
    from torch import Tensor, nn


class Architecture(ABC):
    """One kind of network.

    A network takes inputs (n, length, channels) and gives outputs (n, outputs), both float32. The length is that of the
    window, or one less with a residual target, whose inputs are changes.
    ``forecast.model.windows.Encoding`` defines the inputs, ``forecast.model.likelihood`` the outputs.
    """

    @abstractmethod
    def build(self, config: TrainConfig, channels: int, outputs: int) -> nn.Module:
        """Build an untrained network; with a residual target its outputs are exactly zero, which is persistence."""

    @abstractmethod
    def multiply_adds(self, config: TrainConfig) -> int:
        """Multiply-adds of one window; the time of a trial or a forecast is about proportional to them."""

    def onnx_graph(self, config: TrainConfig, state: dict[str, Tensor]) -> onnx.ModelProto:
        """Convert a trained network to an ONNX graph from ``inputs`` to ``outputs``.

        Raises:
            ImportError: when onnx is not installed.
            UsageError: when only torch runs this network, which holds unless a subclass overrides this method.
        """
        raise UsageError(f"engine=onnx: the network {config.network} has no ONNX graph; use engine=torch")


def lstm_size(state: Mapping[str, Any]) -> tuple[int, int]:
    """Read the width and the number of layers from the weights of an ``LSTMForecaster``.

    Raises:
        KeyError: when ``state`` does not hold such weights.
    """
    layers = sum(re.fullmatch(r"lstm\.weight_hh_l\d+", key) is not None for key in state)
    return int(state["lstm.weight_hh_l0"].shape[1]), layers

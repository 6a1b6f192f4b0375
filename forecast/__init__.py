"""The public API: load prices, train and evaluate forecasters, and predict.

These names are all that a notebook needs; each documents itself. For example::

    from forecast import TrainConfig, load_series, train

    series = load_series("BTC-USD", source="snapshot")
    result = train(series, TrainConfig(max_epochs=10))
    print(result.test.model, result.test.persistence)
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    __version__: str
    from forecast.config import DataConfig, TrainConfig
    from forecast.errors import ForecastError
    from forecast.frames import Forecaster
    from forecast.inference.predictor import Predictor, predict_next_from_values
    from forecast.model.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
    from forecast.model.training import evaluate, train
    from forecast.prices.series import Series
    from forecast.prices.source import load_series

__all__ = [
    "Checkpoint",
    "DataConfig",
    "ForecastError",
    "Forecaster",
    "Predictor",
    "Series",
    "TrainConfig",
    "__version__",
    "evaluate",
    "load_checkpoint",
    "load_series",
    "predict_next_from_values",
    "save_checkpoint",
    "train",
]

_HOME = {
    "Checkpoint": "model.checkpoint",
    "DataConfig": "config",
    "ForecastError": "errors",
    "Forecaster": "frames",
    "Predictor": "inference.predictor",
    "Series": "prices.series",
    "TrainConfig": "config",
    "evaluate": "model.training",
    "load_checkpoint": "model.checkpoint",
    "load_series": "prices.source",
    "predict_next_from_values": "inference.predictor",
    "save_checkpoint": "model.checkpoint",
    "train": "model.training",
}


def __getattr__(name: str) -> Any:
    """Import a public name on first use: torch takes seconds to import, and ``--help`` must not."""
    if name == "__version__":
        from forecast.version import installed_version

        return installed_version()
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return __all__

"""The search spaces: that of the original system, and a small one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeVar

from forecast.config import ExperimentConfig, TrainConfig, VolatilityName
from forecast.model.normalization import sees_range

if TYPE_CHECKING:  # a worker never samples: it starts faster without Optuna
    import optuna

Value = TypeVar("Value")


class _Given:
    """Stands in for an Optuna trial: its values are given, and must be ones that the space can sample."""

    def __init__(self, params: dict[str, Any]) -> None:
        self._given = params
        self.params: dict[str, Any] = {}

    def suggest_int(self, name: str, low: int, high: int, step: int = 1) -> int:
        value: int = self._value(name)
        return self._take(name, value, value in range(low, high + 1, step))

    def suggest_float(self, name: str, low: float, high: float, *, log: bool = False) -> float:
        value: float = self._value(name)
        return self._take(name, value, isinstance(value, float) and low <= value <= high)

    def suggest_categorical(self, name: str, choices: Sequence[Any]) -> Any:
        value = self._value(name)
        return self._take(name, value, value in choices)

    def _value(self, name: str) -> Any:
        # A hyperparameter that a search did not sample had its default in all its trials.
        return self._given.get(name, TrainConfig.model_fields[name].default)

    def _take(self, name: str, value: Value, fits: bool) -> Value:
        if not fits:
            raise ValueError(f"{name} {value}")
        self.params[name] = value
        return value


@dataclass(frozen=True)
class SearchSpace:
    """The choices and ranges of every hyperparameter; calling it samples one configuration.

    Ranges are (first, last, step), both ends included. The space is define-by-run: dropout acts between layers, so it
    is sampled only with several layers; a dimension without effect would mislead the sampler.
    """

    sequence_length: tuple[int, int, int]
    hidden_size: tuple[int, ...]
    num_layers: tuple[int, int]
    batch_size: tuple[int, ...]
    max_epochs: tuple[int, int, int]
    dropout: tuple[float, float] = (0.0, 0.5)
    learning_rate: tuple[float, float] = (1e-4, 5e-3)
    patience: tuple[int, int, int] = (10, 25, 5)
    volatility: tuple[VolatilityName, ...] = ()
    market: tuple[bool, ...] = ()

    def __call__(self, trial: optuna.Trial | _Given) -> None:
        """Sample one value of each hyperparameter for ``trial``."""
        first, last, step = self.sequence_length
        trial.suggest_int("sequence_length", first, last, step=step)
        trial.suggest_categorical("hidden_size", self.hidden_size)
        layers = trial.suggest_int("num_layers", *self.num_layers)
        if layers > 1:
            trial.suggest_float("dropout", *self.dropout)
        trial.suggest_float("learning_rate", *self.learning_rate, log=True)
        trial.suggest_categorical("batch_size", self.batch_size)
        first, last, step = self.max_epochs
        trial.suggest_int("max_epochs", first, last, step=step)
        first, last, step = self.patience
        trial.suggest_int("patience", first, last, step=step)
        if self.volatility:
            trial.suggest_categorical("volatility", self.volatility)
        if self.market:
            trial.suggest_categorical("market", self.market)

    def of(self, experiment: ExperimentConfig, start: TrainConfig | None = None) -> SearchSpace:
        """The space of an experiment: what its models can see and correct, where that changes them.

        Args:
            experiment: the settings that all trials share.
            start: the options of the model that they start from, which decide the network; None without one.
        """
        if start is not None:
            return replace(
                self,
                hidden_size=(start.hidden_size,),
                num_layers=(start.num_layers, start.num_layers),
                volatility=(start.volatility,),
                market=(start.market,),
            )
        volatility: tuple[VolatilityName, ...] = ()
        if experiment.likelihood == "student_t":
            ranges = sees_range(experiment.input_columns, experiment.feature)
            volatility = ("ewma", "gjr", "range") if ranges else ("ewma", "gjr")
        return replace(self, volatility=volatility, market=(False, True) if experiment.market else ())

    def sampled_as(self, params: dict[str, Any]) -> dict[str, Any]:
        """Return the hyperparameters of another search as this space samples them.

        Those that it does not sample are left out.

        Raises:
            ValueError: when it cannot sample one of the values; the text is the hyperparameter and its value.
        """
        given = _Given(params)
        self(given)
        return given.params

    @property
    def longest_window(self) -> int:
        """The largest ``sequence_length`` a trial can have."""
        return self.sequence_length[1]

    @property
    def typical(self) -> dict[str, Any]:
        """The configuration in the middle of what decides the cost of a trial."""
        first, last, step = self.sequence_length
        return {
            "sequence_length": first + (last - first) // step // 2 * step,
            "hidden_size": self.hidden_size[(len(self.hidden_size) - 1) // 2],
            "num_layers": sum(self.num_layers) // 2,
        }


def complete_params(params: dict[str, Any]) -> dict[str, Any]:
    """Return the hyperparameters, with defaults for those that the space did not sample."""
    return {"dropout": 0.0, **params}


SPACES = {
    "full": SearchSpace(
        sequence_length=(20, 120, 10),
        hidden_size=(32, 64, 128, 256),
        num_layers=(1, 4),
        batch_size=(32, 64, 128),
        max_epochs=(30, 120, 30),
    ),
    "small": SearchSpace(
        sequence_length=(20, 60, 10),
        hidden_size=(32, 64),
        num_layers=(1, 2),
        batch_size=(64, 128),
        max_epochs=(30, 60, 30),
    ),
}

"""The forecaster for DataFrames: fit, predict and cross-validate on the long format.

It has the conventions of scikit-learn (the constructor only stores parameters, ``fit`` returns the object, fitted
attributes end in an underscore) and the columns of Nixtla's libraries, whose evaluation and plots work on the results.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from inspect import Parameter, Signature
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from forecast.backtest.rolling import Fold, require_no_start
from forecast.config import TrainConfig, parse_settings
from forecast.errors import DataError, UsageError, WindowError
from forecast.inference.frames import ALIAS, Asked, known_of, listener, predict_frame, require_count
from forecast.inference.predictor import Predictor
from forecast.inference.together import Known, forecast_each, say_doubts
from forecast.model.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from forecast.model.exported import is_exported
from forecast.model.network import ARCHITECTURES
from forecast.model.panel import Prepared, prepare_panel, too_few
from forecast.model.split import service_split
from forecast.model.start import same_options, with_recursions_of
from forecast.model.training import fit
from forecast.model.windows import PreparedSeries, plain_window, prepare
from forecast.names import did_you_mean
from forecast.notices import Notify, say_on_stderr
from forecast.prices.frames import SOURCE, Columns, Dates, Form, Rows, read_frame, say_left_out
from forecast.prices.panel import Panel
from forecast.prices.series import Series
from forecast.prices.timeline import RECENT_DATES
from forecast.scores.metrics import Evaluation

NOT_PARAMETERS = {
    **dict.fromkeys(
        ("symbol", "feature", "source", "date_column", "symbol_column", "delimiter", "encoding"),
        "the DataFrame and the names of its columns determine it; omit it",
    ),
    "train_ratio": "all rows are used for training and validation; use `val_ratio_within_train`, or omit it",
    "freq": "dates come from a calendar; omit it, or name the calendar as `calendar`",
    "notify": "no parameter of the model; give it to `fit`, `predict` or `cross_validation`",
}
"""Names that are no parameters, and what to do: options of a training that a frame has no use for, and others'."""
DEFAULTS: dict[str, Any] = {
    name: field.default for name, field in TrainConfig.model_fields.items() if name not in NOT_PARAMETERS
}
"""The parameters of a ``Forecaster`` beside its ``alias``, with their defaults."""
NOT_FITTED = "this Forecaster is not fitted; call `fit` first, or load a checkpoint with `Forecaster.load`"


class Forecaster:
    """Trains one model on the series of a DataFrame, and answers with DataFrames of forecasts.

    A frame is in the long format: a row for each series (``unique_id``) and date (``ds``) with its price (``y``); other
    names are given as ``id_col``, ``time_col`` and ``target_col``. It may be one of pandas, of polars, or of another
    library that narwhals reads; results are of the same library. Prices are cleaned by the rules of price files, each
    repair is said on standard error (``notify``), and a series that cannot be used is left out. Several series train
    one model together. Dates of forecasts come from the calendar that the dates fit, or that ``calendar`` names.

    The parameters are the options of a training, the fields of ``TrainConfig``, such as ``sequence_length``,
    ``max_epochs``, ``members`` or ``input_columns``, without those that the frame makes needless; and ``alias``, the
    name of the column of point forecasts. They are checked when they are used. For example::

        model = Forecaster(max_epochs=20).fit(df)
        forecasts = model.predict(h=5, level=[80, 90])

    Attributes:
        checkpoint_: the trained model.
        validation_: its scores on the validation rows, the last of each series; None for a loaded model.
        left_out_: by series, why it is not in the model.
        history_: by series, the last rows, from which ``predict`` forecasts; None for a loaded model.
        form_: how results are written.
    """

    __signature__: ClassVar[Signature] = Signature(
        [
            Parameter(name, Parameter.KEYWORD_ONLY, default=default)
            for name, default in {"alias": ALIAS, **DEFAULTS}.items()
        ]
    )

    checkpoint_: Checkpoint
    validation_: Evaluation | None
    left_out_: dict[str, str]
    history_: dict[str, Series] | None
    form_: Form

    def __init__(self, *, alias: str = ALIAS, **options: Any) -> None:
        """Store the parameters.

        Raises:
            UsageError: when there is no parameter of a name.
        """
        self.alias = alias
        vars(self).update(DEFAULTS)
        self.set_params(**options)

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """The parameters by name; ``deep`` has no effect, since none has parameters of its own."""
        return {"alias": self.alias, **self._options()}

    def set_params(self, **parameters: Any) -> Forecaster:
        """Change parameters.

        Raises:
            UsageError: when there is no parameter of a name.
        """
        for name in parameters:
            if name in NOT_PARAMETERS:
                raise UsageError(f"`{name}`: {NOT_PARAMETERS[name]}")
            if name != "alias" and name not in DEFAULTS:
                hint = did_you_mean(name, DEFAULTS) or "the names are those of `Forecaster().get_params()`"
                raise UsageError(f"`{name}`: no such parameter; {hint}")
        vars(self).update(parameters)
        return self

    def __repr__(self) -> str:
        defaults = {"alias": ALIAS, **DEFAULTS}
        changed = {name: value for name, value in self.get_params().items() if value != defaults[name]}
        return f"{type(self).__name__}({', '.join(f'{name}={value!r}' for name, value in changed.items())})"

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "_predictor"}

    def fit(
        self,
        df: Any,
        *,
        id_col: str = Columns.id_col,
        time_col: str = Columns.time_col,
        target_col: str = Columns.target_col,
        notify: Notify | None = say_on_stderr,
    ) -> Forecaster:
        """Train on all rows; the last ones (``val_ratio_within_train``) stop the training and calibrate the intervals.

        Args:
            df: the frame.
            id_col: its column of names of series.
            time_col: its column of dates or times.
            target_col: its column of prices.
            notify: called with each line for a person; None for no notices.

        Raises:
            UsageError: when a parameter or the frame is not one.
            DataError: when the rows cannot be used or are too few.
            TrainingError: when training diverges.
        """
        config = self._config(target_col)
        say = listener(notify)
        long = read_frame(df, config, Columns(id_col, time_col, target_col), notify=say)
        start = None
        if config.start_from:
            start = load_checkpoint(config.start_from)
            config = same_options(config, start, self._given())
        found = _train(long.panel, long.form.several, config, start)
        say_left_out({name: why for name, why in found.left_out.items() if name in long.panel.series}, say)
        self.checkpoint_, self.validation_, self.left_out_ = (
            found.checkpoint,
            found.validation,
            found.left_out,
        )
        count = max(found.checkpoint.rows_used, RECENT_DATES)
        self.history_ = {
            symbol: series.part(slice(-count, None))
            for symbol, series in long.panel.series.items()
            if symbol not in found.left_out
        }
        self.form_ = long.form
        vars(self).pop("_predictor", None)
        return self

    def predict(
        self,
        h: int = 1,
        level: Sequence[float] | None = None,
        *,
        levels: Sequence[float] | None = None,
        quantiles: Sequence[float] | None = None,
        df: Any = None,
        notify: Notify | None = say_on_stderr,
    ) -> Any:
        """Forecast the next ``h`` bars of each series.

        Args:
            h: number of steps.
            level: levels of intervals in percent, such as ``[80, 90]``.
            levels: the same as shares, such as ``[0.8, 0.9]``.
            quantiles: probabilities of further columns, such as ``[0.1, 0.5]`` for ``LSTM-q-10`` and ``LSTM-q-50``.
            df: a frame with the columns of ``fit`` to forecast from; without it, the end of the fitted series.
            notify: called with each line for a person; None for no notices.

        Returns:
            A frame with ``h`` rows for each series: its name, the date, ``LSTM``, and with levels ``LSTM-lo-90``,
            ``LSTM-lo-80``, ``LSTM-hi-80`` and ``LSTM-hi-90``.

        Raises:
            UsageError: when the model is not fitted, or an argument is impossible.
            LevelError: when it has no such intervals.
            WindowError: when it cannot forecast so many steps, or no series.
        """
        asked = Asked.of(h, level, levels, quantiles, self.alias)
        predictor = self._fitted()
        if df is not None:
            return predict_frame(predictor, df, asked, self.form_.columns, notify=notify)
        asked.require(predictor)
        asked.require_apart(self.form_.columns)
        say = listener(notify)
        if self.history_ is None:
            known, dates = _from_checkpoint(predictor, asked.horizon)
        else:
            known = known_of(predictor, self.history_, say)
            dates = {symbol: self.history_[symbol].next_dates(asked.horizon) for symbol in known}
        say_doubts(known, say)
        found = forecast_each(known, asked.horizon, asked.probabilities, say)
        return self.form_.frame(
            [Rows(symbol, dates[symbol], asked.columns(*each)) for symbol, each in found.items()]
        )

    def cross_validation(
        self,
        df: Any,
        n_windows: int = 1,
        h: int = 1,
        step_size: int = 1,
        *,
        refit: bool | int = True,
        level: Sequence[float] | None = None,
        levels: Sequence[float] | None = None,
        quantiles: Sequence[float] | None = None,
        id_col: str = Columns.id_col,
        time_col: str = Columns.time_col,
        target_col: str = Columns.target_col,
        notify: Notify | None = say_on_stderr,
    ) -> Any:
        """Forecast the last rows from before them, as if they were not known yet; the object itself is not fitted.

        Each window ends with a cutoff: a date from which the next ``h`` rows of each series are forecast by a model
        that was trained on rows up to it. The last window's rows are the last of the frame. For several series the
        cutoffs are dates of all of them together, so that no model has seen a later day of another series.

        Args:
            df: the frame.
            n_windows: number of cutoffs.
            h: number of steps.
            step_size: number of dates between cutoffs.
            refit: train at each cutoff; False for the first alone, a number for every so many.
            level: as in ``predict``.
            levels: as in ``predict``.
            quantiles: as in ``predict``.
            id_col: as in ``fit``.
            time_col: as in ``fit``.
            target_col: as in ``fit``.
            notify: called with each line for a person; None for no notices.

        Returns:
            A frame with ``unique_id``, ``ds``, ``cutoff``, ``y`` and the columns of ``predict``, sorted by series and
            cutoff. A series without so many rows after a cutoff has fewer.

        Raises:
            UsageError: as ``fit``; also for a model that starts from another, which may have seen the rows.
            DataError: as ``fit``, also when the rows before the first cutoff are too few.
            LevelError: as ``predict``.
            WindowError: as ``predict``.
            TrainingError: when training diverges.
        """
        asked = Asked.of(h, level, levels, quantiles, self.alias)
        every = require_count("refit", refit, ", or True or False") if refit is not False else n_windows
        config = self._config(target_col)
        require_no_start(config)
        say = listener(notify)
        long = read_frame(df, config, Columns(id_col, time_col, target_col), notify=say)
        asked.require_apart(long.form.columns)
        prices = long.panel.series
        sessions = np.unique(np.concatenate([series.dates for series in prices.values()]))
        rows: list[Rows] = []
        for window in _windows(len(sessions), n_windows, asked.horizon, step_size):
            cutoff = sessions[window.origin - 1]
            counts = {
                symbol: int(np.searchsorted(series.dates, cutoff, side="right"))
                for symbol, series in prices.items()
            }
            past = {symbol: prices[symbol].part(slice(count)) for symbol, count in counts.items() if count}
            if window.number % every == 0:
                trained = _train(replace(long.panel, series=past), long.form.several, config)
                say_left_out({name: why for name, why in trained.left_out.items() if name in past}, say)
                predictor = Predictor.of(trained.checkpoint, config.device)
                asked.require(predictor)
            due = {symbol: series for symbol, series in past.items() if symbol in predictor.symbols}
            known = known_of(predictor, due, say)
            for symbol, found in forecast_each(known, asked.horizon, asked.probabilities, say).items():
                series, after = prices[symbol], slice(counts[symbol], counts[symbol] + asked.horizon)
                actual = series.values[after]
                forecasts = {name: column[: len(actual)] for name, column in asked.columns(*found).items()}
                values = {long.form.columns.target_col: actual, **forecasts}
                rows.append(Rows(symbol, series.dates[after], values, cutoff))
        return long.form.frame(rows)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the model as a checkpoint, which commands and the server take as any other.

        Raises:
            UsageError: when it is not fitted, the path is that of an exported model, or the file cannot be written.
        """
        self._fitted()
        if is_exported(path):
            raise UsageError(
                f"`path` {path}: `save` writes a checkpoint, not an exported model; choose a name that ends in .pt, "
                "then run `forecaster export`"
            )
        if Path(path).is_dir():
            raise UsageError(
                f"`path` {path} is a directory; give the path of a file, such as {path}/model.pt"
            )
        try:
            save_checkpoint(self.checkpoint_, path)
        except OSError as error:
            raise UsageError(
                f"`path` {path} cannot be written ({error.strerror}); choose a writable place"
            ) from error

    @classmethod
    def load(cls, path: str | os.PathLike[str], *, alias: str = ALIAS) -> Forecaster:
        """A fitted forecaster from a checkpoint: of ``save``, of ``forecast train``, or the pick of a tuning job.

        Its ``predict`` forecasts from the window that the checkpoint holds, as a pandas DataFrame, or from ``df``.

        Raises:
            CheckpointError: when the file is missing or not a usable checkpoint.
        """
        checkpoint = load_checkpoint(path)
        found = cls(alias=alias, **{name: getattr(checkpoint.config, name) for name in DEFAULTS})
        found.checkpoint_, found.validation_, found.history_ = checkpoint, None, None
        found.left_out_ = dict(checkpoint.left_out)
        found.form_ = Form.of_symbols([*checkpoint.symbols] or [checkpoint.config.symbol])
        return found

    def _options(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in DEFAULTS}

    def _given(self) -> list[str]:
        """Names of the options that are not as they are by default."""
        return [name for name, value in self._options().items() if value != DEFAULTS[name]]

    def _config(self, target_col: str) -> TrainConfig:
        given = {**self._options(), "feature": target_col, "source": SOURCE}
        config = parse_settings(TrainConfig, given)
        ARCHITECTURES.find(config.network)
        return config

    def _fitted(self) -> Predictor:
        if not hasattr(self, "checkpoint_"):
            raise UsageError(NOT_FITTED)
        if "_predictor" not in vars(self):
            self._predictor = Predictor.of(self.checkpoint_, self.checkpoint_.config.device)
        return self._predictor


@dataclass(frozen=True)
class _TrainedModel:
    """A trained model, its validation scores, and why each of the other series is not in it."""

    checkpoint: Checkpoint
    validation: Evaluation
    left_out: dict[str, str]


def _train(
    panel: Panel, several: bool, config: TrainConfig, start: Checkpoint | None = None
) -> _TrainedModel:
    """Train a model for service on all rows: those after ``1 - val_ratio_within_train`` of them validate.

    Args:
        panel: clean prices.
        several: whether the model is one of many symbols; otherwise the panel has one series.
        config: the options of the training.
        start: the model to start from.

    Raises:
        DataError: when the rows are too few or do not vary.
        TrainingError: when training diverges.
    """
    split = partial(service_split, train_ratio=1 - config.val_ratio_within_train)
    prepared: Prepared
    if several:
        symbol, provenance = panel.symbol, panel.provenance
        prepared = prepare_panel(panel, config, config.sequence_length, split)
        left_out = dict(prepared.left_out)
    else:
        (series,) = panel.series.values()
        symbol, provenance, left_out = series.symbol, series.provenance, dict(panel.left_out)
        if problem := too_few(split(len(series)), config.sequence_length, tested=False):
            raise DataError(f"{symbol}: {problem}")
        prepared = prepare(series, config, split(len(series)))
    if start:
        prepared = with_recursions_of(start, prepared)
    config = config.model_copy(update={"symbol": symbol, "feature": panel.feature})
    fitted = fit(prepared, config, provenance, start=start)
    checkpoint = _with_latest_windows(fitted.checkpoint, prepared, panel.series)
    return _TrainedModel(checkpoint, fitted.validation, left_out)


def _with_latest_windows(
    checkpoint: Checkpoint, prepared: Prepared, prices: Mapping[str, Series]
) -> Checkpoint:
    """The checkpoint with the last values of each series, as one that was scored on test rows has them."""

    def latest(symbol: str) -> dict[str, Any]:
        return {"latest_window": plain_window(prices[symbol].matrix[-checkpoint.rows_used :])}

    first = checkpoint.config.symbol if isinstance(prepared, PreparedSeries) else next(iter(prepared.series))
    symbols = {symbol: part.model_copy(update=latest(symbol)) for symbol, part in checkpoint.symbols.items()}
    return checkpoint.model_copy(update={**latest(first), "symbols": symbols})


def _from_checkpoint(predictor: Predictor, horizon: int) -> tuple[dict[str, Known], dict[str, Dates]]:
    """What forecasts start from, and the dates that they are for, by the windows and dates that a checkpoint holds.

    Raises:
        UsageError: when it holds none.
        WindowError: when the calendar is not known, or does not reach the dates.
    """
    known: dict[str, Known] = {}
    dates: dict[str, Dates] = {}
    for symbol in predictor.symbols:
        own = predictor.of_symbol(symbol)
        window, timeline = own.checkpoint.latest_window, own.dating.require_timeline()
        if window is None:
            raise UsageError(
                f"this checkpoint does not have the last values of {symbol}; give the series as `df`"
            )
        last = timeline.parse((own.checkpoint.provenance or {})["last_date"])
        following = timeline.next_dates(last, horizon)
        if following is None:
            raise WindowError(own.dating.unknown)
        known[symbol], dates[symbol] = Known(own, window), following
    return known, dates


def _windows(sessions: int, n_windows: int, horizon: int, step_size: int) -> list[Fold]:
    """The windows of a cross-validation of so many sessions, the oldest first; the last ends with the last session.

    Raises:
        UsageError: when a number is impossible.
        DataError: when the sessions are too few.
    """
    count, step = require_count("n_windows", n_windows), require_count("step_size", step_size)
    first = sessions - horizon - step * (count - 1)
    if first < 1:
        raise DataError(
            f"{count} windows of {horizon} steps, {step} dates apart, leave none of {sessions} dates to train on; give "
            "a smaller `n_windows`, `h` or `step_size`, or a longer history"
        )
    return [
        Fold(number, 0, first + number * step, first + number * step + horizon) for number in range(count)
    ]

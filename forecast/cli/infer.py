"""``python -m forecast infer``: forecast the next values of a window."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field, model_validator

from forecast.config import AgeOptions, DataConfig, FileConfig, TrainConfig
from forecast.errors import CheckpointError, UsageError
from forecast.names import listed

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from rich.table import Table

    from forecast.inference.dating import Dating
    from forecast.inference.predictor import Predictor
    from forecast.inference.together import Known
    from forecast.prices.series import Series
    from forecast.prices.timeline import Timeline

    Dates = NDArray[np.datetime64]
    Bounds = NDArray[np.float64]

Level = Annotated[float, Field(gt=0, lt=1)]

DEFAULT_PICK = Path("artifacts/best_pareto_lstm.pt")
"""Path at which a tuning job writes its pick."""

LONGEST_LINE = 1000
"""Most characters in a row of forecasts."""

EXAMPLES = """\
examples:
  python -m forecast infer --checkpoint artifacts/best_pareto_lstm.pt
  python -m forecast infer --checkpoint model.pt --values 101.5 102 101.8 ...
  python -m forecast infer --checkpoint model.pt --horizon 10 --levels 0.5 0.9
  tail -n 400 closes.txt | python -m forecast infer --checkpoint model.pt --file - --json
"""


class InferOptions(AgeOptions, FileConfig):
    """The window and the model; without `values` or `file`, the latest window of the model's source is used."""

    checkpoint: Path = Field(DEFAULT_PICK, description="model to forecast with")
    symbol: str | None = Field(
        None,
        min_length=1,
        description="symbol to forecast with a model of many symbols; it can be one that the model was not trained on "
        "(default: all symbols of the model)",
    )
    values: list[float] | None = Field(
        None,
        description="the window: past values, oldest first, at least as many as the model's window length",
    )
    file: Path | None = Field(
        None,
        description="file with the window: a table of prices as in `source`, or numbers (one a line, or JSON); - reads "
        "standard input",
    )
    last_date: str | None = Field(
        None,
        min_length=1,
        description="date or time of the last value, ISO 8601, which dates the forecasts of `values` and of `file`",
    )
    latest: bool = Field(False, description="use the latest window of the source, which is the default")
    source: str | None = Field(
        None, description="source of the latest window (default: the source that the model was trained on)"
    )
    horizon: int = Field(
        1,
        ge=1,
        le=10_000,
        description="number of steps to forecast; each step builds on the earlier forecasts",
    )
    levels: tuple[Level, ...] | None = Field(
        None,
        description="levels of prediction intervals, for example 0.5 0.9 (default: 0.9 for one step, none for more); "
        "beyond one step, intervals come from simulated paths",
    )
    device: str = TrainConfig.model_fields["device"]  # type: ignore[assignment]
    json_output: bool = Field(False, alias="json", description="print the forecast as JSON")

    @model_validator(mode="after")
    def _one_window(self) -> InferOptions:
        latest = self.latest or self.source is not None
        if (self.values is not None) + (self.file is not None) + latest > 1:
            raise ValueError(
                "`values`, `file`, `latest` and `source` each give the window; use only one of these options"
            )
        return self


@dataclass(frozen=True)
class Window:
    """The window of a forecast.

    Attributes:
        values: as ``plain_window`` gives them.
        dates: the dates of the last values, oldest first; None where not even the last one is known.
        source: where they were read; None for numbers without dates.
        timeline: the bars of the series that they were read from; None for numbers without dates.
    """

    values: list[Any]
    dates: Dates | None = None
    source: str | None = None
    timeline: Timeline | None = None


def infer_command(options: InferOptions) -> int:
    """Forecast the next values of the window that the options give."""
    from forecast.inference.predictor import Predictor
    from forecast.prices.source import say_on_stderr

    if not options.checkpoint.exists():
        raise CheckpointError(
            f"no checkpoint at {options.checkpoint}; make one with `python -m tune_jobs.pareto`, or name that of "
            "`python -m forecast train`, for example `checkpoint=model.pt`"
        )
    predictor = Predictor(options.checkpoint, options.device)
    if predictor.whole.symbols and options.symbol is None:
        return _infer_all(options, predictor)
    symbol = options.symbol or predictor.checkpoint.config.symbol
    if symbol in predictor.whole.symbols or not predictor.whole.symbols:
        predictor = predictor.of_symbol(symbol)
        window = _window(options, predictor, predictor.dating)
    else:
        window = _window(options, predictor, predictor.dating_of(symbol))
        predictor = predictor.of_window(window.values, symbol, window.timeline)
        say_on_stderr(
            f"warning: the model was not trained on {symbol}; its prices are normalized by the window's "
            f"{len(window.values)} values alone"
        )
    dated = _dated(options, predictor.dating, window.dates, say_on_stderr)
    steps = predictor.predict_steps([window.values], options.horizon)[0].tolist()
    levels = _levels(options, predictor)
    bounds = None
    if levels:
        bounds = predictor.predict_intervals([window.values], levels, options.horizon, [steps])[0]
    market_doubt = predictor.market_doubt((), options.horizon, "omit `symbol` to forecast them together")
    for complaint in (
        predictor.range_doubt([window.values]),
        predictor.short_history([window.values]),
        market_doubt,
    ):
        if complaint:
            say_on_stderr(f"warning: {complaint}")
    if options.json_output:
        answer = _answer(options, predictor, window, dated, steps, levels, bounds)
        print(json.dumps(answer, allow_nan=False))
    else:
        print(*_lines(predictor, window, dated, steps, levels, bounds), sep="\n")
    return 0


def _infer_all(options: InferOptions, predictor: Predictor) -> int:
    """Forecast every symbol of a model of many: a row of a table, or an item of JSON, for each."""
    from rich.console import Console

    from forecast.inference.together import Known, say_doubts
    from forecast.pages.describe import left_out_lines
    from forecast.prices.source import each_once, say_on_stderr

    say = each_once(say_on_stderr)
    windows, left_out = _windows_of_all(options, predictor, say)
    predictors = {symbol: predictor.of_symbol(symbol) for symbol in windows}
    known = {
        symbol: Known(predictors[symbol], window.values, window.dates) for symbol, window in windows.items()
    }
    levels = _levels(options, predictor)
    forecasts = _forecasts_of_all(options, known, levels, say)
    dated = {
        symbol: _dated(options, predictors[symbol].dating, window.dates, say)
        for symbol, window in windows.items()
    }
    say_doubts(known, say)
    if options.json_output:
        answers = [
            _answer(options, predictors[symbol], windows[symbol], dated[symbol], steps, levels, bounds)
            for symbol, (steps, bounds) in forecasts.items()
        ]
        asked = _batch_request(options, windows, answers)
        print(json.dumps({**asked, "forecasts": answers, "left_out": left_out}, allow_nan=False))
    else:
        # The terminal wraps a line that is too long; rich would cut its numbers. Brackets and colons in a symbol are
        # not markup.
        Console(width=LONGEST_LINE, markup=False, emoji=False).print(
            _table(windows, dated, forecasts, levels)
        )
        print(*left_out_lines(left_out), sep="\n", end="\n" if left_out else "")
    return 0


def _batch_request(
    options: InferOptions, windows: dict[str, Window], answers: list[dict[str, Any]]
) -> dict[str, Any]:
    """The same question as a body of ``POST /predict/batch``; takes the values out of the answers, which are many."""
    asked = {
        "series": [{"symbol": answer["symbol"], "values": answer.pop("values")} for answer in answers],
        "same_session": len(_with_the_same_sessions(windows)) == 1,
    }
    if options.horizon > 1:
        asked["horizon"] = options.horizon
    if options.levels:
        asked["levels"] = list(options.levels)
    return asked


def _windows_of_all(
    options: InferOptions, predictor: Predictor, say: Callable[[str], None]
) -> tuple[dict[str, Window], dict[str, str]]:
    """The latest window of each symbol of the model, and why others have none."""
    from forecast.errors import WindowError
    from forecast.prices.files import open_sheet
    from forecast.prices.panel import panel_from_config, panel_of_sheet
    from forecast.prices.values import read_values

    content, name = _content(options.file) if options.file is not None else (b"", "")
    if options.values is not None or (content and read_values(content, name, options) is not None):
        raise UsageError(
            "`symbol` is needed for the values of one symbol, because the model has many; choose from "
            f"{listed(predictor.symbols)}"
        )
    if options.last_date is not None:
        raise UsageError(
            f"`last_date` {options.last_date} cannot be used with the prices of all symbols, which have dates; omit "
            "it, or give the values of one `symbol`"
        )
    reading = _reading(predictor, options)
    if options.file is not None:
        panel = panel_of_sheet(open_sheet(content, name, reading), predictor.symbols, reading, notify=say)
    else:
        panel = panel_from_config(predictor.symbols, reading, notify=say)
    windows, left_out = {}, dict(panel.left_out)
    for symbol, series in panel.series.items():
        try:
            source = name or series.provenance.source
            windows[symbol] = _end_of(series, predictor.of_symbol(symbol), source)
        except WindowError as error:
            left_out[symbol] = str(error)
    if not windows:
        symbol, reason = next(iter(left_out.items()))
        raise WindowError(f"no symbol has a window ({len(left_out)} left out); {symbol}: {reason}")
    return windows, left_out


def _forecasts_of_all(
    options: InferOptions,
    known: dict[str, Known],
    levels: Sequence[float],
    say: Callable[[str], None],
) -> dict[str, tuple[list[float], Bounds | None]]:
    """The forecast prices of each symbol and their intervals, as ``_answer`` takes them."""
    from forecast.inference.prediction import bounds_of
    from forecast.inference.together import forecast_each
    from forecast.scores.distribution import interval_probabilities

    if levels:
        next(iter(known.values())).predictor.require_levels(levels, options.horizon)
    found = forecast_each(known, options.horizon, interval_probabilities(levels), say)
    return {
        symbol: (steps.tolist(), None if quantiles is None else bounds_of(quantiles))
        for symbol, (steps, quantiles) in found.items()
    }


def _with_the_same_sessions(windows: dict[str, Window]) -> list[list[str]]:
    from forecast.inference.dating import with_the_same_sessions

    return with_the_same_sessions({symbol: window.dates for symbol, window in windows.items()})


def _table(
    windows: dict[str, Window],
    dated: dict[str, dict[str, Any]],
    forecasts: dict[str, tuple[list[float], Bounds | None]],
    levels: Sequence[float],
) -> Table:
    """The forecasts for a person: a row for each symbol and step."""
    from rich import box
    from rich.table import Table

    from forecast.scores.metrics import value_text

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    for title in ("symbol", "last value", "of", "forecast", "for"):
        table.add_column(
            title, justify="right" if title in ("last value", "forecast") else "left", no_wrap=True
        )
    for level in levels:
        table.add_column(f"{100 * level:g} % interval", no_wrap=True)
    for symbol, (steps, bounds) in forecasts.items():
        dates = dated[symbol].get("forecast_dates") or [None] * len(steps)
        before = (symbol, value_text(_last(windows[symbol])), dated[symbol]["last_date"] or "")
        for step, (price, date) in enumerate(zip(steps, dates, strict=True)):
            intervals = [] if bounds is None else [_interval(each) for each in bounds[step]]
            table.add_row(*(before if not step else ("", "", "")), value_text(price), date or "", *intervals)
    return table


def _interval(bounds: Bounds) -> str:
    """One interval, shape (2,), for a person."""
    from forecast.scores.metrics import value_text

    lower, upper = bounds
    return f"{value_text(lower)} to {value_text(upper)}"


def _levels(options: InferOptions, predictor: Predictor) -> Sequence[float]:
    """The levels of the intervals that are shown."""
    from forecast.scores.distribution import MAIN_LEVEL

    if options.levels is not None:
        return options.levels
    # Many steps are many lines: their intervals are printed only on request.
    shown = not options.json_output and options.horizon == 1 and predictor.widest_level >= MAIN_LEVEL
    return (MAIN_LEVEL,) if shown else ()


def _dated(
    options: InferOptions, dating: Dating, dates: Dates | None, say: Callable[[str], None]
) -> dict[str, Any]:
    """The fields of an answer that say when: the bars of the steps, the window's dates, and the model's age.

    Raises:
        AgeError: when the model is too old, and ``options`` refuse it.
    """
    fields: dict[str, Any] = {"first_date": None, "last_date": None}
    if dates is not None:
        texts = dating.require_timeline().text(dates)
        fields |= {"first_date": texts[0] if len(texts) > 1 else None, "last_date": texts[-1]}
        steps = dating.describe(dates, options.horizon)
        fields |= steps
        if not steps:
            say(f"warning: {dating.unknown}")
    age = dating.age(None if dates is None else dates[-1])
    if complaint := options.complaint(age):
        say(f"warning: {complaint}")
    return fields if age is None else {**fields, "model_age": age}


def _last(window: Window) -> float:
    value = window.values[-1]
    return float(value[0] if isinstance(value, list) else value)


def _answer(
    options: InferOptions,
    predictor: Predictor,
    window: Window,
    dated: dict[str, Any],
    steps: list[float],
    levels: Sequence[float],
    bounds: Bounds | None,
) -> dict[str, Any]:
    """The forecast for machines."""
    from forecast.inference.prediction import describe_intervals

    config = predictor.checkpoint.config
    answer: dict[str, Any] = {
        "prediction": steps[0],
        "last_value": _last(window),
        "symbol": config.symbol,
        "feature": config.feature,
        "sequence_length": predictor.sequence_length,
        "checkpoint_path": str(options.checkpoint),
        "values": window.values[-predictor.rows_used :],
        **dated,
    }
    if window.source is not None:
        answer["source"] = window.source
    if options.horizon > 1:
        answer["horizon"] = options.horizon
        answer["predictions"] = steps
    if bounds is not None:
        answer["levels"] = list(levels)
        answer["intervals"] = describe_intervals(bounds, levels, steps=options.horizon > 1)
    return answer


def _lines(
    predictor: Predictor,
    window: Window,
    dated: dict[str, Any],
    steps: list[float],
    levels: Sequence[float],
    bounds: Bounds | None,
) -> Iterator[str]:
    """The forecast for a person."""
    from forecast.scores.metrics import value_text

    checkpoint = predictor.checkpoint
    config = checkpoint.config
    after = f" after {dated['last_date']}" if dated["last_date"] else ""
    dates = dated.get("forecast_dates") or [None] * len(steps)
    day = f" for {dates[0]}" if dates[0] else ""
    yield f"{config.symbol} {config.feature}: next value{after} is forecast at {value_text(steps[0])}{day}"
    for step, (price, date) in enumerate(zip(steps, dates, strict=True)):
        if step:
            yield f"step {step + 1}{f' ({date})' if date else ''}: {value_text(price)}"
        if bounds is not None:
            for level, each in zip(levels, bounds[step], strict=True):
                yield f"  {100 * level:g} % interval: {_interval(each)}"
    if window.source is not None:
        yield f"window: {len(window.values)} values from {window.source}"
    yield f"persistence (the last value): {value_text(_last(window))}"
    if test := checkpoint.metrics_test:
        reference = checkpoint.persistence.get("test")
        of = "this model" if checkpoint.scored_model is None else "the same options trained on earlier rows"
        line = (
            f"test MAE of {of}{', with the market' if checkpoint.market else ''}: {value_text(test['MAE'])}"
        )
        yield line + (f", of persistence: {value_text(reference['MAE'])}" if reference else "")


def _window(options: InferOptions, predictor: Predictor, dating: Dating) -> Window:
    """The window of one symbol, whose last date ``dating`` reads if it is given."""
    from forecast.prices.panel import panel_from_config
    from forecast.prices.source import say_on_stderr, series_from_config
    from forecast.prices.values import read_values

    told = None
    if options.last_date is not None:
        told = dating.parse([options.last_date])
        if doubt := dating.doubt(told[-1]):
            say_on_stderr(f"warning: {doubt}")
    if options.values is not None:
        return Window(options.values, told)
    if options.file is not None:
        content, name = _content(options.file)
        values = read_values(content, name, options)
        return (
            Window(values, told) if values is not None else _of_table(options, predictor, content, name, told)
        )
    if told is not None:
        raise UsageError("`last_date` is known from the source; give it with `values` or `file` only")
    reading = _reading(predictor, options)
    if predictor.whole.symbols:
        series = panel_from_config([reading.symbol], reading, notify=say_on_stderr).series[reading.symbol]
    else:
        series = series_from_config(reading, notify=say_on_stderr)
    return _end_of(series, predictor, series.provenance.source)


def _of_table(
    options: InferOptions, predictor: Predictor, content: bytes, name: str, told: Dates | None
) -> Window:
    """The window at the end of a table of prices."""
    from forecast.prices.files import open_sheet
    from forecast.prices.panel import panel_of_sheet
    from forecast.prices.source import say_on_stderr, series_of_table

    reading = _reading(predictor, options)
    sheet = open_sheet(content, name, reading)
    if predictor.whole.symbols:
        series = panel_of_sheet(sheet, [reading.symbol], reading, notify=say_on_stderr).series[reading.symbol]
    else:
        table = sheet.table(reading.symbol, reading)
        series = series_of_table(table, reading, notify=say_on_stderr)
    if told is not None and told[-1] != series.dates[-1]:
        raise UsageError(
            f"`last_date` {options.last_date} is not the last date of {name}, {series.provenance.last_date}; omit it"
        )
    return _end_of(series, predictor, name)


def _end_of(series: Series, predictor: Predictor, source: str) -> Window:
    from forecast.errors import WindowError
    from forecast.model.windows import plain_window

    needed, used = predictor.sequence_length, predictor.rows_used
    if len(series) < needed:
        raise WindowError(
            f"{source} has {len(series)} rows of {series.symbol}, but this model needs {needed}; use a longer history"
        )
    dates = series.dates[-used:] if predictor.dating.timeline else None
    return Window(plain_window(series.matrix[-used:]), dates, source, series.timeline)


def _reading(predictor: Predictor, options: InferOptions) -> DataConfig:
    """The model's series with the options of this command: all rows, in the bars that it was trained on."""
    from forecast.inference.together import reading_of

    config = predictor.checkpoint.config
    given: dict[str, Any] = {
        name: value for name in FileConfig.model_fields if (value := getattr(options, name)) is not None
    }
    asked = {"source": options.source or config.source, "symbol": options.symbol or config.symbol}
    return DataConfig(**{**reading_of(predictor, options.symbol), **given, **asked})


def _content(path: Path) -> tuple[bytes, str]:
    name = "standard input" if str(path) == "-" else str(path)
    try:
        return (sys.stdin.buffer.read() if str(path) == "-" else path.read_bytes()), name
    except OSError as error:
        raise UsageError(f"`file` {name} cannot be read ({error.strerror}); give a file of prices") from None

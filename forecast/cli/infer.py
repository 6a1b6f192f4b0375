"""``python -m forecast infer``: forecast the next values of a window."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field, model_validator

from forecast.config import AgeOptions, DataConfig, FileConfig, TrainConfig
from forecast.errors import UsageError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from forecast.inference.predictor import Predictor

    Dates = NDArray[np.datetime64]

Level = Annotated[float, Field(gt=0, lt=1)]

DEFAULT_PICK = Path("artifacts/best_pareto_lstm.pt")
"""Path at which a tuning job writes its pick."""

EXAMPLES = """\
examples:
  python -m forecast infer --checkpoint artifacts/best_pareto_lstm.pt
  python -m forecast infer --checkpoint model.pt --values 101.5 102 101.8 ...
  python -m forecast infer --checkpoint model.pt --horizon 10 --levels 0.5 0.9
  tail -n 60 closes.txt | python -m forecast infer --checkpoint model.pt --file - --json
"""


class InferOptions(AgeOptions, FileConfig):
    """The window and the model; without `values` or `file`, the latest window of the model's source is used."""

    checkpoint: Path = Field(DEFAULT_PICK, description="model to forecast with")
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
        "beyond one step, intervals come from simulated futures, which take a few tenths of a second per step",
    )
    device: str = TrainConfig.model_fields["device"]  # type: ignore[assignment]
    json_output: bool = Field(False, alias="json", description="print the forecast as JSON")

    @model_validator(mode="after")
    def _one_window(self) -> InferOptions:
        latest = self.latest or self.source is not None
        if (self.values is not None) + (self.file is not None) + latest > 1:
            raise ValueError(
                "`values`, `file` and `latest` each give the window; use only one of these options"
            )
        return self


def infer_command(options: InferOptions) -> int:
    """Forecast the next values of the window that the options give."""
    from forecast.errors import WindowError
    from forecast.inference.prediction import describe_intervals
    from forecast.inference.predictor import Predictor
    from forecast.prices.source import say_on_stderr
    from forecast.scores.distribution import MAIN_LEVEL

    predictor = Predictor(options.checkpoint, options.device)
    window, dates, origin = _window(options, predictor)
    steps = predictor.predict_steps([window], options.horizon)[0].tolist()
    levels = options.levels
    if levels is None:
        # Simulating futures takes a moment: it is done only on request.
        shown = not options.json_output and options.horizon == 1 and predictor.widest_level >= MAIN_LEVEL
        levels = (MAIN_LEVEL,) if shown else ()
    bounds = predictor.predict_intervals([window], levels, options.horizon)[0] if levels else None
    config = predictor.checkpoint.config
    used = window[-config.sequence_length :]
    dating, dated = predictor.dating, {}
    if dates is not None:
        dated = dating.describe(dates, options.horizon)
        if not dated:
            say_on_stderr(f"warning: {dating.unknown}")
    age = dating.age(dates[-1] if dates is not None else None)
    if complaint := options.complaint(age):
        if options.when_too_old == "refuse":
            raise WindowError(complaint)
        say_on_stderr(f"warning: {complaint}")
    prediction, last = steps[0], used[-1][0] if isinstance(used[-1], list) else used[-1]
    if options.json_output:
        answer: dict[str, Any] = {
            "prediction": prediction,
            "last_value": last,
            "symbol": config.symbol,
            "feature": config.feature,
            "sequence_length": config.sequence_length,
            "checkpoint_path": str(options.checkpoint),
            "first_date": None,
            "last_date": None,
            "values": used,
            **dated,
            **({} if age is None else {"model_age": age}),
            **({} if origin is None else {"source": origin}),
        }
        if dates is not None:
            texts = dating.require_timeline().text(dates)
            answer |= {"first_date": texts[0] if len(texts) > 1 else None, "last_date": texts[-1]}
        if options.horizon > 1:
            answer["predictions"] = steps
        if bounds is not None:
            answer["levels"] = list(levels)
            answer["intervals"] = describe_intervals(bounds, levels, steps=options.horizon > 1)
        print(json.dumps(answer, allow_nan=False))
        return 0
    after = f" after {dating.require_timeline().text(dates)[-1]}" if dates is not None else ""
    labels = dated.get("forecast_dates") or [""] * options.horizon
    day = f" for {labels[0]}" if labels[0] else ""
    print(f"{config.symbol} {config.feature}: next value{after} is forecast at {prediction:,.6g}{day}")
    for step, (price, label) in enumerate(zip(steps, labels, strict=True)):
        if step:
            print(f"step {step + 1}{f' ({label})' if label else ''}: {price:,.6g}")
        if bounds is not None:
            for level, (lower, upper) in zip(levels, bounds[step], strict=True):
                print(f"  {100 * level:g} % interval: {lower:,.6g} to {upper:,.6g}")
    if origin is not None:
        print(f"window: {len(used)} values from {origin}")
    print(f"persistence (the last value): {last:,.6g}")
    if predictor.checkpoint.metrics_test:
        test = predictor.checkpoint.metrics_test
        reference = predictor.checkpoint.persistence.get("test")
        line = f"test MAE of this model: {test['MAE']:,.6g}"
        print(line + (f", of persistence: {reference['MAE']:,.6g}" if reference else ""))
    return 0


def _window(options: InferOptions, predictor: Predictor) -> tuple[list[Any], Dates | None, str | None]:
    """The window's values, as ``plain_window`` gives them; their dates, or the last if only it is known; the source."""

    from forecast.errors import WindowError
    from forecast.model.windows import plain_window
    from forecast.prices.files import read_content
    from forecast.prices.source import say_on_stderr, series_from_config, series_of_table
    from forecast.prices.values import read_values

    config = predictor.checkpoint.config
    told, name = None, ""
    if options.last_date is not None:
        told = predictor.dating.parse([options.last_date])
        if doubt := predictor.dating.doubt(told[-1]):
            say_on_stderr(f"warning: {doubt}")
    if options.values is not None:
        return options.values, told, None
    if options.file is not None:
        content, name = _content(options.file)
        values = read_values(content, name, options)
        if values is not None:
            return values, told, None
        reading = _reading(predictor, options)
        series = series_of_table(
            read_content(content, name, config.symbol, reading), reading, notify=say_on_stderr
        )
        if told is not None and told[-1] != series.dates[-1]:
            raise UsageError(
                f"`last_date` {options.last_date} is not the last date of {name}, "
                f"{series.provenance.last_date}; omit it"
            )
    else:
        if told is not None:
            raise UsageError("`last_date` is known from the source; give it with `values` or `file` only")
        series = series_from_config(_reading(predictor, options), notify=say_on_stderr)
    length = config.sequence_length
    if len(series) < length:
        raise WindowError(
            f"{series.provenance.source} has {len(series)} rows, but this model needs {length}; use a longer history"
        )
    dates = series.dates[-length:] if predictor.dating.timeline else None
    return (
        plain_window(series.matrix[-length:]),
        told if told is not None else dates,
        series.provenance.source if options.file is None else name,
    )


def _reading(predictor: Predictor, options: InferOptions) -> DataConfig:
    """The model's series with the options of this command: all rows, in the bars that it was trained on."""
    config, timeline = predictor.checkpoint.config, predictor.dating.timeline
    given: dict[str, Any] = {name: getattr(config, name) for name in DataConfig.model_fields}
    given |= {
        name: value for name in FileConfig.model_fields if (value := getattr(options, name)) is not None
    }
    if timeline is not None:
        given |= {"interval": timeline.interval, "calendar": timeline.calendar_name}
    return DataConfig(**{**given, "start": None, "end": None, "source": options.source or config.source})


def _content(path: Path) -> tuple[bytes, str]:
    name = "standard input" if str(path) == "-" else str(path)
    try:
        return (sys.stdin.buffer.read() if str(path) == "-" else path.read_bytes()), name
    except OSError as error:
        raise UsageError(f"`file` {name} cannot be read ({error.strerror}); give a file of prices") from None

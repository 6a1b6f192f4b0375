"""``python -m forecast infer``: forecast the next values of a window."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field, model_validator

from forecast.config import Config, TrainConfig
from forecast.errors import UsageError

if TYPE_CHECKING:
    from forecast.model.checkpoint import Checkpoint

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


class InferOptions(Config):
    """The window and the model; without `values` or `file`, the latest window of the model's source is used."""

    checkpoint: Path = Field(DEFAULT_PICK, description="model to forecast with")
    values: list[float] | None = Field(
        None,
        description="the window: past values, oldest first, at least as many as the model's window length",
    )
    file: Path | None = Field(
        None, description="file with the window's values (numbers, or JSON); - reads standard input"
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
    from forecast.inference.prediction import describe_intervals
    from forecast.inference.predictor import Predictor
    from forecast.scores.distribution import MAIN_LEVEL

    predictor = Predictor(options.checkpoint, options.device)
    window, dates = _window(options, predictor.checkpoint)
    steps = predictor.predict_steps([window], options.horizon)[0].tolist()
    levels = options.levels
    if levels is None:
        # Simulating futures takes a moment: it is done only on request.
        shown = not options.json_output and options.horizon == 1 and predictor.widest_level >= MAIN_LEVEL
        levels = (MAIN_LEVEL,) if shown else ()
    bounds = predictor.predict_intervals([window], levels, options.horizon)[0] if levels else None
    config = predictor.checkpoint.config
    used = window[-config.sequence_length :]
    prediction, last = steps[0], used[-1][0] if isinstance(used[-1], list) else used[-1]
    if options.json_output:
        answer: dict[str, Any] = {
            "prediction": prediction,
            "last_value": last,
            "symbol": config.symbol,
            "feature": config.feature,
            "sequence_length": config.sequence_length,
            "checkpoint_path": str(options.checkpoint),
            "first_date": dates[0] if dates else None,
            "last_date": dates[1] if dates else None,
            "values": used,
        }
        if options.horizon > 1:
            answer["predictions"] = steps
        if bounds is not None:
            answer["levels"] = list(levels)
            answer["intervals"] = describe_intervals(bounds, levels, steps=options.horizon > 1)
        print(json.dumps(answer, allow_nan=False))
        return 0
    after = f" after {dates[1]}" if dates else ""
    print(f"{config.symbol} {config.feature}: next value{after} is forecast at {prediction:,.6g}")
    for step, price in enumerate(steps):
        if step:
            print(f"step {step + 1}: {price:,.6g}")
        if bounds is not None:
            for level, (lower, upper) in zip(levels, bounds[step], strict=True):
                print(f"  {100 * level:g} % interval: {lower:,.6g} to {upper:,.6g}")
    print(f"persistence (the last value): {last:,.6g}")
    if predictor.checkpoint.metrics_test:
        test = predictor.checkpoint.metrics_test
        reference = predictor.checkpoint.persistence.get("test")
        line = f"test MAE of this model: {test['MAE']:,.6g}"
        print(line + (f", of persistence: {reference['MAE']:,.6g}" if reference else ""))
    return 0


def _window(options: InferOptions, checkpoint: Checkpoint) -> tuple[list[Any], tuple[str, str] | None]:
    """The window's values, as ``plain_window`` gives them, and its first and last date if a source gave them."""
    from forecast.errors import WindowError
    from forecast.model.windows import plain_window
    from forecast.prices.source import load_series, say_on_stderr

    if options.values is not None:
        return options.values, None
    if options.file is not None:
        return read_values(options.file), None
    config = checkpoint.config
    series = load_series(
        config.symbol,
        config.feature,
        options.source or config.source,
        input_columns=config.input_columns,
        keep_non_positive=config.keep_non_positive,
        notify=say_on_stderr,
    )
    length = config.sequence_length
    if len(series) < length:
        raise WindowError(
            f"{series.provenance.source} has {len(series)} rows, but this model needs {length}; use a longer history"
        )
    return plain_window(series.matrix[-length:]), (str(series.dates[-length]), str(series.dates[-1]))


def read_values(path: Path) -> list[Any]:
    """Read numbers from a file (``-``: standard input): JSON (a list, or ``{"values": [...]}``), or plain text.

    For a model of several columns, JSON may hold rows of numbers.

    Raises:
        UsageError: when the file is missing or empty, or something in it is not a number.
    """
    name = "standard input" if str(path) == "-" else str(path)
    try:
        text = (sys.stdin.read() if str(path) == "-" else path.read_text()).strip()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not text"
        raise UsageError(f"`file` {name} cannot be read ({reason}); give a text file of numbers") from None
    if not text:
        raise UsageError(f"`file` {name} is empty; give the window's values, oldest first")
    if text[0] in "[{":
        try:
            content = json.loads(text)
        except json.JSONDecodeError as error:
            raise UsageError(f"`file` {name} is not JSON ({error}); give a list of numbers") from None
        found = content.get("values") if isinstance(content, dict) else content
        if not isinstance(found, list):
            raise UsageError(f'`file` {name} has no list of numbers; give [...] or {{"values": [...]}}')
    else:
        found = text.replace(",", " ").replace(";", " ").split()
    values: list[Any] = []
    for index, item in enumerate(found):
        try:
            values.append([_number(value) for value in item] if isinstance(item, list) else _number(item))
        except (TypeError, ValueError):
            raise UsageError(
                f"`file` {name}: item {index + 1} is {item!r}, not a number; for a table of prices use "
                "`latest` and `source`"
            ) from None
    return values


def _number(item: Any) -> float:
    if isinstance(item, bool | None):
        raise TypeError
    return float(item)

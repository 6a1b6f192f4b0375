"""The ``python -m forecast`` commands: ``train``, ``infer`` and ``backtest``."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field, model_validator

from forecast.backtest_command import EXAMPLES as BACKTEST_EXAMPLES
from forecast.backtest_command import BacktestOptions, require_only_from_trial, run_backtest
from forecast.command import Parser, add_options, parse_settings
from forecast.config import Config, TrainConfig
from forecast.errors import UsageError

if TYPE_CHECKING:
    from forecast.checkpoint import Checkpoint
    from forecast.evaluation import Evaluation
    from forecast.training import Trainer

Level = Annotated[float, Field(gt=0, lt=1)]

DEFAULT_PICK = Path("artifacts/best_pareto_lstm.pt")
"""Where a tuning job leaves its pick."""


class TrainOptions(TrainConfig):
    """The command."""

    checkpoint: Path = Field(Path("model.pt"), description="file to write")
    from_trial: Path | None = Field(
        None,
        description="checkpoint of a tuning job to train again, on its rows and with its options, up to its best "
        "epoch; no other option of the model may be given",
    )
    quiet: bool = Field(False, description="print only warnings and errors")
    json_output: bool = Field(False, alias="json", description="print the result as JSON")


class InferOptions(Config):
    """The window and the model; without --values or --file, the latest window of the model's source is used."""

    checkpoint: Path = Field(DEFAULT_PICK, description="model to forecast with")
    values: list[float] | None = Field(
        None, description="the window: past values, oldest first, at least as many as the model's window"
    )
    file: Path | None = Field(
        None, description="file with the window's values (numbers, or JSON); - reads standard input"
    )
    latest: bool = Field(False, description="use the latest window of the source (what happens by default)")
    source: str | None = Field(
        None, description="source of the latest window (the one the model was trained on unless given)"
    )
    horizon: int = Field(
        1, ge=1, le=10_000, description="steps to forecast, each from the forecasts before it"
    )
    levels: tuple[Level, ...] | None = Field(
        None,
        description="levels of central intervals, for example 0.5 0.9 (0.9 unless given, for one step); beyond one "
        "step ahead they are read from simulated futures, some tenths of a second a step",
    )
    device: str = TrainConfig.model_fields["device"]  # type: ignore[assignment]
    json_output: bool = Field(False, alias="json", description="print the forecast as JSON")

    @model_validator(mode="after")
    def _one_window(self) -> InferOptions:
        latest = self.latest or self.source is not None
        if (self.values is not None) + (self.file is not None) + latest > 1:
            raise ValueError("--values, --file and --latest are three ways to give the window; use one")
        return self


EXAMPLES = {
    "train": """\
examples:
  python -m forecast train
  python -m forecast train --source prices.csv --symbol ACME --sequence-length 30 --checkpoint acme.pt
  python -m forecast train --from-trial artifacts/checkpoints/trial_00007.pt
""",
    "infer": """\
examples:
  python -m forecast infer --checkpoint artifacts/best_pareto_lstm.pt
  python -m forecast infer --checkpoint model.pt --values 101.5 102 101.8 ...
  python -m forecast infer --checkpoint model.pt --horizon 10 --levels 0.5 0.9
  tail -n 60 closes.txt | python -m forecast infer --checkpoint model.pt --file - --json
""",
    "backtest": BACKTEST_EXAMPLES,
}


def build_parser() -> Parser:
    """The command line, derived from the settings classes."""
    parser = Parser(
        prog="python -m forecast",
        description="Train an LSTM price forecaster, forecast with a trained one, or backtest one.",
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="{train,infer,backtest}")
    for name, help_text, settings in (
        ("train", "train one model and score it beside persistence", TrainOptions),
        ("infer", "forecast the next values of a window", InferOptions),
        (
            "backtest",
            "train and score again and again, from origins that roll through the series",
            BacktestOptions,
        ),
    ):
        command = commands.add_parser(
            name,
            help=help_text,
            description=help_text[0].upper() + help_text[1:] + ".",
            epilog=EXAMPLES[name],
        )
        add_options(command, settings)
    return parser


def main(argv: Sequence[str]) -> int:
    """Run one command; gives back the exit code."""
    given = vars(build_parser().parse_args(argv))
    command = given.pop("command")
    if command == "train":
        return train_command(parse_settings(TrainOptions, given), set(given))
    if command == "backtest":
        return run_backtest(parse_settings(BacktestOptions, given), set(given))
    return infer_command(parse_settings(InferOptions, given))


def train_command(options: TrainOptions, given: set[str]) -> int:
    """Train, score on validation and test, write the checkpoint.

    Args:
        options: the command's.
        given: fields of ``options`` that were given by name.
    """
    from forecast.atomic import require_writable
    from forecast.checkpoint import load_checkpoint, save_checkpoint
    from forecast.describe import series_lines
    from forecast.reproduce import again_of, differing_versions, same_metrics, series_of
    from forecast.source import series_from_config
    from forecast.split import require_rows
    from forecast.training import train

    trial = None
    if options.from_trial is not None:
        require_only_from_trial(given, {"device", "source"})
        trial = load_checkpoint(options.from_trial)
        changes = {"device": options.device} if "device" in given else {}
        config = trial.config.model_copy(update=changes)
        series = series_of(trial, options.source if "source" in given else None, notify=_warn)
    else:
        config = TrainConfig(**{name: getattr(options, name) for name in TrainConfig.model_fields})
        series = series_from_config(options, notify=_warn)
    require_rows(len(series), config.sequence_length, config.train_ratio, config.val_ratio_within_train)
    require_writable(options.checkpoint.absolute().parent)
    silent = options.quiet or options.json_output
    if not silent:
        print(*series_lines(series, config), sep="\n")
    live = not silent and sys.stderr.isatty()
    # A trial's later epochs were no better, or it was stopped before them.
    until = trial.best_epoch if trial else None
    result = train(series, config, until_epoch=until, on_epoch=_show_epoch if live else None)
    if live:
        print("\r\033[K", end="", file=sys.stderr)
    trained = again_of(trial, result.checkpoint) if trial else result.checkpoint
    save_checkpoint(trained, options.checkpoint)
    same = same_metrics(trial, trained) if trial else None
    if trial:
        for line in differing_versions(trial, trained):
            _warn(f"may change the last digits: {line}")
    if options.json_output:
        print(
            json.dumps(
                {
                    "checkpoint": str(options.checkpoint),
                    "validation": result.validation.to_dict(),
                    "test": result.test.to_dict(),
                    "epochs": result.epochs,
                    "best_epoch": result.checkpoint.best_epoch,
                    "trial_reproduced": same,
                    "val_loss_best": result.checkpoint.val_loss_best,
                    "seconds": result.seconds,
                    "data": series.provenance.to_dict(),
                    "integrity": series.integrity.to_dict(),
                }
            )
        )
    elif not options.quiet:
        print(f"{result.epochs} epochs in {result.seconds:.1f} s, best epoch {result.checkpoint.best_epoch}")
        print_evaluations({"validation": result.validation, "test": result.test})
        if trial:
            print(
                f"The trial's validation metrics {'came out again exactly' if same else 'came out differently'}"
            )
        print(f"Written to {options.checkpoint}")
    return 0


def infer_command(options: InferOptions) -> int:
    """Forecast the next values of the window that the options give."""
    from forecast.distribution import MAIN_LEVEL
    from forecast.predictor import Predictor, describe_intervals

    predictor = Predictor(options.checkpoint, options.device)
    window, dates = _window(options, predictor.checkpoint)
    steps = predictor.predict_steps([window], options.horizon)[0].tolist()
    levels = options.levels
    if levels is None:
        # Futures take a moment each: they are simulated for who asks.
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
        beside = predictor.checkpoint.persistence.get("test")
        line = f"test MAE of this model: {test['MAE']:,.6g}"
        print(line + (f", of persistence: {beside['MAE']:,.6g}" if beside else ""))
    return 0


def _window(options: InferOptions, checkpoint: Checkpoint) -> tuple[list[Any], tuple[str, str] | None]:
    """The window's values, rows of them for a model of several columns; its dates where they come from a source."""
    from forecast.errors import WindowError
    from forecast.source import load_series

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
        notify=_warn,
    )
    length = config.sequence_length
    if len(series) < length:
        raise WindowError(
            f"{series.provenance.source} has {len(series)} rows: this model needs {length}; take a longer history"
        )
    values = series.matrix if config.input_columns else series.values
    return values[-length:].tolist(), (str(series.dates[-length]), str(series.dates[-1]))


def read_values(path: Path) -> list[Any]:
    """Numbers from a file (``-``: standard input): JSON (a list, or ``{"values": [...]}``), or plain text.

    In JSON they may be rows of numbers, for a model of several columns.

    Raises:
        UsageError: when the file is missing or empty, or something in it is not a number.
    """
    name = "standard input" if str(path) == "-" else str(path)
    try:
        text = (sys.stdin.read() if str(path) == "-" else path.read_text()).strip()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not text"
        raise UsageError(f"--file {name} cannot be read ({reason}); give a text file of numbers") from None
    if not text:
        raise UsageError(f"--file {name} is empty; give the window's values, oldest first")
    if text[0] in "[{":
        try:
            content = json.loads(text)
        except json.JSONDecodeError as error:
            raise UsageError(f"--file {name} is not JSON ({error}); give a list of numbers") from None
        found = content.get("values") if isinstance(content, dict) else content
        if not isinstance(found, list):
            raise UsageError(f'--file {name} has no list of numbers; give [...] or {{"values": [...]}}')
    else:
        found = text.replace(",", " ").replace(";", " ").split()
    values: list[Any] = []
    for index, item in enumerate(found):
        try:
            values.append([_number(value) for value in item] if isinstance(item, list) else _number(item))
        except (TypeError, ValueError):
            raise UsageError(
                f"--file {name}: item {index + 1} is {item!r}, not a number; for a table of prices use "
                "--latest --source FILE"
            ) from None
    return values


def _number(item: Any) -> float:
    if isinstance(item, bool | None):
        raise TypeError
    return float(item)


def print_evaluations(evaluations: dict[str, Evaluation]) -> None:
    """A table of the model beside persistence, a block of rows for each part."""
    from rich.console import Console
    from rich.table import Table

    table = Table()
    table.add_column("rows")
    table.add_column("metric")
    for column in ("model", "persistence", "skill"):
        table.add_column(column, justify="right")
    for part, evaluation in evaluations.items():
        for index, (name, value) in enumerate(evaluation.model.items()):
            skill = evaluation.skill[name]
            table.add_row(
                f"{part} ({evaluation.rows})" if index == 0 else "",
                f"{name} %" if name == "MAPE" else name,
                f"{value:,.6g}",
                f"{evaluation.persistence[name]:,.6g}",
                "" if skill is None else f"{100 * skill:+.2f} %",
            )
        for interval in evaluation.intervals:
            table.add_row(
                "",
                f"in {100 * interval.level:g} % interval",
                f"{100 * interval.coverage:.1f} %",
                f"{100 * interval.persistence_coverage:.1f} %",
                "",
            )
        direction = evaluation.direction
        if direction and direction.accuracy is not None:
            ends = f"{100 * (direction.low or 0):.0f} to {100 * (direction.high or 0):.0f}"
            table.add_row("", "direction right", f"{100 * direction.accuracy:.1f} % ({ends})", "", "")
        table.add_section()
    Console().print(table)


def _warn(line: str) -> None:
    print(line, file=sys.stderr)


def _show_epoch(trainer: Trainer) -> None:
    print(
        f"\r\033[Kepoch {trainer.epoch}/{trainer.config.max_epochs}, validation loss {trainer.best_loss:.5f} "
        f"(best, epoch {trainer.best_epoch})",
        end="",
        file=sys.stderr,
        flush=True,
    )

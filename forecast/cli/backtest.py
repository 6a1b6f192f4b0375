"""``python -m forecast backtest``: backtest a configuration; ``tune_jobs.backtest`` runs the folds on Ray."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field

from forecast.backtest.settings import BacktestSettings
from forecast.cli.command import spell_options
from forecast.config import TrainConfig
from forecast.errors import UsageError

if TYPE_CHECKING:
    from forecast.backtest.rolling import RunTasks
    from forecast.model.card import ModelCard
    from forecast.prices.series import Series


class BacktestOptions(BacktestSettings, TrainConfig):
    """Options of this command alone."""

    from_trial: Path | None = Field(
        None,
        description="checkpoint that gives the configuration and the rows; no other model option may be given",
    )
    output_dir: Path = Field(
        Path("backtest"), description="directory for backtest.csv, backtest.json and backtest.html"
    )
    plot: bool = Field(True, description="write backtest.html, a page of plots")
    quiet: bool = Field(False, description="print only warnings and errors")
    json_output: bool = Field(False, alias="json", description="print the summary as JSON instead of tables")


EXAMPLES = """\
examples:
  python -m forecast backtest --likelihood student_t --folds 5 --seeds 3
  python -m forecast backtest --from-trial artifacts/best_pareto_lstm.pt
  python -m forecast backtest --source prices.csv --symbol ACME --fold-rows 60 --window sliding
  python -m forecast backtest --source prices.csv --input-columns High,Low,Open --horizons 1,5 --baselines GJR,HAR
"""


def run_backtest(options: BacktestOptions, given: set[str], run: RunTasks | None = None) -> int:
    """Run the backtest, print and write its results, and return the exit code.

    Args:
        options: the command's options.
        given: names of the ``options`` that the user set.
        run: executes the training runs; by default one after the other in this process.
    """
    from pydantic_core import to_jsonable_python
    from rich.console import Console

    from forecast.atomic import require_writable, write_json
    from forecast.backtest.baselines import chosen_baselines
    from forecast.backtest.rolling import backtest, make_folds, run_here
    from forecast.cli.progress import live_progress
    from forecast.pages.backtest import (
        PAGE_FILE,
        ROWS_FILE,
        SUMMARY_FILE,
        print_backtest,
        summarize,
        write_plots,
        write_rows,
    )
    from forecast.pages.describe import series_lines

    config, series, checkpoint = _subject(options, given)
    settings = BacktestSettings(**{name: getattr(options, name) for name in BacktestSettings.model_fields})
    settings = settings.model_copy(update={"baselines": chosen_baselines(settings, config)})
    folds = make_folds(len(series), settings, config)
    scored = series.timeline.text(series.dates[[folds[0].origin, -1]])
    require_writable(options.output_dir.absolute())
    silent = options.quiet or options.json_output
    console = Console(quiet=silent) if sys.stdout.isatty() else Console(quiet=silent, width=130)
    tried = checkpoint.configurations_tried if checkpoint else 1
    notes = [
        _tried_line(tried),
        *_seen_lines(checkpoint, series, folds[0].origin),
        *_horizon_lines(config, settings),
    ]
    if not silent:
        # The last line, the split, is left out: a backtest splits the rows into folds.
        print(*series_lines(series, config)[:-1], sep="\n")
        print(
            f"{len(folds)} folds of {folds[0].end - folds[0].origin} rows from {scored[0]} on, "
            f"{settings.window} window, {settings.seeds} training runs each"
        )

    with live_progress("training runs", len(folds) * settings.seeds, quiet=silent) as show:
        done = backtest(series, config, settings, run=run or run_here, on_done=lambda: show(""))
    summary: dict[str, Any] = {
        **summarize(done),
        "configurations_tried": tried,
        "notes": notes,
        "config": config.model_dump(mode="json"),
        "settings": settings.model_dump(mode="json"),
        "data": to_jsonable_python(series.provenance),
    }
    write_rows(done, options.output_dir / ROWS_FILE)
    write_json(summary, options.output_dir / SUMMARY_FILE)
    if options.plot:
        title = f"{series.symbol} {series.feature}: {len(folds)} folds, {' to '.join(scored)}"
        write_plots(done, title, notes, options.output_dir / PAGE_FILE)
    if options.json_output:
        print(json.dumps(summary, allow_nan=False, default=str))
    elif not options.quiet:
        print_backtest(done, console)
        files = [ROWS_FILE, SUMMARY_FILE, *([PAGE_FILE] if options.plot else [])]
        print(*notes, f"Written to {options.output_dir}: {', '.join(files)}", sep="\n")
    return 0


def _subject(options: BacktestOptions, given: set[str]) -> tuple[TrainConfig, Series, ModelCard | None]:
    """The configuration, the rows, and the checkpoint that they come from, if any."""
    from forecast.model.loading import load_card
    from forecast.model.reproduce import series_of
    from forecast.prices.source import say_on_stderr, series_from_config

    if "train_ratio" in given:
        raise UsageError(
            "`train_ratio` does not apply to a backtest, whose folds split the rows; use `folds` and `fold_rows`"
        )
    if options.from_trial is None:
        config = TrainConfig(**{name: getattr(options, name) for name in TrainConfig.model_fields})
        return (
            config,
            series_from_config(options, notify=lambda line: say_on_stderr(spell_options(line))),
            None,
        )
    require_only_from_trial(given, {"device", "source", "threads", "seed"})
    checkpoint = load_card(options.from_trial)
    changes: dict[str, Any] = {
        name: getattr(options, name) for name in ("device", "threads", "seed") if name in given
    }
    source = options.source if "source" in given else None
    return checkpoint.config.model_copy(update=changes), series_of(checkpoint, source), checkpoint


def require_only_from_trial(given: set[str], allowed: set[str]) -> None:
    """Refuse options of the model or its data together with `from_trial`, which sets them.

    Raises:
        UsageError: naming the first such option.
    """
    for name in TrainConfig.model_fields:
        if name in given and name not in allowed:
            raise UsageError(
                f"`{name}` cannot be used with `from_trial`, which already sets this option; omit one of the two"
            )


def _tried_line(tried: int | None) -> str:
    if tried is None:
        return "Configurations tried before this one: unknown (the checkpoint is not from a tuning job's Pareto front)"
    return f"Configurations tried before these numbers: {tried}"


def _horizon_lines(config: TrainConfig, settings: BacktestSettings) -> list[str]:
    """Say in a line if fewer horizons are scored than were asked for."""
    from forecast.backtest.horizons import columns_not_forecast, scored_horizons

    if scored_horizons(settings, config) == settings.horizons:
        return []
    needed = ", ".join(columns_not_forecast(config))
    return [
        f"Only one step is scored: more would need forecasts of {needed} too, which this model does not make"
    ]


def _seen_lines(checkpoint: ModelCard | None, series: Series, first_origin: int) -> list[str]:
    """Warn in a line if the search that chose the configuration saw rows that the folds are scored on."""
    seen = checkpoint.searched_rows if checkpoint else None
    if seen is None or seen <= first_origin:
        return []
    (until,) = series.timeline.text(series.dates[seen - 1 : seen])
    return [
        f"The search that chose this configuration saw all rows up to {until}: only later rows "
        "are new to the configuration"
    ]

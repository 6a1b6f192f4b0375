"""The first part of a job: read, split and normalize the prices, and lock the output directory."""

from __future__ import annotations

import contextlib
import fcntl
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from forecast.atomic import require_writable
from forecast.cli.command import spell_options
from forecast.errors import StudyError
from forecast.model.checkpoint import Checkpoint, load_checkpoint
from forecast.model.network import ARCHITECTURES
from forecast.model.panel import Prepared, evaluation_of, held_out, prepare_panel, require_market
from forecast.model.split import Part, require_rows
from forecast.model.start import doubts, same_options, with_recursions_of
from forecast.model.windows import prepare
from forecast.pages.describe import left_out_lines, panel_lines, series_lines, sessions_line
from forecast.prices.panel import Panel, panel_from_config
from forecast.prices.series import Series
from forecast.prices.source import series_from_config
from forecast.scores.metrics import evaluate_forecasts
from tune_jobs.console import say
from tune_jobs.folds import mean_metrics, prepare_earlier_folds
from tune_jobs.options import TuneOptions
from tune_jobs.space import SPACES, SearchSpace
from tune_jobs.warm_start import WarmStart, read_warm_start

LOCK_FILE = ".lock"

SEARCHED_ON_TEST = (
    "  objectives are computed on the test rows: the search sees them, so its test metrics do not estimate "
    "performance on new data"
)


@dataclass(frozen=True)
class Job:
    """Everything that a job knows before it searches.

    Attributes:
        options: the job's options.
        prices: the series, or the panel.
        prepared: the same, normalized and split.
        split: a line on the split.
        persistence: persistence's metrics by part, ``validation`` (the mean over the folds) and ``test``.
        console: for results.
        errors: for progress and warnings.
        earlier_folds: the validation folds before the last one, which is the split of ``prepared``.
        start: the model that training starts from; None for untrained networks.
        warm_start: the earlier job whose configurations are tried first; None without one.
    """

    options: TuneOptions
    prices: Series | Panel
    prepared: Prepared
    split: str
    persistence: dict[Part, dict[str, float]]
    console: Console
    errors: Console
    earlier_folds: tuple[Prepared, ...] = ()
    start: Checkpoint | None = None
    warm_start: WarmStart | None = None

    @property
    def space(self) -> SearchSpace:
        """What the search chooses from."""
        return SPACES[self.options.space].of(self.options, self.start.config if self.start else None)

    @property
    def to_beat(self) -> dict[str, float]:
        """Persistence's metrics on the rows that the objectives use."""
        return self.persistence[self.options.objectives_on]


def prepare_job(options: TuneOptions) -> Job:
    """Read, split and normalize the prices, and describe them on the console.

    Raises:
        ForecastError: when the prices are unavailable, too few (for the folds, too), or constant, the network is
            unknown, or there is no earlier job to start from.
    """
    console, errors = Console(quiet=options.quiet or options.json_output), Console(stderr=True)
    ARCHITECTURES.find(options.network)
    start = load_checkpoint(options.start_from) if options.start_from else None
    if start:
        options = same_options(options, start, options.model_fields_set)
    warm_start = read_warm_start(options.warm_start) if options.warm_start else None
    longest = SPACES[options.space].longest_window
    prices: Series | Panel
    prepared: Prepared
    earlier: tuple[Prepared, ...] = ()
    if options.symbols:
        prices = panel_from_config(options.symbols, options, notify=lambda line: say(errors, line, "yellow"))
        options = options.model_copy(update={"symbol": prices.symbol})
        prepared = prepare_panel(
            prices,
            options,
            longest,
            held_out=held_out(prices, options, options.seed, start.symbols if start else ()),
        )
        described = [
            *panel_lines(prices),
            *left_out_lines(prepared.left_out),
            sessions_line(prices, prepared),
        ]
    else:
        prices = series_from_config(options, notify=lambda line: say(errors, spell_options(line), "yellow"))
        require_rows(len(prices), longest, options.train_ratio, options.val_ratio_within_train)
        prepared = prepare(prices, options).fitted()
        earlier = prepare_earlier_folds(prices, options.validation_folds, options, longest)
        described = series_lines(prices, options)
    if start:
        prepared = with_recursions_of(start, prepared)
        earlier = tuple(with_recursions_of(start, fold) for fold in earlier)
        for doubt in doubts(start, options, prices.provenance.interval, prepared.parts):
            say(errors, f"warning: {doubt}", "yellow")
    elif options.market:
        require_market(prepared)
    folds = [persistence_metrics(fold, "validation") for fold in (*earlier, prepared)]
    persistence: dict[Part, dict[str, float]] = {
        "validation": mean_metrics(folds),
        "test": persistence_metrics(prepared, "test"),
    }
    say(console, "\n".join(described))
    if options.objectives_on == "test":
        say(errors, SEARCHED_ON_TEST, "yellow")
    return Job(
        options, prices, prepared, described[-1], persistence, console, errors, earlier, start, warm_start
    )


def persistence_metrics(prepared: Prepared, part: Part) -> dict[str, float]:
    """Return persistence's metrics on the rows of ``part``, which are the same for every window length."""
    every = [series.rows(part, 2) for series in prepared.parts]
    return evaluation_of(prepared, [evaluate_forecasts(rows, rows.baseline) for rows in every]).persistence


@contextlib.contextmanager
def only_job_in(output: Path) -> Iterator[None]:
    """Lock the output directory: a second job would take this one's running trials for dead."""
    require_writable(output)
    with (output / LOCK_FILE).open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise StudyError(
                f"another job is working in {output}; wait for that job to end, or choose another `output_dir`"
            ) from None
        # The lock ends with the process, however it dies; the empty file stays.
        yield

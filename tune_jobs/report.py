"""What a job leaves behind: the table a person reads, the CSV and the summary for machines."""

from __future__ import annotations

import csv
import io
import os
import shlex
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich import box
from rich.table import Table

from forecast.atomic import write_atomically
from forecast.distribution import MAIN_LEVEL
from forecast.evaluation import METRICS
from tune_jobs.options import TuneOptions
from tune_jobs.selection import FrontPoint
from tune_jobs.study import STUDY_FILE

FRONT_FILE = "pareto_trials.csv"
PICK_FILE = "best_pareto_lstm.pt"
SUMMARY_FILE = "summary.json"
REPORT_FILE = "report.html"
FILES = {
    REPORT_FILE: "a page for people: the front, the search, the pick's forecasts and residuals, the data; it opens "
    "without a network",
    PICK_FILE: "the pick",
    FRONT_FILE: "the front: objectives, test metrics, persistence's, hyperparameters",
    SUMMARY_FILE: "everything the table shows, and more, for machines",
    STUDY_FILE: "the study; every trial, finished or failed with its reason",
    "checkpoints/trial_00007.pt": "one file per finished trial",
}
"""What a job leaves, and what each file is."""

SHORT = {"validation": "val.", "test": "test"}
WIDE = 100
"""Columns of a terminal from which on a table has room for hyperparameters."""


def front_table(front: Sequence[FrontPoint], picked: FrontPoint, part: str, width: int) -> Table:
    """The front as a table, the pick marked, persistence's row last.

    Args:
        front: points scored on the test rows.
        picked: one of them.
        part: rows the objectives were computed on.
        width: columns of the terminal; hyperparameters are left out where there is no room.
    """
    title = f"Pareto front: {len(front)} of the finished trials, * is the pick"
    table = Table(
        title=title, title_justify="left", box=box.SIMPLE_HEAD, collapse_padding=True, pad_edge=False
    )
    table.add_column("trial", justify="right", no_wrap=True)
    shown, names = list(dict.fromkeys((part, "test"))), list(picked.objectives)
    for rows in shown:
        for name in names:
            unit = " %" if name == "MAPE" else ""
            table.add_column(f"{SHORT[rows]}\n{name}{unit}", justify="right", no_wrap=True)
    table.add_column("test\nskill", justify="right", no_wrap=True)
    wide = width >= WIDE
    if wide:
        table.add_column("window, hidden x layers,\nlearning rate", no_wrap=True)
    for point in front:
        test = _test(point)
        scores = {"validation": point.objectives, "test": test.model}
        params = point.params
        model = (
            f"{params['sequence_length']}, {params['hidden_size']} x {params['num_layers']}, "
            f"{params['learning_rate']:.1e}"
        )
        table.add_row(
            f"{point.number}{' *' if point is picked else '  '}",
            *(_number(scores[rows][name]) for rows in shown for name in names),
            _percent(test.skill["MAE"]),
            *([model] if wide else []),
            style="bold" if point is picked else None,
        )
    persistence = picked.checkpoint.persistence
    table.add_section()
    table.add_row(
        "persistence",
        *(_number(persistence[rows][name]) for rows in shown for name in names),
        _percent(0.0),
        *([""] if wide else []),
    )
    return table


def _test(point: FrontPoint) -> Any:
    if point.test is None:
        raise ValueError(f"trial {point.number} is not scored on the test rows yet")
    return point.test


def _number(value: float) -> str:
    # Six digits: points of a front often differ in the fourth.
    return f"{value:,.6g}" if abs(value) < 1e5 else f"{value:,.1f}"


def _percent(value: float | None) -> str:
    return "" if value is None else f"{100 * value:+.2f}%"


def write_front(front: Sequence[FrontPoint], path: Path) -> None:
    """Write the front as CSV: objectives, test metrics, persistence's and hyperparameters, a line a trial."""
    rows = []
    for point in front:
        test = _test(point)
        rows.append(
            {
                "trial_number": point.number,
                **point.objectives,
                "val_loss_best": point.checkpoint.val_loss_best,
                **{f"test_{name}": test.model.get(name) for name in METRICS},
                **{f"persistence_test_{name}": test.persistence.get(name) for name in METRICS},
                **{
                    f"persistence_validation_{name}": point.checkpoint.persistence["validation"].get(name)
                    for name in METRICS
                },
                **{f"param_{name}": value for name, value in sorted(point.params.items())},
            }
        )
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_atomically(path, lambda stream: stream.write(text.getvalue().encode()))


def describe_point(point: FrontPoint) -> dict[str, Any]:
    """A front point as plain values."""
    test = _test(point)
    return {
        "trial_number": point.number,
        "objectives": point.objectives,
        "validation": point.checkpoint.metrics_validation,
        "test": test.model,
        "skill_test": test.skill,
        "intervals_test": [asdict(interval) for interval in test.intervals],
        "direction_test": asdict(test.direction) if test.direction else None,
        "val_loss_best": point.checkpoint.val_loss_best,
        "weights": point.size,
        "params": point.params,
        "checkpoint": str(point.path),
    }


def search_lines(run: dict[str, Any]) -> list[str]:
    """What a run took, in plain words; nothing where it had no trial to run."""
    if not run["trials"]:
        return []
    cores = run["core_seconds"] / run["wall_seconds"]
    return [
        f"{run['trials']} trials in {run['wall_seconds']:.0f} s; training took {100 * run['efficiency']:.0f} % of "
        f"{cores:.3g} cores"
    ]


def score_lines(picked: FrontPoint) -> list[str]:
    """The pick's intervals on test rows beside persistence's, where it has any."""
    test = _test(picked)
    return [
        f"Intervals of {100 * at.level:.0f} %: {100 * at.coverage:.1f} % of the test rows in them, mean width "
        f"{at.width:,.6g} (persistence with constant ones: {100 * at.persistence_coverage:.1f} %, "
        f"{at.persistence_width:,.6g})"
        for at in test.intervals
        if at.level == MAIN_LEVEL
    ]


def strategy_line(options: TuneOptions) -> str:
    """How the pick was chosen."""
    return (
        f"{options.strategy}, the smallest within one standard error" if options.one_se else options.strategy
    )


def next_commands(options: TuneOptions) -> dict[str, str]:
    """What to do with a job's files, by what it does; those that follow need the environment to be active."""
    scripts = Path(sys.prefix, "bin")
    activated = sys.prefix == sys.base_prefix or str(scripts) in os.environ.get("PATH", "").split(os.pathsep)
    activate = {} if activated else {"activate": f"source {shlex.quote(_short(scripts / 'activate'))}"}
    pick = shlex.quote(str(options.output_dir / PICK_FILE))
    study = shlex.quote(f"sqlite:///{options.output_dir / STUDY_FILE}")
    return activate | {
        "forecast": f"python -m forecast infer --checkpoint {pick}",
        "serve": f"serve run serve_app:app checkpoint={pick}",
        "look": f"optuna-dashboard {study}",
    }


def _short(path: Path) -> str:
    """The path, from here where it is below."""
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)


def next_lines(options: TuneOptions) -> list[str]:
    """The report and the commands, a word before each."""
    report = {"read": str(options.output_dir / REPORT_FILE)} if options.report else {}
    return [f"  {word:<9} {what}" for word, what in (report | next_commands(options)).items()]

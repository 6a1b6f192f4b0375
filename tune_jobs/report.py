"""What a job leaves behind: the table a person reads, the CSV and the summary for machines."""

from __future__ import annotations

import csv
import io
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import optuna
from rich.table import Table

from forecast.atomic import write_atomically
from forecast.evaluation import METRICS
from tune_jobs.selection import FrontPoint

FRONT_FILE = "pareto_trials.csv"
PICK_FILE = "best_pareto_lstm.pt"
SUMMARY_FILE = "summary.json"


def front_table(front: Sequence[FrontPoint], picked: FrontPoint, part: str) -> Table:
    """The front as a table, the pick marked, persistence's row last."""
    table = Table(title=f"Pareto front ({len(front)} of the finished trials)", title_justify="left")
    table.add_column("trial", justify="right")
    for rows in dict.fromkeys((part, "test")):
        for name in METRICS:
            unit = " %" if name == "MAPE" else ""
            table.add_column(f"{rows}\n{name}{unit}", justify="right")
    table.add_column("test\nMAE skill", justify="right")
    table.add_column("window\nrows", justify="right")
    table.add_column("hidden\nx layers", justify="right")
    table.add_column("learning\nrate", justify="right")
    for point in front:
        test = _test(point)
        searched = point.objectives if part != "test" else {}
        chosen = point is picked
        table.add_row(
            f"{point.number}{' *' if chosen else ''}",
            *(_number(searched[name]) for name in searched),
            *(_number(test.model[name]) for name in METRICS),
            _percent(test.skill["MAE"]),
            str(point.params["sequence_length"]),
            f"{point.params['hidden_size']} x {point.params['num_layers']}",
            f"{point.params['learning_rate']:.1e}",
            style="bold" if chosen else None,
        )
    table.add_section()
    persistence = picked.checkpoint.persistence
    table.add_row(
        "persistence",
        *(_number(persistence[rows][name]) for rows in dict.fromkeys((part, "test")) for name in METRICS),
        _percent(0.0),
        *["", "", ""],
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
    return "" if value is None else f"{100 * value:+.2f} %"


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
                **{f"test_{name}": test.model[name] for name in METRICS},
                **{f"persistence_test_{name}": test.persistence[name] for name in METRICS},
                **{
                    f"persistence_validation_{name}": point.checkpoint.persistence["validation"][name]
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
        "val_loss_best": point.checkpoint.val_loss_best,
        "weights": point.size,
        "params": point.params,
        "checkpoint": str(point.path),
    }


def count_states(study: optuna.Study) -> dict[str, int]:
    """Number of trials by state, ``COMPLETE``, ``FAIL`` and so on."""
    return dict(Counter(trial.state.name for trial in study.get_trials(deepcopy=False)))


def write_summary(summary: dict[str, Any], path: Path) -> None:
    """Write the summary as JSON; a number that is not finite is an error rather than bad JSON."""
    text = json.dumps(summary, indent=2, allow_nan=False, default=str) + "\n"
    write_atomically(path, lambda stream: stream.write(text.encode()))

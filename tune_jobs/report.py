"""The third part of a job: score the front on the test rows, and write the files."""

from __future__ import annotations

import csv
import io
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rich.console import Console

from forecast.atomic import write_atomically, write_json
from forecast.model.checkpoint import library_versions, save_checkpoint
from forecast.scores.metrics import METRICS
from tune_jobs.prepare import Job, say
from tune_jobs.report_page import Findings, write_report
from tune_jobs.search import Found
from tune_jobs.selection import ScoredPoint, score_on_test
from tune_jobs.study import STUDY_FILE
from tune_jobs.tables import (
    PICK_FILE,
    REPORT_FILE,
    front_table,
    next_lines,
    score_lines,
    search_lines,
    strategy_line,
)

FRONT_FILE = "pareto_trials.csv"
SUMMARY_FILE = "summary.json"
FILES = {
    REPORT_FILE: "a page for people: the front, the search, the pick's forecasts and residuals, the data; it opens "
    "without a network",
    PICK_FILE: "the checkpoint of the pick",
    FRONT_FILE: "the front: objectives, test metrics, persistence's metrics, hyperparameters",
    SUMMARY_FILE: "everything in the printed table, and more, for machines",
    STUDY_FILE: "the study: every trial, finished, or failed with its reason",
    "checkpoints/trial_00007.pt": "one checkpoint per finished trial",
}
"""The files that a job writes, and their contents."""


def report_job(job: Job, found: Found, started: float) -> dict[str, Any]:
    """Score the front on the test rows, write the files, print the result and return the summary.

    Raises:
        OSError: when the output directory cannot be written; every file written before that is complete.
    """
    options, output = job.options, job.options.output_dir
    tried = found.states.get("COMPLETE", 0)
    front = [score_on_test(point, job.prepared, tried) for point in found.front]
    picked = next((point for point in front if found.picked and point.number == found.picked.number), None)
    if picked:
        write_front(front, output / FRONT_FILE)
        save_checkpoint(picked.checkpoint, output / PICK_FILE)
    summary = _summary(job, found, front, picked, time.perf_counter() - started)
    write_json(summary, output / SUMMARY_FILE)
    (output / REPORT_FILE).unlink(missing_ok=True)  # an earlier run's report may show another pick
    if options.json_output:
        print(json.dumps(summary, indent=2, allow_nan=False, default=str))
    early = [_ended_early(found)] if found.stopped_by else []
    for line in early:
        say(job.errors, line, "yellow")
    if picked:
        _describe_result(job, front, picked, found)
    if picked and options.report:
        ended = [*search_lines(found.run), *early]
        write_report(Findings(job, found.trials, front, picked, ended), output / REPORT_FILE)
    return summary


def _summary(
    job: Job,
    found: Found,
    front: Sequence[ScoredPoint],
    picked: ScoredPoint | None,
    total_seconds: float,
) -> dict[str, Any]:
    options = job.options
    return {
        "study": options.study_name,
        "trials": {"asked": options.num_samples, **found.states},
        "stopped_by": found.stopped_by,
        "objectives": options.objective_names,
        "objectives_on": options.objectives_on,
        "strategy": options.strategy,
        "pick": describe_point(picked) if picked else None,
        "front": [describe_point(point) for point in front],
        "persistence": job.persistence,
        "search": found.run,
        "total_seconds": total_seconds,
        "data": asdict(job.series.provenance),
        "integrity": asdict(job.series.integrity),
        "options": options.model_dump(mode="json"),
        "versions": {**library_versions(), **{name: version(name) for name in ("ray", "optuna")}},
    }


def write_front(front: Sequence[ScoredPoint], path: Path) -> None:
    """Write the front as CSV, a line per trial: objectives, test metrics, persistence's metrics, hyperparameters."""
    rows = []
    for point in front:
        test = point.test
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


def describe_point(point: ScoredPoint) -> dict[str, Any]:
    """Return a point of the front as plain values."""
    test = point.test
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


def _ended_early(found: Found) -> str:
    return (
        f"stopped by {found.stopped_by} with {found.states.get('COMPLETE', 0)} trials finished and kept; continue "
        "with the same command and --resume"
    )


def _describe_result(job: Job, front: Sequence[ScoredPoint], picked: ScoredPoint, found: Found) -> None:
    options, console = job.options, job.console
    # A pipe or file has no width: never truncate a table there.
    wide = console if console.is_terminal else Console(width=160, quiet=console.quiet, file=sys.stdout)
    wide.print(front_table(front, picked, options.objectives_on, wide.width))
    lines = [
        *search_lines(found.run),
        *score_lines(picked),
        f"Pick by {strategy_line(options)}: trial {picked.number}, kept as {options.output_dir / PICK_FILE}",
        *next_lines(options),
    ]
    say(console, "\n".join(lines))

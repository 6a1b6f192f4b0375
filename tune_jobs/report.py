"""The third part of a job: score the front on the test rows, and write the files."""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rich.console import Console

from forecast.atomic import write_csv, write_json
from forecast.job_files import (
    FRONT_FILE,
    PICK_FILE,
    REPORT_FILE,
    SCORED_FILE,
    SUMMARY_FILE,
    SYMBOLS_FILE,
    TIME_BUDGET,
)
from forecast.model.checkpoint import is_saved, library_versions, save_checkpoint
from forecast.model.panel import PreparedPanel
from forecast.scores.metrics import METRICS, Evaluation
from tune_jobs.cluster import Connect
from tune_jobs.console import say
from tune_jobs.databases import STUDY_FILE, database_of
from tune_jobs.final import FinalModels, train_final
from tune_jobs.luck import Luck
from tune_jobs.prepare import Job
from tune_jobs.report_page import Findings, write_report
from tune_jobs.search import Found
from tune_jobs.selection import ScoredPoint, score_on_test
from tune_jobs.symbols import (
    BASELINE,
    METRIC,
    SymbolScore,
    compare,
    score_symbols,
    symbol_lines,
    write_symbols,
)
from tune_jobs.tables import (
    final_lines,
    fold_lines,
    front_table,
    luck_lines,
    next_lines,
    search_lines,
    strategy_line,
    warm_start_lines,
)

FILES = {
    REPORT_FILE: "a page for people: the front, the search, the pick's forecasts and residuals, the data; it opens "
    "without a network",
    PICK_FILE: "the checkpoint of the pick, trained again for service",
    SCORED_FILE: "the checkpoint of the pick as it was scored on the test rows",
    SYMBOLS_FILE: "of a panel, each symbol's test metrics beside persistence's and GARCH's, or why it was left out",
    FRONT_FILE: "the front: objectives, test metrics, persistence's metrics, hyperparameters",
    SUMMARY_FILE: "everything in the printed table, and more, for machines",
    STUDY_FILE: "the study, unless a shared database keeps it: every trial, finished, or failed with its reason",
    "checkpoints/trial_00007.pt": "one checkpoint per finished trial",
}
"""The files that a job writes, and their contents."""


def report_job(job: Job, found: Found, started: float, connect: Connect) -> dict[str, Any]:
    """Score the front on the test rows, train the pick for service, write the files, print and return the summary.

    Args:
        job: the job.
        found: the result of the search.
        started: when the job started, as ``time.perf_counter`` tells.
        connect: connects to the cluster that trains the pick.

    Raises:
        OSError: when the output directory cannot be written; every file written before that is complete.
    """
    options, output = job.options, job.options.output_dir
    early = [_ended_early(found)] if found.stopped_by else []
    lines = [*warm_start_lines(found.warm_start), *search_lines(found.run), *early]
    findings = _score_front(job, found, lines, connect)
    if findings:
        for model, file in ((findings.final.scored, SCORED_FILE), (findings.final.served, PICK_FILE)):
            # A job that is resumed with no trial left trains the same models again: their files must keep their hashes.
            if not is_saved(model, output / file):
                save_checkpoint(model, output / file)
    # An earlier run's may be those of another pick.
    (output / SYMBOLS_FILE).unlink(missing_ok=True)
    if findings and isinstance(job.prepared, PreparedPanel) and findings.final.problem is None:
        findings = replace(findings, symbols=score_symbols(findings.final.scored, job.prepared, connect))
        write_symbols(findings.symbols, job.prepared, output / SYMBOLS_FILE)
    summary = _summary(job, found, findings, time.perf_counter() - started)
    write_json(summary, output / SUMMARY_FILE)
    (output / REPORT_FILE).unlink(missing_ok=True)  # an earlier run's report may show another pick
    if options.json_output:
        print(json.dumps(summary, indent=2, allow_nan=False, default=str))
    for line in early:
        say(job.errors, line, "yellow")
    if findings:
        _describe_result(findings, found.run)
    if findings and options.report:
        write_report(findings, output / REPORT_FILE)
    return summary


def _score_front(job: Job, found: Found, ended: Sequence[str], connect: Connect) -> Findings | None:
    """Score the front on the test rows and write it, and train the pick's models; None when it is empty."""
    if not (found.picked and found.luck):
        return None
    tried = found.states.get("COMPLETE", 0)
    front = [score_on_test(point, job.prepared, tried, found.luck) for point in found.front]
    picked = next(point for point in front if point.number == found.picked.number)
    write_front(front, job.persistence["validation"], job.options.output_dir / FRONT_FILE)
    if found.stopped_by in (None, TIME_BUDGET):
        trial = next(trial for trial in found.trials if trial.number == picked.number)
        final = train_final(job, picked, connect, trial.user_attrs.get("seconds", math.inf))
    else:  # whoever interrupts a job does not wait for more training
        final = FinalModels(
            picked.checkpoint, picked.test, picked.checkpoint, f"stopped by {found.stopped_by}"
        )
    return Findings(job, found.trials, front, picked, final, found.luck, ended)


def _summary(job: Job, found: Found, findings: Findings | None, total_seconds: float) -> dict[str, Any]:
    options = job.options
    return {
        "job": found.job,
        "study": options.study,
        "study_storage": str(database_of(options)),
        "trials": {"asked": options.num_samples, **found.states},
        "warm_start": found.warm_start,
        "stopped_by": found.stopped_by,
        "objectives": options.objective_names,
        "objectives_on": options.objectives_on,
        "validation_folds": options.validation_folds,
        "strategy": options.strategy,
        "pick": describe_pick(findings) if findings else None,
        "pick_same_as_persistence": findings.luck.pick_same_as_persistence if findings else None,
        "luck": describe_luck(findings.luck) if findings else None,
        "symbols": describe_symbols(findings) if findings and findings.symbols.seen else None,
        "front": [describe_point(point) for point in findings.front] if findings else [],
        "persistence": job.persistence,
        "search": found.run,
        "total_seconds": total_seconds,
        "data": asdict(job.prices.provenance),
        "integrity": asdict(job.prices.integrity),
        "options": options.model_dump(mode="json"),
        "versions": {**library_versions(), **{name: version(name) for name in ("ray", "optuna")}},
    }


def write_front(front: Sequence[ScoredPoint], validation: dict[str, float], path: Path) -> None:
    """Write the front as CSV, a line per trial: objectives, test metrics, persistence's metrics, hyperparameters.

    Args:
        front: at least one point.
        validation: persistence's metrics on the validation rows.
        path: the file.
    """
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
                **{f"persistence_validation_{name}": validation.get(name) for name in METRICS},
                **{f"param_{name}": value for name, value in sorted(point.params.items())},
            }
        )
    write_csv(rows, path)


def describe_point(point: ScoredPoint) -> dict[str, Any]:
    """Return a point of the front as plain values."""
    return {
        "trial_number": point.number,
        "objectives": point.objectives,
        "validation": point.checkpoint.metrics_validation,
        "persistence_validation": point.checkpoint.persistence.get("validation"),
        **describe_test(point.test),
        "val_loss_best": point.checkpoint.val_loss_best,
        "same_as_pick": point.same_as_pick,
        "weights": point.size,
        "params": point.params,
        "checkpoint": str(point.path),
    }


def describe_pick(found: Findings) -> dict[str, Any]:
    """Return the pick as plain values: its trial's objectives, and the scores of its model with all members."""
    final, output = found.final, found.job.options.output_dir
    return {
        **describe_point(found.picked),
        "members": len(final.scored.members),
        "validation": final.scored.metrics_validation,
        **describe_test(final.test),
        "weights": final.scored.weights,
        "scored_checkpoint": str(output / SCORED_FILE),
        "served_checkpoint": str(output / PICK_FILE),
        "retrained": final.retrained,
        "problem": final.problem,
        "trained_until": final.served.trained_until,
    }


def describe_test(test: Evaluation) -> dict[str, Any]:
    """Return the scores on the test rows as plain values."""
    return {
        "test": test.model,
        "skill_test": test.skill,
        "intervals_test": [asdict(interval) for interval in test.intervals],
        "direction_test": asdict(test.direction) if test.direction else None,
    }


def describe_luck(luck: Luck) -> dict[str, Any]:
    """Return the test of the best trial against persistence as plain values."""
    return {
        "test": "SPA",
        "metric": luck.metric,
        "trials": luck.trials,
        "p_value": luck.p_value,
        "skill": luck.skill,
    }


def describe_symbols(found: Findings) -> dict[str, Any]:
    """Return how the pick scores on the symbols of a panel as plain values."""
    scores = found.symbols

    def compared(kind: Sequence[SymbolScore]) -> dict[str, Any]:
        each = {to: compare(kind, to) for to in ("persistence", BASELINE)}
        return {to: asdict(comparison) if comparison else None for to, comparison in each.items()}

    return {
        "used": len(scores.seen),
        "left_out": found.final.scored.left_out,
        "metric": METRIC,
        **compared(scores.seen),
        "without_market": compared(scores.without_market),
        "unseen": compared(scores.unseen),
    }


def _ended_early(found: Found) -> str:
    return (
        f"stopped by {found.stopped_by} with {found.states.get('COMPLETE', 0)} trials finished and kept; continue "
        "with the same command and --resume"
    )


def _describe_result(findings: Findings, run: dict[str, Any]) -> None:
    options, console, picked = findings.job.options, findings.job.console, findings.picked
    # A pipe or file has no width: never truncate a table there.
    wide = console if console.is_terminal else Console(width=160, quiet=console.quiet, file=sys.stdout)
    table = front_table(
        findings.front,
        picked,
        findings.job.to_beat,
        options.objectives_on,
        wide.width,
        relative=bool(options.symbols),
    )
    wide.print(table)
    lines = [
        *fold_lines(options),
        *luck_lines(findings.luck, options),
        *search_lines(run),
        f"Pick by {strategy_line(options)}: trial {picked.number}",
        *final_lines(findings.final, options),
        *symbol_lines(findings.symbols, len(findings.final.scored.left_out)),
        *next_lines(options),
    ]
    say(console, "\n".join(lines))

"""Run one tuning job from prices to pick, in three parts: prepare, search, report.

The last two share one connection to a cluster, which starts when the first of them needs it.
"""

from __future__ import annotations

import contextlib
import functools
import time
from dataclasses import dataclass
from typing import Any

import optuna

from forecast.errors import StudyError
from tune_jobs.cluster import Connected, connected
from tune_jobs.disks import full_disk_named
from tune_jobs.final import INTERRUPTED
from tune_jobs.options import TuneOptions
from tune_jobs.prepare import only_job_in, prepare_job
from tune_jobs.report import report_job
from tune_jobs.search import search_and_pick
from tune_jobs.study import STUDY_FILE


@dataclass(frozen=True)
class Outcome:
    """A finished job: its summary, and whether it was stopped before its last trial."""

    summary: dict[str, Any]
    interrupted: bool


def run_job(options: TuneOptions) -> Outcome:
    """Search, pick and report.

    Raises:
        ForecastError: when data, options, study or cluster do not allow it; the message is one line.
        OSError: when the output directory cannot be written; everything finished before that is safe.
    """
    started = time.perf_counter()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    job = prepare_job(options)
    with full_disk_named(options), only_job_in(options.output_dir), contextlib.ExitStack() as ending:

        @functools.cache
        def connect() -> Connected:
            return ending.enter_context(connected(options.address))

        found = search_and_pick(job, connect)
        summary = report_job(job, found, started, connect)
    pick = summary["pick"]
    interrupted = found.stopped_by is not None or (pick is not None and pick["problem"] == INTERRUPTED)
    if not found.picked and not interrupted:
        raise StudyError(
            f"no trial finished with usable metrics ({found.states.get('FAIL', 0)} failed); the reasons are in "
            f"{options.output_dir / STUDY_FILE}"
        )
    return Outcome(summary, interrupted)

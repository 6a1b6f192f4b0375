"""Run one tuning job from prices to pick, in three parts: prepare, search, report.

The last two share one connection to a cluster, which starts beside the first (``tune_jobs.startup``).
"""

from __future__ import annotations

import contextlib
import time
from dataclasses import dataclass
from typing import Any

from forecast.errors import StudyError
from forecast.job_files import PICK_INTERRUPTED, is_complete
from tune_jobs.options import TuneOptions
from tune_jobs.prepare import only_job_in, prepare_job
from tune_jobs.startup import ClusterBeside, cluster_beside, only_imports


@dataclass(frozen=True)
class Outcome:
    """A finished job: its summary, and whether it was stopped before its last trial."""

    summary: dict[str, Any]
    interrupted: bool


def run_job(options: TuneOptions, cluster: ClusterBeside | None = None) -> Outcome:
    """Search, pick and report.

    Args:
        options: the job's options.
        cluster: the connection of ``options.address``, if it was begun before.

    Raises:
        ForecastError: when data, options, study or cluster do not allow it; the message is one line.
        OSError: when the output directory cannot be written; everything finished before that is safe.
    """
    started = time.perf_counter()
    with contextlib.ExitStack() as ending:
        cluster = cluster or ending.enter_context(cluster_beside(options.address))
        job = prepare_job(options)
        # Two threads that import parts of Ray at once can meet modules that are only half imported.
        cluster.settle()
        with only_imports():
            import optuna

            from tune_jobs.databases import database_of
            from tune_jobs.disks import full_disk_named
            from tune_jobs.report import report_job
            from tune_jobs.search import search_and_pick

        tracking = options.tracking
        if tracking:
            tracking.check()
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        with full_disk_named(options), only_job_in(options.output_dir):
            found = search_and_pick(job, cluster.connect)
            summary = report_job(job, found, started, cluster.connect)
    pick = summary["pick"]
    interrupted = found.stopped_by is not None or (pick is not None and pick["problem"] == PICK_INTERRUPTED)
    if not found.picked and not interrupted:
        raise StudyError(
            f"no trial finished with usable metrics ({found.states.get('FAIL', 0)} failed); the reasons are in the "
            f"study {job.options.study} in {database_of(job.options)}"
        )
    if tracking and is_complete(summary):
        tracking.log_or_warn(options.default_name, options.output_dir, job.console, found.trials)
    return Outcome(summary, interrupted)

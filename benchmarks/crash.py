"""Kill a tuning job's driver repeatedly, resume it each time, and check that nothing was lost or done twice.

``python -m benchmarks.crash`` sends SIGKILL at ten random moments of a 24-trial job. It exits with code 1 when a check
fails.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import random
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import optuna
from optuna.trial import FrozenTrial, TrialState

from forecast.job_files import FRONT_FILE, PICK_FILE
from forecast.model.checkpoint import load_checkpoint
from tune_jobs import study as studies
from tune_jobs.databases import STUDY_FILE
from tune_jobs.options import TuneOptions
from tune_jobs.search import CHECKPOINT_DIR, TUNE_STATE_DIR
from tune_jobs.searcher import trial_checkpoint_path
from tune_jobs.space import SPACES


@dataclass(frozen=True)
class Done:
    """The results of a finished trial, which must not change anymore.

    ``weights`` is a hash of the weights alone: each run of the job writes test metrics into the checkpoints on the
    front.
    """

    values: tuple[float, ...]
    completed: str
    weights: str


def main() -> int:
    """Run, kill, resume, check."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.crash",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--samples", type=int, default=24)
    parser.add_argument(
        "--space", choices=list(SPACES), default="small", help="full has trials that outlast most kills"
    )
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument(
        "--between",
        type=float,
        nargs=2,
        default=[3.0, 20.0],
        help="least and most seconds from a start to its kill",
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of the random moments")
    given = parser.parse_args()
    moments = random.Random(given.seed)
    problems: list[str] = []
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        command = [sys.executable, "-m", "tune_jobs.pareto", "--source", "snapshot", "--address", "local"]
        command += ["--num-samples", str(given.samples), "--output-dir", name, "--quiet", "--resume"]
        command += ["--space", given.space]
        done: dict[int, Done] = {}
        for kill in range(given.kills):
            after = moments.uniform(*given.between)
            process = subprocess.Popen(command)
            try:
                process.wait(after)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            else:
                problems.append(f"the job ended before kill {kill + 1}: use more --samples")
                break
            problems += changed(done, finished_trials(directory))
            done = finished_trials(directory)
            print(f"kill {kill + 1} after {after:.1f} s: {states(directory)}", flush=True)
        subprocess.run(command, check=True)
        problems += changed(done, finished_trials(directory))
        problems += wrong_at_the_end(directory, given.samples)
        print(f"resumed to the end: {states(directory)}")
    for problem in problems:
        print(f"WRONG: {problem}")
    print("all checks passed" if not problems else f"{len(problems)} checks failed")
    return 1 if problems else 0


def trials_of(directory: Path) -> list[FrozenTrial]:
    """Return the study's trials; none before it is created."""
    path = directory / STUDY_FILE
    if not path.exists():
        return []
    # A driver killed while it creates the database leaves one without a study.
    try:
        return optuna.load_study(study_name=TuneOptions().study, storage=f"sqlite:///{path}").trials
    except KeyError:
        return []


def states(directory: Path) -> str:
    """Describe how many trials are in each state; interrupted ones are counted separately."""
    counts: dict[str, int] = {}
    for trial in trials_of(directory):
        interrupted = trial.user_attrs.get(studies.REASON) == studies.INTERRUPTED
        name = studies.INTERRUPTED if interrupted else trial.state.name
        counts[name] = counts.get(name, 0) + 1
    return ", ".join(f"{count} {name}" for name, count in sorted(counts.items())) or "no trial yet"


def finished_trials(directory: Path) -> dict[int, Done]:
    """Return the results of each COMPLETE trial, by number."""
    return {
        trial.number: Done(
            tuple(trial.values),
            str(trial.datetime_complete),
            hash_of_weights(trial_checkpoint_path(directory / CHECKPOINT_DIR, trial.number)),
        )
        for trial in trials_of(directory)
        if trial.state == TrialState.COMPLETE
    }


def hash_of_weights(path: Path) -> str:
    """Hash all tensors of a checkpoint."""
    state = load_checkpoint(path).model_state
    return hashlib.sha256(b"".join(tensor.numpy().tobytes() for tensor in state.values())).hexdigest()


def changed(before: dict[int, Done], after: dict[int, Done]) -> list[str]:
    """Return a line for each finished trial whose values, time or checkpoint changed."""
    return [
        f"finished trial {number} has changed" for number, was in before.items() if after.get(number) != was
    ]


def wrong_at_the_end(directory: Path, samples: int) -> list[str]:
    """Return a line for each check that a finished job fails."""
    trials = trials_of(directory)
    complete = [trial for trial in trials if trial.state == TrialState.COMPLETE]
    failed = [
        trial
        for trial in trials
        if trial.state == TrialState.FAIL and trial.user_attrs[studies.REASON] != studies.INTERRUPTED
    ]
    front = {trial.number for trial in complete if not any(dominates(other, trial) for other in complete)}
    with (directory / FRONT_FILE).open() as stream:
        reported = {int(row["trial_number"]) for row in csv.DictReader(stream)}
    picked = load_checkpoint(directory / PICK_FILE).trial_number or 0
    reruns = [trial.user_attrs[studies.RERUN_OF] for trial in trials if studies.RERUN_OF in trial.user_attrs]
    interrupted = [trial.number for trial in trials if trial not in complete and trial not in failed]
    kept = {path.name for path in (directory / CHECKPOINT_DIR).iterdir()}
    checks = {
        f"{len(complete)} COMPLETE and {len(failed)} FAIL": len(complete) + len(failed) == samples,
        "a trial is RUNNING or WAITING": all(trial.state.is_finished() for trial in trials),
        f"trials {sorted(reruns)} ran again, {interrupted} were interrupted": sorted(reruns) == interrupted,
        "a trial ran again with other parameters": all(
            trials[trial.user_attrs[studies.RERUN_OF]].params.items() <= trial.params.items()
            for trial in trials
            if studies.RERUN_OF in trial.user_attrs
        ),
        f"front {sorted(reported)}, should be {sorted(front)}": reported == front,
        f"pick {picked}": picked in front
        and trials[picked].values[2] == min(trial.values[2] for trial in complete),
        f"checkpoints {sorted(kept)}": kept
        == {trial_checkpoint_path(directory, trial.number).name for trial in complete},
        f"{TUNE_STATE_DIR} is left": not (directory / TUNE_STATE_DIR).exists(),
    }
    return [what for what, right in checks.items() if not right]


def dominates(one: FrozenTrial, other: FrozenTrial) -> bool:
    """Return whether ``one`` is no worse than ``other`` in any objective, and better in one."""
    return one.values != other.values and all(a <= b for a, b in zip(one.values, other.values, strict=True))


if __name__ == "__main__":
    sys.exit(main())

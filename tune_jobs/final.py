"""Train the pick's models: the one that is scored on the test rows, and the one that is served.

Both have all members. The scored model is fitted like the trials, on the honest split; the served one is trained again
on later rows, with the last rows of all for stopping and calibration, and no test rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

import ray

from forecast.config import TrainConfig
from forecast.errors import ForecastError
from forecast.job_files import PICK_INTERRUPTED
from forecast.model.checkpoint import Checkpoint
from forecast.model.device import DEFAULT_GPU_SHARE, device_for_share
from forecast.model.panel import Prepared, PreparedPanel, prepare_panel
from forecast.model.split import service_split
from forecast.model.start import with_recursions_of
from forecast.model.training import Trained, assemble, scored_on_test, train_member
from forecast.model.windows import prepare
from forecast.prices.panel import Panel
from forecast.scores.metrics import Evaluation
from tune_jobs.cluster import Connect
from tune_jobs.console import say
from tune_jobs.prepare import Job
from tune_jobs.selection import ScoredPoint
from tune_jobs.trial import in_one_line, most_epochs

SECONDS_HERE = 15.0
"""Seconds of training that are done sooner in this process: on the cluster, each network needs a new worker process,
which takes seconds to import torch."""
FROM_TRIAL = ("trial_number", "trial_params", "searched_rows")
"""What the checkpoint of the scored model takes over from that of the pick's trial."""


@dataclass(frozen=True)
class FinalModels:
    """The pick's models.

    Attributes:
        scored: the model that is scored on the test rows.
        test: its scores.
        served: the model trained again for service, with the scores of ``scored``; without retraining, ``scored``.
        problem: why neither was trained, so that both are the pick's trial; None if they were.
    """

    scored: Checkpoint
    test: Evaluation
    served: Checkpoint
    problem: str | None = None

    @property
    def retrained(self) -> bool:
        """Whether the served model is another one than the scored one."""
        return self.served is not self.scored


def train_final(job: Job, pick: ScoredPoint, connect: Connect, trial_seconds: float) -> FinalModels:
    """Train the pick's members other than its trial, and all members again for service, at the same time.

    If that fails, the pick's trial is both models.

    Args:
        job: the job.
        pick: a point of the front.
        connect: connects to the cluster; called only if there is something to train there.
        trial_seconds: seconds of training of the pick's trial.
    """
    try:
        return _trained(job, pick, connect, trial_seconds)
    except KeyboardInterrupt:
        return FinalModels(pick.checkpoint, pick.test, pick.checkpoint, PICK_INTERRUPTED)
    except (ForecastError, ray.exceptions.RayError) as error:
        return FinalModels(pick.checkpoint, pick.test, pick.checkpoint, in_one_line(error))


def _trained(job: Job, pick: ScoredPoint, connect: Connect, trial_seconds: float) -> FinalModels:
    options, trial = job.options, pick.checkpoint
    config = trial.config.model_copy(update={"members": options.members})
    known, later = job.prepared.without_test(), None
    if options.retrain:
        later = _on_later_rows(job, config)
    further = [(known, number) for number in range(1, options.members)]
    again = [(later, number) for number in range(options.members)] if later else []
    tasks = [*further, *again]
    if tasks:
        later_ones = f", of which {len(again)} on later rows for service" if again else ""
        say(job.console, f"Training the pick's networks: {len(tasks)}{later_ones}")
    # No longer than a trial: otherwise, an expensive network could train longer now than the search took.
    longest = max(most_epochs(options, job.space, trial.trial_params, known), trial.best_epoch or 0)
    train = partial(_train_here, tasks, config, job.start, longest)
    if len(tasks) * trial_seconds > SECONDS_HERE or _device(trial) == "cuda":
        connect()
        train = partial(_train_members, tasks, config, job.start, longest, _gpu_share(job, trial))
    trained = train() if tasks else []

    first = trial.members[0].model_copy(update={"config": config})
    own = Trained(first, trial.val_loss_best, trial.best_epoch or 0, _device(trial))
    members = [own, *trained[: len(further)]]
    provenance = job.prices.provenance
    origin = {name: getattr(trial, name) for name in FROM_TRIAL}
    scored = assemble(known, members, provenance, job.start).checkpoint.model_copy(update=origin)
    scored, test = scored_on_test(
        scored,
        job.prepared,
        configurations_tried=trial.configurations_tried,
        search_p_value=trial.search_p_value,
    )
    if later is None:
        return FinalModels(scored, test, scored)
    served = assemble(later, trained[len(further) :], provenance, job.start).checkpoint
    return FinalModels(scored, test, served.with_scores_of(scored, later))


def _on_later_rows(job: Job, config: TrainConfig) -> Prepared:
    """The prices split for a model that is trained for service: up to the last row."""
    split = partial(service_split, train_ratio=1 - job.options.val_ratio_within_train)
    later: Prepared
    if isinstance(job.prices, Panel):
        apart = job.prepared.held_out if isinstance(job.prepared, PreparedPanel) else ()
        later = prepare_panel(job.prices, job.options, config.sequence_length, split, held_out=apart)
    else:
        later = prepare(job.prices, job.options, split(len(job.prices))).fitted()
    return with_recursions_of(job.start, later) if job.start else later


def _gpu_share(job: Job, trial: Checkpoint) -> float:
    """The GPU share of a training: the trials' if the pick's trial ran on a GPU and the cluster still has one."""
    on_gpu = _device(trial) == "cuda" and ray.cluster_resources().get("GPU", 0) > 0
    share = job.options.gpus_per_trial
    return (DEFAULT_GPU_SHARE if share is None else share) if on_gpu else 0.0


def _device(trial: Checkpoint) -> str:
    """The kind of device that a trial ran on."""
    return (trial.versions or {}).get("device", "cpu")


def _train_here(
    tasks: Sequence[tuple[Prepared, int]], config: TrainConfig, start: Checkpoint | None, longest: float
) -> list[Trained]:
    """Train members in this process, one after the other; otherwise as ``_train_members``."""
    return [
        train_member(prepared, config, number, start=start, until_epoch=longest) for prepared, number in tasks
    ]


def _train_members(
    tasks: Sequence[tuple[Prepared, int]],
    config: TrainConfig,
    start: Checkpoint | None,
    longest: float,
    gpus: float,
) -> list[Trained]:
    """Train members on the cluster, in parallel; the result has the order of the tasks, which give series and number.

    Each is trained for ``longest`` epochs at most.

    Raises:
        TrainingError: when training diverges.
    """

    def on_worker(prepared: Prepared, number: int) -> Trained:
        device = device_for_share(ray.get_runtime_context().get_accelerator_ids().get("GPU"))
        here = config.model_copy(update={"device": device})
        trained = train_member(prepared, here, number, start=start, until_epoch=longest)
        # The model may be trained again elsewhere.
        own = trained.member.config.model_copy(update={"device": config.device})
        return replace(trained, member=trained.member.model_copy(update={"config": own}))

    # A trial may have had more threads than any node here has CPUs: Ray would wait for such a node.
    most = max(node["Resources"].get("CPU", 0.0) for node in ray.nodes() if node["Alive"])
    remote = ray.remote(num_cpus=min(float(config.threads), most), num_gpus=gpus)(on_worker)
    shared = {id(prepared): ray.put(prepared) for prepared, _ in tasks}
    answers = [remote.remote(shared[id(prepared)], number) for prepared, number in tasks]
    try:
        return list(ray.get(answers))
    except ray.exceptions.RayTaskError as error:
        raise error.cause from None

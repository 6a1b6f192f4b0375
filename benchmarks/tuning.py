"""What the search costs and what it wins: ``make bench``, or ``python -m benchmarks.tuning overhead`` for one part."""

from __future__ import annotations

import argparse
import logging
import tempfile
from pathlib import Path

import numpy as np
import optuna
import ray

from forecast import load_series
from forecast.config import ExperimentConfig
from forecast.series import Series
from forecast.training import Trainer
from forecast.windows import prepare
from tune_jobs import study as studies
from tune_jobs.placement import Placement
from tune_jobs.search import SearchSeconds, run_search
from tune_jobs.searcher import SearchInput
from tune_jobs.space import SPACES
from tune_jobs.states import StateStore
from tune_jobs.stopping import Stop
from tune_jobs.trial import LSTMTrial


class UntrainedModel(Trainer):
    """Everything of a trainer but the training: an epoch takes no time and finds noise."""

    def advance(self, until_epoch: int | None = None) -> None:
        """Be done at once."""
        noise = np.random.default_rng(int(self.config.learning_rate * 1e9))
        self.epoch = self.best_epoch = self.config.max_epochs
        self._best_outputs = noise.normal(0, 0.1, len(self._validation)).astype(np.float32)
        self.best_loss = float(np.mean(self._best_outputs**2))


class UntrainedTrial(LSTMTrial):
    """A trial that does not train."""

    def _new_trainer(self) -> Trainer:
        trained = super()._new_trainer()
        return UntrainedModel(trained._prepared, trained.config)


def search(series: Series, samples: int, trial_class: type[LSTMTrial]) -> SearchSeconds:
    """One search on the connected cluster in a directory of its own."""
    experiment = ExperimentConfig(source="snapshot")
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        storage = studies.open_storage(directory / studies.STUDY_FILE)
        study = studies.open_study(storage, "s", path=directory, resume=False, basis={})
        seconds = run_search(
            SearchInput(prepare(series, experiment).without_test(), experiment, {}, SPACES["full"]),
            study,
            storage,
            samples=samples,
            placement=Placement(),
            states=StateStore(str(directory / "states"), "s"),
            checkpoint_dir=directory / "checkpoints",
            stop=Stop(),
            trial_class=trial_class,
        )
        assert len(studies.completed(study)) == samples
        studies.close_storage(storage, directory)
    return seconds


def overhead(series: Series, sizes: list[int]) -> None:
    """Seconds a trial costs beside its training, for searches of several sizes."""
    print("| trials | wall s | s / trial | ask, s / trial | keep, s / trial |")
    print("|---|---|---|---|---|")
    for samples in sizes:
        seconds = search(series, samples, UntrainedTrial)
        per_trial = [value / samples for value in (seconds.wall, seconds.asking, seconds.keeping)]
        print(
            f"| {samples} | {seconds.wall:.1f} | " + " | ".join(f"{s:.3f}" for s in per_trial) + " |",
            flush=True,
        )


def main() -> None:
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    parser = argparse.ArgumentParser()
    parser.add_argument("--sizes", type=int, nargs="+", default=[64, 256, 1024])
    options = parser.parse_args()
    ray.init(include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    overhead(load_series(source="snapshot"), options.sizes)


if __name__ == "__main__":
    main()

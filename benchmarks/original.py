"""The design that this project replaces, as it was described: the baseline for the tuning job.

Trials run one after another in ``study.optimize``, with a ``DataLoader``; z-scored price levels in, the next one out;
every trial runs until its epochs or its patience end; objectives use the test rows. Rows, windows, network, optimizer
and search space are the job's.
"""

from __future__ import annotations

import copy
import time
from dataclasses import dataclass
from pathlib import Path

import optuna
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from forecast.config import ExperimentConfig, TrainConfig
from forecast.model.lstm import LSTMForecaster
from forecast.model.split import Part
from forecast.model.windows import PreparedSeries, prepare
from forecast.prices.series import Series
from forecast.scores.metrics import Evaluation, Forecasts, evaluate_forecasts
from tune_jobs.options import TuneOptions
from tune_jobs.space import SearchSpace, complete_params

GRAD_CLIP_NORM = 1.0


@dataclass(frozen=True)
class OriginalTrial:
    """One trial's seconds, and its scores on the test rows."""

    seconds: float
    test: Evaluation


def search(
    series: Series,
    space: SearchSpace,
    samples: int,
    directory: Path,
    sampler: optuna.samplers.BaseSampler,
) -> list[OriginalTrial]:
    """Run ``samples`` trials one after another; write the study and a checkpoint of each to ``directory``."""
    objectives = TuneOptions().objective_names
    prepared = prepare(series, ExperimentConfig(source="snapshot", target="level", log_prices=False))
    trials = []

    def objective(trial: optuna.Trial) -> list[float]:
        started = time.perf_counter()
        space(trial)
        model, test = _train(prepared, complete_params(trial.params))
        torch.save(model.state_dict(), directory / f"trial_{trial.number}.pt")
        trials.append(OriginalTrial(time.perf_counter() - started, test))
        return [test.model[name] for name in objectives]

    study = optuna.create_study(
        storage=f"sqlite:///{directory / 'study.db'}",
        directions=["minimize"] * len(objectives),
        sampler=sampler,
    )
    study.optimize(objective, n_trials=samples)
    return trials


def _train(prepared: PreparedSeries, params: dict[str, float]) -> tuple[nn.Module, Evaluation]:
    torch.manual_seed(42)
    window, batch = int(params["sequence_length"]), int(params["batch_size"])
    config = TrainConfig(source="snapshot", target="level", log_prices=False, sequence_length=window)

    def loader(part: Part, shuffle: bool = False) -> DataLoader[tuple[torch.Tensor, ...]]:
        windows = prepared.windows(part, prepared.encoding(config))
        tensors = torch.from_numpy(windows.inputs), torch.from_numpy(windows.targets)
        return DataLoader(TensorDataset(*tensors), batch_size=batch, shuffle=shuffle)

    model = LSTMForecaster(
        int(params["hidden_size"]), int(params["num_layers"]), params["dropout"], zero_head=False
    )
    optimizer = torch.optim.Adam(model.parameters(), lr=params["learning_rate"])
    loss_of = nn.MSELoss()
    training, validation = loader("train", shuffle=True), loader("validation")
    best_loss, best_state, stale = float("inf"), copy.deepcopy(model.state_dict()), 0
    for _ in range(int(params["max_epochs"])):
        model.train()
        for inputs, targets in training:
            optimizer.zero_grad()
            loss = loss_of(model(inputs)[:, 0], targets)
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), GRAD_CLIP_NORM)
            optimizer.step()
        model.eval()
        with torch.no_grad():
            losses = [
                loss_of(model(inputs)[:, 0], targets).item() * len(targets) for inputs, targets in validation
            ]
        if sum(losses) < best_loss:
            best_loss, best_state, stale = sum(losses), copy.deepcopy(model.state_dict()), 0
        else:
            stale += 1
        if stale >= params["patience"]:
            break
    model.load_state_dict(best_state)
    model.eval()
    with torch.no_grad():
        outputs = torch.cat([model(inputs) for inputs, _ in loader("test")])
    last = prepared.windows("test", prepared.encoding(config)).last
    points = prepared.encoding(config).prices(outputs[:, 0].numpy(), last)
    return model, evaluate_forecasts(prepared.rows("test", window), Forecasts(points))

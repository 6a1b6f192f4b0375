"""Training: its start, the state it keeps, and that it can run in pieces."""

import numpy as np
import pytest
import torch

from forecast import TrainConfig, evaluate, train
from forecast.errors import DataError, TrainingError, UsageError
from forecast.model.device import choose_device
from forecast.model.network import build_network, forward_in_batches
from forecast.model.training import Trainer
from forecast.model.windows import prepare

SMALL = TrainConfig(
    source="snapshot",
    likelihood="mse",
    sequence_length=20,
    hidden_size=8,
    num_layers=2,
    max_epochs=6,
    batch_size=128,
)


def equal_states(first, second):
    return all(torch.equal(first[name], second[name]) for name in first)


def test_untrained_residual_model_outputs_exactly_zero():
    outputs = forward_in_batches(build_network(SMALL), torch.randn(5, 19, 1))
    assert torch.equal(outputs, torch.zeros(5, 1))


def test_training_that_stops_within_an_epoch_goes_on_with_the_same_batches_and_dropout(snapshot):
    prepared = prepare(snapshot, SMALL)
    whole = Trainer(prepared, SMALL)
    whole.advance(3)

    first = Trainer(prepared, SMALL)
    first.advance(1 / 3)
    assert 1 / 3 <= first.position < 1
    assert first.best_epoch == first.position
    first.advance(1.5)
    torch.rand(100)  # somebody else uses torch's generator in between
    second = Trainer(prepared, SMALL)
    second.load_state_dict(first.state_dict())
    assert second.position == first.position
    second.advance(3)
    assert second.position == 3
    assert equal_states(second.network.state_dict(), whole.network.state_dict())


def test_patience_does_not_depend_on_where_training_stops_in_between(snapshot):
    config = SMALL.model_copy(update={"max_epochs": 60, "patience": 2, "learning_rate": 0.05})
    whole, pieces = (Trainer(prepare(snapshot, config), config) for _ in range(2))
    whole.advance()
    while not pieces.finished:
        pieces.advance(pieces.position + 0.4)
    assert pieces.epoch == whole.epoch < 60
    assert pieces.best_loss <= whole.best_loss


def test_a_state_of_another_kind_of_device_goes_on(snapshot):
    prepared = prepare(snapshot, SMALL)
    first = Trainer(prepared, SMALL)
    first.advance(0.5)
    state = first.state_dict()
    state["generators"] = [*state["generators"], torch.zeros(16, dtype=torch.uint8)]  # as of a GPU
    second = Trainer(prepared, SMALL)
    second.load_state_dict(state)
    second.advance(1)
    first.advance(1)
    assert equal_states(second.network.state_dict(), first.network.state_dict())


def test_an_epoch_of_fewer_windows_draws_other_ones_each_time(snapshot):
    few = SMALL.model_copy(update={"windows_per_epoch": 100, "batch_size": 30})
    trainer = Trainer(prepare(snapshot, few), few)
    seen = []
    inputs = trainer._train_tensors.inputs
    trainer._train_tensors.inputs = lambda batch: seen.append(batch) or inputs(batch)
    trainer.advance(2)
    first, second = torch.cat(seen[:4]), torch.cat(seen[4:])
    assert len(first) == len(second) == 100
    assert len(set(first.tolist()) | set(second.tolist())) > 150


def test_training_in_pieces_across_processes_gives_the_weights_of_one_go(snapshot):
    prepared = prepare(snapshot, SMALL)
    whole = Trainer(prepared, SMALL)
    whole.advance()

    first = Trainer(prepared, SMALL)
    first.advance(2)
    torch.rand(100)  # somebody else uses torch's generator in between
    second = Trainer(prepared, SMALL)
    second.load_state_dict(first.state_dict())
    second.advance(3)
    second.advance()

    assert (second.epoch, second.best_epoch, second.best_loss) == (
        whole.epoch,
        whole.best_epoch,
        whole.best_loss,
    )
    assert equal_states(second.best_state(), whole.best_state())


def test_two_runs_of_one_configuration_give_identical_weights(snapshot, tiny_result):
    again = train(snapshot, tiny_result.checkpoint.config)
    assert equal_states(again.checkpoint.model_state, tiny_result.checkpoint.model_state)


def test_another_seed_gives_other_weights(snapshot, tiny_result):
    config = tiny_result.checkpoint.config.model_copy(update={"seed": 7})
    assert not equal_states(
        train(snapshot, config).checkpoint.model_state, tiny_result.checkpoint.model_state
    )


def test_the_state_with_the_lowest_validation_loss_is_the_one_kept(snapshot):
    prepared = prepare(snapshot, SMALL)
    trainer = Trainer(prepared, SMALL.model_copy(update={"learning_rate": 0.05}))
    windows = prepared.windows("validation", prepared.encoding(SMALL))
    losses = []
    while not trainer.finished:
        trainer.advance(trainer.epoch + 1)
        outputs = forward_in_batches(trainer.network, torch.from_numpy(windows.inputs)).numpy()
        losses.append(float(np.mean((outputs[:, 0] - windows.targets) ** 2)))
    assert trainer.best_epoch == 1 + int(np.argmin(losses))
    assert trainer.best_loss == pytest.approx(min(losses), rel=1e-5)
    best = build_network(SMALL)
    best.load_state_dict(trainer.best_state())
    kept = forward_in_batches(best, torch.from_numpy(windows.inputs)).numpy()
    assert float(np.mean((kept[:, 0] - windows.targets) ** 2)) == pytest.approx(min(losses), rel=1e-5)


def test_patience_stops_training_and_counts_from_the_best_epoch(snapshot):
    config = SMALL.model_copy(update={"max_epochs": 60, "patience": 2, "learning_rate": 0.05})
    trainer = Trainer(prepare(snapshot, config), config)
    trainer.advance()
    assert trainer.epoch == trainer.best_epoch + 2 < 60


def test_diverging_training_is_an_error_that_names_the_loss_and_the_remedy(snapshot):
    prepared = prepare(snapshot, SMALL)
    trainer = Trainer(prepared, SMALL)
    with torch.no_grad():
        trainer.network.regressor.bias.fill_(float("nan"))
    with pytest.raises(TrainingError, match=r"validation loss is nan after epoch 1.*`learning_rate`"):
        trainer.advance()


def test_no_row_after_validation_changes_training_or_its_validation_scores(snapshot):
    prepared = prepare(snapshot, SMALL)
    poisoned = prepared.normalized.copy()
    poisoned[prepared.split.validation_end :] = np.nan
    results = []
    for series in (prepared, type(prepared)(poisoned, prepared.normalization, prepared.split)):
        trainer = Trainer(series, SMALL)
        trainer.advance()
        results.append((trainer.best_state(), trainer.evaluate()))
    assert equal_states(results[0][0], results[1][0])
    assert results[0][1] == results[1][1]


def test_scores_in_the_result_are_those_of_the_checkpoint_on_the_series(snapshot, tiny_result):
    assert evaluate(tiny_result.checkpoint, snapshot, "test") == tiny_result.test
    validation = evaluate(tiny_result.checkpoint, snapshot, "validation")
    assert validation.model == pytest.approx(tiny_result.validation.model, rel=1e-6)
    assert tiny_result.checkpoint.metrics_test == tiny_result.test.model


def test_a_series_with_structure_is_forecast_far_better_than_persistence(snapshot):
    from dataclasses import replace

    rows = np.arange(len(snapshot))
    noise = np.random.default_rng(0).normal(0, 0.5, len(rows))
    seasonal = replace(snapshot, matrix=(100 + 10 * np.sin(2 * np.pi * rows / 14) + noise)[:, np.newaxis])
    config = SMALL.model_copy(
        update={"max_epochs": 20, "num_layers": 1, "hidden_size": 32, "learning_rate": 5e-3, "batch_size": 64}
    )
    assert train(seasonal, config).test.skill["MAE"] > 0.4


def test_the_original_level_target_trains_too(snapshot):
    result = train(snapshot, SMALL.model_copy(update={"target": "level", "log_prices": False}))
    assert result.test.model["MAE"] > 0
    assert result.checkpoint.config.target == "level"


def test_too_few_rows_say_how_many_are_needed(snapshot):
    with pytest.raises(DataError, match=r"60 rows are too few for windows of 20: \d+ rows are needed"):
        train(snapshot.part(slice(60)), SMALL)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has CUDA")
def test_asking_for_cuda_where_there_is_none_says_so():
    with pytest.raises(UsageError, match="no CUDA device"):
        choose_device("cuda")

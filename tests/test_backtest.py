"""Backtests: the rows that a fold may see, and the files that the command writes."""

import csv
import itertools
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from forecast import TrainConfig, load_checkpoint, save_checkpoint
from forecast.__main__ import main
from forecast.backtest.baselines import BASELINES
from forecast.backtest.rolling import FoldTask, backtest, make_folds, prepare_fold, run_task
from forecast.backtest.settings import BacktestSettings
from forecast.cli.command import run
from forecast.errors import DataError
from forecast.model.training import fit
from forecast.scores.metrics import MASE

TINY = TrainConfig(
    source="snapshot",
    likelihood="student_t",
    sequence_length=20,
    hidden_size=8,
    num_layers=1,
    max_epochs=2,
    batch_size=128,
)


@given(
    rows=st.integers(600, 3000),
    folds=st.integers(1, 6),
    window=st.sampled_from(["expanding", "sliding"]),
)
def test_folds_are_scored_on_neighbouring_rows_up_to_the_last_and_know_only_rows_before(rows, folds, window):
    made = make_folds(rows, BacktestSettings(folds=folds, window=window), TINY)
    assert len(made) == folds
    assert made[-1].end == rows
    for fold, following in itertools.pairwise(made):
        assert fold.end == following.origin
    known = {fold.origin - fold.first for fold in made}
    assert (len(known) == 1) == (window == "sliding" or folds == 1)
    assert all(0 <= fold.first < fold.origin < fold.end for fold in made)


def test_too_many_folds_say_what_is_left_and_the_remedy():
    with pytest.raises(DataError, match=r"10 folds of 30 rows leave 0 of 300 rows .*use fewer folds"):
        make_folds(300, BacktestSettings(folds=10), TINY)


@pytest.mark.parametrize("number", [0, 1])
def test_replacing_every_row_from_a_folds_origin_on_changes_nothing_before_it(snapshot, number):
    fold = make_folds(len(snapshot), BacktestSettings(folds=3), TINY)[number]
    values = snapshot.values.copy()
    values[fold.origin :] = np.random.default_rng(0).uniform(1, 1e6, len(values) - fold.origin)
    known, first_forecasts = [], []
    for series in (snapshot, replace(snapshot, matrix=values[:, np.newaxis])):
        prepared = prepare_fold(series, TINY, fold)
        checkpoint, _ = fit(prepared, TINY, series.provenance)
        known.append(checkpoint)
        forecasts = [run_task(series, FoldTask(fold, TINY)), *(make(prepared) for make in BASELINES.values())]
        first_forecasts.append(
            [(one.points[0], *([] if one.quantiles is None else one.quantiles[0])) for one in forecasts]
        )
    one, other = known
    assert all(torch.equal(value, other.model_state[name]) for name, value in one.model_state.items())
    assert (one.normalization, one.val_loss_best, one.metrics_validation) == (
        other.normalization,
        other.val_loss_best,
        other.metrics_validation,
    )
    assert np.array_equal(one.calibration_scores, other.calibration_scores)
    # The first scored row is forecast only from rows before the origin, by the baselines too.
    assert first_forecasts[0] == first_forecasts[1]


def test_a_backtest_scores_every_seed_beside_every_baseline_on_the_same_rows(snapshot):
    done = backtest(snapshot, TINY, BacktestSettings(folds=2, fold_rows=60, seeds=2))
    assert done.rows.actual == pytest.approx(snapshot.values[-120:])
    assert done.rows.previous == pytest.approx(snapshot.values[-121:-1])
    assert np.array_equal(done.dates, snapshot.dates[-120:])
    scores = done.scores()
    assert scores.mean["MAE"] == pytest.approx(
        np.mean([np.abs(done.model(seed).points - done.rows.actual).mean() for seed in range(2)])
    )
    assert scores.std["MAE"] > 0
    assert scores.mean[MASE] == pytest.approx(np.mean([done.scores(fold).mean[MASE] for fold in range(2)]))
    compared = {(found.baseline, found.test, found.metric) for found in done.comparisons()}
    assert ("persistence", "Clark-West", "MSE") in compared
    assert {(name, "Diebold-Mariano", "CRPS") for name in BASELINES if name != "drift"} <= compared
    assert all(0 <= found.p_value <= 1 for found in done.comparisons())


def test_garch_is_what_its_own_package_says_with_parameters_of_before_the_test_rows(snapshot):
    from arch import arch_model

    from forecast.model.windows import prepare

    prepared = prepare(snapshot, TINY)
    scaling = prepared.normalization.feature
    quantiles = BASELINES["GARCH"](prepared).quantiles
    first = prepared.split.validation_end
    logs = np.log(snapshot.values)
    changes = np.diff(logs) / (scaling.change_std * scaling.std)
    model = arch_model(changes[: first - 1], mean="Constant", vol="GARCH", dist="t", rescale=False)
    fitted = model.fit(disp="off")
    ahead = fitted.forecast(horizon=1, reindex=False)
    mean, variance = float(ahead.mean.iloc[-1, 0]), float(ahead.variance.iloc[-1, 0])
    unit = scaling.change_std * scaling.std
    expected = np.exp(
        logs[first - 1]
        + unit
        * (mean + np.sqrt(variance) * fitted.model.distribution.ppf([0.05, 0.5, 0.95], [fitted.params["nu"]]))
    )
    assert quantiles[0, [9, 99, 189]] == pytest.approx(expected, rel=1e-4)


OPTIONS = (
    "backtest --source snapshot --likelihood student_t --sequence-length 20 --hidden-size 8 --num-layers 1"
)
OPTIONS += " --max-epochs 1 --batch-size 128 --folds 2 --fold-rows 40 --seeds 2 --baselines drift,EWMA"


def test_the_command_leaves_rows_summary_and_a_page_that_needs_no_network(tmp_path, capsys):
    assert main([*OPTIONS.split(), "--output-dir", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert "2 folds of 40 rows" in printed
    assert "Configurations tried before these numbers: 1" in printed
    assert "Clark-West" in printed
    with (tmp_path / "backtest.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert len(rows) == 2 * 80
    assert all(float(row["lower_90"]) < float(row["upper_90"]) for row in rows)
    summary = json.loads((tmp_path / "backtest.json").read_text())
    assert [fold["rows"] for fold in summary["folds"]] == [40, 40]
    assert {found["baseline"] for found in summary["comparisons"]} == {"persistence", "drift", "EWMA"}
    page = (tmp_path / "backtest.html").read_text()
    assert page.count('class="plot"') == 3
    assert "Configurations tried before these numbers: 1" in page
    assert 'src="http' not in page


def test_a_search_that_has_seen_scored_rows_is_told_of(tmp_path, tiny_result, capsys):
    checkpoint = tiny_result.checkpoint.model_copy(
        update={"trial_number": 3, "configurations_tried": 64, "searched_rows": 1584}
    )
    save_checkpoint(checkpoint, tmp_path / "trial.pt")
    command = f"backtest --from-trial {tmp_path / 'trial.pt'} --folds 4 --seeds 1 --no-plot --baselines drift"
    assert main([*command.split(), "--output-dir", str(tmp_path / "out")]) == 0
    printed = capsys.readouterr().out
    assert "Configurations tried before these numbers: 64" in printed
    assert "saw all rows up to 2019-04-11" in printed


def test_options_of_the_model_cannot_go_with_a_trial(tmp_path, tiny_checkpoint, capsys):
    command = ["backtest", "--from-trial", str(tiny_checkpoint), "--hidden-size", "16"]
    assert run(main, command) == 2
    assert "--hidden-size cannot be used with --from-trial" in capsys.readouterr().err


def test_a_trial_trained_again_comes_out_the_same_to_the_bit(tmp_path, tiny_result, tiny_checkpoint, capsys):
    again = tmp_path / "again.pt"
    assert main(["train", "--from-trial", str(tiny_checkpoint), "--checkpoint", str(again)]) == 0
    assert "were reproduced exactly" in capsys.readouterr().out
    state = load_checkpoint(again).model_state
    assert (
        load_checkpoint(again).calibration_scores.tolist()
        == tiny_result.checkpoint.calibration_scores.tolist()
    )
    assert all(torch.equal(value, state[name]) for name, value in tiny_result.checkpoint.model_state.items())


def test_a_trial_is_not_trained_again_on_other_data(tmp_path, tiny_result, capsys):
    provenance = {**tiny_result.checkpoint.provenance, "sha256": "0" * 64}
    save_checkpoint(
        tiny_result.checkpoint.model_copy(update={"provenance": provenance}), tmp_path / "trial.pt"
    )
    assert run(main, ["train", "--from-trial", str(tmp_path / "trial.pt")]) == 1
    assert "the metrics cannot be compared" in capsys.readouterr().err


@pytest.mark.slow
def test_trainings_on_a_cluster_give_what_they_give_here(cluster, tmp_path):
    from tune_jobs.backtest import main as parallel

    command = [*OPTIONS.removeprefix("backtest ").split(), "--no-plot", "--quiet", "--output-dir"]
    assert main(["backtest", *command, str(tmp_path / "here")]) == 0
    assert parallel([*command, str(tmp_path / "there")]) == 0
    here, there = ((tmp_path / where / "backtest.csv").read_text() for where in ("here", "there"))
    assert here == there


def test_a_backtest_of_rows_that_do_not_move_is_written_whole(tmp_path, snapshot, capsys):
    path = tmp_path / "still.csv"
    values = [*snapshot.values[:400], *[snapshot.values[399]] * 8]
    dates = snapshot.dates[: len(values)]
    path.write_text("Date,Close\n" + "".join(f"{d},{v}\n" for d, v in zip(dates, values, strict=True)))
    command = f"backtest --source {path} --sequence-length 20 --hidden-size 8 --max-epochs 1 --folds 1 --fold-rows 6"
    assert main([*command.split(), "--seeds", "1", "--no-plot", "--output-dir", str(tmp_path / "out")]) == 0
    summary = json.loads((tmp_path / "out" / "backtest.json").read_text())
    exact = [found for found in summary["comparisons"] if found["baseline"] == "persistence"]
    assert [found["ratio"] for found in exact if found["metric"] == "MAE"] == [None]


@pytest.mark.slow
def test_a_training_that_no_node_has_room_for_is_refused_instead_of_waited_for(cluster, tmp_path, capsys):
    from tune_jobs.backtest import main as parallel

    command = [*OPTIONS.removeprefix("backtest ").split(), "--no-plot", "--output-dir", str(tmp_path)]
    assert run(parallel, [*command, "--threads", "64"]) == 2
    assert "--threads 64: no node has more than 2 CPUs" in capsys.readouterr().err

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

from forecast import Predictor, TrainConfig, load_checkpoint, load_series, save_checkpoint
from forecast.__main__ import main
from forecast.backtest import baselines
from forecast.backtest.baselines import BASELINES, SkewedT, chosen_baselines
from forecast.backtest.horizons import forecast_ahead, rows_ahead
from forecast.backtest.rolling import backtest, make_folds, prepare_fold
from forecast.backtest.settings import BacktestSettings
from forecast.backtest.significance import christoffersen, diebold_mariano, kupiec, pesaran_timmermann
from forecast.cli.command import run
from forecast.errors import DataError, UsageError
from forecast.model import forecaster
from forecast.model.split import Split
from forecast.model.training import fit
from forecast.model.windows import prepare
from forecast.scores.distribution import PROBABILITIES
from forecast.scores.metrics import MASE, METRICS, coverage

HORIZONS = BacktestSettings().horizons
PARTS = ("High", "Low", "Open")
TINY = TrainConfig(
    source="snapshot",
    likelihood="student_t",
    members=1,
    sequence_length=20,
    hidden_size=8,
    num_layers=1,
    max_epochs=2,
    batch_size=128,
)


@pytest.fixture(scope="module")
def bars():
    """The snapshot with the other parts of its bars."""
    return load_series("BTC-USD", source="snapshot", input_columns=PARTS)


def made_of(series, matrix):
    """A series of other rows."""
    dates = np.datetime64("2000-01-01") + np.arange(len(matrix))
    return replace(series, dates=dates, matrix=matrix, columns=("Close", *PARTS)[: matrix.shape[1]])


def crps(rows, forecasts):
    return METRICS["CRPS"](rows.actual, forecasts)


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


def test_horizons_are_read_from_a_list_and_one_step_is_always_scored():
    assert BacktestSettings(horizons="5, 20").horizons == (1, 5, 20)
    assert BacktestSettings(horizons=()).horizons == (1,)
    for wrong in ("5,1", "5,5", "0,5", "x"):
        with pytest.raises(ValueError, match="horizons"):
            BacktestSettings(horizons=wrong)


def test_a_horizon_that_does_not_fit_into_a_fold_is_refused(capsys):
    assert len(make_folds(600, BacktestSettings(folds=2, fold_rows=20), TINY)) == 2
    command = "backtest --source snapshot --sequence-length 20 --fold-rows 19"
    assert run(main, command.split()) == 1
    assert capsys.readouterr().err == (
        "error: 20 steps do not fit into folds of 19 rows; name shorter --horizons, or use more rows per fold "
        "(--fold-rows)\n"
    )


@pytest.mark.parametrize("number", [0, 1])
def test_replacing_every_row_from_a_folds_origin_on_changes_nothing_before_it(bars, number, monkeypatch):
    config = TINY.model_copy(update={"input_columns": PARTS})
    fold = make_folds(len(bars), BacktestSettings(folds=3, fold_rows=25), config)[number]
    matrix = bars.matrix.copy()
    later = np.random.default_rng(0).uniform(1, 1e6, (len(matrix) - fold.origin, 4))
    later[:, 1], later[:, 2] = later.max(axis=1), later.min(axis=1)
    matrix[fold.origin :] = later
    prepared = [prepare_fold(series, config, fold) for series in (bars, replace(bars, matrix=matrix))]
    one, other = (fit(rows, config, bars.provenance).checkpoint for rows in prepared)
    assert all(torch.equal(value, other.model_state[name]) for name, value in one.model_state.items())
    for name in ("normalization", "recursions", "dynamics", "val_loss_best", "metrics_validation"):
        assert getattr(one, name) == getattr(other, name)
    assert one.horizon_stretches == other.horizon_stretches
    assert np.array_equal(one.calibration_scores, other.calibration_scores)
    # Windows that are simulated together draw from one stream of numbers, later ones after earlier ones at each step.
    monkeypatch.setattr(forecaster, "SCORED_AT_A_TIME", 1)
    makers = [lambda rows, horizons: forecast_ahead(one, rows, horizons), *BASELINES.values()]
    for make in makers:
        first, second = (make(rows, HORIZONS) for rows in prepared)
        assert tuple(first) == tuple(second) == HORIZONS
        # The first forecasts are made at the origin, the last ones from replaced rows.
        for horizon in HORIZONS:
            assert first[horizon].points[0] == second[horizon].points[0]
            assert first[horizon].points[-1] != second[horizon].points[-1]
            if first[horizon].quantiles is not None:
                assert np.array_equal(first[horizon].quantiles[0], second[horizon].quantiles[0])


def test_the_rows_of_a_horizon_are_those_that_a_loop_finds(snapshot):
    fold = make_folds(len(snapshot), BacktestSettings(folds=2, fold_rows=25), TINY)[0]
    prepared, prices = prepare_fold(snapshot, TINY, fold), snapshot.values
    for horizon in HORIZONS:
        rows = rows_ahead(prepared, horizon)
        pairs = [
            (prices[row - 1], prices[row - 1 + horizon])
            for row in range(fold.origin, fold.end)
            if row - 1 + horizon < fold.end
        ]
        changes = [np.log(prices[i + horizon] / prices[i]) for i in range(fold.origin - horizon)]
        assert rows.previous == pytest.approx([previous for previous, _ in pairs])
        assert rows.actual == pytest.approx([actual for _, actual in pairs])
        expected = np.outer([previous for previous, _ in pairs], np.exp(np.quantile(changes, PROBABILITIES)))
        assert rows.persistence == pytest.approx(expected)
    one, same = rows_ahead(prepared, 1), prepared.rows("test", TINY.sequence_length)
    assert np.array_equal(one.persistence, same.persistence)
    assert (one.naive_mae, one.price_floor) == (same.naive_mae, same.price_floor)


@pytest.mark.parametrize("likelihood", ["student_t", "mse"])
def test_forecasts_of_several_steps_are_those_that_the_model_makes_from_before_each_row(
    snapshot, tmp_path, likelihood
):
    config = TINY.model_copy(update={"likelihood": likelihood, "members": 2})
    fold = make_folds(len(snapshot), BacktestSettings(folds=2, fold_rows=25), config)[0]
    prepared = prepare_fold(snapshot, config, fold)
    checkpoint = fit(prepared, config, snapshot.provenance).checkpoint
    save_checkpoint(checkpoint, tmp_path / "model.pt")
    predictor = Predictor(tmp_path / "model.pt", "cpu")
    found = forecast_ahead(checkpoint, prepared, HORIZONS)
    windows = [snapshot.values[row - predictor.rows_used : row] for row in range(fold.origin, fold.end)]
    steps = predictor.predict_steps(windows, 20)
    bounds = predictor.predict_intervals(windows, [0.9], 20)[:, :, 0]
    for horizon in HORIZONS:
        forecasts, origins = found[horizon], 25 - horizon + 1
        assert len(forecasts.points) == len(forecasts.quantiles) == origins
        assert forecasts.points == pytest.approx(steps[:origins, horizon - 1], rel=1e-6)
        lower, upper = forecasts.quantiles[:, [9, 189]].T
        expected = bounds[:origins, horizon - 1]
        # Both are simulated, from different numbers of paths.
        width = expected[:, 1] - expected[:, 0]
        assert np.abs(lower - expected[:, 0]).max() < 0.15 * width.max()
        assert upper - lower == pytest.approx(width, rel=1e-6 if horizon == 1 else 0.25)


def test_a_backtest_scores_every_seed_beside_every_baseline_on_the_same_rows(snapshot):
    settings = BacktestSettings(folds=2, fold_rows=60, seeds=2, horizons=(5,))
    done = backtest(snapshot, TINY, settings)
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
    names = {"persistence", "EWMA", "GARCH", "GJR"}
    assert {(name, "Diebold-Mariano", "CRPS") for name in names} <= compared
    assert ("drift", "Diebold-Mariano", "MAE") in compared
    assert all(0 <= found.p_value <= 1 for found in done.comparisons())
    five = done.ahead[5]
    assert tuple(done.ahead) == (1, 5)
    # Four of each fold's rows have no target five steps ahead in the fold.
    assert five.rows.actual == pytest.approx([*snapshot.values[-116:-60], *snapshot.values[-56:]])
    assert {(found.baseline, found.metric) for found in five.comparisons()} == {
        (name, metric) for name in (*names, "drift") for metric in ("MAE", "CRPS")
    } - {("drift", "CRPS")}
    ours = np.mean([five.rows.losses("CRPS", model) for model in five.models], axis=0)
    theirs = five.rows.losses("CRPS", five.baselines["GJR"])
    (tested,) = [test for test in five.comparisons() if (test.baseline, test.metric) == ("GJR", "CRPS")]
    assert (tested.statistic, tested.p_value) == diebold_mariano(ours, theirs, 5)
    assert tested.ratio == pytest.approx(ours.mean() / theirs.mean())
    seen = [test for test in five.own_tests() if test.test == "Kupiec"]
    assert [test.seed for test in seen] == [1, 2]


def test_the_members_of_the_training_runs_all_have_seeds_of_their_own(snapshot):
    seen = []

    def record(series, tasks):
        seen.extend(task.config for task in tasks)
        raise DataError("seen")

    settings = BacktestSettings(folds=1, seeds=3, horizons=(1,), baselines=())
    with pytest.raises(DataError, match="seen"):
        backtest(snapshot, TINY.model_copy(update={"members": 2, "seed": 7}), settings, run=record)
    seeds = [config.seed + member for config in seen for member in range(config.members)]
    assert seeds == [7, 8, 9, 10, 11, 12]


def fitted_by_arch(prepared, snapshot, **options):
    """What the package arch forecasts for the first test row with parameters of before it."""
    from arch import arch_model

    scaling, first = prepared.normalization.feature, prepared.split.validation_end
    unit, logs = scaling.change_std * scaling.std, np.log(snapshot.values)
    changes = np.diff(logs) / unit
    model = arch_model(changes[: first - 1], mean="Constant", vol="GARCH", rescale=False, **options)
    fitted = model.fit(disp="off")
    shape = fitted.params[[name for name in ("nu", "eta", "lambda") if name in fitted.params]]
    return fitted, shape, logs[first - 1], unit


VOLATILITY_MODELS = {"GARCH": {"dist": "t"}, "GJR": {"o": 1, "dist": "skewt"}}


@pytest.mark.parametrize("name", VOLATILITY_MODELS)
def test_volatility_models_are_what_their_own_package_says_with_parameters_of_before_the_test_rows(
    snapshot, name, monkeypatch
):
    monkeypatch.setattr(baselines, "SCORED_PATHS", 20_000)
    prepared = prepare(snapshot, TINY, Split(train_end=1300, validation_end=1600, rows=1620))
    found = BASELINES[name](prepared, HORIZONS)
    fitted, shape, last, unit = fitted_by_arch(prepared, snapshot, **VOLATILITY_MODELS[name])
    ahead = fitted.forecast(horizon=1, reindex=False)
    mean, variance = float(ahead.mean.iloc[-1, 0]), float(ahead.variance.iloc[-1, 0])
    bounds = fitted.model.distribution.ppf([0.05, 0.5, 0.95], shape)
    expected = np.exp(last + unit * (mean + np.sqrt(variance) * bounds))
    assert found[1].quantiles[0, [9, 99, 189]] == pytest.approx(expected, rel=1e-4)
    draws = type(fitted.model.distribution)(seed=np.random.default_rng(0)).simulate(shape.to_numpy())
    paths = fitted.forecast(horizon=20, method="simulation", simulations=20_000, rng=draws, reindex=False)
    simulated = paths.simulations.values[0]
    for horizon in HORIZONS[1:]:
        sums = simulated[:, :horizon].sum(axis=1)
        assert found[horizon].points[0] == pytest.approx(np.exp(last + unit * horizon * mean), rel=1e-4)
        moves = (np.log(found[horizon].quantiles[0, [9, 99, 189]]) - last) / unit
        width = np.diff(np.quantile(sums, [0.05, 0.95]))[0]
        assert moves == pytest.approx(np.quantile(sums, [0.05, 0.5, 0.95]), abs=0.03 * width)


@given(df=st.floats(2.1, 100), skew=st.floats(-0.9, 0.9))
def test_the_skewed_t_is_hansens_and_its_draws_are_distributed_as_its_quantiles(df, skew):
    from arch.univariate import SkewStudent

    shape, probabilities = SkewedT(df, skew), np.array([0.01, 0.05, 0.3, 0.5, 0.7, 0.95, 0.99])
    quantiles = shape.quantiles(probabilities)
    assert quantiles == pytest.approx(SkewStudent().ppf(probabilities, [df, skew]), abs=1e-6)
    draws = shape.draws(np.random.default_rng(0), (20, 5000)).ravel()
    below = (draws[:, np.newaxis] <= quantiles).mean(axis=0)
    assert below == pytest.approx(probabilities, abs=0.01)


@pytest.fixture(scope="module")
def asymmetric(snapshot):
    """Returns whose variance rises after falls: 4,000 rows to fit on, and 1,500 to score."""
    generator = np.random.default_rng(0)
    shocks = generator.standard_t(6, 5500) * np.sqrt(4 / 6)
    changes, variance = np.empty(5500), 1.0
    for i, shock in enumerate(shocks):
        changes[i] = np.sqrt(variance) * shock
        variance = 0.05 + 0.01 * changes[i] ** 2 + 0.24 * changes[i] ** 2 * (changes[i] < 0) + 0.82 * variance
    prices = 100 * np.exp(np.cumsum(0.01 * changes))
    series = made_of(snapshot, prices[:, np.newaxis])
    return prepare(series, TINY, Split(train_end=3400, validation_end=4000, rows=5500))


def test_gjr_beats_garch_where_falls_raise_the_variance(asymmetric):
    rows = rows_ahead(asymmetric, 1)
    losses = {
        name: rows.losses("CRPS", BASELINES[name](asymmetric, (1,))[1]) for name in ("EWMA", "GARCH", "GJR")
    }
    assert losses["GJR"].mean() < losses["GARCH"].mean() < losses["EWMA"].mean()
    assert diebold_mariano(losses["GJR"], losses["GARCH"])[1] < 0.05


def test_intervals_of_the_true_model_hold_their_share_at_every_horizon(asymmetric):
    found = BASELINES["GJR"](asymmetric, HORIZONS)
    for horizon, forecasts in found.items():
        actual = rows_ahead(asymmetric, horizon).actual
        # Over 20 steps, 1,500 rows are but 75 that do not overlap.
        assert coverage(actual, forecasts.quantiles, 0.9)[0] == pytest.approx(
            0.9, abs=0.03 if horizon == 1 else 0.06
        )


def test_intervals_of_a_constant_variance_grow_with_the_root_of_the_number_of_steps(asymmetric):
    found = BASELINES["EWMA"](asymmetric, HORIZONS)

    def widths(horizon):
        logs = np.log(found[horizon].quantiles[:100])
        return logs[:, 149] - logs[:, 49]

    # Sums of 5 and of 20 heavy-tailed changes are both close to normal.
    assert np.mean(widths(20) / widths(5)) == pytest.approx(2, rel=0.05)


@pytest.fixture(scope="module")
def ranging(snapshot):
    """Bars of 50 steps each, whose variance changes from bar to bar by more than the last change tells."""
    generator = np.random.default_rng(1)
    log_variance = np.zeros(2500)
    for i in range(1, 2500):
        log_variance[i] = 0.95 * log_variance[i - 1] + generator.normal(0, 0.35)
    steps = 0.01 * np.exp(log_variance / 2)[:, np.newaxis] * generator.normal(0, 0.02**0.5, (2500, 50))
    paths = steps.cumsum(axis=1)
    opens = np.concatenate([[0], paths[:-1, -1]]).cumsum()
    within = np.concatenate([opens[:, np.newaxis], opens[:, np.newaxis] + paths], axis=1)
    logs = np.stack([within[:, -1], within.max(axis=1), within.min(axis=1), opens], axis=1)
    return made_of(snapshot, 100 * np.exp(logs))


def test_har_beats_the_models_that_do_not_see_the_range_and_its_intervals_hold_their_share(ranging):
    prepared = prepare(ranging, TINY, Split(train_end=1200, validation_end=1500, rows=2500))
    rows = rows_ahead(prepared, 1)
    found = {name: BASELINES[name](prepared, (1,))[1] for name in BASELINES if name != "drift"}
    scores = {name: crps(rows, forecasts) for name, forecasts in found.items()}
    assert min(scores, key=scores.get) == "HAR"
    assert scores["HAR"] < 0.99 * scores["GJR"]
    assert coverage(rows.actual, found["HAR"].quantiles, 0.9)[0] == pytest.approx(0.9, abs=0.03)


def test_har_is_the_regression_on_the_means_of_a_day_a_week_and_a_month(bars):
    from forecast.model.windows import range_variances

    config, matrix = TINY.model_copy(update={"input_columns": PARTS}), bars.matrix.copy()
    matrix[-10, 1] *= 3  # a high beyond all that was seen, after which the forecast is bounded
    prepared = prepare(replace(bars, matrix=matrix), config)
    (ranges,) = range_variances(prepared.normalized[np.newaxis], prepared.normalization)
    first, feature = prepared.split.validation_end - 1, prepared.normalization.feature
    rows = [[1, ranges[i - 1], ranges[i - 5 : i].mean(), ranges[i - 22 : i].mean()] for i in range(22, first)]
    weights = np.linalg.solve(np.transpose(rows) @ rows, np.transpose(rows) @ ranges[22:first])
    expected = []
    for i in range(first, len(ranges)):
        seen = [1, ranges[i - 1], ranges[i - 5 : i].mean(), ranges[i - 22 : i].mean()]
        expected.append(min(max(seen @ weights, ranges[:first].min()), ranges[:first].max()))
    quantiles = feature.normalize(BASELINES["HAR"](prepared, (1,))[1].quantiles)
    widths = quantiles[:, 189] - quantiles[:, 9]
    assert widths / widths[0] == pytest.approx(np.sqrt(np.array(expected) / expected[0]))


def test_har_is_a_default_where_the_columns_hold_the_range_and_refused_where_they_do_not(snapshot, capsys):
    settings = BacktestSettings()
    assert chosen_baselines(settings, TINY) == ("drift", "EWMA", "GARCH", "GJR")
    with_range = TINY.model_copy(update={"input_columns": ("High", "Low")})
    assert chosen_baselines(settings, with_range)[-1] == "HAR"
    with pytest.raises(UsageError, match="HAR needs the bar's range; add High and Low"):
        backtest(snapshot, TINY, BacktestSettings(folds=1, baselines="HAR"))


OPTIONS = (
    "backtest --source snapshot --likelihood student_t --sequence-length 20 --hidden-size 8 --num-layers 1"
)
OPTIONS += " --members 1 --max-epochs 1 --batch-size 128 --folds 2 --fold-rows 40 --seeds 2"
OPTIONS += " --baselines drift,EWMA --horizons 1,5"


NUMBERS = ("actual", "persistence", "forecast", "lower_90", "upper_90")


def test_the_command_leaves_rows_summary_and_a_page_that_needs_no_network(tmp_path, capsys):
    assert main([*OPTIONS.split(), "--output-dir", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert "2 folds of 40 rows" in printed
    assert "Configurations tried before these numbers: 1" in printed
    for shown in ("Clark-West", "Kupiec p", "Christoffersen p", "Pesaran-Timmermann p", "5 steps (p)"):
        assert shown in printed
    with (tmp_path / "backtest.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert len(rows) == 2 * 80
    assert all(float(row["lower_90"]) < float(row["upper_90"]) for row in rows)
    summary = json.loads((tmp_path / "backtest.json").read_text())
    assert [fold["rows"] for fold in summary["folds"]] == [40, 40]
    assert {found["baseline"] for found in summary["comparisons"]} == {"persistence", "drift", "EWMA"}
    assert summary["settings"]["horizons"] == [1, 5]
    one, five = summary["horizons"]
    assert (one["horizon"], one["rows"], five["horizon"], five["rows"]) == (1, 80, 5, 72)
    for name in ("mean", "spread", "persistence"):
        assert one[name] == summary["all"][name]
    assert one["comparisons"] == summary["comparisons"][1:]
    assert [interval["level"] for interval in five["intervals"]] == [0.5, 0.8, 0.9, 0.95]
    assert five["mean"]["CRPS"] > one["mean"]["CRPS"]
    first = {name: np.array([float(row[name]) for row in rows if row["seed"] == "1"]) for name in NUMBERS}
    inside = (first["lower_90"] <= first["actual"]) & (first["actual"] <= first["upper_90"])
    moves = [first[name] - first["persistence"] for name in ("actual", "forecast")]
    tests = {found["test"]: found["p_value"] for found in summary["own_tests"] if found["seed"] == 1}
    assert tests == pytest.approx(
        {
            "Kupiec": kupiec(inside, 0.9)[1],
            "Christoffersen": christoffersen(inside, 0.9)[1],
            "Pesaran-Timmermann": pesaran_timmermann(*moves)[1],
        }
    )
    page = (tmp_path / "backtest.html").read_text()
    assert "By horizon" in page
    assert page.count('class="plot"') == 3
    assert "Configurations tried before these numbers: 1" in page
    assert 'src="http' not in page


def test_a_model_of_columns_that_nobody_forecasts_is_scored_one_step_ahead_and_says_so(tmp_path, capsys):
    command = [*OPTIONS.split(), "--seeds", "1", "--input-columns", "Volume", "--fold-rows", "3"]
    assert main([*command, "--horizons", "1,20", "--output-dir", str(tmp_path)]) == 0
    line = "Only one step is scored: more would need forecasts of Volume too, which this model does not make"
    printed = capsys.readouterr().out
    assert line in printed
    assert "steps (p)" not in printed
    summary = json.loads((tmp_path / "backtest.json").read_text())
    assert [found["horizon"] for found in summary["horizons"]] == [1]
    assert line in summary["notes"]
    assert "By horizon" not in (tmp_path / "backtest.html").read_text()


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
    further = ["--horizons", "1,3", "--seeds", "1", "--no-plot", "--output-dir", str(tmp_path / "out")]
    assert main([*command.split(), *further]) == 0
    summary = json.loads((tmp_path / "out" / "backtest.json").read_text())
    exact = [found for found in summary["comparisons"] if found["baseline"] == "persistence"]
    assert [found["ratio"] for found in exact if found["metric"] == "MAE"] == [None]


@pytest.mark.slow
def test_a_training_that_no_node_has_room_for_is_refused_instead_of_waited_for(cluster, tmp_path, capsys):
    from tune_jobs.backtest import main as parallel

    command = [*OPTIONS.removeprefix("backtest ").split(), "--no-plot", "--output-dir", str(tmp_path)]
    assert run(parallel, [*command, "--threads", "64"]) == 2
    assert "--threads 64: no node has more than 2 CPUs" in capsys.readouterr().err

"""Forecasts as they are issued: a model's and the baselines', from the last row of each series."""

import dataclasses

import numpy as np
import pandas as pd
import pytest
from test_backtest import HORIZONS, PARTS, TINY
from test_market import SEEN
from test_panel import closes, write_long
from test_recorded import RECORDED

from forecast import Predictor, load_series, save_checkpoint, train
from forecast.backtest import baselines
from forecast.backtest.baselines import BASELINES
from forecast.backtest.rolling import Fold, prepare_fold
from forecast.errors import UsageError, WindowError
from forecast.inference.predictor import forecast_together, market_of, predict_steps_together
from forecast.live.issue import ISSUED_BASELINES, issue_baselines, issue_model
from forecast.model.split import Split
from forecast.model.windows import prepare
from forecast.prices.panel import load_panel
from forecast.prices.timeline import Timeline
from forecast.scores.distribution import PROBABILITIES, interval_probabilities

NAMES = tuple("ABCDEFGH")
AHEAD = (1, 5, 20)
BOUNDS = [9, 189]
"""Places of the bounds of the 90 % interval among the quantiles."""


def of(issued, symbol, model=None):
    """The forecasts of one symbol by number of steps."""
    return {each.horizon: each for each in issued if each.symbol == symbol and model in (None, each.model)}


def made_of(series, prices):
    """A series of other prices, one a day."""
    dates = np.datetime64("2010-01-01") + np.arange(len(prices))
    return dataclasses.replace(series, dates=dates, matrix=np.asarray(prices, dtype=float)[:, np.newaxis])


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Train a model on prices, and load it."""

    def load(prices, config):
        path = tmp_path_factory.mktemp("model") / "model.pt"
        save_checkpoint(train(prices, config).checkpoint, path)
        return Predictor(path, "cpu")

    return load


@pytest.fixture(scope="module")
def panel(tmp_path_factory):
    return load_panel(
        ("all",), source=str(write_long(closes(symbols=NAMES), tmp_path_factory.mktemp("prices")))
    )


@pytest.fixture(scope="module")
def pooled(panel, saved):
    """A model of all symbols but the last one that sees the market."""
    seen = {name: panel.series[name] for name in NAMES[:-1]}
    return saved(dataclasses.replace(panel, series=seen), SEEN)


@pytest.mark.parametrize("likelihood", ["student_t", "mse"])
def test_quantiles_of_a_model_are_the_bounds_of_its_intervals(snapshot, saved, likelihood):
    predictor = saved(snapshot, TINY.model_copy(update={"likelihood": likelihood}))
    windows = [snapshot.values[-400:-1], snapshot.values[-500:-101]]
    bounds = predictor.predict_intervals(windows, [0.5, 0.9], 20)
    probabilities = interval_probabilities([0.5, 0.9])
    found = predictor.predict_quantiles(windows, AHEAD, probabilities)
    assert found.shape == (2, 3, 4)
    for place, horizon in enumerate(AHEAD):
        lower_first = found[:, place].reshape(2, 2, 2).swapaxes(1, 2)
        np.testing.assert_array_equal(lower_first, bounds[:, horizon - 1])
    # Which other horizons are asked for, and whether the points are known, changes nothing.
    steps = predictor.predict_steps(windows, 20)
    np.testing.assert_array_equal(
        predictor.predict_quantiles(windows, (20,), probabilities, steps), found[:, 2:]
    )
    every = predictor.predict_quantiles(windows, AHEAD, PROBABILITIES)
    assert (np.diff(every) >= 0).all()
    assert every[..., [49, 9, 149, 189]] == pytest.approx(found[..., [0, 1, 2, 3]], rel=1e-6)


def test_a_model_issues_what_it_forecasts_from_the_last_row_of_a_series(snapshot, saved):
    predictor = saved(snapshot, TINY)
    issued, problems = issue_model(predictor, {"BTC-USD": snapshot}, (20, 1, 5), "abc")
    assert problems == {}
    assert [each.horizon for each in issued] == [1, 5, 20]
    window = snapshot.values[-predictor.rows_used :]
    steps = predictor.predict_steps([window], 20)[0]
    bounds = predictor.predict_intervals([window], [0.9], 20)[0, :, 0]
    last = snapshot.dates[-1]
    for each in issued:
        assert (each.symbol, each.model, each.origin) == ("BTC-USD", "abc", str(last))
        assert each.last_price == snapshot.values[-1]
        assert each.target == str(last + each.horizon)  # bitcoin has a session every day
        assert each.prediction == pytest.approx(steps[each.horizon - 1], rel=1e-9)
        assert each.quantiles.shape == PROBABILITIES.shape
        assert each.quantiles[BOUNDS] == pytest.approx(bounds[each.horizon - 1], rel=1e-9)
    (alone,), _ = issue_model(predictor, {"BTC-USD": snapshot}, (5,), "abc")
    assert alone.prediction == issued[1].prediction
    np.testing.assert_array_equal(alone.quantiles, issued[1].quantiles)
    _, problems = issue_model(predictor, {"ETH-USD": snapshot}, (1,), "abc")
    assert "has no symbol 'ETH-USD'" in problems["ETH-USD"]


def test_symbols_of_one_session_are_forecast_together_with_the_market_one_step_ahead(panel, pooled):
    old = panel.series["B"].part(slice(-5))
    prices = {**panel.series, "B": old}
    issued, problems = issue_model(pooled, prices, AHEAD, "abc")
    assert problems == {}
    assert [each.symbol for each in issued] == [name for name in NAMES for _ in AHEAD]
    windows = {name: prices[name].values[-pooled.rows_used :] for name in NAMES}
    own = {name: pooled.of_symbol(name) for name in NAMES[:-1]}
    own["H"] = pooled.of_window(windows["H"], "H", panel.series["H"].timeline)
    together = [name for name in NAMES if name != "B"]
    predictors, values = [own[name] for name in together], [windows[name] for name in together]
    market = market_of(predictors, values)
    assert market is not None
    expected = dict(zip(together, forecast_together(predictors, values, market), strict=True))
    expected["B"] = own["B"].forecast([windows["B"]])
    for name in NAMES:
        found = of(issued, name)
        assert found[1].prediction == pytest.approx(expected[name].prices[0], rel=1e-6)
        assert found[1].quantiles == pytest.approx(expected[name].quantiles(PROBABILITIES)[0], rel=1e-6)
        # As everywhere, forecasts of many steps do not see the market.
        steps = own[name].predict_steps([windows[name]], 20)
        quantiles = own[name].predict_quantiles([windows[name]], (5, 20), PROBABILITIES, steps)[0]
        for place, horizon in enumerate((5, 20)):
            assert found[horizon].prediction == pytest.approx(steps[0, horizon - 1], rel=1e-6)
            assert found[horizon].quantiles == pytest.approx(quantiles[place], rel=1e-6)
        last = pd.Timestamp(prices[name].dates[-1])
        assert found[1].origin == str(last.date())
        assert found[5].target == str((last + 5 * pd.offsets.BDay()).date())
    alone, _ = issue_model(pooled, {"C": panel.series["C"]}, (1,), "abc")
    assert alone[0].prediction != of(issued, "C")[1].prediction


def test_a_broken_symbol_costs_only_itself_and_says_why(panel, pooled, snapshot):
    hourly = Timeline("1h", panel.series["B"].timeline.calendar_name)
    stocks = Timeline("1d", "XNYS")
    far = panel.series["D"].dates + np.timedelta64(365 * 300, "D")
    prices = {
        **panel.series,
        "A": panel.series["A"].part(slice(-10, None)),
        "B": dataclasses.replace(panel.series["B"], timeline=hourly),
        "C": dataclasses.replace(panel.series["C"], matrix=panel.series["C"].matrix * np.nan),
        "D": dataclasses.replace(panel.series["D"], dates=far, timeline=stocks),
        "E": dataclasses.replace(panel.series["E"], matrix=panel.series["E"].matrix * 1e-200),
        "H": made_of(snapshot, [7.0] * 300),
    }
    issued, problems = issue_model(pooled, prices, AHEAD, "abc")
    assert {each.symbol for each in issued} == set("EFG")
    assert list(problems) == list("ABCDH")
    assert problems["A"].startswith("10 values are too few: this model needs at least 20")
    assert problems["B"] == "its bars are of 1h, those of the model of 1d; give bars of 1d"
    assert problems["C"].endswith("every value must be a finite number")
    assert problems["D"].startswith("the calendar XNYS does not know the next 20 dates after 231")
    assert "do not vary" in problems["H"]
    issued, complaints = issue_baselines(prices, AHEAD)
    assert {each.symbol for each in issued} >= set("EFG")
    assert complaints["A"] == "10 rows are too few for forecasts of 20 steps; 40 are needed"
    assert complaints["D"] == problems["D"]
    assert "do not vary" in complaints["H"]
    assert not {"E", "F", "G"} & complaints.keys()


def test_a_forecast_that_is_not_a_finite_number_costs_one_symbol(panel, pooled):
    windows = [panel.series[name].values[-pooled.rows_used :] for name in NAMES[:-1]]
    own = [pooled.of_symbol(name) for name in NAMES[:-1]]
    together = predict_steps_together(own, windows, 20)
    alone = [each.predict_steps([window], 20)[0] for each, window in zip(own, windows, strict=True)]
    np.testing.assert_allclose(together, alone, rtol=1e-6)
    # A price at the end of the numbers cannot rise.
    largest = np.finfo(float).max
    rising = NAMES[int(np.argmax(together[:, -1] / [window[-1] for window in windows]))]
    series = panel.series[rising]
    top = dataclasses.replace(series, matrix=np.minimum(series.matrix / series.values[-1], 1) * largest)
    with pytest.raises(WindowError, match="is not a finite number"):
        pooled.of_symbol(rising).predict_steps([top.values[-pooled.rows_used :]], 20)
    prices = {**panel.series, rising: top}
    issued, problems = issue_model(pooled, prices, (20,), "abc")
    assert list(problems) == [rising]
    assert "is not a finite number" in problems[rising]
    assert {each.symbol for each in issued} == set(NAMES) - {rising}


@pytest.mark.parametrize("name", [name for name in BASELINES if name != "drift"])
def test_a_baseline_issues_what_a_backtest_forecasts_from_the_same_row(name, monkeypatch):
    # Windows that are simulated together draw from one stream of numbers.
    monkeypatch.setattr(baselines, "SCORED_AT_A_TIME", 1)
    bars = load_series("BTC-USD", source="snapshot", input_columns=PARTS)
    known = len(bars) - 30
    issued, problems = issue_baselines({"BTC-USD": bars.part(slice(known))}, HORIZONS, (name,))
    assert problems == {}
    assert [each.horizon for each in issued] == list(HORIZONS)
    scored = BASELINES[name](prepare(bars, TINY, Split(known, known, len(bars))), HORIZONS)
    # A fold's unit is the standard deviation of its training rows alone, which moves the optimizer a little.
    config = TINY.model_copy(update={"input_columns": PARTS})
    fold = BASELINES[name](prepare_fold(bars, config, Fold(0, 0, known, len(bars))), HORIZONS)
    for each in issued:
        assert (each.model, each.origin) == (name, str(bars.dates[known - 1]))
        assert each.target == str(bars.dates[known - 1 + each.horizon])
        assert each.last_price == bars.values[known - 1]
        assert each.prediction == pytest.approx(scored[each.horizon].points[0], rel=1e-12)
        assert each.quantiles == pytest.approx(scored[each.horizon].quantiles[0], rel=1e-12)
        assert each.quantiles == pytest.approx(fold[each.horizon].quantiles[0], rel=2e-3)


def test_baselines_take_negative_prices_and_columns_that_are_none_of_theirs(snapshot):
    generator = np.random.default_rng(0)
    prices = np.cumsum(generator.normal(size=300))
    assert prices.min() < 0
    issued, problems = issue_baselines({"OIL": made_of(snapshot, prices)}, AHEAD)
    assert problems == {}
    assert len(issued) == len(ISSUED_BASELINES) * len(AHEAD)
    volumes = np.stack([snapshot.values, np.zeros(len(snapshot))], axis=1)
    series = dataclasses.replace(snapshot, matrix=volumes, columns=("Close", "Volume"))
    with_volumes, problems = issue_baselines({"BTC-USD": series}, AHEAD)
    assert problems == {}
    without, _ = issue_baselines({"BTC-USD": snapshot}, AHEAD)
    for one, other in zip(with_volumes, without, strict=True):
        np.testing.assert_array_equal(one.quantiles, other.quantiles)


def test_a_fit_that_fails_costs_only_its_own_baseline(snapshot):
    """The optimizer of GARCH may end far from any price of a share that is quoted in cents."""
    prices = {"BTC-USD": snapshot}
    for seed in (11, 21, 24, 40, 47, 57):
        changes = 0.02 * np.random.default_rng(seed).standard_normal(500)
        cents = np.maximum((0.05 * np.exp(np.cumsum(changes))).round(2), 0.01)
        prices[f"PENNY{seed}"] = made_of(snapshot, cents)
    issued, problems = issue_baselines(prices, AHEAD)
    assert problems
    assert set(problems.values()) == {
        "GARCH: the fit failed: a constant variance is more likely than what it found"
    }
    for symbol in prices:
        names = {each.model for each in issued if each.symbol == symbol}
        assert names == set(ISSUED_BASELINES) - ({"GARCH"} if symbol in problems else set())
    assert all(1 / 3 < each.prediction / each.last_price < 3 for each in issued)


def test_baselines_without_a_distribution_or_the_columns_that_they_need_say_so(snapshot):
    issued, problems = issue_baselines({"BTC-USD": snapshot}, AHEAD, ("HAR", "drift", "EWMA"))
    har, drift = problems["BTC-USD"].split("; drift: ")
    assert har.startswith("HAR: the baseline HAR needs the bar's range")
    assert drift == "these forecasts have no quantiles"
    assert {each.model for each in issued} == {"EWMA"}


def test_what_no_symbol_can_have_is_refused(snapshot, saved):
    with pytest.raises(UsageError, match="there is no baseline 'naive'; choose from persistence, drift"):
        issue_baselines({"BTC-USD": snapshot}, AHEAD, ("naive",))
    volume = load_series("BTC-USD", source="snapshot", input_columns=("Volume",))
    predictor = saved(volume, TINY.model_copy(update={"input_columns": ("Volume",)}))
    with pytest.raises(WindowError, match="a horizon of 20 would need forecasts of Volume too"):
        issue_model(predictor, {"BTC-USD": volume}, AHEAD, "abc")
    (found,), problems = issue_model(predictor, {"BTC-USD": volume}, (1,), "abc")
    assert problems == {}
    assert found.last_price == volume.values[-1]


def test_a_model_without_intervals_issues_nothing_and_says_so(snapshot):
    predictor = Predictor(RECORDED / "original.pt", "cpu")
    (symbol,) = predictor.symbols
    issued, problems = issue_model(predictor, {symbol: snapshot}, AHEAD, "abc")
    assert issued == []
    assert problems[symbol].startswith("this checkpoint has no intervals")

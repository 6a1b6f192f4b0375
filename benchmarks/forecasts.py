"""The quality of forecasts and intervals: the default model against GARCH models, on prices that packages ship.

Every series is forecast alone, with the options that `python -m forecast train` has by default, and scored on its test
rows, the last 15 %. The volatility models are fitted on all rows before them.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from importlib.resources import files
from importlib.util import find_spec
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from scipy.special import ndtr

from benchmarks.checks import report
from forecast import TrainConfig, load_series, train
from forecast.backtest.baselines import BASELINES
from forecast.backtest.rolling import (
    FoldTask,
    make_folds,
    on_models_scale,
    prepare_fold,
    run_task,
)
from forecast.backtest.settings import BacktestSettings
from forecast.backtest.significance import clark_west, diebold_mariano, long_run_variance
from forecast.model.forecaster import HORIZONS, Forecaster, look_ahead
from forecast.model.network import networks
from forecast.model.training import fit, forecast_part
from forecast.model.windows import prepare
from forecast.prices.series import Series
from forecast.scores.distribution import MAIN_LEVEL, interval_probabilities
from forecast.scores.metrics import coverage

Array = NDArray[np.float64]

ROWS = 2500
"""Ten years of trading days."""
STOCKS = ("AAPL", "GOOG", "IBM", "MSFT")
TO_BEAT = ("GJR", "GARCH")

LONG_BAR, LONG_T_BAR, SHORT_BAR, GARCH_BAR, WORST_BAR = 0.9975, -2.0, 1.000, 0.996, 1.01
DEVIATION_BAR, AHEAD_BAR, AHEAD_SHARE = 0.015, (0.85, 0.95), 24 / 28
STRUCTURE_BARS = {"weekly CO2": 0.73, "yearly sunspots": 0.43}

Source = tuple[str, str]
"""A series' symbol and source."""


def long_series(directory: Path) -> dict[str, Source]:
    """Write the twenty stocks of skfolio, 1990 to 2022, to files."""
    found = find_spec("skfolio")  # importing it would need all that it computes with
    if found is None or not found.submodule_search_locations:
        raise SystemExit(
            "this benchmark reads prices of the package skfolio; make it importable "
            "(pip install --no-deps --target build/prices skfolio; PYTHONPATH=build/prices)"
        )
    path = Path(found.submodule_search_locations[0], "datasets", "data", "sp500_dataset.csv.gz")
    closes = pd.read_csv(path, index_col=0, parse_dates=True)
    return write_series({f"{name} 1990": closes[name] for name in closes}, directory, rows=len(closes))


def short_series(directory: Path) -> dict[str, Source]:
    """Write the last ``ROWS`` rows of eight series to files."""
    import arch.data.nasdaq
    import arch.data.sp500
    import arch.data.wti
    import bokeh_sampledata

    found = {
        "S&P 500": arch.data.sp500.load()["Adj Close"],
        "NASDAQ": arch.data.nasdaq.load()["Adj Close"],
        "WTI": arch.data.wti.load()["DCOILWTICO"],
    }
    stocks = pd.read_csv(files(bokeh_sampledata) / "_data" / "stocks.csv.gz", parse_dates=["Date"])
    for ticker in STOCKS:
        found[ticker] = stocks[stocks["Ticker"] == ticker].set_index("Date")["Adj Close"]
    return {"BTC-USD": ("BTC-USD", "snapshot")} | write_series(found, directory)


def structured_series(directory: Path) -> dict[str, Source]:
    """Do the same for series with a season or a cycle, which are not prices."""
    import statsmodels.datasets

    sunspots = statsmodels.datasets.sunspots.load_pandas().data
    # Years as months: bars of a year have no interval, and no model sees the dates.
    months = pd.date_range("1990-01-01", periods=len(sunspots), freq="MS")
    return write_series(
        {
            "weekly CO2": statsmodels.datasets.co2.load_pandas().data["co2"],
            # Shifted by one: logarithms need positive numbers.
            "yearly sunspots": pd.Series(sunspots["SUNACTIVITY"].to_numpy() + 1, index=months),
        },
        directory,
    )


def write_series(found: dict[str, pd.Series[float]], directory: Path, rows: int = ROWS) -> dict[str, Source]:
    """Write the last rows of each series to a CSV file."""
    written = {}
    for name, values in found.items():
        path = directory / f"{name.replace(' ', '_').replace('&', 'n')}.csv"
        values.dropna().iloc[-rows:].rename("Close").rename_axis("Date").to_csv(path)
        written[name] = (name, str(path))
    return written


@dataclass(frozen=True)
class Score:
    """The model beside a baseline on the test rows of one series.

    Attributes:
        rows: number of rows of the series.
        dates: dates of the test rows, shape (n,).
        losses: the model's CRPS of each test row, shape (n,).
        others: each baseline's.
        mae_ratio: the model's MAE over persistence's.
        direction_p: p-value of Clark and West's test against persistence.
        inside: share of test rows in the interval of ``MAIN_LEVEL`` at each of ``HORIZONS``.
        seconds: seconds of training.
    """

    rows: int
    dates: NDArray[np.datetime64]
    losses: Array
    others: dict[str, Array]
    mae_ratio: float
    direction_p: float
    inside: dict[int, float]
    seconds: float

    def ratio(self, baseline: str) -> float:
        """The model's CRPS over a baseline's."""
        return float(self.losses.mean() / self.others[baseline].mean())


def score(source: Source) -> Score:
    """Train the default model on one series and score it on the test rows."""
    torch.set_num_threads(1)
    series = load_series(source[0], source=source[1])
    config = TrainConfig(source=source[1])
    result = train(series, config)
    prepared = prepare(series, config)
    rows = prepared.rows("test", 2)
    ours = forecast_part(result.checkpoint, prepared, "test")
    others = {name: rows.losses("CRPS", BASELINES[name](prepared, (1,))[1]) for name in TO_BEAT}
    ahead = look_ahead(
        Forecaster.of(result.checkpoint, networks(result.checkpoint)),
        prepared,
        "test",
        HORIZONS,
        interval_probabilities([MAIN_LEVEL]),
    )
    assert ahead.quantiles is not None
    assert ours.quantiles is not None
    lower, upper = np.moveaxis(ahead.quantiles, 2, 0)
    known = ~np.isnan(ahead.targets)
    within = ((lower <= ahead.targets) & (ahead.targets <= upper)).sum(axis=0) / known.sum(axis=0)
    inside = dict(zip(HORIZONS, map(float, within), strict=True))
    inside[1] = coverage(rows.actual, ours.quantiles, MAIN_LEVEL)[0]
    return Score(
        rows=len(series),
        dates=series.dates[prepared.split.validation_end :],
        losses=rows.losses("CRPS", ours),
        others=others,
        mae_ratio=result.test.model["MAE"] / result.test.persistence["MAE"],
        direction_p=clark_west(*on_models_scale(prepared, rows, [ours.points]))[1],
        inside=inside,
        seconds=result.seconds,
    )


def clustered(scores: Sequence[Score], baseline: str) -> tuple[float, float]:
    """Test whether relative CRPS differences are zero in the mean over series; the days are the observations.

    Returns:
        The t statistic, below zero where the model is better, and the two-sided p-value.
    """
    differences = pd.concat(
        [
            pd.Series((each.losses - each.others[baseline]) / each.others[baseline].mean(), index=each.dates)
            for each in scores
        ],
        axis=1,
        sort=True,
    )
    days = differences.mean(axis=1).to_numpy()
    statistic = float(days.mean() / np.sqrt(long_run_variance(days) / len(days)))
    return statistic, 2 * float(ndtr(-abs(statistic)))


def print_groups(groups: Mapping[str, Sequence[Score]]) -> None:
    """Print the mean ratios of each group of series, with their tests."""
    print("\n| series | number | " + " | ".join(f"CRPS / {name}'s | t | p" for name in TO_BEAT) + " |")
    print("|---" * (2 + 3 * len(TO_BEAT)) + "|")
    for name, scores in groups.items():
        cells = []
        for other in TO_BEAT:
            statistic, p_value = clustered(scores, other)
            cells.append(f"{mean_ratio(scores, other):.4f} | {statistic:.2f} | {p_value:.2g}")
        print(f"| {name} | {len(scores)} | {' | '.join(cells)} |")


def mean_ratio(scores: Sequence[Score], baseline: str) -> float:
    """The mean over series of the model's CRPS over a baseline's."""
    return float(np.mean([each.ratio(baseline) for each in scores]))


def print_scores(found: Mapping[str, Score]) -> None:
    """Print a row for each series."""
    ahead = " | ".join(f"{horizon} steps" for horizon in HORIZONS[1:])
    print(
        f"\n| series | rows | CRPS / GJR's | p | CRPS / GARCH's | p | MAE / persistence's | in 90 % | {ahead} | s |"
    )
    print("|---" * (9 + len(HORIZONS)) + "|")
    for name, each in found.items():
        compared = " | ".join(
            f"{each.ratio(other):.4f} | {diebold_mariano(each.losses, each.others[other])[1]:.2f}"
            for other in TO_BEAT
        )
        shares = " | ".join(f"{100 * each.inside[horizon]:.1f} %" for horizon in HORIZONS)
        print(
            f"| {name} | {each.rows} | {compared} | {each.mae_ratio:.4f} | {shares} | {each.seconds:.0f} |",
            flush=True,
        )


def compare(directory: Path, processes: int) -> dict[str, bool]:
    """Score the default model on all series, print the tables, and return which bars were met."""
    long, short = long_series(directory), short_series(directory)
    sources = {**long, **short}
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        found = dict(zip(sources, pool.map(score, sources.values()), strict=True))
    print_scores(found)
    every = list(found.values())
    groups = {
        "1990 to 2022": [found[name] for name in long],
        "shorter": [found[name] for name in short],
        "all": every,
    }
    print_groups(groups)
    twenty, eight = groups["1990 to 2022"], groups["shorter"]
    deviation = float(np.mean([abs(each.inside[1] - MAIN_LEVEL) for each in every]))
    low, high = AHEAD_BAR
    within = {horizon: sum(low <= each.inside[horizon] <= high for each in every) for horizon in HORIZONS[1:]}
    worst = max(each.ratio(other) for each in every for other in TO_BEAT)
    print(f"\nWorst ratio: {worst:.4f}")
    print(f"Mean absolute deviation of the 90 % coverage: {100 * deviation:.2f} points")
    print(
        f"Series with 85 to 95 % in it: {', '.join(f'{n} at {h} steps' for h, n in within.items())} of {len(every)}"
    )
    return {
        f"1990 to 2022: CRPS at most {LONG_BAR} of GJR's, t at most {LONG_T_BAR}": mean_ratio(twenty, "GJR")
        <= LONG_BAR
        and clustered(twenty, "GJR")[0] <= LONG_T_BAR,
        f"shorter: CRPS at most {SHORT_BAR} of GJR's": mean_ratio(eight, "GJR") <= SHORT_BAR,
        f"all: CRPS at most {GARCH_BAR} of GARCH's": mean_ratio(every, "GARCH") <= GARCH_BAR,
        f"no series above {WORST_BAR}": worst <= WORST_BAR,
        f"90 % coverage off by at most {DEVIATION_BAR} in the mean": deviation <= DEVIATION_BAR,
        "85 to 95 % in 90 % intervals of 5, 10 and 20 steps on 24 of 28": min(within.values())
        >= AHEAD_SHARE * len(every),
    }


def structure(found: dict[str, Source]) -> bool:
    """Train the default model on series with structure; return whether each meets its bar."""
    print("\n| series with structure | rows | test MAE | persistence's | ratio | Clark-West p |")
    print("|---" * 6 + "|")
    met = True
    for name, (symbol, source) in found.items():
        series = load_series(symbol, source=source)
        length = 60 if len(series) > 1000 else 30
        config = TrainConfig(source=source, sequence_length=length, max_epochs=200, patience=30)
        result = train(series, config)
        prepared = prepare(series, config)
        rows, ours = prepared.rows("test", 2), forecast_part(result.checkpoint, prepared, "test")
        scale = on_models_scale(prepared, rows, [ours.points])
        mae, persistence = result.test.model["MAE"], result.test.persistence["MAE"]
        met &= mae / persistence <= STRUCTURE_BARS[name]
        print(
            f"| {name} | {len(series)} | {mae:.4g} | {persistence:.4g} | {mae / persistence:.3f} | "
            f"{clark_west(*scale)[1]:.1e} |",
            flush=True,
        )
    return met


def no_look_ahead(series: Series) -> bool:
    """Replace all rows from a fold's origin on: the model and the first of the fold's forecasts must not change."""
    config = TrainConfig(sequence_length=20, hidden_size=16, max_epochs=3)
    fold = make_folds(len(series), BacktestSettings(folds=2), config)[0]
    values = series.values.copy()
    values[fold.origin :] = np.random.default_rng(0).uniform(1, 1e6, len(values) - fold.origin)
    other = replace(series, matrix=values[:, np.newaxis])
    states, firsts = [], []
    for prices in (series, other):
        checkpoint = fit(prepare_fold(prices, config, fold), config, prices.provenance).checkpoint
        states.append(checkpoint)
        forecasts = run_task(prices, FoldTask(fold, config))[1]
        assert forecasts.quantiles is not None
        firsts.append([forecasts.points[0], *forecasts.quantiles[0]])
    same = all(
        torch.equal(value, states[1].model_state[name]) for name, value in states[0].model_state.items()
    )
    return (
        same
        and states[0].normalization == states[1].normalization
        and states[0].recursions == states[1].recursions
        and np.array_equal(states[0].calibration_scores, states[1].calibration_scores)
        and states[0].horizon_stretches == states[1].horizon_stretches
        and firsts[0] == firsts[1]
    )


def same_weights(series: Series) -> bool:
    """Train one configuration twice, and return whether the weights of all members are equal."""
    config = TrainConfig(max_epochs=3)
    first, second = (train(series, config).checkpoint.members for _ in range(2))
    return all(
        torch.equal(value, again.model_state[name])
        for member, again in zip(first, second, strict=True)
        for name, value in member.model_state.items()
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--processes", type=int, default=2, help="series trained at a time")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        checks = compare(directory, arguments.processes)
        checks["MAE of the series with structure"] = structure(structured_series(directory))
    snapshot = load_series("BTC-USD", source="snapshot")
    checks |= {
        "rows after a fold's origin change nothing before it": no_look_ahead(snapshot),
        "two runs give identical weights": same_weights(snapshot),
    }
    return report(checks)


if __name__ == "__main__":
    sys.exit(main())

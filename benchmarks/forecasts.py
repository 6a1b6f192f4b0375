"""The quality of forecasts and intervals: tuned Student-t models against GARCH, on prices that packages ship.

Runs the tuning job itself on the last ``ROWS`` rows of each series, and scores its pick on the test rows.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from dataclasses import replace
from importlib.resources import files
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from forecast import TrainConfig, load_checkpoint, load_series, train
from forecast.backtest.baselines import BASELINES
from forecast.backtest.rolling import (
    FoldTask,
    clark_west,
    make_folds,
    on_models_scale,
    prepare_fold,
    run_task,
)
from forecast.backtest.settings import BacktestSettings
from forecast.model.training import fit, forecast_part
from forecast.model.windows import prepare
from forecast.prices.series import Series
from forecast.scores.distribution import MAIN_LEVEL
from forecast.scores.metrics import METRICS, Forecasts, Rows, coverage, evaluate_forecasts

ROWS = 2500
"""Ten years of trading days."""
SAMPLES = 32
STOCKS = ("AAPL", "GOOG", "IBM", "MSFT")

CRPS_BAR, MAE_BAR, STRUCTURE_BAR = 1.005, 1.01, 0.8
COVERAGE_BAR = (0.86, 0.94)


def real_series(directory: Path) -> dict[str, tuple[str, str]]:
    """Write the prices to files, and return each name's symbol and source."""
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


def structured_series(directory: Path) -> dict[str, tuple[str, str]]:
    """Do the same for series with a season or a cycle, which are not prices."""
    import statsmodels.datasets

    sunspots = statsmodels.datasets.sunspots.load_pandas().data
    years = pd.to_datetime(sunspots["YEAR"].astype(int).astype(str) + "-12-31")
    return write_series(
        {
            "weekly CO2": statsmodels.datasets.co2.load_pandas().data["co2"],
            # Shifted by one: logarithms need positive numbers.
            "yearly sunspots": pd.Series(sunspots["SUNACTIVITY"].to_numpy() + 1, index=years),
        },
        directory,
    )


def write_series(found: dict[str, pd.Series[float]], directory: Path) -> dict[str, tuple[str, str]]:
    """Write the last rows of each series to a CSV file."""
    written = {}
    for name, values in found.items():
        path = directory / f"{name.replace(' ', '_').replace('&', 'n')}.csv"
        values.dropna().iloc[-ROWS:].rename("Close").rename_axis("Date").to_csv(path)
        written[name] = (name, str(path))
    return written


def tune(symbol: str, source: str, output: Path, samples: int) -> Path:
    """Run the job, and return the path of its pick."""
    command = [
        sys.executable,
        "-W",
        "ignore",
        "-m",
        "tune_jobs.pareto",
        "--quiet",
        "--space",
        "small",
        "--address",
        "local",
    ]
    command += ["--symbol", symbol, "--source", source, "--output-dir", str(output)]
    command += ["--likelihood", "student_t", "--objectives", "mae,rmse,mape,crps", "--strategy", "min_crps"]
    subprocess.run([*command, "--num-samples", str(samples)], check=True)
    return output / "best_pareto_lstm.pt"


def compare(found: dict[str, tuple[str, str]], directory: Path, samples: int) -> bool:
    """Tune on each series and print its row; return whether all bars were met."""
    print(
        "\n| series | rows | CRPS | GARCH's | ratio | constant quantiles' | in 90 % | GARCH's | "
        "MAE / persistence's | Clark-West p |"
    )
    print("|---" * 10 + "|")
    ratios, met = [], True
    for name, (symbol, source) in found.items():
        series = load_series(symbol, source=source)
        checkpoint = load_checkpoint(tune(symbol, source, directory / symbol.replace(" ", "_"), samples))
        prepared = prepare(series, checkpoint.config)
        rows = prepared.rows("test", 2)
        ours, garch = forecast_part(checkpoint, prepared, "test"), BASELINES["GARCH"](prepared)
        crps = METRICS["CRPS"]
        score, theirs, constant = (crps(rows.actual, one) for one in (ours, garch, rows.baseline))
        ratio, inside = score / theirs, _inside(rows, ours)
        ratios.append(ratio)
        mae = evaluate_forecasts(rows, ours)
        mae_ratio = mae.model["MAE"] / mae.persistence["MAE"]
        _, p_value = clark_west(*on_models_scale(prepared, rows, [ours.points]))
        good = (
            ratio <= CRPS_BAR
            and score < constant
            and COVERAGE_BAR[0] <= inside <= COVERAGE_BAR[1]
            and mae_ratio <= MAE_BAR
        )
        met &= good
        print(
            f"| {name}{'' if good else ' (!)'} | {len(series)} | {score:.5g} | {theirs:.5g} | {ratio:.4f} | "
            f"{constant:.5g} | {100 * inside:.1f} % | {100 * _inside(rows, garch):.1f} % | {mae_ratio:.4f} | "
            f"{p_value:.2f} |",
            flush=True,
        )
    print(f"\nMean of the CRPS ratios to GARCH: {np.mean(ratios):.4f}")
    return met and bool(np.mean(ratios) < 1)


def _inside(rows: Rows, forecasts: Forecasts) -> float:
    assert forecasts.quantiles is not None
    return coverage(rows.actual, forecasts.quantiles, MAIN_LEVEL)[0]


def structure(found: dict[str, tuple[str, str]]) -> bool:
    """Train the default model on series with structure; return whether one beats persistence by the bar."""
    print("\n| series with structure | rows | likelihood | test MAE | persistence's | ratio | Clark-West p |")
    print("|---|---|---|---|---|---|---|")
    ratios = []
    for name, (symbol, source) in found.items():
        for likelihood in ("mse", "student_t"):
            series = load_series(symbol, source=source)
            config = TrainConfig(
                source=source,
                likelihood=likelihood,
                sequence_length=60 if len(series) > 1000 else 30,
                max_epochs=200,
                patience=30,
            )
            result = train(series, config)
            prepared = prepare(series, config)
            rows, ours = prepared.rows("test", 2), forecast_part(result.checkpoint, prepared, "test")
            scale = on_models_scale(prepared, rows, [ours.points])
            mae, persistence = result.test.model["MAE"], result.test.persistence["MAE"]
            ratios.append(mae / persistence)
            print(
                f"| {name} | {len(series)} | {likelihood} | {mae:.4g} | {persistence:.4g} | {ratios[-1]:.3f} | "
                f"{clark_west(*scale)[1]:.1e} |",
                flush=True,
            )
    return min(ratios) <= STRUCTURE_BAR


def no_look_ahead(series: Series) -> bool:
    """Replace all rows from a fold's origin on: the model and the first of the fold's forecasts must not change."""
    config = TrainConfig(
        likelihood="student_t", sequence_length=20, hidden_size=16, num_layers=1, max_epochs=3
    )
    fold = make_folds(len(series), BacktestSettings(folds=2), config)[0]
    values = series.values.copy()
    values[fold.origin :] = np.random.default_rng(0).uniform(1, 1e6, len(values) - fold.origin)
    other = replace(series, matrix=values[:, np.newaxis])
    states, firsts = [], []
    for prices in (series, other):
        checkpoint, _ = fit(prepare_fold(prices, config, fold), config, prices.provenance)
        states.append(checkpoint)
        forecasts = run_task(prices, FoldTask(fold, config))
        assert forecasts.quantiles is not None
        firsts.append([forecasts.points[0], *forecasts.quantiles[0]])
    same = all(
        torch.equal(value, states[1].model_state[name]) for name, value in states[0].model_state.items()
    )
    return (
        same
        and states[0].normalization == states[1].normalization
        and np.array_equal(states[0].calibration_scores, states[1].calibration_scores)
        and firsts[0] == firsts[1]
    )


def same_weights(series: Series) -> bool:
    """Train one configuration twice, and return whether the weights are equal."""
    config = TrainConfig(likelihood="student_t", max_epochs=3)
    first, second = (train(series, config).checkpoint.model_state for _ in range(2))
    return all(torch.equal(value, second[name]) for name, value in first.items())


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--samples", type=int, default=SAMPLES)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        met = compare(real_series(directory), directory / "jobs", arguments.samples)
        found = structure(structured_series(directory))
    snapshot = load_series("BTC-USD", source="snapshot")
    checks = {
        "CRPS, coverage and MAE within their bars on every series": met,
        f"a series with structure at {STRUCTURE_BAR:g} of persistence's MAE or less": found,
        "rows after a fold's origin change nothing before it": no_look_ahead(snapshot),
        "two runs give identical weights": same_weights(snapshot),
    }
    print()
    for check, passed in checks.items():
        print(f"{'yes' if passed else 'NO '}  {check}")
    return 0 if all(checks.values()) else 1


if __name__ == "__main__":
    sys.exit(main())

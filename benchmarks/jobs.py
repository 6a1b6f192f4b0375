"""What a tuning job claims and serves: its test for luck on random walks, and the widths of its models' intervals.

`walks` runs a job on each of many simulated random walks with GARCH noise, on which no model has skill, and counts the
jobs that claim skill. `widths` compares the intervals of 250 steps of every checkpoint of a job with those of one step.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from benchmarks.checks import report
from forecast import Predictor, load_series
from forecast.scores.distribution import MAIN_LEVEL
from tune_jobs.cluster import connected
from tune_jobs.job import run_job
from tune_jobs.options import TuneOptions

WALK_ROWS = 700
OMEGA, ALPHA, BETA, DF = 0.05, 0.10, 0.85, 5
"""GARCH(1,1) with Student-t changes; its unconditional variance is one."""
STEP = 0.01
"""Standard deviation of a walk's changes."""
FIRST_SEED = 10_000
"""Seed of the first walk: the test's block length and the correction of its p-value were chosen on earlier seeds."""
CLAIMS_BAR = 0.075
STEPS, WIDTH_BAR = 250, (0.5, 3.0)


def random_walk(seed: int) -> NDArray[np.float64]:
    """Prices whose logarithm is a random walk with GARCH noise, shape (rows,)."""
    generator, variance = np.random.default_rng(seed), 1.0
    changes = np.empty(WALK_ROWS)
    for row in range(WALK_ROWS):
        changes[row] = np.sqrt(variance * (DF - 2) / DF) * generator.standard_t(DF)
        variance = OMEGA + ALPHA * changes[row] ** 2 + BETA * variance
    return 100 * np.exp(STEP * np.cumsum(changes))


def walks(count: int, samples: int) -> bool:
    """Run a job on each walk; return whether few enough claim skill."""
    claims, p_values = 0, []
    with tempfile.TemporaryDirectory() as name, connected("local"):
        for seed in range(FIRST_SEED, FIRST_SEED + count):
            path = Path(name, f"walk_{seed}.csv")
            dates = pd.date_range("2018-01-01", periods=WALK_ROWS, freq="D")
            pd.DataFrame({"Date": dates, "Close": random_walk(seed)}).to_csv(path, index=False)
            options = TuneOptions(
                symbol=f"WALK{seed}",
                source=str(path),
                space="small",
                num_samples=samples,
                seed=seed,
                output_dir=Path(name, str(seed)),
                # The claim is about the search; the models trained after it do not change it.
                members=1,
                retrain=False,
                report=False,
                quiet=True,
            )
            luck = run_job(options).summary["luck"]
            claims += luck["skill"]
            p_values.append(luck["p_value"])
            print(
                f"{len(p_values)} walks, {claims} claims, p {luck['p_value']:.2f}",
                file=sys.stderr,
                flush=True,
            )
    shares = ", ".join(f"{np.mean(np.array(p_values) <= p):.3f} at {p}" for p in (0.01, 0.05, 0.1, 0.25, 0.5))
    print(
        f"{count} random walks, {samples} trials each: {claims} jobs claim skill ({100 * claims / count:.1f} %)"
    )
    print(f"share of p-values at most: {shares}")
    return claims <= CLAIMS_BAR * count


def widths(samples: int) -> bool:
    """Run a job on the snapshot, and return whether the widths of all its checkpoints grow as they should."""
    with tempfile.TemporaryDirectory() as name:
        options = TuneOptions(
            source="snapshot", num_samples=samples, output_dir=Path(name), report=False, quiet=True
        )
        run_job(options)
        window = load_series("BTC-USD", source="snapshot").values[-1000:]
        found = {}
        for path in sorted(Path(name).rglob("*.pt")):
            predictor = Predictor(path)
            bounds = np.log(predictor.predict_intervals([window], [MAIN_LEVEL], STEPS)[0, :, 0])
            width = np.diff(bounds, axis=1)[:, 0]
            found[path.name] = float(width[-1] / width[0] / np.sqrt(STEPS))
    low, high = WIDTH_BAR
    ratios = np.array(list(found.values()))
    print(
        f"{len(found)} checkpoints: width at {STEPS} steps over that of one step times the root of {STEPS}: "
        f"{ratios.min():.2f} to {ratios.max():.2f}, median {np.median(ratios):.2f}"
    )
    return bool((ratios >= low).all() and (ratios <= high).all())


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=("walks", "widths"))
    parser.add_argument("--walks", type=int, default=200)
    parser.add_argument("--samples", type=int, help="trials of each job (8 for walks, 64 for widths)")
    arguments = parser.parse_args()
    if arguments.what == "walks":
        met = walks(arguments.walks, arguments.samples or 8)
    else:
        met = widths(arguments.samples or 64)
    return report({"within its bar": met})


if __name__ == "__main__":
    sys.exit(main())

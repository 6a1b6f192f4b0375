"""Measures the alarms of a live record: false alarms of healthy years, and sessions until a fault is found.

A simulated price has GARCH(1,1) volatility and Student-t changes with five degrees of freedom, and the healthy
forecaster issues its true distribution. Four alarms watch the forecasts: calibration, and being worse than each of
three baselines. Baselines and faults are the same on the real prices of the snapshot, where EWMA is the forecaster.
"""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtri, stdtrit

from benchmarks.checks import report
from forecast import load_series
from forecast.model.volatility import RISKMETRICS_DECAY
from forecast.scores.distribution import PROBABILITIES
from forecast.scores.metrics import Forecasts, ranked_probability_scores
from forecast.scores.sequential import (
    SESSIONS_A_YEAR,
    Evidence,
    calibration_alarm,
    difference_bound,
    pit,
    skill_alarm,
    threshold,
)

Array = NDArray[np.float64]

DF, EWMA_DF = 5, 4
"""Degrees of freedom of the simulated changes, and of EWMA's forecasts."""
REACTION, DECAY, VARIANCE = 0.08, 0.9, 0.02**2
"""Coefficients of a simulated variance, and its mean."""
HISTORY = 1000
"""Changes before the first forecast."""
WINDOW = 22
"""Changes from which the moving deviation is."""
CHANGED = 100
"""Session from which the forecasts are wrong."""
SYMBOLS, COMMON = 20, 0.5
"""Symbols of a panel, and the share of each change's variance that is common to all."""
YEARS_APART, REAL_YEARS = 10, 60
"""Rows between the ends of the snapshot's years, and number of these years, which overlap."""
SHARE = 0.05
"""Largest share of healthy years with any false alarm; half of it is calibration's, which finds most faults first."""
CALIBRATION_THRESHOLD, SKILL_THRESHOLD = threshold(SHARE / 2), threshold(SHARE / 2, alarms=3)
FOUND_BAR = 60
"""Sessions in which a fault must be found in half of the runs, and on the real prices."""
SECONDS_BAR = 1.0
"""For the evidence of 1,000 sessions of 400 symbols."""


def student_t(df: int) -> Array:
    """Quantiles (199,) of Student's t distribution with a variance of one."""
    quantiles: Array = np.sqrt((df - 2) / df) * stdtrit(df, PROBABILITIES)
    return quantiles


@dataclass(frozen=True)
class Record:
    """Changes of logarithms of prices with the quantiles of the forecaster and of the baselines.

    Attributes:
        sessions: session of each row, shape (n,), from 0.
        changes: shape (n,).
        quantiles: the forecaster's, shape (n, 199).
        baselines: quantiles of each baseline by its name.
    """

    sessions: NDArray[np.int64]
    changes: Array
    quantiles: Array
    baselines: dict[str, Array]

    def faulty(self, width: float, shift: float = 0.0) -> Array:
        """Quantiles with that width and with that shift, in quartile ranges, from session ``CHANGED`` on."""
        middle = self.quantiles[:, [PROBABILITIES.size // 2]]
        upper, lower = self.quantiles[:, [149]], self.quantiles[:, [49]]
        wrong = middle + width * (self.quantiles - middle) + shift * (upper - lower)
        changed = (self.sessions >= CHANGED)[:, np.newaxis]
        return np.where(changed, wrong, self.quantiles)

    def alarms(self, quantiles: Array) -> dict[str, int]:
        """Session of the first alarm of each kind that has one."""
        first = {"calibration": self._calibration(quantiles).first(CALIBRATION_THRESHOLD)}
        losses = _crps(self.changes, quantiles)
        for name, others in self.baselines.items():
            differences = losses - _crps(self.changes, others)
            evidence = skill_alarm(self.sessions, differences, difference_bound(quantiles, others))
            first[f"worse than {name}"] = evidence.first(SKILL_THRESHOLD)
        return {name: session for name, session in first.items() if session is not None}

    def _calibration(self, quantiles: Array) -> Evidence:
        return calibration_alarm(self.sessions, pit(quantiles, self.changes))


def _crps(changes: Array, quantiles: Array) -> Array:
    return ranked_probability_scores(changes, Forecasts(changes, quantiles))


def ewma_variances(changes: Array) -> Array:
    """Variance of each change from those before it (n, symbols), begun with that of all ``HISTORY`` first ones."""
    variances = np.empty_like(changes)
    variance = np.square(changes[:HISTORY]).mean(axis=0)
    for row, change in enumerate(changes):
        variances[row] = variance
        variance = RISKMETRICS_DECAY * variance + (1 - RISKMETRICS_DECAY) * change**2
    return variances


def baselines(changes: Array) -> dict[str, Array]:
    """Quantiles (n, symbols, 199) of three forecasts of the changes (HISTORY + n, symbols) after the history."""
    constant = np.quantile(changes[:HISTORY], PROBABILITIES, axis=0).T
    squares = np.lib.stride_tricks.sliding_window_view(np.square(changes), WINDOW, axis=0)
    moving = np.sqrt(squares.mean(axis=2))[HISTORY - WINDOW : -1]
    ewma = np.sqrt(ewma_variances(changes)[HISTORY:])
    return {
        "persistence": np.broadcast_to(constant, (len(changes) - HISTORY, *constant.shape)),
        "EWMA": ewma[..., np.newaxis] * student_t(EWMA_DF),
        "a moving deviation": moving[..., np.newaxis] * ndtri(PROBABILITIES),
    }


def flat(changes: Array, quantiles: Array, others: dict[str, Array]) -> Record:
    """The record of changes (n, symbols), quantiles and baselines (n, symbols, 199)."""
    count, symbols = changes.shape
    return Record(
        np.repeat(np.arange(count), symbols),
        changes.ravel(),
        quantiles.reshape(-1, PROBABILITIES.size),
        {name: each.reshape(-1, PROBABILITIES.size) for name, each in others.items()},
    )


def simulate(generator: np.random.Generator, symbols: int = 1) -> Record:
    """A year of changes with the forecasts of their true distribution."""
    count = HISTORY + SESSIONS_A_YEAR
    normal = np.sqrt(COMMON) * generator.standard_normal((count, 1)) if symbols > 1 else 0.0
    normal = normal + np.sqrt(1 - COMMON if symbols > 1 else 1) * generator.standard_normal((count, symbols))
    drawn = np.sqrt((DF - 2) / generator.chisquare(DF, (count, symbols))) * normal
    changes, variances = np.empty_like(drawn), np.empty_like(drawn)
    variance = np.full(symbols, VARIANCE)
    for row, draw in enumerate(drawn):
        variances[row], changes[row] = variance, np.sqrt(variance) * draw
        variance = (1 - REACTION - DECAY) * VARIANCE + REACTION * changes[row] ** 2 + DECAY * variance
    quantiles = np.sqrt(variances[HISTORY:])[..., np.newaxis] * student_t(DF)
    return flat(changes[HISTORY:], quantiles, baselines(changes))


def snapshot(before_end: int) -> Record:
    """``SESSIONS_A_YEAR`` rows of the snapshot that end that many rows before its end, forecast by EWMA."""
    changes = np.diff(np.log(load_series("BTC-USD", source="snapshot").values))
    last = len(changes) - before_end
    changes = changes[last - HISTORY - SESSIONS_A_YEAR : last, np.newaxis]
    others = baselines(changes)
    return flat(changes[HISTORY:], others["EWMA"], others)


def healthy(years: int) -> float:
    """Share of healthy years with any alarm."""
    generator = np.random.default_rng(0)
    count: dict[str, int] = {}
    any_alarm = 0
    for _ in range(years):
        record = simulate(generator)
        alarms = record.alarms(record.quantiles)
        any_alarm += bool(alarms)
        for name in alarms:
            count[name] = count.get(name, 0) + 1
    print(f"\n{any_alarm} of {years} healthy years have an alarm: {count}")
    return any_alarm / years


def faults(runs: int) -> dict[str, float]:
    """Print how soon each fault is found, and return the median number of sessions."""
    print(
        f"\n| fault | symbols | runs | median sessions | 95th percentile | within {FOUND_BAR} | alarms before it |"
    )
    print("|---" * 7 + "|")
    medians = {}
    for name, width, shift, symbols in (
        ("intervals of 60 %", 0.6, 0.0, 1),
        ("intervals of 80 %", 0.8, 0.0, 1),
        ("intervals of 150 %", 1.5, 0.0, 1),
        ("shifted by half a quartile range", 1.0, 0.5, 1),
        ("intervals of 60 %", 0.6, 0.0, SYMBOLS),
        ("intervals of 80 %", 0.8, 0.0, SYMBOLS),
    ):
        generator = np.random.default_rng(1)
        times = runs if symbols == 1 else runs // 10
        delays, early = [], 0
        for _ in range(times):
            record = simulate(generator, symbols)
            first = min(record.alarms(record.faulty(width, shift)).values(), default=np.inf)
            if first < CHANGED:
                early += 1
            else:
                delays.append(first - CHANGED + 1)
        within = np.mean(np.array(delays) <= FOUND_BAR)
        # A percentile between a number and "not in this year" is "not in this year".
        middle, most = np.percentile(delays, (50, 95), method="higher")
        print(
            f"| {name} | {symbols} | {times} | {middle:.0f} | {most:.0f} | {100 * within:.1f} % | {early} |",
            flush=True,
        )
        medians[f"{name}, {symbols}"] = middle
    return medians


def real() -> bool:
    """Print the alarms on the snapshot; return whether the last year's fault is found in time, with no alarm before."""
    record = snapshot(0)
    print(
        f"\nSnapshot, last {SESSIONS_A_YEAR} rows, EWMA with t({EWMA_DF}): alarms {record.alarms(record.quantiles)}"
    )
    found = record.alarms(record.faulty(0.6))
    print(f"with intervals of 60 % from session {CHANGED} on: {found}")
    years = [snapshot(before_end) for before_end in range(0, YEARS_APART * REAL_YEARS, YEARS_APART)]
    healthy_alarms = sum(bool(year.alarms(year.quantiles)) for year in years)
    first = [min(year.alarms(year.faulty(0.6)).values(), default=np.inf) for year in years]
    delays = [each - CHANGED + 1 for each in first if each >= CHANGED]
    print(
        f"{REAL_YEARS} years that end {YEARS_APART} rows apart: {healthy_alarms} with an alarm without the fault. "
        f"With it, {len(years) - len(delays)} with an alarm before it, and of the others a median of "
        f"{np.median(delays):.0f} sessions, {100 * np.mean(np.array(delays) <= FOUND_BAR):.0f} % within {FOUND_BAR}"
    )
    return CHANGED <= min(found.values(), default=0) < CHANGED + FOUND_BAR


def seconds() -> float:
    """Seconds for the evidence of both kinds from 1,000 sessions of 400 symbols."""
    sessions = np.repeat(np.arange(1000), 400)
    generator = np.random.default_rng(0)
    places, differences = generator.random(len(sessions)), generator.uniform(-1, 1, len(sessions))
    calibration_alarm(sessions[:1], places[:1])  # the table of bets is made once
    spent = []
    for test in (
        lambda: calibration_alarm(sessions, places),
        lambda: skill_alarm(sessions, differences, np.ones(len(sessions))),
    ):
        began = time.perf_counter()
        test()
        spent.append(time.perf_counter() - began)
    print(f"\n1,000 sessions of 400 symbols: calibration {spent[0]:.3f} s, skill {spent[1]:.3f} s")
    return max(spent)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--years", type=int, default=1000, help="healthy years")
    parser.add_argument("--runs", type=int, default=500, help="runs of each fault")
    arguments = parser.parse_args()
    false = healthy(arguments.years)
    medians = faults(arguments.runs)
    return report(
        {
            f"an alarm in at most {100 * SHARE:.0f} % of healthy years": false <= SHARE,
            f"intervals of 60 % found within {FOUND_BAR} sessions in half of the runs": medians[
                "intervals of 60 %, 1"
            ]
            <= FOUND_BAR,
            f"and on the snapshot within {FOUND_BAR} sessions, with no alarm before": real(),
            f"evidence of 1,000 sessions of 400 symbols in less than {SECONDS_BAR:.0f} s": seconds()
            < SECONDS_BAR,
        }
    )


if __name__ == "__main__":
    sys.exit(main())

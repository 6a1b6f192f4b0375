"""One model of many symbols: its cost, its accuracy, and what a job of one symbol gains from it.

`cost FILE` runs a job on 10, 50 and all symbols of a file. `stocks` trains one model on the twenty stocks of skfolio,
with and without the market. `alone FILE` runs one job of twenty symbols and twenty jobs of one each. `unseen FILE`
holds a tenth of a file's symbols out. `start CHECKPOINT` starts models of
other series from a pooled one. `kill` ends a job again and again. `jobs OLD` runs the job of one symbol beside
that of another checkout, such as version 0.1.0.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pandas as pd
import torch

from benchmarks.checks import report
from benchmarks.forecasts import Score, clustered, long_series, mean_ratio, short_series
from forecast import TrainConfig, load_checkpoint, load_series, train
from forecast.backtest.baselines import BASELINES
from forecast.job_files import SCORED_FILE, SUMMARY_FILE
from forecast.model.checkpoint import Checkpoint
from forecast.model.panel import PreparedPanel, prepare_panel
from forecast.model.start import same_options, with_recursions_of
from forecast.model.training import evaluate_part, fit, forecast_each, forecast_part
from forecast.model.unseen import forecast_unseen
from forecast.model.windows import PreparedSeries, prepare
from forecast.prices.panel import Panel, load_panel
from forecast.scores.metrics import Forecasts
from tune_jobs.databases import STUDY_FILE
from tune_jobs.space import SPACES

JOB = ("--space", "small", "--likelihood", "student_t", "--objectives", "mae,rmse,mape,crps")
POOLED = TrainConfig(
    source="x",
    market=True,
    sequence_length=60,
    hidden_size=32,
    max_epochs=8,
    patience=8,
    batch_size=256,
    windows_per_epoch=200_000,
)
"""The pooled model of the twenty stocks."""
SHORT_POOLED = POOLED.model_copy(
    update={"market": False, "learning_rate": 1e-3, "batch_size": 64, "windows_per_epoch": 50_000}
)
"""The pooled model of a panel of a few years, whose days are soon learned by heart: about the pick of `cost`."""
COST_BAR, MEMORY_BAR = 0.1, 1.5
MARKET_BAR, MARKET_T_BAR, MARKET_BETTER, BLIND_BAR = 0.990, -3.0, 18, 0.995
PANEL_BAR, PANEL_BETTER, UNSEEN_BAR, START_BAR = 0.9965, 0.70, 1.0, 0.996
KILLS, KILLED_SAMPLES = 10, 40


def job(directory: Path, *arguments: str, home: Path | None = None) -> tuple[float, str]:
    """Run a tuning job in a process of its own; return its seconds and what it printed.

    Args:
        directory: the job's output directory.
        arguments: its options.
        home: a checkout whose job to run; None for this one.
    """
    started = time.perf_counter()
    environment = {**os.environ, "PYTHONPATH": str(home)} if home else None
    done = subprocess.run(
        [sys.executable, "-m", "tune_jobs.pareto", "--output-dir", str(directory), *arguments],
        capture_output=True,
        text=True,
        cwd=home,
        env=environment,
        check=False,
    )
    if done.returncode:
        raise SystemExit(f"the job {' '.join(arguments)} failed:\n{done.stderr[-2000:]}")
    return time.perf_counter() - started, done.stdout


def cost(file: Path, directory: Path) -> dict[str, bool]:
    """Run the job on more and more symbols."""
    names = list(load_panel(("all",), source=str(file), notify=None).series)
    drawn = random.Random(0).sample(names, len(names))  # no secret
    each = []
    print("\n| symbols | wall s | core-minutes a symbol | CRPS / GARCH's | better |")
    print("|---" * 5 + "|")
    for count in (10, 50, len(names)):
        output = directory / str(count)
        asked = ("all",) if count == len(names) else drawn[:count]
        seconds, _ = job(output, "--source", str(file), "--symbols", *asked, "--num-samples", "16", *JOB,
                         "--strategy", "min_crps")  # fmt: skip
        found = json.loads((output / SUMMARY_FILE).read_text())["symbols"]["GARCH"]
        each.append(seconds * (os.cpu_count() or 1) / 60 / count)
        print(
            f"| {count} | {seconds:.0f} | {each[-1]:.3f} | {found['ratio']:.4f} | {100 * found['better']:.0f} % |",
            flush=True,
        )
    memory = worker_memory(file)
    print(f"\nA worker's memory at windows of 120: {memory:.2f} GB")
    return {
        f"at most {COST_BAR} core-minutes a symbol, falling": each[-1] <= COST_BAR
        and each == sorted(each, reverse=True),
        f"a worker's memory at most {MEMORY_BAR} GB": memory <= MEMORY_BAR,
        f"panel: CRPS at most {PANEL_BAR} of GARCH's, better on {PANEL_BETTER:.0%}": found["ratio"]
        <= PANEL_BAR
        and found["better"] >= PANEL_BETTER,
    }


def worker_memory(file: Path) -> float:
    """Peak memory, in GB, of a process that trains on all symbols of a file, which it gets prepared."""
    script = (
        "import pickle, resource, sys, torch\n"
        "from forecast.model.training import Trainer\n"
        "torch.set_num_threads(1)\n"
        "prepared, config = pickle.load(open(sys.argv[1], 'rb'))\n"
        "trainer = Trainer(prepared, config)\n"
        "trainer.advance(0.2)\n"
        "trainer.evaluate()\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6)\n"
    )
    config = TrainConfig(
        source="x", sequence_length=120, hidden_size=64, num_layers=2, members=1, batch_size=128
    )
    panel = load_panel(("all",), source=str(file), notify=None)
    prepared = prepare_panel(panel, config, config.sequence_length).without_test()
    with tempfile.NamedTemporaryFile(suffix=".pickle") as stream:
        import pickle

        pickle.dump((prepared, config), stream)
        stream.flush()
        done = subprocess.run(
            [sys.executable, "-c", script, stream.name], capture_output=True, text=True, check=True
        )
    return float(done.stdout)


def scores_of(
    panel: Panel, prepared: PreparedPanel, forecasts: dict[str, Forecasts], baselines: Sequence[str]
) -> dict[str, Score]:
    """Score forecasts of the test rows of symbols beside baselines fitted on each."""
    found = {}
    for symbol, ours in forecasts.items():
        series = prepared.series.get(symbol) or prepared.held_out[symbol]
        rows = series.rows("test", 2)
        others = {name: rows.losses("CRPS", BASELINES[name](series, (1,))[1]) for name in baselines}
        found[symbol] = Score(
            rows=len(series.normalized),
            dates=panel.series[symbol].dates[series.split.validation_end :],
            losses=rows.losses("CRPS", ours),
            others=others,
            mae_ratio=float("nan"),
            direction_p=float("nan"),
            inside={},
            seconds=0.0,
        )
    return found


def line(name: str, scores: dict[str, Score], baseline: str) -> tuple[float, float, int]:
    """Print and return the mean ratio, the t statistic by day, and on how many symbols the model is better."""
    every = list(scores.values())
    ratio, statistic = mean_ratio(every, baseline), clustered(every, baseline)[0]
    better = sum(each.ratio(baseline) < 1 for each in every)
    print(
        f"{name}: CRPS {ratio:.4f} of {baseline}'s over {len(every)} symbols, t {statistic:.2f} by day, better on "
        f"{better}",
        flush=True,
    )
    return ratio, statistic, better


def stocks(directory: Path) -> dict[str, bool]:
    """Train one model on the twenty stocks, and score it with and without the market."""
    tables = [
        pd.read_csv(path, parse_dates=["Date"]).assign(Symbol=name)
        for name, path in long_series(directory).values()
    ]
    path = directory / "stocks.csv"
    pd.concat(tables).to_csv(path, index=False)
    panel = load_panel(("all",), source=str(path), notify=None)
    prepared = prepare_panel(panel, POOLED, POOLED.sequence_length)
    model = fit(prepared, POOLED, panel.provenance).checkpoint
    found = {}
    for name, seen in (("with the market", prepared), ("without", prepared.without_market())):
        forecasts = dict(zip(prepared.series, forecast_each(model, seen, "test"), strict=True))
        found[name] = line(f"Twenty stocks, {name}", scores_of(panel, prepared, forecasts, ("GJR",)), "GJR")
    ratio, statistic, better = found["with the market"]
    return {
        f"with the market at most {MARKET_BAR} of GJR's, t {MARKET_T_BAR}, better on {MARKET_BETTER}": ratio
        <= MARKET_BAR
        and statistic <= MARKET_T_BAR
        and better >= MARKET_BETTER,
        f"without at most {BLIND_BAR}": found["without"][0] <= BLIND_BAR,
    }


def unseen(file: Path) -> dict[str, bool]:
    """Hold a tenth of the symbols out, and score the model on them as a server answers for them."""
    panel = load_panel(("all",), source=str(file), notify=None)
    names = sorted(panel.series)
    apart = random.Random(1).sample(names, len(names) // 10)  # no secret
    prepared = prepare_panel(panel, SHORT_POOLED, SHORT_POOLED.sequence_length, held_out=apart)
    model = fit(prepared, SHORT_POOLED, panel.provenance).checkpoint
    forecasts = {
        symbol: forecast_unseen(model, series, "test", symbol) for symbol, series in prepared.held_out.items()
    }
    ratio, *_ = line("Held-out symbols", scores_of(panel, prepared, forecasts, ("GARCH",)), "GARCH")
    return {f"held-out symbols at most {UNSEEN_BAR} of GARCH's": ratio <= UNSEEN_BAR}


def start(path: Path, directory: Path) -> dict[str, bool]:
    """Start models of eight series from a pooled one, beside that model as it is and models alone.

    The pooled model, such as the pick of `cost`, has seen none of these prices, but days after those of some series.
    """
    model = load_checkpoint(path)
    print(
        "\n| series | alone | pooled as it is | started from it | (validation: alone | as it is | started) |"
    )
    print("|---" * 7 + "|")
    rows = {}
    for name, (symbol, source) in short_series(directory).items():
        series = load_series(symbol, source=source)
        alone = TrainConfig(source=source)
        started = same_options(alone.model_copy(update={"start_from": path}), model)
        own = prepare(series, alone)
        begun = with_recursions_of(model, own)
        as_it_is = fit(begun, started, series.provenance, start=model, until_epochs=[0, 0]).checkpoint
        models = (
            (train(series, alone).checkpoint, own),
            (as_it_is, begun),
            (train(series, started).checkpoint, begun),
        )
        garch = _garch(own)
        test = [each.model["CRPS"] / garch for each in (evaluate_part(m, p, "test") for m, p in models)]
        validation = [
            each.model["CRPS"] / each.persistence["CRPS"]
            for each in (evaluate_part(m, p, "validation") for m, p in models)
        ]
        rows[name] = test
        shown = " | ".join(f"{value:.4f}" for value in (*test, *validation))
        print(f"| {name} | {shown} |", flush=True)
    means = np.array(list(rows.values())).mean(axis=0)
    print("| mean | " + " | ".join(f"{value:.4f}" for value in means) + " | | | |")
    return {
        f"started at most {START_BAR} of GARCH's, no worse than either": means[2] <= START_BAR
        and means[2] <= min(means[:2]) + 5e-4
    }


def _garch(series: PreparedSeries) -> float:
    """GARCH's mean CRPS on the test rows."""
    rows = series.rows("test", 2)
    return float(rows.losses("CRPS", BASELINES["GARCH"](series, (1,))[1]).mean())


def alone(file: Path, directory: Path) -> dict[str, bool]:
    """Run one job of twenty symbols, and twenty jobs of one, and score their picks on the same test rows."""
    names = list(load_panel(("all",), source=str(file), notify=None).series)
    drawn = random.Random(3).sample(names, 20)  # no secret
    panel = load_panel(drawn, source=str(file), notify=None)
    prepared = prepare_panel(panel, SHORT_POOLED, SPACES["small"].longest_window)
    options = ("--source", str(file), "--num-samples", "16", *JOB, "--strategy", "min_crps", "--no-report",
               "--no-retrain", "--quiet")  # fmt: skip

    def run(output: Path, *asked: str) -> tuple[Checkpoint, float]:
        seconds, _ = job(output, *options, *asked)
        return load_checkpoint(output / SCORED_FILE), seconds

    pooled, cost = run(directory / "pooled", "--symbols", *drawn)
    forecasts = dict(zip(prepared.series, forecast_each(pooled, prepared, "test"), strict=True))
    ratio, *_ = line("One job", scores_of(panel, prepared, forecasts, ("GARCH",)), "GARCH")
    costs = []
    for symbol, series in prepared.series.items():
        own, seconds = run(directory / symbol, "--symbol", symbol)
        forecasts[symbol] = forecast_part(own, series, "test")
        costs.append(seconds)
    each, *_ = line("A job each", scores_of(panel, prepared, forecasts, ("GARCH",)), "GARCH")
    print(f"One job took {cost:.0f} s, {len(costs)} jobs {sum(costs):.0f} s: {cost / sum(costs):.3f}")
    return {
        "20 symbols: no worse in the mean than a job each": ratio <= each,
        "at an eighth of the cost": cost <= sum(costs) / 8,
    }


def kill(directory: Path) -> dict[str, bool]:
    """Kill a job of 50 simulated symbols ten times, and resume it; compare it with one that nobody killed."""
    generator = np.random.default_rng(0)
    days = pd.bdate_range("2016-01-04", periods=800, name="Date")
    changes = 0.01 * (generator.standard_t(5, (800, 50)) + 0.7 * generator.normal(size=(800, 1)))
    path = directory / "fifty.csv"
    pd.DataFrame(100 * np.exp(np.cumsum(changes, axis=0)), days, [f"S{i:02d}" for i in range(50)]).to_csv(
        path
    )
    arguments = ["--source", str(path), "--symbols", "all", "--num-samples", str(KILLED_SAMPLES), *JOB,
                 "--strategy", "min_crps", "--max-concurrent", "1", "--no-report", "--no-retrain",
                 "--windows-per-epoch", "10000"]  # fmt: skip
    job(directory / "whole", *arguments)
    killed, pauses = directory / "killed", random.Random(2)  # no secret
    for number in range(KILLS):
        process = subprocess.Popen(
            [sys.executable, "-m", "tune_jobs.pareto", "--output-dir", str(killed), "--resume", *arguments],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        time.sleep(pauses.uniform(9, 15))
        process.kill()
        process.wait()
        print(f"kill {number + 1}: {len(_finished(killed))} trials finished", flush=True)
    job(killed, "--resume", *arguments)
    whole, resumed = _finished(directory / "whole"), _finished(killed)
    same = [one == other for one, other in zip(whole, resumed, strict=False)]
    print(f"{len(resumed)} trials finished; {sum(same)} of {len(whole)} with the parameters and objectives of "
          "the job that nobody killed")  # fmt: skip
    equal = {json.dumps(one["params"], sort_keys=True): one["values"] for one in whole}
    shared = [one for one in resumed if json.dumps(one["params"], sort_keys=True) in equal]
    alike = sum(one["values"] == equal[json.dumps(one["params"], sort_keys=True)] for one in shared)
    print(f"{alike} of {len(shared)} trials with the same parameters have the same objectives")
    return {
        "exactly as many trials as asked for": len(resumed) == len(whole) == KILLED_SAMPLES,
        "the same results where the parameters are the same": alike == len(shared) > 0,
    }


def _finished(output: Path) -> list[dict[str, Any]]:
    path = output / STUDY_FILE
    if not path.exists():
        return []
    study = optuna.load_study(study_name=None, storage=f"sqlite:///{path}")
    return [
        {"params": trial.params, "values": trial.values}
        for trial in study.trials
        if trial.state == optuna.trial.TrialState.COMPLETE
    ]


def jobs(old: Path, directory: Path, seeds: int, samples: int) -> dict[str, bool]:
    """Run the job of one symbol, full space, in this version and another, by turns."""
    import arch.data.sp500

    path = directory / "sp500.csv"
    arch.data.sp500.load()["Adj Close"].rename("Close").iloc[-1864:].to_csv(path)
    sources = {"snapshot": ("--source", "snapshot"), "S&P 500": ("--source", str(path), "--symbol", "SPX")}
    met = {}
    print("\n| series | seed | version | wall s | test MAE | test CRPS |")
    print("|---" * 6 + "|")
    for name, arguments in sources.items():
        seconds: dict[str, list[float]] = {"old": [], "new": []}
        for seed in range(42, 42 + seeds):
            for version, home in (("old", old), ("new", None)):
                output = directory / f"{version} {seed} {name.replace(' ', '')}"
                wall, _ = job(
                    output,
                    *arguments,
                    "--num-samples",
                    str(samples),
                    "--seed",
                    str(seed),
                    "--no-report",
                    home=home,
                )
                seconds[version].append(wall)
                summary = json.loads((output / SUMMARY_FILE).read_text())
                test = summary["pick"]["test"]
                print(
                    f"| {name} | {seed} | {version} | {wall:.0f} | {test['MAE']:.5g} | {test['CRPS']:.5g} |",
                    flush=True,
                )
                shutil.rmtree(output)
        ratio = float(np.median(seconds["new"]) / np.median(seconds["old"]))
        print(f"{name}: {ratio:.2f} times the old version's wall time", flush=True)
        met[f"{name}: at most 0.6 times the old version's wall time"] = ratio <= 0.6
    return met


def main() -> int:
    torch.set_num_threads(1)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    for name in ("cost", "unseen", "alone"):
        commands.add_parser(name).add_argument("file", type=Path, help="prices of many symbols")
    commands.add_parser("start").add_argument("checkpoint", type=Path, help="a model of many symbols")
    commands.add_parser("stocks")
    commands.add_parser("kill")
    against = commands.add_parser("jobs")
    against.add_argument("old", type=Path, help="a checkout of the other version")
    against.add_argument("--seeds", type=int, default=3)
    against.add_argument("--samples", type=int, default=64)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        match arguments.command:
            case "cost":
                checks = cost(arguments.file, directory)
            case "stocks":
                checks = stocks(directory)
            case "alone":
                checks = alone(arguments.file.absolute(), directory)
            case "unseen":
                checks = unseen(arguments.file)
            case "start":
                checks = start(arguments.checkpoint.absolute(), directory)
            case "kill":
                checks = kill(directory)
            case _:
                checks = jobs(arguments.old.absolute(), directory, arguments.seeds, arguments.samples)
    return report(checks)


if __name__ == "__main__":
    sys.exit(main())

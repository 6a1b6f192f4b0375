"""A backtest that trains its folds in parallel on a Ray cluster: ``python -m tune_jobs.backtest``."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from pydantic import Field

from forecast.cli.backtest import EXAMPLES, BacktestOptions, run_backtest
from forecast.cli.command import Parser, add_options, run
from forecast.config import parse_settings
from forecast.errors import UsageError
from tune_jobs.options import TuneOptions

if TYPE_CHECKING:
    from forecast.backtest.horizons import ByHorizon
    from forecast.backtest.rolling import FoldTask
    from forecast.prices.series import Series


class ParallelBacktestOptions(BacktestOptions):
    """The cluster."""

    address: str | None = TuneOptions.model_fields["address"]  # type: ignore[assignment]
    gpus_per_training: float = Field(0.0, ge=0, description="GPU share that each training run asks for")


def build_parser() -> Parser:
    """Build the command line from ``ParallelBacktestOptions``."""
    parser = Parser(
        prog="python -m tune_jobs.backtest",
        description="Train and score repeatedly, from origins that roll through the series, on a Ray cluster.",
        epilog=EXAMPLES.replace("-m forecast backtest", "-m tune_jobs.backtest"),
    )
    add_options(parser, ParallelBacktestOptions)
    return parser


def main(argv: Sequence[str]) -> int:
    """Run the backtest that the command line describes, and return the exit code."""
    given = vars(build_parser().parse_args(argv))
    options = parse_settings(ParallelBacktestOptions, given)
    from tune_jobs.cluster import connected

    def run_on_cluster(series: Series, tasks: Sequence[FoldTask]) -> Iterator[ByHorizon]:
        with connected(options.address):
            yield from _results(series, tasks, options)

    return run_backtest(options, set(given), run=run_on_cluster)


def _results(
    series: Series, tasks: Sequence[FoldTask], options: ParallelBacktestOptions
) -> Iterator[ByHorizon]:
    """Yield the tasks' forecasts in the order of the tasks, as they become ready."""
    import ray

    from forecast.backtest.rolling import run_task

    def on_worker(series: Series, task: FoldTask) -> ByHorizon:
        from forecast.model.device import device_for_share

        if task.config.device == "auto":
            task = task.on(device_for_share(ray.get_runtime_context().get_accelerator_ids().get("GPU")))
        return run_task(series, task)

    demand = {"CPU": float(tasks[0].config.threads), "GPU": options.gpus_per_training}
    _require_resources(demand)
    remote = ray.remote(num_cpus=demand["CPU"], num_gpus=demand["GPU"])(on_worker)
    shared = ray.put(series)
    for answer in [remote.remote(shared, task) for task in tasks]:
        try:
            yield ray.get(answer)
        except ray.exceptions.RayTaskError as error:
            raise error.cause from None


def _require_resources(demand: dict[str, float]) -> None:
    """Refuse a demand that no node can meet: Ray would wait for it silently.

    Raises:
        UsageError: when no node has enough; names the option.
    """
    import ray

    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    for name, option in (("CPU", "threads"), ("GPU", "gpus_per_training")):
        most = max((node.get(name, 0.0) for node in nodes), default=0.0)
        if demand[name] > most:
            raise UsageError(
                f"`{option}` {demand[name]:g}: no node has more than {most:g} {name}s; ask for less"
            )


if __name__ == "__main__":
    sys.exit(run(main))

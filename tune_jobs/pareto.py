"""The tuning command: ``python -m tune_jobs.pareto``."""

from __future__ import annotations

from collections.abc import Sequence

from forecast.cli.interrupts import EXIT_INTERRUPTED, end_at_once

if __name__ == "__main__":
    # The other imports take long enough to be interrupted; ``run`` takes over after them.
    end_at_once()

from forecast.cli.command import Parser, add_options, leave, run
from forecast.config import parse_settings
from tune_jobs.options import TuneOptions
from tune_jobs.startup import cluster_beside, only_imports

EXAMPLES = """\
examples:
  python -m tune_jobs.pareto --num-samples 64
  python -m tune_jobs.pareto --num-samples 16 --space small --source prices.csv --symbol ACME
  python -m tune_jobs.pareto --num-samples 200 --address auto --storage-path s3://bucket/tune
  python -m tune_jobs.pareto --num-samples 64 --resume
"""


def build_parser() -> Parser:
    """Build the command line from ``TuneOptions``."""
    parser = Parser(
        prog="python -m tune_jobs.pareto",
        description="Search LSTM forecasters over MAE, RMSE and MAPE (or other objectives) with Ray Tune and Optuna, "
        "and keep the picked point of the Pareto front as one checkpoint.",
        epilog=EXAMPLES,
    )
    add_options(parser, TuneOptions)
    return parser


def main(argv: Sequence[str]) -> int:
    """Run the job that the command line describes, and return the exit code."""
    given = vars(build_parser().parse_args(argv))
    options = parse_settings(TuneOptions, given)
    with cluster_beside(options.address) as cluster:
        # Ray and torch take seconds to import: --help and a mistyped option must not wait for them.
        with only_imports():
            from tune_jobs.job import run_job

        outcome = run_job(options, cluster)
    return EXIT_INTERRUPTED if outcome.interrupted else 0


if __name__ == "__main__":
    leave(run(main))

"""The command for each session: ``python -m tune_jobs.update``."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

from forecast.cli.command import Parser, add_options, leave, run
from forecast.config import parse_settings
from tune_jobs.update_options import UpdateOptions

if TYPE_CHECKING:
    from tune_jobs.session import Outcome

EXAMPLES = """\
examples:
  python -m tune_jobs.update --symbol BTC-USD
  python -m tune_jobs.update --source prices.csv --symbol ACME --space small --retune-every 20
  python -m tune_jobs.update --source prices.parquet --symbols all --name stocks --shadow-sessions 20
"""


def build_parser() -> Parser:
    """Build the command line from ``UpdateOptions``."""
    parser = Parser(
        prog="python -m tune_jobs.update",
        description="Update the forecasts after a session: fetch the prices, score the published forecasts whose "
        "prices have arrived, train a challenger when one is due, promote it or keep the current version, and publish "
        "the next forecasts. A running server then serves a promoted version. Run this command after each session, for "
        "example from cron. It may also run twice, late or after a week: it does the work that is due, and completes "
        "an interrupted run. The first run tunes the first model.",
        epilog=EXAMPLES,
    )
    add_options(parser, UpdateOptions)
    return parser


def main(argv: Sequence[str]) -> int:
    """Run one update, and return the exit code."""
    options = parse_settings(UpdateOptions, vars(build_parser().parse_args(argv)))
    from tune_jobs.session import Session

    session = Session(options)
    with session.store.lock(session.name):
        outcome = session.run()
    if options.json_output:
        print(json.dumps(asdict(outcome), indent=2))
    elif not options.quiet:
        print("\n".join(described(outcome)))
    return 0


def described(outcome: Outcome) -> list[str]:
    """Describe what a run did, in lines for a person."""
    if outcome.nothing_new:
        return [f"{outcome.name}: nothing new since {outcome.session}", *_left_out(outcome)]
    from forecast.scores.metrics import value_text

    lines = [f"{outcome.name}: {outcome.session}"]
    if outcome.scored or outcome.new_prices:
        corrected = f", {outcome.corrected} corrected" if outcome.corrected else ""
        lines.append(
            f"  prices: {outcome.new_prices} new{corrected}; forecasts and baselines scored: {outcome.scored}"
        )
    if outcome.added:
        lines.append(f"  a job added {outcome.added}")
    if outcome.decision:
        lines.append(f"  {outcome.decision}")
    if outcome.published:
        symbols = "symbol" if outcome.published == 1 else "symbols"
        again = "" if not outcome.superseded else f", {outcome.superseded} again from corrected prices"
        lines.append(f"  published forecasts of {outcome.published} {symbols}{again}")
    for each in outcome.forecasts:
        prediction, lower, upper = (value_text(each[name]) for name in ("prediction", "lower", "upper"))
        lines.append(f"    {each['target']}: {prediction} (90 %: {lower} to {upper})")
    return [*lines, *_left_out(outcome)]


def _left_out(outcome: Outcome) -> list[str]:
    return [f"  left out: {symbol}: {why}" for symbol, why in outcome.left_out.items()]


if __name__ == "__main__":
    leave(run(main, sys.argv[1:]))

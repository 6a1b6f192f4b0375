"""``python -m serve_app``: ``run`` serves in the foreground, ``reload`` loads a changed checkpoint into the running
application, ``flags`` prints the environment that a cluster needs at its start."""

from __future__ import annotations

import atexit
import os
import shlex
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict, Field

from forecast.cli.command import Parser, add_options, run
from forecast.cli.interrupts import EXIT_INTERRUPTED
from forecast.config import parse_settings
from forecast.names import MOST_NAMES
from serve_app.flags import current_flags
from serve_app.options import DEFAULT_APP, RunOptions

if TYPE_CHECKING:
    from serve_app.models import ReloadOutcome

EXAMPLES = """\
examples:
  python -m serve_app reload
  RAY_ADDRESS=10.0.0.1:6379 python -m serve_app reload --app forecaster
"""

FLAGS_EXAMPLE = """\
example:
  (eval "$(python -m serve_app flags)" && ray start --head)
  serve deploy serve_config.yaml
"""


RUN_EXAMPLES = """\
examples:
  python -m serve_app run --checkpoint model.pt
  python -m serve_app run --host 0.0.0.0 --port 9010 --replicas 2 --require-api-key
other commands: python -m serve_app reload, python -m serve_app flags
"""


class ReloadOptions(BaseModel):
    """The running application."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    address: str = Field(
        "auto", description="Ray cluster that the application runs on; auto is the cluster on this machine"
    )
    app: str = Field(DEFAULT_APP, description="name of the application on the cluster")
    timeout: float = Field(60.0, gt=0, description="seconds to wait for the replicas")


def build_parser() -> Parser:
    """Build the command line from ``RunOptions`` and ``ReloadOptions``."""
    parser = Parser(
        prog="python -m serve_app", description="Run the serving application, or change a running one."
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="{run,reload,flags}")
    command = commands.add_parser(
        "run",
        prog="python -m serve_app run",
        help="serve in the foreground, on any port, until SIGINT or SIGTERM",
        description="Serve in the foreground, like `serve run serve_app:app`, but on any host and port. SIGTERM ends "
        "it like Ctrl-C: replicas first get time to finish their requests.",
        epilog=RUN_EXAMPLES,
    )
    add_options(command, RunOptions)
    command = commands.add_parser(
        "reload",
        help="load the served checkpoints again, in every replica, without dropping a request",
        description="Load the served checkpoints again in every replica. Each replica loads, checks and warms up the "
        "new models while it serves the old models, then swaps the two. A replica that cannot use the new models "
        "keeps the old models; the exit code is then 1.",
        epilog=EXAMPLES,
    )
    add_options(command, ReloadOptions)
    commands.add_parser(
        "flags",
        help="print the environment that a cluster needs at its start, for eval",
        description="Print Ray Serve's environment flags as shell commands. A cluster reads the flags when it "
        "starts, and then puts HAProxy in front of the replicas; without the flags the application runs, but many "
        "times slower. `serve run` does not need this command.",
        epilog=FLAGS_EXAMPLE,
    )
    return parser


def main(argv: Sequence[str]) -> int:
    """Run the command, and return the exit code."""
    given = vars(build_parser().parse_args(argv))
    command = given.pop("command")
    if command == "flags":
        for name, value in current_flags().items():
            print(f"export {name}={shlex.quote(value)}")
        return 0
    if command == "run":
        run_options = parse_settings(RunOptions, given)
        from serve_app.foreground import serve_until_stopped

        serve_until_stopped(run_options)
        return 0
    options = parse_settings(ReloadOptions, given)
    from serve_app.reload import reload

    return print_outcomes(reload(options.address, options.app, options.timeout))


def print_outcomes(outcomes: Sequence[ReloadOutcome]) -> int:
    """Say what each replica serves and refuses after a reload, and return the exit code."""
    refused = sorted({outcome.refused for outcome in outcomes if outcome.refused})
    for reason in refused:
        count = sum(outcome.refused == reason for outcome in outcomes)
        print(
            f"refused by {count} of {len(outcomes)} replicas, which keep the old models: {reason}",
            file=sys.stderr,
        )
    served = [outcome for outcome in outcomes if not outcome.refused]
    loaded = list(dict.fromkeys(pair for outcome in served for pair in outcome.versions.items()))
    for symbol, version in loaded[:MOST_NAMES]:
        print(f"serving {symbol}, version {version[:12]}")
    known = max((outcome.known for outcome in served), default=0)
    if known > min(len(loaded), MOST_NAMES):
        print(f"serving {known} symbols; GET /models lists them")
    unusable = sorted({reason for outcome in outcomes for reason in outcome.unusable})
    for reason in unusable[:MOST_NAMES]:
        print(reason, file=sys.stderr)
    if len(unusable) > MOST_NAMES:
        print(f"{len(unusable) - MOST_NAMES} more cannot be used; GET /models lists them", file=sys.stderr)
    return 1 if refused or unusable else 0


if __name__ == "__main__":
    code = run(main)
    if code == EXIT_INTERRUPTED:
        # Python would end itself with SIGINT, or crash in what Ray was starting, and the exit code would be lost.
        atexit._run_exitfuncs()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)

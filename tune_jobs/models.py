"""The model store's command: ``python -m tune_jobs.models``."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field

from forecast.atomic import write_atomically
from forecast.cli.command import Parser, add_options, leave, run
from forecast.cli.forms import as_typed
from forecast.config import Config, parse_settings
from forecast.errors import StoreError
from forecast.job_files import PICK_FILE
from tune_jobs.update_options import MODELS

if TYPE_CHECKING:
    from forecast.live.store import Store

EXAMPLES = """\
examples:
  python -m tune_jobs.models list
  python -m tune_jobs.models show BTC-USD
  python -m tune_jobs.models add BTC-USD artifacts
  python -m tune_jobs.models promote BTC-USD 2020-01-17-3fa9c1d2
  python -m tune_jobs.models rollback BTC-USD
  python -m tune_jobs.models export ledger
"""


class StoreOptions(Config):
    """The store."""

    models: Path = Field(MODELS, description="directory of the model store and its ledger")
    json_output: bool = Field(False, alias="json", description="print JSON instead of tables")


NAME = ("name", "name of the model in the store", str)
COMMANDS: dict[str, tuple[str, tuple[tuple[str, str, type], ...]]] = {
    "list": ("list the models with their current versions, last sessions and alarms", ()),
    "show": ("show the events of a model: versions, promotions, alarms", (NAME,)),
    "add": (
        "add a finished job as a version",
        (NAME, ("job", "output directory of the job; its files are copied", Path)),
    ),
    "promote": (
        "make a version the current version, which is served",
        (NAME, ("version", "the version; `show` lists them", str)),
    ),
    "rollback": ("return to the previous current version", (NAME,)),
    "export": (
        "write the ledger's tables as Parquet files",
        (("output", "directory for one file per table", Path),),
    ),
}
"""The description of each command, and its arguments."""


def build_parser() -> Parser:
    """Build the command line."""
    parser = Parser(
        prog="python -m tune_jobs.models",
        description="Inspect the model store and its ledger, and change the current version of a model, "
        "which a running server then serves within seconds.",
        epilog=EXAMPLES,
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar=f"{{{','.join(COMMANDS)}}}")
    for name, (text, arguments) in COMMANDS.items():
        command = commands.add_parser(name, help=text, description=f"{text[0].upper()}{text[1:]}.")
        for argument, meaning, kind in arguments:
            command.add_argument(argument, help=meaning, type=kind)
        add_options(command, StoreOptions)
    return parser


def main(argv: Sequence[str]) -> int:
    """Run one command, and return the exit code."""
    given = vars(build_parser().parse_args(argv))
    command = given.pop("command")
    arguments = [given.pop(name) for name, _, _ in COMMANDS[command][1]]
    options = parse_settings(StoreOptions, given)
    # Imported here so that --help does not wait for SQLAlchemy.
    from forecast.live.store import Store

    store = Store(options.models)
    if command == "add":
        _add(store, *arguments)
    elif command == "promote":
        name, version = arguments
        with store.lock(name):
            store.complete(name)
            store.promote(name, version, details={"why": "by hand"})
        print(f"{name}: {version} is the current version")
    elif command == "rollback":
        (name,) = arguments
        with store.lock(name):
            store.complete(name)
            print(f"{name}: {store.rollback(name, {'why': 'by hand'})} is the current version again")
    elif command == "export":
        _export(store, *arguments)
    else:
        rows = _overview(store) if command == "list" else _history(store, *arguments)
        print(json.dumps(rows, indent=2) if options.json_output else _table(rows))
    return 0


def _add(store: Store, name: str, job: Path) -> None:
    """Add a job's files as a version."""
    from forecast.live.judge import seen_until
    from forecast.model.checkpoint import load_checkpoint

    last = seen_until(load_checkpoint(job / PICK_FILE))
    if last is None:
        raise StoreError(f"the checkpoint in {job} does not name its last training row; tune the model again")
    with store.lock(name):
        added = store.add(name, job, last)
    print(f"{name}: added {added.version}; `promote` makes it the current version")


def _export(store: Store, output: Path) -> None:
    """Write one Parquet file per table."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    for table, rows in store.ledger.tables():
        plain = [
            {name: json.dumps(value) if isinstance(value, dict) else value for name, value in row.items()}
            for row in rows
        ]
        path = output / f"{table}.parquet"
        write_atomically(path, partial(pq.write_table, pa.Table.from_pylist(plain)))
        print(f"{path}: {len(rows)} rows")


def _overview(store: Store) -> list[dict[str, Any]]:
    """One row per name."""
    from forecast.live.alarms import alarms_on

    rows = []
    for name in store.names():
        current = store.current(name)
        rows.append(
            {
                "name": name,
                "current": current and current.version,
                "versions": len(store.versions(name)),
                "trained until": current and current.trained_until,
                "last session": store.ledger.last_session(name),
                "alarms": ", ".join(sorted(alarms_on(store.ledger, name))),
            }
        )
    return rows


def _history(store: Store, name: str) -> list[dict[str, Any]]:
    """One row per event, the oldest first."""
    store.versions(name)  # refuses an unknown name
    current, rows = store.current(name), []
    for event in reversed(store.ledger.events(name)):
        details = event["details"]
        rows.append(
            {
                "at": event["at"][:19],
                "session": event["session"],
                "event": event["kind"],
                "version": event["version"],
                "current": "*" if current and event["version"] == current.version else "",
                "why": details.get("why") or details.get("text") or details.get("alarm") or "",
            }
        )
    return rows


def _table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows as a plain table, as wide as its cells."""
    if not rows:
        return as_typed("no models yet; `python -m tune_jobs.update` creates the first one")
    names = list(rows[0])
    cells = [names, *([str(row[name] if row[name] is not None else "") for name in names] for row in rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(names))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in cells
    )


if __name__ == "__main__":
    leave(run(main, sys.argv[1:]))

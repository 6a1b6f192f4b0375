"""The model store's command: ``python -m tune_jobs.models``."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field

from forecast.atomic import write_atomically
from forecast.cli.command import Parser, add_options, leave, run
from forecast.cli.forms import as_typed
from forecast.config import Config, parse_settings
from forecast.errors import StoreError, UsageError
from forecast.job_files import PICK_FILE
from tune_jobs.options import MlflowOptions
from tune_jobs.update_options import MODELS

if TYPE_CHECKING:
    from forecast.live.store import Store
    from tune_jobs.mlflow_log import Tracking

EXAMPLES = """\
examples:
  python -m tune_jobs.models list
  python -m tune_jobs.models show BTC-USD
  python -m tune_jobs.models add BTC-USD artifacts
  python -m tune_jobs.models promote BTC-USD 2020-01-17-3fa9c1d2
  python -m tune_jobs.models rollback BTC-USD
  python -m tune_jobs.models log BTC-USD artifacts --mlflow http://localhost:5000
  python -m tune_jobs.models export ledger
"""


class StoreOptions(Config):
    """The store."""

    models: Path = Field(MODELS, description="directory of the model store and its ledger")
    json_output: bool = Field(False, alias="json", description="print JSON instead of tables")


class LoggedOptions(MlflowOptions, StoreOptions):
    """The store, whose changes MLflow follows."""


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
    "log": (
        "log a finished job in MLflow, or complete its log; the store is not used",
        (NAME, ("job", "output directory of the job", Path)),
    ),
    "export": (
        "write the ledger's tables as Parquet files",
        (("output", "directory for one file per table", Path),),
    ),
}
"""The description of each command, and its arguments."""
UNTIL_UPDATE = "; its published forecasts and their record begin with the next update"
"""The end of a message: what a new current version gets only at the next update."""
IN_MLFLOW = ("promote", "rollback", "log")
"""The commands whose changes MLflow can follow."""


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
        add_options(command, _settings_of(name))
    return parser


def _settings_of(command: str) -> type[StoreOptions]:
    return LoggedOptions if command in IN_MLFLOW else StoreOptions


def main(argv: Sequence[str]) -> int:
    """Run one command, and return the exit code."""
    given = vars(build_parser().parse_args(argv))
    command = given.pop("command")
    arguments = [given.pop(name) for name, _, _ in COMMANDS[command][1]]
    options = parse_settings(_settings_of(command), given)
    # Imported here so that --help does not wait for SQLAlchemy.
    from forecast.live.store import Store

    store = Store(options.models)
    if command not in ("add", "log"):
        store.require()
    tracking = options.tracking if isinstance(options, LoggedOptions) else None
    if command == "add":
        _add(store, *arguments)
    elif command == "promote":
        name, version = arguments
        store.path(name, version)  # refused before the lock creates a directory
        with store.lock(name):
            store.complete(name)
            if is_new := (current := store.current(name)) is None or current.version != version:
                store.promote(name, version, details={"why": "by hand"})
        print(f"{name}: {version} is the current version{UNTIL_UPDATE if is_new else ' already'}")
        _follow(tracking, store, name)
    elif command == "rollback":
        (name,) = arguments
        store.versions(name)  # refused before the lock creates a directory
        with store.lock(name):
            store.complete(name)
            again = store.rollback(name, {"why": "by hand"})
        print(f"{name}: {again} is the current version again{UNTIL_UPDATE}")
        _follow(tracking, store, name)
    elif command == "log":
        if tracking is None:
            raise UsageError("`mlflow` is missing: name the MLflow server")
        print(tracking.log_job(*arguments))
    elif command == "export":
        _export(store, *arguments)
    else:
        rows = _overview(store) if command == "list" else _history(store, *arguments)
        print(json.dumps(rows, indent=2) if options.json_output else _table(rows))
    return 0


def _follow(tracking: Tracking | None, store: Store, name: str) -> None:
    """Let the aliases follow a change by hand, which ends the run of a shadow."""
    if tracking:
        tracking.follow_or_warn(store, name, None)


def _add(store: Store, name: str, job: Path) -> None:
    """Add a job's files as a version."""
    from forecast.live.judge import seen_until
    from forecast.live.subject import Subject, keep_subject
    from forecast.model.checkpoint import load_checkpoint

    model = load_checkpoint(job / PICK_FILE)
    last, subject = seen_until(model), Subject.of_model(model)
    if last is None or subject is None:
        raise StoreError(f"the checkpoint in {job} does not name its last training row; tune the model again")
    with store.lock(name):
        keep_subject(store.ledger, name, subject)
        added = store.add(name, job, last)
    print(f"{name}: added {added.version}; `promote` makes it the current version")


def _export(store: Store, output: Path) -> None:
    """Write one Parquet file per table, of which a part is in memory at a time."""
    import pyarrow as pa
    import pyarrow.parquet as pq
    import sqlalchemy as sa

    plain = {sa.Integer: pa.int64(), sa.Float: pa.float64(), sa.LargeBinary: pa.list_(pa.float64())}

    def write(table: sa.Table, parts: Iterator[list[dict[str, Any]]], path: Path) -> None:
        schema = pa.schema([(each.name, plain.get(type(each.type), pa.string())) for each in table.c])
        documents = [each.name for each in table.c if isinstance(each.type, sa.JSON)]
        count = 0
        with pq.ParquetWriter(path, schema) as writer:
            for rows in parts:
                for row in rows:
                    row |= {name: json.dumps(row[name]) for name in documents if row[name] is not None}
                writer.write_table(pa.Table.from_pylist(rows, schema))
                count += len(rows)
        counts[table.name] = count

    counts: dict[str, int] = {}
    for table, parts in store.ledger.tables():
        path = output / f"{table.name}.parquet"
        write_atomically(path, partial(write, table, parts))
        print(f"{path}: {counts[table.name]} rows")


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
    current, events = store.current(name), store.ledger.events(name)
    by_id = {event["id"]: event for event in events}
    return [
        {
            "at": event["at"][:19],
            "session": event["session"],
            "event": event["kind"],
            "version": event["version"],
            "current": "*" if current and event["version"] == current.version else "",
            "why": _reason(event, by_id),
        }
        for event in reversed(events)
    ]


def _reason(event: Mapping[str, Any], by_id: Mapping[int, Mapping[str, Any]]) -> str:
    """The reason for an event, or what it was about, in one line."""
    details = event["details"]
    if event["kind"] == "notified":
        posted = by_id.get(details.get("event"))
        if posted is None:
            return "the first use of --notify"
        return f"posted the alarm {posted['details']['alarm']} of {posted['at'][:10]}"
    if event["kind"] == "alarm_over":
        began = details.get("began")
        return (
            f"{details['alarm']}, on since {began['session'] or began['at'][:10]}"
            if began
            else details["alarm"]
        )
    if event["kind"] == "added":
        return f"trained until {event['session']}"
    return details.get("why") or details.get("text") or ""


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

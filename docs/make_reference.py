"""Writes ``docs/reference`` from the code: commands, HTTP and files. ``make docs`` runs it."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any
from unittest import mock

REFERENCE = Path(__file__).with_name("reference")
MADE = "<!-- Made from the code by `make docs`: change it there. -->"
WIDTH = os.terminal_size((102, 24))
"""Of the help texts, whatever terminal they are made in."""


def commands() -> str:
    """Every command's ``--help``, and the options of the application."""
    from forecast.__main__ import build_parser as forecast
    from forecast.cli.completion import build_parser as completion
    from forecast.cli.console import help_text
    from forecast.cli.forms import PROGRAM, short_form
    from serve_app.__main__ import build_parser as serve
    from serve_app.options import ServeOptions
    from tune_jobs.backtest import build_parser as backtest
    from tune_jobs.models import build_parser as models
    from tune_jobs.pareto import build_parser as pareto
    from tune_jobs.update import build_parser as update

    with mock.patch("os.get_terminal_size", return_value=WIDTH):
        each_session = [update(), *subcommands(models())]
        parsers = [pareto(), *subcommands(forecast()), backtest(), *each_session, *subcommands(serve())]
        helps = [(parser.prog, parser.format_help()) for parser in [*parsers, completion()]]
    parts = [
        "# Commands",
        f"Each command has two forms that do the same, for example `{PROGRAM} tune` and `python -m tune_jobs.pareto`: "
        "[the command line](../how-to/command-line.md).",
        f"## `{PROGRAM}`\n\n```text\n{help_text()}\n```",
    ]
    for prog, text in helps:
        also = [] if prog.startswith(PROGRAM) else [f"Also `{short_form(prog)}`."]
        parts += [f"## `{prog}`", *also, f"```text\n{text.strip()}\n```"]
    rows = [
        (f"`{name}`", default_of(field), field.description)
        for name, field in ServeOptions.model_fields.items()
    ]
    parts += [
        "## `serve run serve_app:app`",
        "Options follow as `name=value`, or stand under `args` in a Serve config file. An option that is not given "
        "comes from its environment variable, for example `FORECAST_REPLICAS`. `FORECAST_API_KEY` in the environment "
        "is the key that clients must send.",
        table(("option", "default", "meaning"), rows),
    ]
    return page(parts)


def subcommands(parser: Any) -> list[Any]:
    """The parsers of a command's subcommands."""
    (choices,) = (action.choices for action in parser._actions if isinstance(action.choices, dict))
    return list(choices.values())


def default_of(field: Any) -> str:
    """A field's default as a person writes it; empty where its description says what holds."""
    value = field.get_default(call_default_factory=False)
    if field.default_factory or value is None or value == ():
        return ""
    return f"`{str(value).lower() if isinstance(value, bool) else value}`"


def http() -> str:
    """Routes with what they take and answer, from the description that the server gives of itself."""
    from serve_app.live import LiveLedger
    from serve_app.models import Models
    from serve_app.routes import describe_routes
    from serve_app.served_model import Engines

    models = Models(Engines())
    described = describe_routes(models, LiveLedger(models)).openapi()
    schemas = described["components"]["schemas"]
    parts = [
        "# HTTP",
        "`GET /` is a page for people, `GET /docs` shows this interface, `GET /openapi.json` is it for "
        "machines. What is no route (404) or another method than a route's (405) is refused in the same form, with an "
        "`ErrorAnswer`.",
    ]
    shown: set[str] = set()
    for path, methods in described["paths"].items():
        for method, operation in methods.items():
            parts.append(f"## `{method.upper()} {path}`\n\n{operation['summary']}.")
            parts += [
                f"{parameter['in'].capitalize()} `{parameter['name']}`: {parameter_text(parameter)}."
                for parameter in operation.get("parameters", [])
            ]
            body = operation.get("requestBody", {}).get("content", {}).get("application/json", {})
            for name in names_in(body.get("schema", {})):
                parts.append(f"Takes a `{name}`.")
                parts += described_schemas(name, schemas, shown)
            for status, answer in operation["responses"].items():
                schema = answer.get("content", {}).get("application/json", {}).get("schema", {})
                for name in names_in(schema):
                    if name != "ErrorAnswer":
                        parts.append(f"Answers {status} with `{name}`.")
                        parts += described_schemas(name, schemas, shown)
            refusals = [status for status in operation["responses"] if status != "200"]
            if refusals:
                parts.append(f"Refuses with {', '.join(refusals)} and an `ErrorAnswer`.")
    parts += ["## Errors", *described_schemas("ErrorAnswer", schemas, shown)]
    return page(parts)


def names_in(schema: dict[str, Any]) -> list[str]:
    """The names of the schemas that a body or an answer may have."""
    names = [each.get("$ref", "").rpartition("/")[2] for each in schema.get("anyOf", [schema])]
    return [name for name in names if name]


def described_schemas(name: str, schemas: dict[str, Any], shown: set[str]) -> list[str]:
    """A schema and those it refers to, each once."""
    if name in shown:
        return []
    shown.add(name)
    schema = schemas[name]
    inner = sorted(set(re.findall(r"#/components/schemas/(\w+)", str(schema))))
    parts = [f"### `{name}`", first_line(schema), *([fields(schema)] if "properties" in schema else [])]
    for other in inner:
        parts += described_schemas(other, schemas, shown)
    return parts


def fields(schema: dict[str, Any]) -> str:
    """A schema's fields as a table."""
    required = schema.get("required", [])
    rows = [
        (f"`{name}`{'' if name in required else ' (optional)'}", kind(field), field.get("description", ""))
        for name, field in schema.get("properties", {}).items()
    ]
    return table(("field", "type", "meaning"), rows)


def kind(schema: dict[str, Any]) -> str:
    """A schema's type in a few words."""
    if "$ref" in schema:
        return f"`{schema['$ref'].rpartition('/')[2]}`"
    if "anyOf" in schema:
        return " or ".join(kind(option) for option in schema["anyOf"])
    if schema.get("type") == "array":
        return f"list of {kind(schema.get('items', {}))}"
    return str(schema.get("type", "any"))


def parameter_text(parameter: dict[str, Any]) -> str:
    """A parameter's type, whether it may be left out, and its meaning."""
    parts = [kind(parameter["schema"]), *([] if parameter["required"] else ["optional"])]
    return ", ".join([*parts, *filter(None, [parameter.get("description")])])


def files() -> str:
    """What a job leaves, what a checkpoint holds, and what is measured."""
    from forecast.model.checkpoint import SCHEMA_VERSION, Checkpoint
    from forecast.pages import backtest
    from tune_jobs.report import FILES

    rows = [(f"`{name}`", meaning) for name, meaning in FILES.items()]
    parts = [
        "# Files",
        "## A tuning job's `--output-dir`",
        table(("file", "what"), rows),
        "## A backtest's `--output-dir`",
        table(("file", "what"), [(f"`{name}`", what) for name, what in backtest.FILES.items()]),
        f"## A checkpoint, schema {SCHEMA_VERSION}",
        "One file that `torch.load(weights_only=True)` reads. `feature_mean` and `feature_std` repeat the feature's "
        "`normalization`, as in the original system. Files of schemas 1 and 2 and of the original system load too. An "
        "exported model (`.onnx`) has the same fields but `model_state`, as JSON under the key `card` of its metadata.",
        table(
            ("field", "what"),
            [
                (f"`{name}`", field.description)
                for name, field in Checkpoint.model_fields.items()
                if not field.exclude
            ],
        ),
    ]
    return page(parts)


def first_line(schema: dict[str, Any]) -> str:
    """The first line of a schema's description."""
    return plain(str(schema.get("description", "")).strip().split("\n")[0])


def plain(text: str) -> str:
    """Text of a docstring, whose code stands between two backticks where Markdown has one."""
    return text.replace("``", "`")


def table(header: Iterable[str], rows: Iterable[Iterable[str | None]]) -> str:
    """A table in Markdown."""

    def line(cells: Iterable[str | None]) -> str:
        return "| " + " | ".join((cell or "").replace("|", "\\|") for cell in cells) + " |"

    header = list(header)
    return "\n".join([line(header), "|" + "---|" * len(header), *map(line, rows)])


def page(parts: Iterable[str]) -> str:
    """A page of parts."""
    return "\n\n".join([MADE, *parts]) + "\n"


PAGES = {"commands.md": commands, "http.md": http, "files.md": files}

if __name__ == "__main__":
    for name, make in PAGES.items():
        (REFERENCE / name).write_text(make())

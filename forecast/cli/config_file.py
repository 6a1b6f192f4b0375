"""The file of ``--config``: options by their names, in YAML.

Scalars are read as text, as on a command line, and validated with the settings: ``symbol: ON`` is a symbol, although
ON is a boolean in YAML.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from forecast.cli.command import groups_of
from forecast.config import from_text, home_expanded, options_of
from forecast.errors import UsageError
from forecast.names import did_you_mean

NULL = "tag:yaml.org,2002:null"
DOCUMENT_END = "...\n"
HIDDEN = "its password is not written; name an environment variable in its place, such as ${DB_PASSWORD}"


def read_config(path: Path, settings: type[BaseModel]) -> dict[str, tuple[Any, str]]:
    """Read the options that a file gives, each with its place in the file.

    A key is the name of an option, with underscores or hyphens. A key without a value gives nothing.

    Raises:
        UsageError: when the file cannot be read, is no YAML, or has a key that is no option; names the file.
    """
    try:
        document = yaml.compose(home_expanded(path).read_bytes(), Loader=yaml.SafeLoader)
    except OSError as error:
        raise UsageError(
            f"`config` {path} cannot be read ({(error.strerror or str(error)).lower()}); check the path"
        ) from None
    except yaml.YAMLError as error:
        raise UsageError(f"`config` {path}{_problem(error)}; correct the file") from None
    if document is None:
        return {}
    if not isinstance(document, yaml.MappingNode):
        raise UsageError(f"`config` {path}: give one option per line, for example `seed: 7`")
    options, found = options_of(settings), dict[str, tuple[Any, str]]()
    for key, node in document.value:
        place = f"{path}, line {key.start_mark.line + 1}"
        written = " ".join(str(key.value).split())
        name = written.replace("-", "_")
        if name not in options:
            hint = did_you_mean(name, options, most=1) or "--help lists the options"
            raise UsageError(f"{place}: {written} is not an option of this command; {hint}")
        if name in found:
            raise UsageError(f"{place}: {written} is given twice; omit one of the two")
        if any(not isinstance(part, yaml.ScalarNode) for part in _parts(node)):
            raise UsageError(f"{place}: {written} has a nested value; give one value or a list")
        if node.tag != NULL:
            found[name] = (_value(node, options[name]), f"{written} ({place})")
    return found


def _problem(error: yaml.YAMLError) -> str:
    """Describe an error of the reader in one line: where it is, if this is known, and what it is."""
    mark = getattr(error, "problem_mark", None)
    where = f", line {mark.line + 1}" if mark else ""
    reason = getattr(error, "problem", None) or getattr(error, "reason", None) or "it cannot be read"
    return f"{where}: not YAML ({str(reason).splitlines()[0]})"


def _parts(node: yaml.Node) -> list[yaml.Node]:
    """The items of a list, or the one value."""
    return list(node.value) if isinstance(node, yaml.SequenceNode) else [node]


def _value(node: yaml.Node, field: FieldInfo) -> Any:
    if isinstance(node, yaml.SequenceNode):
        return [str(item.value) for item in node.value]
    return from_text(field, str(node.value))


def config_text(prog: str, options: BaseModel, given: Collection[str]) -> str:
    """Write the options of a command as a file for ``read_config``.

    Args:
        prog: the command, for people.
        options: the options in force.
        given: names of those that the user gave; the others have their defaults, and are written as comments.
    """
    values = options.model_dump(mode="json", by_alias=True)
    lines = [f"# Options of `{prog}`, for --config; options in comments have their defaults."]
    for title, fields in groups_of(type(options)):
        lines += ["", f"# {title}:"]
        for name in fields:
            if not fields[name].repr and getattr(options, name) != values[name]:
                lines.append(f"# {_line(name, values[name])}  # {HIDDEN}")
            elif name in given:
                lines.append(_line(name, values[name]))
            else:
                lines.append(f"# {name}:" if values[name] is None else f"# {_line(name, values[name])}")
    return "\n".join(lines) + "\n"


def _line(name: str, value: Any) -> str:
    parts = value if isinstance(value, list) else [value]
    # White space beyond ASCII may be a line break to YAML, or be stripped below: it is escaped.
    printable = all(str(part).isprintable() for part in parts)
    text: str = yaml.safe_dump(value, default_flow_style=True, allow_unicode=printable, width=2**31)
    return f"{name}: {text.removesuffix(DOCUMENT_END).strip()}"

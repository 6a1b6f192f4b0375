"""Pages for a browser: each is one file with everything in it, so that it opens without a network."""

from __future__ import annotations

import importlib.resources
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from rich.table import Table

from forecast.atomic import write_atomically

if TYPE_CHECKING:
    import plotly.graph_objects as go

TEMPLATE = "page.html.jinja"


@dataclass(frozen=True)
class Text:
    """A paragraph."""

    kind: ClassVar[str] = "text"

    text: str


@dataclass(frozen=True)
class Commands:
    """Lines for a terminal."""

    kind: ClassVar[str] = "commands"

    lines: Sequence[str]


@dataclass(frozen=True)
class Grid:
    """A table.

    Attributes:
        header: titles of the columns, which may have several lines.
        rows: cells, one for each title.
        marked: index of the row to highlight.
        text_columns: indices of the columns that hold words; the others hold numbers, aligned to the right.
        explored: whether readers can sort the rows and search them, for long tables.
    """

    kind: ClassVar[str] = "grid"

    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    marked: int | None = None
    text_columns: Sequence[int] = (0,)
    explored: bool = False


def grid_of(table: Table, marked: int | None = None) -> Grid:
    """Convert a terminal's table for a page; cells are plain text, right-justified columns hold numbers."""
    header = [str(column.header) for column in table.columns]
    rows = list(zip(*([str(cell) for cell in column.cells] for column in table.columns), strict=True))
    words = [i for i, column in enumerate(table.columns) if column.justify != "right"]
    return Grid(header, rows, marked, words)


@dataclass(frozen=True)
class Plot:
    """A Plotly figure.

    Attributes:
        figure: takes its colours from the page where it has none; a trace whose ``meta`` is ``ink``, ``soft``,
            ``forecast``, ``persistence``, ``pick`` or ``band`` has the colour of that name in ``assets/style.css``.
        description: the plot in words, for readers who cannot see it.
        height: height in pixels.
        least_width: smallest width in pixels; on a narrower screen the plot scrolls.
    """

    kind: ClassVar[str] = "plot"

    figure: go.Figure
    description: str
    height: int = 420
    least_width: int = 0

    @property
    def json(self) -> Markup:
        """The figure as JSON, in which Plotly escapes ``<``: no text can end the script around it."""
        # Plotly's template would override the page's colours.
        self.figure.layout.template = None
        return Markup(self.figure.to_json())


@dataclass(frozen=True)
class Section:
    """A title with blocks under it."""

    title: str
    blocks: Sequence[Text | Commands | Grid | Plot]


def write_page(path: Path, title: str, introduction: Sequence[str], sections: Sequence[Section]) -> None:
    """Write a page that includes Plotly's script, about 5 MB.

    Raises:
        OSError: when ``path`` cannot be written or the disk is full; ``path`` is then unchanged.
    """
    from plotly.offline import get_plotlyjs

    page = (
        _environment()
        .get_template(TEMPLATE)
        .render(
            title=title,
            introduction=introduction,
            sections=sections,
            style=_asset("style.css"),
            script=_asset("plots.js") + _asset("tables.js"),
            plotly=Markup(get_plotlyjs()),
        )
    )
    write_atomically(path, lambda stream: stream.write(page.encode()))


@cache
def _environment() -> Environment:
    return Environment(
        loader=PackageLoader("forecast.pages"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )


def _asset(name: str) -> Markup:
    """Read a style sheet or script of ``forecast/assets``."""
    return Markup(importlib.resources.files("forecast").joinpath("assets", name).read_text())

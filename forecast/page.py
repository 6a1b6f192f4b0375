"""Pages to read in a browser: each one file with everything in it, so that it opens without a network."""

from __future__ import annotations

import importlib.resources
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

from rich.table import Table

from forecast.atomic import write_atomically

if TYPE_CHECKING:
    import plotly.graph_objects as go


@dataclass(frozen=True)
class Text:
    """A paragraph."""

    text: str


@dataclass(frozen=True)
class Commands:
    """Lines for a terminal."""

    lines: Sequence[str]


@dataclass(frozen=True)
class Grid:
    """A table.

    Attributes:
        header: titles of its columns.
        rows: cells, as long as the header each.
        marked: number of the row to stand out.
        text_columns: numbers of the columns that hold words; the others hold numbers and end on one line.
    """

    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    marked: int | None = None
    text_columns: Sequence[int] = (0,)


def grid_of(table: Table, marked: int | None = None) -> Grid:
    """A terminal's table for a page; its cells are plain text, its numbers those of right-justified columns."""
    header = [str(column.header).replace("\n", " ") for column in table.columns]
    rows = list(zip(*([str(cell) for cell in column.cells] for column in table.columns), strict=True))
    words = [i for i, column in enumerate(table.columns) if column.justify != "right"]
    return Grid(header, rows, marked, words)


@dataclass(frozen=True)
class Plot:
    """A Plotly figure.

    Attributes:
        figure: its colours are the page's, unless they are its own; a trace whose ``meta`` is ``ink``, ``soft``,
            ``forecast``, ``persistence``, ``pick`` or ``band`` has the colour of that name in ``assets/style.css``.
        says: what there is to see, for those who do not see it.
        height: in pixels.
        least_width: in pixels; on a narrower screen the plot is scrolled.
    """

    figure: go.Figure
    says: str
    height: int = 420
    least_width: int = 0


@dataclass(frozen=True)
class Section:
    """A title, and what stands under it in order."""

    title: str
    blocks: Sequence[Text | Commands | Grid | Plot]


def asset(name: str) -> str:
    """A file of ``forecast/assets``: style sheets and scripts of pages."""
    return importlib.resources.files("forecast").joinpath("assets", name).read_text()


def write_page(path: Path, title: str, introduction: Sequence[str], sections: Sequence[Section]) -> None:
    """Write a page with Plotly's script in it, about 5 MB.

    Raises:
        OSError: when the place cannot be written or the disk is full; nothing at ``path`` has changed.
    """
    from plotly.offline import get_plotlyjs

    body = "\n".join(
        [
            f"<h1>{escape(title)}</h1>",
            *(f"<p>{escape(text)}</p>" for text in introduction),
            *(_section(section) for section in sections),
        ]
    )
    page = f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<link rel="icon" href="data:,">
<title>{escape(title)}</title>
<style>
{asset("style.css")}</style>
</head>
<body>
<main>
{body}
</main>
<script>{get_plotlyjs()}</script>
<script>
{asset("plots.js")}</script>
</body>
</html>
"""
    write_atomically(path, lambda stream: stream.write(page.encode()))


def _section(section: Section) -> str:
    blocks = "\n".join(_block(block) for block in section.blocks)
    return f"<section>\n<h2>{escape(section.title)}</h2>\n{blocks}\n</section>"


def _block(block: Text | Commands | Grid | Plot) -> str:
    match block:
        case Text(text):
            return f"<p>{escape(text)}</p>"
        case Commands(lines):
            return f"<pre>{escape(chr(10).join(lines))}</pre>"
        case Grid():
            return _scrolled(_table(block), "Table")
        case Plot():
            return _scrolled(_plot(block), block.says)


def _scrolled(content: str, label: str) -> str:
    # Reached by the keyboard, or those without a pointer could not scroll it.
    return f'<div class="scroll" tabindex="0" role="group" aria-label="{escape(label)}">\n{content}\n</div>'


def _table(grid: Grid) -> str:
    def cells(values: Sequence[str], tag: str) -> str:
        return "".join(
            f"<{tag}{'' if i in grid.text_columns else ' class=number'}>{escape(value)}</{tag}>"
            for i, value in enumerate(values)
        )

    lines = [f"<tr>{cells(grid.header, 'th')}</tr>"]
    lines += [
        f"<tr{' class=marked' if number == grid.marked else ''}>{cells(row, 'td')}</tr>"
        for number, row in enumerate(grid.rows)
    ]
    return "<table>\n" + "\n".join(lines) + "\n</table>"


def _plot(plot: Plot) -> str:
    # A figure's own template would hide the page's colours.
    plot.figure.layout.template = None
    # Text in it could end the script.
    content = str(plot.figure.to_json()).replace("<", "\\u003c")
    width = f"; min-width: {plot.least_width}px" if plot.least_width else ""
    return (
        f'<div class="plot" style="height: {plot.height}px{width}"></div>'
        f'<script type="application/json">{content}</script>'
    )

"""MkDocs's hook that makes a page of each notebook, from its cells and the outputs it holds; it executes nothing."""

from __future__ import annotations

import re
from typing import Any

import nbformat
from mkdocs.structure.files import File, Files
from nbformat import NotebookNode

TERMINAL = re.compile(r"\x1b\[[0-9;]*m")


class NotebookPage(File):
    """A notebook that is shown as a page; links to the file lead to the page."""

    def is_documentation_page(self) -> bool:
        """A notebook is one."""
        return True

    @property
    def content_string(self) -> str:
        """The page in Markdown."""
        return as_markdown(nbformat.reads(super().content_string, as_version=4))


def on_files(files: Files, *, config: Any) -> Files:
    """Let each notebook be a page."""
    for file in list(files):
        if file.src_uri.endswith(".ipynb"):
            files.remove(file)
            files.append(
                NotebookPage(file.src_uri, config.docs_dir, config.site_dir, config.use_directory_urls)
            )
    return files


def as_markdown(notebook: NotebookNode) -> str:
    """Return a notebook as Markdown: its text, its code, and below each cell what it gave."""
    parts = []
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            parts.append(cell.source)
            continue
        parts.append(fenced(cell.source, "python"))
        parts += [shown(output) for output in cell.outputs]
    return "\n\n".join(parts) + "\n"


def shown(output: NotebookNode) -> str:
    """Return one output in Markdown: an image, a table, or text."""
    if output.output_type == "stream":
        return fenced(TERMINAL.sub("", output.text), "text")
    data = output.data
    if "image/png" in data:
        return f"![the plot of this cell](data:image/png;base64,{data['image/png'].strip()})"
    if "text/html" in data:
        # The site has a style for tables without a class. Indented lines would be read as code.
        table = re.sub(r"<table[^>]*>", "<table>", data["text/html"])
        return "<div>" + re.sub(r"\n\s*", "\n", table).strip() + "</div>"
    return fenced(data["text/plain"], "text")


def fenced(text: str, language: str) -> str:
    """Return text as a block of a language."""
    return f"```{language}\n{text.rstrip()}\n```"

"""Execute the notebooks and keep their outputs: ``python -m docs.make_notebooks``, or ``make notebooks``.

A notebook is written in one form, whatever program edited it, so that two versions differ only in what they say.
"""

from __future__ import annotations

import itertools
import os
import re
import sys
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbformat import NotebookNode
from traitlets.config import Config

NOTEBOOKS = sorted((Path(__file__).parent / "notebooks").glob("*.ipynb"))
KERNEL = "python3"
METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": KERNEL},
    "language_info": {"name": "python"},
}
STYLE = re.compile(r"<style scoped>.*?</style>\n", re.DOTALL)
SECONDS = 240
"""Longest time of a cell, on a machine that is busy."""


def execute(path: Path) -> NotebookNode:
    """Run the cells of a notebook in a new process and an empty directory, and return it with their outputs.

    Raises:
        nbclient.exceptions.CellExecutionError: when a cell fails.
    """
    notebook = nbformat.read(path, as_version=4)
    with tempfile.TemporaryDirectory() as directory:
        # A person's own settings of IPython would change the outputs.
        environment = {**os.environ, "IPYTHONDIR": str(Path(directory, ".ipython"))}
        # Files instead of ports, which everybody on this machine could reach.
        config = Config({"KernelManager": {"transport": "ipc", "ip": str(Path(directory, ".kernel"))}})
        client = NotebookClient(notebook, timeout=SECONDS, kernel_name=KERNEL, config=config)
        client.execute(cwd=directory, env=environment)
    return notebook


def written(notebook: NotebookNode) -> str:
    """Return the text of the file: without what changes at each execution, such as times and the parts of a text."""
    notebook.metadata = nbformat.from_dict(METADATA)
    notebook.nbformat, notebook.nbformat_minor = 4, 5
    for number, cell in enumerate(notebook.cells, start=1):
        cell.id, cell.metadata = f"cell-{number}", nbformat.from_dict({})
        if cell.cell_type == "code":
            cell.outputs = list(_together(cell.outputs))
    return f"{nbformat.writes(notebook)}\n"


def _together(outputs: Iterable[NotebookNode]) -> Iterator[NotebookNode]:
    """Join the parts of a text, and leave out the styles of tables, which every reader has."""
    for (kind, _), group in itertools.groupby(outputs, lambda each: (each.output_type, each.get("name"))):
        if kind == "stream":
            first, *others = group
            first.text = "".join(each.text for each in (first, *others))
            yield first
            continue
        for output in group:
            output.metadata = nbformat.from_dict({})
            if "text/html" in output.data:
                output.data["text/html"] = STYLE.sub("", output.data["text/html"])
            yield output


def main() -> None:
    """Execute all notebooks and write them."""
    for path in NOTEBOOKS:
        path.write_text(written(execute(path)))
        print(f"{path.name}: {path.stat().st_size / 1000:.0f} kB", file=sys.stderr)


if __name__ == "__main__":
    main()

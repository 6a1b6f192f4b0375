"""The notebooks of the docs: they run, they are written in one form, and their pages show what they hold."""

import nbformat
import pytest

from docs.make_notebooks import NOTEBOOKS, execute, written
from docs.show_notebooks import as_markdown

BYTES = 80_000
"""Largest size of a notebook, which every clone has: a small plot, and no more than a few tables."""

by_name = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def outputs_of(notebook):
    return [(cell, output) for cell in notebook.cells for output in cell.get("outputs", [])]


def test_there_is_one_for_a_first_look_one_for_own_data_and_one_for_a_universe():
    assert {path.stem for path in NOTEBOOKS} == {"first-look", "own-data", "universe"}


@pytest.mark.slow
@by_name
def test_every_cell_runs_offline_and_shows_as_many_results_as_it_did(path):
    kept, found = nbformat.read(path, as_version=4), execute(path)
    written(found)
    for then, now in zip(kept.cells, found.cells, strict=True):
        assert [output.output_type for output in then.get("outputs", [])] == [
            output.output_type for output in now.get("outputs", [])
        ], then.source
    # A warning of a library, which no reader should meet.
    assert not [output.text for _, output in outputs_of(found) if output.get("name") == "stderr"]


@by_name
def test_it_was_kept_executed_from_top_to_bottom_in_the_form_that_is_written(path):
    text = path.read_text()
    notebook = nbformat.reads(text, as_version=4)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1)), "run `make notebooks`"
    assert sum("image/png" in output.get("data", {}) for _, output in outputs_of(notebook)) == 1
    assert not [output for _, output in outputs_of(notebook) if output.get("name") == "stderr"]
    assert written(notebook) == text, "run `make notebooks`"
    assert len(text) < BYTES


@by_name
def test_its_page_shows_its_text_its_code_and_its_results(path):
    notebook = nbformat.read(path, as_version=4)
    page = as_markdown(notebook)
    assert page.startswith("# ")
    for cell in notebook.cells:
        assert cell.source in page
    for _, output in outputs_of(notebook):
        data = output.get("data", {})
        if "image/png" in data:
            assert f"(data:image/png;base64,{data['image/png'].strip()})" in page
        elif "text/html" in data:
            assert page.count("<table") >= 1
            assert data["text/html"].count("<tr") <= page.count("<tr")
        else:
            assert (output.get("text") or data["text/plain"]).strip() in page

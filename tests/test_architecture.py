"""Rules about the code's structure that the layer contracts of ``pyproject.toml`` cannot express."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
OURS = ("forecast", "tune_jobs", "serve_app")
KEEPERS = {
    "tune_jobs/ray_internals.py": "Ray's",
    "tune_jobs/tune_internals.py": "Tune's",
    "forecast/model/adam.py": "torch's fused kernels",
    "tune_jobs/study.py": "Optuna's",
    "forecast/prices/calendars.py": "exchange_calendars'",
    "forecast/cli/command.py": "argparse's",
    "forecast/cli/completion.py": "argparse's",
    "serve_app/__main__.py": "atexit's",
    "serve_app/ray_internals.py": "Ray's",
}
"""The files that may use private names of a library."""
PUBLIC = {"_exit", "_replace"}
"""``os._exit`` and the method of named tuples are documented."""


def is_self(node):
    return isinstance(node, ast.Name) and node.id == "self"


def private_names(path):
    """Yield private attributes that the file does not define itself, and private imports."""
    tree = ast.parse(path.read_text())
    own = {
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and is_self(node.value)
    } | {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and node.attr.startswith("_") and not node.attr.startswith("__"):
            if node.attr not in own:
                yield node.attr
        elif isinstance(node, ast.ImportFrom):
            names = [*(node.module or "").split("."), *(alias.name for alias in node.names)]
            yield from (name for name in names if name.startswith("_") and not name.startswith("__"))


@pytest.mark.parametrize("package", OURS)
def test_private_names_of_libraries_are_used_in_the_files_that_keep_them_and_nowhere_else(package):
    used = {
        path.relative_to(ROOT).as_posix(): sorted(set(private_names(path)) - PUBLIC)
        for path in (ROOT / package).rglob("*.py")
    }
    assert {name: names for name, names in used.items() if names and name not in KEEPERS} == {}
    for name in KEEPERS:
        if name.startswith(package):
            assert used[name]


def test_a_private_name_that_a_subclass_takes_from_a_library_is_seen(tmp_path):
    (tmp_path / "file.py").write_text(
        "class Mine(Theirs):\n    def f(self):\n        self._own = 1\n        return self._own, self._brackets\n"
    )
    assert list(private_names(tmp_path / "file.py")) == ["_brackets"]

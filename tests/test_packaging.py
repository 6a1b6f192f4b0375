"""The wheel: the files that ``pip install`` installs."""

import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.slow
def test_the_wheel_holds_the_three_packages_and_the_snapshot(tmp_path):
    build = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--quiet",
        "--no-deps",
        "--wheel-dir",
        str(tmp_path),
        str(ROOT),
    ]
    subprocess.run(build, check=True, timeout=200)
    (wheel,) = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0] for name in names if ".dist-info" not in name} == {
        "forecast",
        "tune_jobs",
        "serve_app",
    }
    for needed in (
        "forecast/data/BTC-USD.csv",
        "forecast/data/PROVENANCE.md",
        "forecast/py.typed",
        "serve_app/py.typed",
        "tune_jobs/py.typed",
        "forecast/pages/templates/page.html.jinja",
        "forecast/assets/style.css",
    ):
        assert needed in names
    assert any(name.endswith("licenses/LICENSE") for name in names)
    (entry_points,) = (name for name in names if name.endswith("entry_points.txt"))
    assert "forecaster = forecast.cli.console:main" in zipfile.ZipFile(wheel).read(entry_points).decode()


def test_the_source_distribution_holds_everything_of_the_checkout_that_is_no_business_of_git():
    if not (ROOT / ".git").exists() or not shutil.which("git"):
        pytest.skip("this is no checkout, or git is not installed")
    # Works whoever owns the files.
    git = ["git", "-c", "safe.directory=*", "ls-files"]
    listed = subprocess.run(git, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    included = set(project["tool"]["hatch"]["build"]["targets"]["sdist"]["include"])
    assert {name.split("/")[0] for name in listed.splitlines()} == included | {".gitignore", "pyproject.toml"}


def test_the_public_api_is_what_a_notebook_needs():
    import forecast

    assert forecast.__all__ == [
        "Checkpoint",
        "DataConfig",
        "ForecastError",
        "Forecaster",
        "Predictor",
        "Series",
        "TrainConfig",
        "__version__",
        "evaluate",
        "load_checkpoint",
        "load_series",
        "predict_next_from_values",
        "save_checkpoint",
        "train",
    ]
    assert all(getattr(forecast, name) is not None for name in forecast.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = forecast.nothing

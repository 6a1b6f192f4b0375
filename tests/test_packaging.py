"""The wheel: what a person gets from ``pip install``."""

import subprocess
import sys
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
    for needed in ("forecast/data/BTC-USD.csv", "forecast/data/PROVENANCE.md", "forecast/py.typed"):
        assert needed in names
    assert any(name.endswith("licenses/LICENSE") for name in names)


def test_the_public_api_is_what_a_notebook_needs():
    import forecast

    assert forecast.__all__ == [
        "Checkpoint",
        "DataConfig",
        "ForecastError",
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

"""The version, which is written in ``pyproject.toml`` alone."""

from __future__ import annotations

DISTRIBUTION = "pareto-price-forecaster"
"""What the project is called where it is installed."""


def installed_version() -> str:
    """The version that is installed; ``unknown`` in a checkout that is not."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version(DISTRIBUTION)
    except PackageNotFoundError:
        return "unknown"

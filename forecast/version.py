"""The installed version, which only ``pyproject.toml`` states."""

from __future__ import annotations

DISTRIBUTION = "pareto-price-forecaster"
"""Name of the installed distribution."""


def installed_version() -> str:
    """Return the installed version, or ``unknown`` in a checkout that is not installed."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version(DISTRIBUTION)
    except PackageNotFoundError:
        return "unknown"

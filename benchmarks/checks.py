"""What a benchmark prints of the bars that it checks."""

from __future__ import annotations

from collections.abc import Mapping


def report(checks: Mapping[str, bool]) -> int:
    """Print whether each check passed, and return the exit code."""
    print()
    for check, passed in checks.items():
        print(f"{'yes' if passed else 'NO '}  {check}")
    return 0 if all(checks.values()) else 1

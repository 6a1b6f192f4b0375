"""Random price files of every dialect, read back: ``python -m benchmarks.dialects --examples 20000 [--seed 1]``.

Prints how many were read as they were written and how many were refused, with the commonest reasons. It exits with
code 1 when one was read as other prices than it holds.
"""

from __future__ import annotations

import argparse
import random
import re
import sys
import tempfile
import time
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from tests.dialects import random_file, verdict

PROCESSES = 2
SHOWN = 12
"""Number of reasons and of misread files that are printed."""


def main() -> None:
    """Print a line for each figure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--examples", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=random.randrange(10**6))
    options = parser.parse_args()
    started = time.perf_counter()
    share = options.examples // PROCESSES
    with ProcessPoolExecutor(PROCESSES) as pool:
        parts = list(pool.map(check, [share] * PROCESSES, range(options.seed, options.seed + PROCESSES)))
    kinds, reasons = (sum((part[at] for part in parts), Counter[str]()) for at in (0, 1))
    total = kinds.total()
    print(f"seed {options.seed}, {time.perf_counter() - started:.0f} s")
    print(f"examples {total}")
    for kind in ("read", "refused", "misread"):
        print(f"{kind} {kinds[kind]} ({kinds[kind] / total:.1%})")
    for reason, count in reasons.most_common(SHOWN):
        print(f"{count:6} {reason}")
    misread = [line for part in parts for line in part[2]]
    for line in misread[:SHOWN]:
        print(f"MISREAD {line}")
    sys.exit(1 if misread else 0)


def check(examples: int, number: int) -> tuple[Counter[str], Counter[str], list[str]]:
    """Count the verdicts and the kinds of reasons of refusals, and describe each misread file."""
    kinds, reasons, misread = Counter[str](), Counter[str](), []
    chance = random.Random(number)
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(examples):
            file = random_file(chance)
            found = verdict(file, Path(folder))
            kinds[found.kind] += 1
            if found.kind == "refused":
                reasons[_without_cells(found.reason)] += 1
            if found.kind == "misread":
                misread.append(f"{found.reason}\n    {file!r}")
    return kinds, reasons, misread


def _without_cells(reason: str) -> str:
    """A reason without the cells, names and numbers of its file, so that equal reasons can be counted."""
    reason = re.sub(r"column .*?, row", "column, row", reason)
    reason = re.sub(r"\d+", "N", re.sub(r"'[^']*'|\"[^\"]*\"", "...", reason))
    return re.sub(r"[-+.,]?N(?:[-:., T]*N)*", "N", reason)[:150]


if __name__ == "__main__":
    main()

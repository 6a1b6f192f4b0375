"""The pins in ``constraints.txt``: ``python tests/constraints.py`` renews them with the newest releases.

This runs before there is an environment, so it needs nothing but pip.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path
from typing import Any

from pip._vendor.packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[1]
FILE = ROOT / "constraints.txt"
HEADER = "# The versions that the tests pass with, for Python {pythons}. `make upgrade` renews them.\n"
CLASSIFIER = "Programming Language :: Python :: 3."
BY_TORCH = ("cuda-", "nvidia-", "triton")
"""The packages of CUDA that a build of torch needs: it names their exact versions itself."""


def project() -> dict[str, Any]:
    """Return the table ``project`` of pyproject.toml."""
    found: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return found


def requirements() -> list[str]:
    """Return the requirements of the project, including those of every extra."""
    table = project()
    return [
        *table["dependencies"],
        *(each for extra in table["optional-dependencies"].values() for each in extra),
    ]


def pythons() -> list[str]:
    """Return the versions of Python that the project supports, oldest first."""
    return [each.rpartition(" ")[2] for each in project()["classifiers"] if each.startswith(CLASSIFIER)]


def pins() -> dict[str, str]:
    """Return the versions in ``constraints.txt``, by normalized name."""
    lines = [line for line in FILE.read_text().splitlines() if not line.startswith("#")]
    return dict(line.split("==") for line in lines)


def normalized(name: str) -> str:
    """Return the name as package indexes compare it (PEP 503)."""
    return re.sub(r"[-_.]+", "-", name).lower()


def resolve(python: str, pinned: dict[str, str]) -> dict[str, str]:
    """Return the newest versions that fit together on a version of Python, by normalized name.

    There is a wheel of each, so that nobody needs a compiler.

    Args:
        python: the version; of its releases, the first.
        pinned: versions to keep.

    Raises:
        subprocess.CalledProcessError: when there are none; pip has said why.
    """
    with tempfile.TemporaryDirectory() as directory:
        constraints = Path(directory, "constraints.txt")
        constraints.write_text(written(pinned))
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--dry-run", "--report=-"]
        # Of another Python: its own packages do not count, and pip asks for a target although it installs nothing.
        command += ["--ignore-installed", f"--python-version={python}", f"--target={directory}"]
        command += ["--only-binary=:all:", f"--constraint={constraints}", *requirements()]
        more: set[str] = set()
        while True:
            done = subprocess.run([*command, *more], check=True, stdout=subprocess.PIPE, text=True)
            installed = [each["metadata"] for each in json.loads(done.stdout)["install"]]
            found = {each["name"]: each["version"] for each in installed}
            missing = needed_on(python, installed) - {normalized(name) for name in found}
            if not missing:
                break
            more |= missing
    # A build of torch has its device in a local version (2.13.0+cpu), which only some indexes have.
    return {
        normalized(name): version.partition("+")[0]
        for name, version in found.items()
        if not normalized(name).startswith(BY_TORCH)
    }


def needed_on(python: str, installed: list[dict[str, Any]]) -> set[str]:
    """Return the normalized names of what packages need on a version of Python.

    pip does not do this for another Python: it evaluates markers with the version that runs it.

    Args:
        python: the version.
        installed: metadata of the packages, without extras.
    """
    environment = {"python_version": python, "python_full_version": f"{python}.0", "extra": ""}
    needed = (Requirement(line) for each in installed for line in each.get("requires_dist", ()))
    return {
        normalized(each.name) for each in needed if each.marker is None or each.marker.evaluate(environment)
    }


def written(pinned: dict[str, str]) -> str:
    """Return the lines of a constraints file."""
    return "".join(f"{name}=={version}\n" for name, version in sorted(pinned.items()))


def main() -> None:
    """Renew the file.

    The oldest Python comes first: the newest packages no longer support it. The others keep its versions.
    """
    pinned: dict[str, str] = {}
    for python in pythons():
        pinned |= resolve(python, pinned)
        print(f"Python {python}: {len(pinned)} packages", file=sys.stderr)
    FILE.write_text(HEADER.format(pythons=", ".join(pythons())) + written(pinned))


if __name__ == "__main__":
    main()

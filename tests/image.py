"""The steps of the Dockerfile without Docker: ``python tests/image.py DIRECTORY STAGE`` builds an environment there.

Only the instructions that need Python are executed, as they stand; those for Debian and Docker are skipped.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
VENV = "/opt/venv"


@dataclass
class Stage:
    """One ``FROM``: its name, its base, and its instructions in order."""

    name: str
    base: str
    instructions: list[tuple[str, str]] = field(default_factory=list)


def stages() -> dict[str, Stage]:
    """Read the stages of the Dockerfile, by name."""
    text = re.sub(r"^\s*#.*\n", "", (ROOT / "Dockerfile").read_text(), flags=re.M)
    found: dict[str, Stage] = {}
    stage = Stage("", "")
    for line in re.sub(r"\\\n\s*", " ", text).splitlines():
        word, _, rest = line.strip().partition(" ")
        if word == "FROM":
            base, _, name = rest.partition(" AS ")
            stage = found[name] = Stage(name, base)
        elif word:
            stage.instructions.append((word, rest))
    return found


def settings(name: str) -> dict[str, str]:
    """Return the environment variables of a stage, including those of its bases."""
    stage = stages().get(name)
    if stage is None:
        return {}
    environment = settings(stage.base)
    for word, rest in stage.instructions:
        if word == "ENV":
            environment |= dict(item.split("=", 1) for item in shlex.split(rest))
    return environment


def last(name: str, word: str) -> str:
    """Return the last instruction of this kind in a stage, or else in its bases.

    Raises:
        KeyError: when none of them has one.
    """
    stage = stages()[name]
    said = [rest for found, rest in stage.instructions if found == word]
    return said[-1] if said else last(stage.base, word)


def instructions(name: str) -> list[tuple[str, str]]:
    """Return the instructions of a stage, after those of its bases."""
    stage = stages().get(name)
    return [*instructions(stage.base), *stage.instructions] if stage else []


def is_made_of_this(venv: Path, stage: str) -> bool:
    """Return whether ``build`` made this environment after its inputs last changed."""
    last_made = venv / "bin" / "forecaster-haproxy"
    copied = [
        ROOT / name for word, rest in instructions(stage) if word == "COPY" for name in rest.split()[:-1]
    ]
    files = [ROOT / "Dockerfile", *copied, *(path for place in copied for path in place.rglob("*.*"))]
    return last_made.exists() and all(
        path.stat().st_mtime <= last_made.stat().st_mtime
        for path in files
        if path.is_file() and path.suffix != ".pyc"
    )


def build(directory: Path, stage: str) -> Path:
    """Run the steps of a stage that makes an environment, and return that.

    Raises:
        subprocess.CalledProcessError: when a step fails.
    """
    venv, source = directory / "venv", directory / "src"
    shutil.rmtree(directory, ignore_errors=True)
    source.mkdir(parents=True)
    environment = {"PATH": os.environ["PATH"], "HOME": os.environ.get("HOME", "/"), "TORCH_INDEX": ""}
    environment |= {name: os.environ[name] for name in os.environ if name.startswith("PIP_")}
    for word, rest in instructions(stage):
        if word == "ENV":
            for item in shlex.split(rest):
                name, value = item.split("=", 1)
                environment[name] = value.replace(VENV, str(venv)).replace("$PATH", environment["PATH"])
        elif word == "COPY":
            *names, _ = rest.split()
            for name in names:
                place = ROOT / name
                if place.is_dir():
                    shutil.copytree(place, source / name, ignore=shutil.ignore_patterns("__pycache__"))
                else:
                    shutil.copy(place, source)
        elif word == "RUN":
            step = rest.replace(VENV, str(venv))
            if step.startswith("python -m venv"):
                step = step.replace("python", shlex.quote(sys.executable), 1)
            subprocess.run(["sh", "-ec", step], cwd=source, env=environment, check=True)
    return venv


if __name__ == "__main__":
    build(Path(sys.argv[1]).absolute(), sys.argv[2])

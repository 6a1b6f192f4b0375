"""``constraints.txt``: it covers what the project asks for, and is what these tests run with."""

import re
import sys
from importlib.metadata import PackageNotFoundError, distribution

import pytest
import yaml
from constraints import (
    BY_TORCH,
    FILE,
    HEADER,
    ROOT,
    needed_on,
    normalized,
    pins,
    project,
    pythons,
    requirements,
    written,
)
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet


def installed(wanted):
    """Return the versions that this environment has, by name, of requirements and of what they require in turn."""
    found, queue = {}, [Requirement(line) for line in wanted]
    seen = set()
    while queue:
        requirement = queue.pop()
        name = normalized(requirement.name)
        if (name, *sorted(requirement.extras)) in seen:
            continue
        seen.add((name, *sorted(requirement.extras)))
        try:
            there = distribution(name)
        except PackageNotFoundError:
            continue  # pip check, in the setup, says what is missing
        found[name] = there.version.partition("+")[0]
        for line in there.requires or []:
            needed = Requirement(line)
            if needed.marker is None or any(
                needed.marker.evaluate({"extra": extra}) for extra in ("", *requirement.extras)
            ):
                queue.append(needed)
    return found


@pytest.mark.parametrize("line", sorted(set(requirements())))
def test_every_requirement_of_the_project_has_a_version_within_its_range(line):
    requirement = Requirement(line)
    version = pins().get(normalized(requirement.name))
    assert version, f"{requirement.name} has no version: run `make upgrade`"
    assert requirement.specifier.contains(version, prereleases=True)


def test_this_environment_has_these_versions_and_no_others():
    wanted = [*project()["dependencies"], *project()["optional-dependencies"]["dev"]]
    found = {name: version for name, version in installed(wanted).items() if not name.startswith(BY_TORCH)}
    assert len(found) > 150
    pinned = pins()
    assert {name: pinned.get(name) for name in found} == found, "run `make setup`, or `make upgrade`"


def test_the_file_has_names_and_versions_alone_in_the_order_of_names():
    assert all(re.fullmatch(r"[a-z0-9-]+==[a-z0-9.]+", line) for line in FILE.read_text().splitlines()[1:])
    assert FILE.read_text() == HEADER.format(pythons=", ".join(pythons())) + written(pins())
    assert not [name for name in pins() if name.startswith(BY_TORCH)]


def test_every_supported_python_is_checked_by_the_workflow_and_this_is_one_of_them():
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text())
    for job in workflow["jobs"].values():
        assert job["strategy"]["matrix"]["python"] == pythons()
    supported = SpecifierSet(project()["requires-python"])
    assert all(python in supported for python in pythons())
    assert f"{sys.version_info.major}.{sys.version_info.minor}" in pythons()


def test_a_newer_python_gets_what_only_it_needs():
    installed = [
        {"requires_dist": ["Only_New; python_version >= '3.12'", "only-old; python_version < '3.12'"]},
        {"requires_dist": ["always>=1", "optional; extra == 'more'"]},
        {},
    ]
    assert needed_on("3.11", installed) == {"only-old", "always"}
    assert needed_on("3.13", installed) == {"only-new", "always"}

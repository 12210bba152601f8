"""The versions that are pinned are of what is installed, and within the bounds that are stated."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parents[1]
STATED = tomllib.loads((ROOT / "pyproject.toml").read_text())
PROJECT = STATED["project"]
PINS = [line for line in (ROOT / ".ci" / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
EXTRAS = {
    name: [Requirement(one) for one in wanted if isinstance(one, str)]  # a group may include another, which is here itself
    for name, wanted in {**PROJECT["optional-dependencies"], **STATED["dependency-groups"]}.items()
}
"""The extras of users, and the groups of who works on it."""


def test_pins_are_plain() -> None:
    """A name and a public version each, once: good on any machine, for any build of a package."""
    pinned = [Requirement(pin) for pin in PINS]
    assert len({canonicalize_name(one.name) for one in pinned}) == len(pinned)
    for one, line in zip(pinned, PINS, strict=True):
        [version] = one.specifier
        assert line == f"{one.name}=={Version(version.version).public}"


@pytest.mark.parametrize("name", sorted({"", *EXTRAS} - {"fuzz"}))
def test_what_is_installed_is_pinned(name: str) -> None:
    """Each package that is asked for, to a version that is allowed."""
    pins = {canonicalize_name(one.name): one.specifier for one in map(Requirement, PINS)}
    wanted = EXTRAS[name] if name else [*map(Requirement, PROJECT["dependencies"])]
    for one in wanted:
        if one.name != PROJECT["name"]:
            [version] = pins[canonicalize_name(one.name)]
            assert version.version in one.specifier, one


def test_lowest_versions_are_stated() -> None:
    """Of all that users, and tests, need."""
    wanted = [*map(Requirement, PROJECT["dependencies"]), *(one for name in EXTRAS for one in EXTRAS[name])]
    tools = {one.name for name in ("bench", "fuzz", "lint") for one in EXTRAS[name]}
    assert [str(one) for one in wanted if one.name not in {*tools, PROJECT["name"]} and ">=" not in str(one.specifier)] == []

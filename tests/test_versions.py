"""Every package that is installed for tests has a pinned version, within the bounds of ``pyproject.toml``."""

from __future__ import annotations

import tomllib

from conftest import ROOT
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

STATED = tomllib.loads((ROOT / "pyproject.toml").read_text())
PROJECT = STATED["project"]
PINS = [line for line in (ROOT / ".ci" / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
EXTRAS = {
    name: [Requirement(one) for one in wanted if isinstance(one, str)]  # a group may include another, which is here itself
    for name, wanted in {**PROJECT["optional-dependencies"], **STATED["dependency-groups"]}.items()
}
"""The extras of users, and the groups of developers."""


def test_pins_are_unique_and_public() -> None:
    """Each pin is a name that occurs once, and a public version."""
    pinned = [Requirement(pin) for pin in PINS]
    assert len({canonicalize_name(one.name) for one in pinned}) == len(pinned)
    for one, line in zip(pinned, PINS, strict=True):
        [version] = one.specifier
        assert line == f"{one.name}=={Version(version.version).public}"


def test_installed_packages_are_pinned() -> None:
    """Each package of the dependencies and extras is pinned, to a version within its bounds."""
    pins = {canonicalize_name(one.name): one.specifier for one in map(Requirement, PINS)}
    extras = [one for name, wanted in EXTRAS.items() if name != "fuzz" for one in wanted]
    for one in [*map(Requirement, PROJECT["dependencies"]), *extras]:
        if one.name != PROJECT["name"]:
            [version] = pins[canonicalize_name(one.name)]
            assert version.version in one.specifier, one


def test_lowest_versions_are_stated() -> None:
    """Each package that users or tests need has a lower bound."""
    wanted = [*map(Requirement, PROJECT["dependencies"]), *(one for name in EXTRAS for one in EXTRAS[name])]
    tools = {one.name for name in ("bench", "fuzz", "lint") for one in EXTRAS[name]}
    assert [str(one) for one in wanted if one.name not in {*tools, PROJECT["name"]} and ">=" not in str(one.specifier)] == []

"""Guests to be debugged: a ledger under a policy that allows it, and others."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from migration import rig
from sealift.address import Gpa, RamBlock, RamLayout
from sealift.sev.policy import Policy

BLOCKS = RamLayout((RamBlock("low", Gpa(0), 12 << 20), RamBlock("high", Gpa(12 << 20), 4 << 20)))
"""RAM in two neighbouring blocks, and nothing behind them."""


@pytest.fixture(scope="session")
def hosts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with the identities of hosts and of who made them."""
    path = tmp_path_factory.mktemp("hosts")
    path.chmod(0o700)
    return path


@pytest.fixture(scope="module")
def world(hosts: Path) -> Iterator[rig.World]:
    """Hosts and an owner whose guests may be debugged."""
    with rig.world(hosts, replace(rig.recipe(), layout=BLOCKS), Policy(0)) as found:
        yield found


@pytest.fixture
def closed(hosts: Path) -> Iterator[rig.World]:
    """The same; the guest's policy is the default one, which has NODBG."""
    with rig.world(hosts, replace(rig.recipe(), layout=BLOCKS)) as found:
        yield found


@pytest.fixture(scope="module", params=["sev", "plain"])
def any_guest(world: rig.World, request: pytest.FixtureRequest) -> Iterator[rig.Guest]:
    """A running guest of each type, which several tests look at; who stops it lets it go on."""
    guest = start(world, request.param)
    yield guest
    guest.machine.pause()


def start(world: rig.World, kind: str) -> rig.Guest:
    """A running guest of a type."""
    world.plain = kind == "plain"
    return world.start()

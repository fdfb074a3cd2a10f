"""Hosts are made once a session: their keys take a while, and tests change nothing in them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from . import psp, rig


@pytest.fixture(scope="session")
def hosts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with the identities of hosts and of who made them."""
    path = tmp_path_factory.mktemp("hosts")
    path.chmod(0o700)
    return path


@pytest.fixture
def world(hosts: Path) -> Iterator[rig.World]:
    """Two hosts and an owner with a ledger guest."""
    with rig.world(hosts, rig.recipe()) as found:
        yield found


@pytest.fixture
def sendable(hosts: Path) -> Iterator[rig.World]:
    """The same; the guest's policy lets secure processors send it to any genuine platform."""
    with rig.world(hosts, rig.recipe(), psp.SENDABLE) as found:
        yield found

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

from sealift.cli.guest_options import GuestOptions
from sealift.cli.places import Host, Places
from sealift.cli.wiring import start_guest
from sealift.vmm.control import ControlThread
from sealift.vmm.guest import Guest
from sealift.vmm.qmp.server import QmpServer


@dataclass(frozen=True)
class Served:
    """A running guest whose QMP server listens at `path`."""

    guest: Guest
    server: QmpServer
    path: Path


@pytest.fixture(scope="module")
def served(manufacturer: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """One guest for a module's tests, which leave it as they found it: running."""
    base = tmp_path_factory.mktemp("qmp")
    places = Places(Host(base / "host"), base / "owner", manufacturer)
    with ExitStack() as ending:
        options = GuestOptions(name="served", kernel="idle", memory=16 << 20)
        guest = ending.enter_context(start_guest(options, places)).guest
        listening = ending.enter_context(socket.socket(socket.AF_UNIX))
        listening.bind(str(base / "qmp.sock"))
        listening.listen()
        control = ControlThread()
        ending.callback(control.close)
        server = control.make(lambda: QmpServer(guest, lambda: None))
        control.start(server.serve(listening))
        yield Served(guest, server, base / "qmp.sock")

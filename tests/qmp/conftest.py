from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from sealift.cli.guest_options import GuestOptions
from sealift.cli.places import Host, Places
from sealift.cli.wiring import start_guest
from sealift.vmm.control import ControlThread
from sealift.vmm.guest import Guest
from sealift.vmm.migration.transport import TcpAddress
from sealift.vmm.qmp.endpoint import listen_for_qmp
from sealift.vmm.qmp.server import QmpServer


@dataclass(frozen=True)
class Served:
    """A running guest whose QMP server listens at `path`, and on a port of the loopback."""

    guest: Guest
    server: QmpServer
    path: Path
    port: int

    def address(self, kind: str) -> str | tuple[str, int]:
        """Where clients connect, as qemu.qmp writes it."""
        return ("127.0.0.1", self.port) if kind == "tcp" else str(self.path)


@contextmanager
def serving(guest: Guest, path: Path) -> Iterator[Served]:
    """Serve QMP for a guest at `path`."""
    with ExitStack() as ending:
        listening = ending.enter_context(socket.socket(socket.AF_UNIX))
        listening.bind(str(path))
        listening.listen()
        loopback = ending.enter_context(closing(listen_for_qmp("tcp:127.0.0.1:0")))
        assert isinstance(loopback.address, TcpAddress)
        control = ControlThread()
        ending.callback(control.close)
        server = control.make(lambda: QmpServer(guest, lambda: None))
        control.start(server.serve(listening, loopback.listening))
        yield Served(guest, server, path, loopback.address.port)


@pytest.fixture(scope="module")
def served(manufacturer: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """One guest for a module's tests, which leave it as they found it: running."""
    base = tmp_path_factory.mktemp("qmp")
    places = Places(Host(base / "host"), base / "owner", manufacturer)
    options = GuestOptions(name="served", kernel="idle", memory=16 << 20)
    with start_guest(options, places) as hosted, serving(hosted.guest, base / "qmp.sock") as server:
        yield server


@pytest.fixture(scope="module")
def open_guest(manufacturer: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """The same; its policy lets its host look into it."""
    base = tmp_path_factory.mktemp("open")
    places = Places(Host(base / "host"), base / "owner", manufacturer)
    options = replace(GuestOptions(name="open", kernel="idle", memory=16 << 20), policy="nosend")
    with start_guest(options, places) as hosted, serving(hosted.guest, base / "qmp.sock") as server:
        yield server

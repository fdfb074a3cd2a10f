"""Everything a demonstration needs: two hosts, an owner, the network between them, and the VMM processes.

All of it lives in one scratch directory, but for the manufacturer's keys, which the user's hosts share::

    host-a/  host-b/   hosts: platform identities, run directories
    owner/             the guest owner
    secret  …          what the owner plants, and what the guest's part writes (payload, disk)
    arrival            Unix socket the target listens on
    to-target …        every byte on the wire
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

from sealift.cli import rundir
from sealift.cli.demo.console import ConsoleWatcher, P
from sealift.cli.demo.needles import plant_marker, plant_secret
from sealift.cli.demo.relay import RecordingRelay
from sealift.cli.places import Host
from sealift.cli.scratch import Scratch
from sealift.cli.vmm_process import VmmProcess
from sealift.owner.ledger import Ledger

VCPUS: Final = 2

_LOG_LINES: Final = 12
"""Of each VMM's log, shown when something fails."""

_LOG_LIMIT: Final = 1 << 14


class Stage:
    """The set-up; what it starts ends with its scratch.

    Attributes:
        secret: as the owner gives it to the guest.
        marker: a text that is no secret; the guest's name, and on its command line.
    """

    def __init__(self, scratch: Scratch) -> None:
        self._scratch = scratch
        self._path = scratch.path
        self.secret = plant_secret()
        self.marker = plant_marker()
        self._secret_file = self.write("secret", self.secret)
        self._logs: dict[str, Path] = {}
        self._hosts = {name: Host(self._path / name) for name in ("host-a", "host-b")}

    def owners_ledger(self) -> Ledger:
        """What the owner wrote down."""
        return Ledger(self._path / "owner")

    def start_source(self, options: Sequence[str]) -> VmmProcess:
        """Launch a guest on host-a, with the secret; `options` of ``sealift run`` say which."""
        return self._start("host-a", [*options, "--secret", str(self._secret_file)])

    def start_target(self, options: Sequence[str]) -> tuple[VmmProcess, RecordingRelay]:
        """Wait for it on host-b, behind a network that records."""
        arrival = self._path / "arrival"
        target = self._start("host-b", ["--incoming", f"unix:{arrival}", *options])
        _ = target.qmp  # it answers only once it listens
        relay = RecordingRelay(arrival, self._path)
        self._scratch.ending.callback(relay.close)
        return target, relay

    def watch_console(self, host: str, printed: P) -> ConsoleWatcher[P]:
        """Read what the guest prints on a host."""
        sock = rundir.connect(self._hosts[host].run, self.marker, rundir.CONSOLE_SOCKET)
        watcher = ConsoleWatcher(sock, printed)
        self._scratch.ending.callback(watcher.close)
        return watcher

    def said(self) -> list[tuple[str, str]]:
        """What the VMMs had to say: host, and a line of it, oldest first."""
        lines = []
        for host, log in self._logs.items():
            text = log.read_bytes()[-_LOG_LIMIT:].decode(errors="replace")
            lines += [(host, line.removeprefix("sealift: ")) for line in text.splitlines()[-_LOG_LINES:]]
        return lines

    def write(self, name: str, data: bytes) -> Path:
        """Make a file that only this user can read."""
        path = self._path / name
        path.touch(mode=0o600)
        path.write_bytes(data)
        return path

    def _start(self, host: str, options: list[str]) -> VmmProcess:
        options = ["--owner", str(self._path / "owner"), *options]
        log = self._logs[host] = self._path / f"{host}.log"
        vmm = VmmProcess(self._hosts[host], self.marker, options, log)
        self._scratch.ending.callback(vmm.close)
        return vmm

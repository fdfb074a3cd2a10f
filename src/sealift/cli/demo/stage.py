"""Everything a demonstration needs: two hosts, an owner, the network between them, and the VMM processes.

All of it lives in one scratch directory, but for the manufacturer's keys, which the user's hosts share::

    host-a/  host-b/   hosts: platform identities, run directories
    owner/             the guest owner
    secret  payload    what the owner plants, and the built-in payload
    arrival            Unix socket the target listens on
    to-target …        every byte on the wire
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

from sealift.cli import rundir
from sealift.cli.demo.console import ConsoleWatcher
from sealift.cli.demo.needles import plant_marker, plant_secret
from sealift.cli.demo.relay import RecordingRelay
from sealift.cli.places import Host
from sealift.cli.recipes import make_recipe, read_file
from sealift.cli.scratch import Scratch
from sealift.cli.vmm_process import VmmProcess
from sealift.launch.image import GuestRecipe
from sealift.owner.ledger import Ledger
from sealift.wire.handover import Transfer

VCPUS: Final = 2
KERNEL: Final = "ledger"

_BUILT_IN_PAYLOAD: Final = (
    "Whoever runs this machine may stop it, copy it, and send it anywhere.\nReading it is another matter.\n"
)
_HASHED_PAGES: Final = 4096
"""Bytes of payload that a guest hashes in about the time of one update."""


@dataclass(frozen=True, slots=True)
class Pace:
    """How busy the guest is.

    Attributes:
        working_set: pages for each vCPU.
        burst: updates between two pauses.
        pause_us: length of a pause.
    """

    working_set: int
    burst: int
    pause_us: int


PACES: Final = {
    Transfer.RING: Pace(working_set=256, burst=64, pause_us=2000),
    # A page takes a round trip to the handler: what is written while a round is on its way must stay small.
    Transfer.MAILBOX: Pace(working_set=128, burst=16, pause_us=5000),
}


class Stage:
    """The set-up; what it starts ends with its scratch.

    Args:
        scratch: where everything goes.
        memory: the guest's, in bytes.
        payload: the user's file, or None for the built-in text.
        transfer: how records leave the handler.

    Attributes:
        secret: as the owner gives it to the guest.
        marker: a text that is no secret; the guest's name, and on its command line.
        recipe: the guest, as the owner knows it from its files.
        pace: how busy the guest is.
    """

    def __init__(self, scratch: Scratch, memory: int, payload: Path | None, transfer: Transfer) -> None:
        self._scratch = scratch
        self._path = scratch.path
        self.transfer = transfer
        self.secret = plant_secret()
        self.marker = plant_marker()
        self.payload = payload or self._write("payload", _BUILT_IN_PAYLOAD.encode())
        self._secret_file = self._write("secret", self.secret)
        self.pace = PACES[transfer]
        self._command_line = self._make_command_line()
        self.recipe: GuestRecipe = make_recipe(memory, VCPUS, KERNEL, str(self.payload), self._command_line)
        self._hosts = {name: Host(self._path / name) for name in ("host-a", "host-b")}

    def _make_command_line(self) -> str:
        again = 256 + len(read_file("payload", self.payload)) // _HASHED_PAGES
        pace = self.pace
        return (
            f"ws={pace.working_set} every=32 burst={pace.burst} pause={pace.pause_us} again={again} "
            f"marker={self.marker}"
        )

    def owners_ledger(self) -> Ledger:
        """What the owner wrote down."""
        return Ledger(self._path / "owner")

    def start_source(self) -> VmmProcess:
        """Launch the guest on host-a."""
        options = ["--kernel", KERNEL, "--payload", str(self.payload), "--append", self._command_line]
        options += ["--memory", str(self.recipe.layout.size), "--vcpus", str(VCPUS)]
        return self._start("host-a", [*options, "--secret", str(self._secret_file)])

    def start_target(self) -> tuple[VmmProcess, RecordingRelay]:
        """Wait for it on host-b, behind a network that records."""
        arrival = self._path / "arrival"
        target = self._start("host-b", ["--incoming", f"unix:{arrival}"])
        _ = target.qmp  # it answers only once it listens
        relay = RecordingRelay(arrival, self._path)
        self._scratch.ending.callback(relay.close)
        return target, relay

    def watch_console(self, host: str) -> ConsoleWatcher:
        """Read what the guest prints on a host."""
        sock = rundir.connect(self._hosts[host].run, self.marker, rundir.CONSOLE_SOCKET)
        watcher = ConsoleWatcher(sock)
        self._scratch.ending.callback(watcher.close)
        return watcher

    def _start(self, host: str, options: list[str]) -> VmmProcess:
        options = ["--owner", str(self._path / "owner"), *options]
        vmm = VmmProcess(self._hosts[host], self.marker, options, self._path / f"{host}.log")
        self._scratch.ending.callback(vmm.close)
        return vmm

    def _write(self, name: str, data: bytes) -> Path:
        path = self._path / name
        path.touch(mode=0o600)
        path.write_bytes(data)
        return path

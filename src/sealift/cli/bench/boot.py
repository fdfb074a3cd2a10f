"""What exits cost a Linux guest on its way from its first instruction to its init.

A VMM and a platform that are two processes pay a round trip between them for every exit. How many a boot makes is
counted here, what a round trip takes is measured beside it, and a VMM that is one process can boot the same guest in
the same run: then ours may take that one's time, the round trips of its own exits, and a fifth more.
"""

from __future__ import annotations

import os
import re
import select
import shlex
import signal
import statistics
import subprocess
import threading
import time
from collections import Counter
from dataclasses import dataclass
from typing import IO, Final

import msgspec

from sealift.cli.bench.echo import link_round_trip, socket_round_trip
from sealift.cli.bench.migrate import Say
from sealift.cli.guest_options import GuestOptions
from sealift.cli.linux.image import QUIET, LinuxImage, linux_image
from sealift.cli.places import Host, Places
from sealift.cli.scratch import Scratch
from sealift.cli.wiring import start_guest
from sealift.errors import GuestError, InternalError, LostError, UserError
from sealift.vmm.events import GuestEvent, RunStateChanged
from sealift.vmm.guest import Guest
from sealift.vmm.runstate import RunState
from sealift.wire import platform as wire

MARGIN: Final = 0.2
"""How much longer than the sum of its parts a boot may take."""

KINDS: Final[dict[type[wire.Message], str]] = {
    wire.PortIn: "port reads",
    wire.PortOut: "port writes",
    wire.MmioRead: "MMIO reads",
    wire.MmioWrite: "MMIO writes",
    wire.PageStateChange: "page-state changes",
    wire.Halt: "halts",
    wire.Interrupted: "interruptions",
}
"""Exits by what people call them."""

_TRIPS: Final = 5000
_PATIENCE_S: Final = 900.0
"""Linux boots within a second on KVM, and within a minute in the rig; longer than this and it hangs."""

_INIT: Final = re.compile(rb"^linux (\S+)\r?$", re.MULTILINE)
_READ_SIZE: Final = 64 * 1024


@dataclass(frozen=True, slots=True)
class Against:
    """Another VMM: a command, with {kernel} and {initrd} for the guest's.

    Attributes:
        until: what it prints once that has booted.
        since: what it prints as it lets the guest run, which is where our clock begins; empty for its own start.
    """

    command: str
    until: str
    since: str = ""


@dataclass(frozen=True, slots=True)
class Shape:
    """The guest: what runs its vCPUs, how many, and bytes of RAM."""

    engine: str
    vcpus: int
    memory: int


class Boot(msgspec.Struct, frozen=True):
    """One boot: seconds to its init, and how often the vCPUs left the guest on the way, by kind."""

    seconds: float
    kernel: str
    exits: dict[str, int]

    @property
    def count(self) -> int:
        """All exits."""
        return sum(self.exits.values())


class BootResult(msgspec.Struct, frozen=True, omit_defaults=True):
    """The boot of median time, and seconds of one round trip as `sealift bench exits` has them.

    `exits_share` is the part of the boot that its exits take, at a vCPU's exchange each. `bound_s` is what the boot
    may take beside another VMM that takes `against_s`.
    """

    engine: str
    vcpus: int
    memory: int
    boot: Boot
    socket_s: float
    link_s: float
    exits_share: float
    boot_runs: list[float]
    against_s: float | None = None
    against_runs: list[float] = []
    bound_s: float | None = None


def measure_boot(scratch: Scratch, shape: Shape, against: Against | None, runs: int, say: Say) -> BootResult:
    """Boot it `runs` times, and likewise what it is compared with.

    Raises:
        SealiftError: the guest could not be started, or did not come to its init; or the other command did not.
    """
    image = linux_image(scratch.path)
    boots: list[Boot] = []
    others, bare, link = [], [], []
    engine = ""
    for run in range(1, runs + 1):
        say(f"run {run} of {runs}: round trips")
        bare.append(socket_round_trip(_TRIPS))
        link.append(link_round_trip(_TRIPS))
        say(f"run {run} of {runs}: Linux boots")
        engine, boot = _boot(scratch, shape, image)
        boots.append(boot)
        if against is not None:
            say(f"run {run} of {runs}: {boot.seconds:.2f} s, {boot.count:,} exits; now the other command")
            others.append(seconds_until(_filled_in(against.command, image), against.until, against.since))
    boot = sorted(boots, key=lambda boot: boot.seconds)[len(boots) // 2]
    socket_s, link_s = statistics.median(bare), statistics.median(link)
    against_s = statistics.median(others) if others else None
    return BootResult(
        engine=engine,
        vcpus=shape.vcpus,
        memory=shape.memory,
        boot=boot,
        socket_s=socket_s,
        link_s=link_s,
        exits_share=boot.count * link_s / boot.seconds,
        boot_runs=[boot.seconds for boot in boots],
        against_s=against_s,
        against_runs=others,
        bound_s=None if against_s is None else (against_s + boot.count * socket_s) * (1 + MARGIN),
    )


# --- our guest -------------------------------------------------------------------------------------------------------


def _boot(scratch: Scratch, shape: Shape, image: LinuxImage) -> tuple[str, Boot]:
    """The engine, and the boot."""
    places = Places(Host(scratch.path / "host"), scratch.path / "owner", scratch.path / "manufacturer")
    options = GuestOptions(
        name="boot",
        memory=shape.memory,
        vcpus=shape.vcpus,
        kernel=str(image.kernel),
        initrd=image.initrd,
        append=QUIET,
        engine=shape.engine,
    )
    with start_guest(options, places) as hosted:
        return hosted.guest.machine.platform.info().engine, _Watch(hosted.guest).wait()


class _Watch:
    """Waits for the init of a guest that has just been let run."""

    def __init__(self, guest: Guest) -> None:
        self._guest = guest
        self._begun = time.monotonic()
        self._printed = b""
        self._boot: Boot | None = None
        self._over = threading.Event()
        guest.events.listen(self._happened)
        self._take(guest.console.listen(self._take))

    def wait(self) -> Boot:
        """How it went.

        Raises:
            GuestError: the guest came to an end before.
            LostError: it takes too long.
        """
        in_time = self._over.wait(_PATIENCE_S)
        if self._boot is not None:
            return self._boot
        if in_time:
            raise GuestError(f"the guest did not boot: {self._guest.machine.report}")
        raise LostError(f"the guest has not come to its init after {_PATIENCE_S:.0f} s")

    def _take(self, data: bytes) -> None:
        """The guest printed; its vCPU waits meanwhile, so what is counted ends here."""
        self._printed += data
        if self._boot is None and (match := _INIT.search(self._printed)):
            seconds = time.monotonic() - self._begun
            self._boot = Boot(seconds, match[1].decode(), _by_name(self._guest.machine.vcpus.exits))
            self._over.set()

    def _happened(self, event: GuestEvent) -> None:
        if isinstance(event, RunStateChanged) and event.after is not RunState.RUNNING:
            self._over.set()


def _by_name(exits: Counter[type[wire.Message]]) -> dict[str, int]:
    return {name: exits[kind] for kind, name in KINDS.items() if exits[kind]}


# --- another VMM -----------------------------------------------------------------------------------------------------


def _filled_in(command: str, image: LinuxImage) -> list[str]:
    names = {"{kernel}": str(image.kernel), "{initrd}": str(image.initrd)}
    return [names.get(argument, argument) for argument in shlex.split(command)]


def seconds_until(command: list[str], text: str, since: str = "") -> float:
    """How long a command takes to print a text, from another text or from its start; it is ended then.

    Raises:
        UserError: it cannot be started, or ends without having printed it.
        LostError: it takes too long.
    """
    begun = time.monotonic()
    try:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True
        )
    except OSError as error:
        raise UserError(f"the command {command[0]} cannot be started") from error
    with process:
        try:
            printed = b""
            if since:
                printed = _wait_for(process.stdout, since.encode(), begun + _PATIENCE_S)
                begun = time.monotonic()
            _wait_for(process.stdout, text.encode(), begun + _PATIENCE_S, printed)
            return time.monotonic() - begun
        finally:
            os.killpg(process.pid, signal.SIGKILL)


def _wait_for(output: IO[bytes] | None, text: bytes, deadline: float, printed: bytes = b"") -> bytes:
    """Read until a text is there; what was printed behind it."""
    if output is None:
        raise InternalError("a command was started without a pipe")
    more = select.poll()
    more.register(output, select.POLLIN)
    while text not in printed:
        if not more.poll(max(0.0, deadline - time.monotonic()) * 1e3):
            raise LostError(f"the command has not printed {text.decode()!r} after {_PATIENCE_S:.0f} s")
        data = os.read(output.fileno(), _READ_SIZE)
        if not data:
            last = printed.decode(errors="replace").strip().splitlines()[-1:] or ["nothing"]
            raise UserError(f"the command ended without printing {text.decode()!r}; the last it printed is: {last[0]}")
        printed += data
    return printed[printed.index(text) + len(text) :]

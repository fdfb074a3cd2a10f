"""Linux's part: an unmodified Debian kernel on the KVM engine, with a program that watches memory, disk and clocks."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

from sealift.address import PAGE_SIZE
from sealift.cli.demo import words
from sealift.cli.demo.console import FAULT, ConsoleWatcher
from sealift.cli.demo.report import LinuxGuestReport
from sealift.cli.demo.screen import Screen
from sealift.cli.demo.stage import VCPUS, Stage
from sealift.cli.linux.image import QUIET, LinuxImage
from sealift.cli.recipes import make_recipe
from sealift.cli.way import Way
from sealift.launch.image import GuestRecipe
from sealift.wire.handover import Method

_WORKING_SET: Final = 128
"""Pages for each vCPU."""

_DOWNTIME_LIMIT_MS: Final = {Method.MH: 1000, Method.PSP: 4000}
"""In the rig, where a few MB a second are moved, and fewer by packets, a busy kernel's own pages take longer than
QEMU's 300 ms; on KVM the limit makes no difference."""

_DISK_BLOCKS: Final = 64

_BOOT_PATIENCE_S: Final = 900.0
"""Linux boots within a second on KVM, and within a minute in the rig; longer than this and it hangs."""

_GUEST_PATIENCE_S: Final = 600.0
"""For a walk through all working sets and the disk, likewise."""

_LINUX: Final = re.compile(r"linux (\S+)")
_VCPUS: Final = re.compile(r"vcpus (\d+)")
_SECRET: Final = re.compile(r"secret (\d+)")
_ENCRYPTION: Final = re.compile(r"encryption (.+)")
_COUNTER: Final = re.compile(r"counter (\d+) faults (\d+) disk (\d+)")


@dataclass(slots=True)
class LinuxPrinted:
    """`Lines` of a Linux guest that runs linuxload.

    Attributes:
        kernel: its release.
        encryption: what the kernel said of memory encryption.
        vcpus: how many it has.
        secret_bytes: of the secret that it found.
        counter: pages verified and overwritten, as last reported; None before the first report.
        disk: blocks likewise.
        reported_faults: as last reported.
        faults: lines that tell of one.
    """

    kernel: str = ""
    encryption: str = ""
    vcpus: int = 0
    secret_bytes: int = 0
    counter: int | None = None
    disk: int = 0
    reported_faults: int = 0
    faults: list[str] = field(default_factory=list)

    def take(self, line: str) -> None:
        """Another line."""
        if match := _COUNTER.fullmatch(line):
            self.counter, self.reported_faults, self.disk = map(int, match.groups())
        elif match := _LINUX.fullmatch(line):
            self.kernel = match[1]
        elif match := _VCPUS.fullmatch(line):
            self.vcpus = int(match[1])
        elif match := _SECRET.fullmatch(line):
            self.secret_bytes = int(match[1])
        elif match := _ENCRYPTION.fullmatch(line):
            self.encryption = match[1]
        elif FAULT in line:
            self.faults.append(line)

    def copy(self) -> LinuxPrinted:
        """The same, to keep."""
        return replace(self, faults=list(self.faults))


class LinuxPart:
    """A `sealift.cli.demo.part.Part`.

    Args:
        stage: where it plays.
        memory: the guest's, in bytes.
        image: kernel and initial file system.
        way: how it is moved.
    """

    def __init__(self, stage: Stage, memory: int, image: LinuxImage, way: Way) -> None:
        self._stage = stage
        self._here: ConsoleWatcher[LinuxPrinted]
        self._there: ConsoleWatcher[LinuxPrinted]
        kernel, initrd = str(image.kernel), str(image.initrd)
        command_line = _command_line(stage.marker)
        self.way = way
        self.recipe: GuestRecipe = make_recipe(memory, VCPUS, kernel, None, command_line, initrd)
        self.disk: Path | None = stage.write("disk", bytes(_DISK_BLOCKS * PAGE_SIZE))
        self.arrival_options = ["--engine", "kvm", "--disk", str(self.disk)]
        self.launch_options = [
            *self.arrival_options,
            *("--kernel", kernel, "--initrd", initrd, "--append", command_line),
            *("--memory", str(memory), "--vcpus", str(VCPUS), "--downtime-limit", str(_DOWNTIME_LIMIT_MS[way.method])),
            *("--policy", way.policy),
        ]

    def begin(self, screen: Screen) -> None:
        """Let it boot, fill its working sets and its disk."""
        self._here = self._stage.watch_console("host-a", LinuxPrinted())
        with screen.step("Booted", "Linux boots …") as step:
            seen = self._here.wait("it counted", lambda seen: seen.counter is not None, _BOOT_PATIENCE_S)
            step.outcome = words.booted(seen.kernel, seen.encryption, seen.vcpus)
        with screen.step("Counts", "It fills its working sets and its disk …") as step:
            seen = self._here.wait(
                "it had filled its working sets", _walked(LinuxPrinted(counter=0)), _GUEST_PATIENCE_S
            )
            step.outcome = words.watching(seen.counter or 0, seen.disk, _WORKING_SET)

    def expect(self) -> None:
        """Watch its console on host-b."""
        self._there = self._stage.watch_console("host-b", LinuxPrinted())

    def go_on(self, screen: Screen) -> LinuxGuestReport:
        """Let it walk through everything it brought."""
        with screen.step("Went on", "On host-b the guest verifies memory, disk and clocks …") as step:
            before = self._here.printed
            after = self._there.wait("it had verified all that it brought", _walked(before), _GUEST_PATIENCE_S)
            report = linux_report(before, after)
            step.outcome = words.linux_went_on(report)
        return report


def linux_report(before: LinuxPrinted, after: LinuxPrinted) -> LinuxGuestReport:
    """What it printed on both hosts."""
    return LinuxGuestReport(
        kernel=before.kernel,
        memory_encryption_line=before.encryption,
        vcpus=before.vcpus,
        secret_bytes=before.secret_bytes,
        counter_before=before.counter or 0,
        counter_after=after.counter or 0,
        disk_before=before.disk,
        disk_after=after.disk,
        faults=max(before.reported_faults, after.reported_faults, len(before.faults) + len(after.faults)),
    )


def _walked(since: LinuxPrinted) -> Callable[[LinuxPrinted], bool]:
    """Whether a guest has been through everything twice since then: a vCPU may be faster than another one."""
    pages = (since.counter or 0) + 2 * VCPUS * _WORKING_SET
    blocks = since.disk + 2 * _DISK_BLOCKS

    def walked(seen: LinuxPrinted) -> bool:
        return seen.counter is not None and seen.counter >= pages and seen.disk >= blocks

    return walked


def _command_line(marker: str) -> str:
    return f"{QUIET} ws={_WORKING_SET} burst=32 pause=5000 blocks={_DISK_BLOCKS} marker={marker}"

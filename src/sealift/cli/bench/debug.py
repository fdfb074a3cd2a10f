"""What debugging costs: reads of private memory through DBG_DECRYPT, and dumps, each beside the same of a plain guest.

Both guests hold as much random memory, halted. Reads go by virtual address, as a debugger's do of a guest that stands
still: page tables are read once in a run. What is dumped goes to a file in the benchmark's own directory. The two kinds
of guest take turns, so that a machine's moods meet both.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Final

import msgspec

from sealift.cli.bench.migrate import Say
from sealift.cli.guest_options import GuestOptions, GuestType
from sealift.cli.places import Host, Places
from sealift.cli.scratch import Scratch
from sealift.cli.wiring import HostedGuest, start_guest
from sealift.errors import GuestError, LostError
from sealift.vmm.debug.cpu import read_cpu
from sealift.vmm.debug.dump import Dump, DumpStatus, DumpWishes
from sealift.vmm.debug.memory import debug_memory
from sealift.vmm.debug.virtual import VirtualMemory

READ_SIZE: Final = 64 << 10
"""Bytes of one read: about what a debugger's largest packet carries."""

_READS: Final = 200
_ROOM: Final = 32 << 20
"""Bytes a guest needs beside its payload: start-up area, kernel, page tables, stacks."""
_BEFORE: Final = 16 << 20
"""Where random memory begins at the latest: behind kernel, page tables and stacks, mapped one to one."""
_PATIENCE_S: Final = 60.0
_CHUNK: Final = 16 << 20


class DebugResult(msgspec.Struct, frozen=True):
    """Rates in bytes a second: medians over the runs, and the runs themselves; `size` bytes of memory are random.

    `read_bytes_per_s` is of private memory through DBG_DECRYPT, `dump_ratio` a decrypted dump to one of a plain guest.
    """

    size: int
    read_size: int
    read_bytes_per_s: float
    plain_read_bytes_per_s: float
    dump_bytes_per_s: float
    plain_dump_bytes_per_s: float
    dump_ratio: float
    read_runs: list[float]
    plain_read_runs: list[float]
    dump_runs: list[float]
    plain_dump_runs: list[float]


def measure_debug(scratch: Scratch, size: int, runs: int, say: Say) -> DebugResult:
    """Read and dump an SEV guest and a plain one.

    Raises:
        SealiftError: a guest could not be launched or dumped.
    """
    say(f"launching two guests with {size >> 20:,} MiB of random memory each")
    payload = scratch.path / "payload"
    _fill(payload, size)
    sev, plain = (_launch(scratch, kind, size, payload) for kind in (GuestType.SEV, GuestType.PLAIN))
    payload.unlink()
    say("reading")
    reads = [(_read_rate(sev, size), _read_rate(plain, size)) for _ in range(runs)]
    say("dumping")
    core = scratch.path / "core"
    _dump_rate(plain, core)  # what the machine gives the file for the first time takes it longer
    dumps = [(_dump_rate(sev, core), _dump_rate(plain, core)) for _ in range(runs)]
    read_runs, plain_read_runs = map(list, zip(*reads, strict=True))
    dump_runs, plain_dump_runs = map(list, zip(*dumps, strict=True))
    dumped, plain_dumped = statistics.median(dump_runs), statistics.median(plain_dump_runs)
    return DebugResult(
        size=size,
        read_size=READ_SIZE,
        read_bytes_per_s=statistics.median(read_runs),
        plain_read_bytes_per_s=statistics.median(plain_read_runs),
        dump_bytes_per_s=dumped,
        plain_dump_bytes_per_s=plain_dumped,
        dump_ratio=dumped / plain_dumped,
        read_runs=read_runs,
        plain_read_runs=plain_read_runs,
        dump_runs=dump_runs,
        plain_dump_runs=plain_dump_runs,
    )


def _fill(path: Path, size: int) -> None:
    with path.open("wb") as file:
        for done in range(0, size, _CHUNK):
            file.write(os.urandom(min(_CHUNK, size - done)))


def _launch(scratch: Scratch, kind: GuestType, size: int, payload: Path) -> HostedGuest:
    places = Places(Host(scratch.path / "host"), scratch.path / "owner", scratch.path / "manufacturer")
    memory = -(-(size + _ROOM) // (1 << 20)) << 20
    options = GuestOptions(kind.value, kind, memory, vcpus=1, kernel="idle", payload=payload, engine="unicorn")
    if kind is GuestType.SEV:
        options = replace(options, policy="nosend")
    hosted = scratch.ending.enter_context(start_guest(options, places))
    if not hosted.guest.machine.vcpus.wait_all_halted(_PATIENCE_S):
        raise LostError(f"the guest has not come to rest after {_PATIENCE_S:.0f} s")
    return hosted


def _read_rate(hosted: HostedGuest, size: int) -> float:
    """Of reads all over the random memory."""
    machine = hosted.guest.machine
    memory = debug_memory(machine)
    with machine.stilled():
        paging = read_cpu(machine, 0).paging
    places = max(1, (size - _BEFORE) // READ_SIZE)
    stride = max(1, places // _READS)

    virtual = VirtualMemory(memory, paging)

    def read() -> None:
        for number in range(_READS):
            virtual.read(_BEFORE + number * stride % places * READ_SIZE, READ_SIZE)

    return _READS * READ_SIZE / _seconds(read)


def _dump_rate(hosted: HostedGuest, path: Path) -> float:
    dump = Dump(hosted.guest.machine, DumpWishes(path), lambda _: None)
    seconds = _seconds(dump.run)
    info = dump.info
    if info.status is not DumpStatus.COMPLETED:
        raise GuestError(f"the guest could not be dumped: {info.error}")
    path.unlink()
    return info.total / seconds


def _seconds(work: Callable[[], object]) -> float:
    begun = time.perf_counter()
    work()
    return time.perf_counter() - begun

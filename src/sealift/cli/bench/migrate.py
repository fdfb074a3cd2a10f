"""How fast sealed memory moves, beside the raw pipe and QEMU; runs of all alternate, since machines have moods."""

from __future__ import annotations

import os
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import msgspec

from sealift.cli.bench.moves import Burden, Hop, HoppingGuest
from sealift.cli.bench.pipe import Piped, raw_pipe
from sealift.cli.bench.qemu import QemuBench, QemuWay
from sealift.cli.scratch import Scratch
from sealift.cli.way import MAILBOX, PACKETS, Way
from sealift.wire.handover import Method, Transfer

MAILBOX_SIZE: Final = 16 << 20
"""Bytes moved through the mailbox in one run: thousands of pages, in about a second."""

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Wanted:
    """What is to be measured.

    Attributes:
        size: bytes of random private memory.
        runs: of each.
        channels: of the ring.
        dirty_rate: bytes a second that the guest which moves by ring writes meanwhile, at most.
        against_qemu: whether QEMU moves as much.
    """

    size: int
    runs: int
    channels: int = 1
    dirty_rate: int = 0
    against_qemu: bool = False


class MigrateResult(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """Medians over the runs; the runs themselves beside them, for who wants to see how they scatter.

    `ratio` is sealed, by ring, to the raw pipe; the others are sealed, by ring, to QEMU. Times of processors are those
    of all processes together, in seconds a byte or page: divided into `processors`, they bound the rates.
    """

    size: int
    sealed_bytes_per_s: float
    raw_pipe_bytes_per_s: float
    ratio: float
    mailbox_pages_per_s: float
    packets_bytes_per_s: float
    sealed_runs: list[float]
    raw_pipe_runs: list[float]
    mailbox_runs: list[float]
    packets_runs: list[float]
    processors: int
    sealed_cpu_s_per_byte: float
    raw_pipe_cpu_s_per_byte: float
    mailbox_cpu_s_per_page: float
    channels: int = 1
    dirty_rate: int = 0
    qemu_plain_bytes_per_s: float | None = None
    qemu_tls_bytes_per_s: float | None = None
    qemu_multifd_tls_bytes_per_s: float | None = None
    qemu_plain_ratio: float | None = None
    qemu_tls_ratio: float | None = None
    qemu_multifd_tls_ratio: float | None = None
    qemu_plain_runs: list[float] = []
    qemu_tls_runs: list[float] = []
    qemu_multifd_tls_runs: list[float] = []


def measure_migration(scratch: Scratch, wanted: Wanted, say: Say) -> MigrateResult:
    """Move memory as often as wanted, each way.

    Raises:
        UserError: QEMU is to be compared with and not there.
        SealiftError: a guest could not be launched or moved.
    """
    size, runs = wanted.size, wanted.runs
    qemu = QemuBench(scratch, size) if wanted.against_qemu else None
    say(f"launching a guest with {size >> 20:,} MiB of random private memory")
    ring = Way(Method.MH, Transfer.RING, wanted.channels)
    guest = HoppingGuest(scratch, "ring", ring, Burden(size, wanted.dirty_rate))
    sealed: list[Hop] = []
    raw: list[Piped] = []
    others: dict[QemuWay, list[float]] = {way: [] for way in QemuWay}
    for run in range(1, runs + 1):
        say(f"run {run} of {runs}: raw pipe")
        raw.append(raw_pipe(size))
        say(f"run {run} of {runs}: sealed, by ring")
        sealed.append(guest.hop())
        if qemu is not None:
            for way, rates in others.items():
                say(f"run {run} of {runs}: QEMU, {way.value}")
                rates.append(qemu.move(way))
    guest.close()
    mailbox = _hops(scratch, MAILBOX, min(size, MAILBOX_SIZE), runs, say)
    packets = [hop.bytes_per_s for hop in _hops(scratch, PACKETS, size, runs, say)]
    sealed_runs, raw_runs = ([run.bytes_per_s for run in way] for way in (sealed, raw))
    result = MigrateResult(
        size=size,
        sealed_bytes_per_s=statistics.median(sealed_runs),
        raw_pipe_bytes_per_s=statistics.median(raw_runs),
        ratio=statistics.median(sealed_runs) / statistics.median(raw_runs),
        mailbox_pages_per_s=statistics.median(hop.pages_per_s for hop in mailbox),
        packets_bytes_per_s=statistics.median(packets),
        sealed_runs=sealed_runs,
        raw_pipe_runs=raw_runs,
        mailbox_runs=[hop.pages_per_s for hop in mailbox],
        packets_runs=packets,
        processors=len(os.sched_getaffinity(0)),
        sealed_cpu_s_per_byte=statistics.median(hop.cpu_s_per_byte for hop in sealed),
        raw_pipe_cpu_s_per_byte=statistics.median(run.cpu_s_per_byte for run in raw),
        mailbox_cpu_s_per_page=statistics.median(hop.cpu_s_per_page for hop in mailbox),
        channels=wanted.channels,
        dirty_rate=wanted.dirty_rate,
    )
    return _beside_qemu(result, others) if qemu else result


def _beside_qemu(result: MigrateResult, runs: dict[QemuWay, list[float]]) -> MigrateResult:
    plain, tls, multifd_tls = (statistics.median(runs[way]) for way in QemuWay)
    return msgspec.structs.replace(
        result,
        qemu_plain_bytes_per_s=plain,
        qemu_tls_bytes_per_s=tls,
        qemu_multifd_tls_bytes_per_s=multifd_tls,
        qemu_plain_ratio=result.sealed_bytes_per_s / plain,
        qemu_tls_ratio=result.sealed_bytes_per_s / tls,
        qemu_multifd_tls_ratio=result.sealed_bytes_per_s / multifd_tls,
        qemu_plain_runs=runs[QemuWay.PLAIN],
        qemu_tls_runs=runs[QemuWay.TLS],
        qemu_multifd_tls_runs=runs[QemuWay.MULTIFD_TLS],
    )


def _hops(scratch: Scratch, way: Way, size: int, runs: int, say: Say) -> list[Hop]:
    say(f"launching a guest with {size >> 20:,} MiB to be moved by {way.name}")
    guest = HoppingGuest(scratch, way.name, way, Burden(size))
    hops = []
    for run in range(1, runs + 1):
        say(f"run {run} of {runs}: by {way.name}")
        hops.append(guest.hop())
    guest.close()
    return hops

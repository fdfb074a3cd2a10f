"""How fast sealed memory moves, beside the raw pipe; runs of both alternate, since machines have moods."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Final

import msgspec

from sealift.cli.bench.moves import Hop, HoppingGuest
from sealift.cli.bench.pipe import raw_pipe
from sealift.cli.scratch import Scratch
from sealift.cli.way import MAILBOX, PACKETS, RING, Way

MAILBOX_SIZE: Final = 16 << 20
"""Bytes moved through the mailbox in one run: thousands of pages, in about a second."""

Say = Callable[[str], None]


class MigrateResult(msgspec.Struct, frozen=True):
    """Medians over the runs; the runs themselves beside them, for who wants to see how they scatter."""

    size: int
    sealed_bytes_per_s: float
    raw_pipe_bytes_per_s: float
    ratio: float
    mailbox_pages_per_s: float
    sealed_runs: list[float]
    raw_pipe_runs: list[float]
    mailbox_runs: list[float]
    packets_bytes_per_s: float
    packets_runs: list[float]


def measure_migration(scratch: Scratch, size: int, runs: int, say: Say) -> MigrateResult:
    """Move `size` bytes `runs` times each way.

    Raises:
        SealiftError: a guest could not be launched or moved.
    """
    say(f"launching a guest with {size >> 20:,} MiB of random private memory")
    guest = HoppingGuest(scratch, "ring", RING, size)
    sealed, raw = [], []
    for run in range(1, runs + 1):
        say(f"run {run} of {runs}: raw pipe")
        raw.append(raw_pipe(size))
        say(f"run {run} of {runs}: sealed, by ring")
        sealed.append(guest.hop().bytes_per_s)
    guest.close()
    mailbox = _hops(scratch, MAILBOX, min(size, MAILBOX_SIZE), runs, say)
    packets = [hop.bytes_per_s for hop in _hops(scratch, PACKETS, size, runs, say)]
    return MigrateResult(
        size=size,
        sealed_bytes_per_s=statistics.median(sealed),
        raw_pipe_bytes_per_s=statistics.median(raw),
        ratio=statistics.median(sealed) / statistics.median(raw),
        mailbox_pages_per_s=statistics.median(hop.pages_per_s for hop in mailbox),
        sealed_runs=sealed,
        raw_pipe_runs=raw,
        mailbox_runs=[hop.pages_per_s for hop in mailbox],
        packets_bytes_per_s=statistics.median(packets),
        packets_runs=packets,
    )


def _hops(scratch: Scratch, way: Way, size: int, runs: int, say: Say) -> list[Hop]:
    say(f"launching a guest with {size >> 20:,} MiB to be moved by {way.name}")
    guest = HoppingGuest(scratch, way.name, way, size)
    hops = []
    for run in range(1, runs + 1):
        say(f"run {run} of {runs}: by {way.name}")
        hops.append(guest.hop())
    guest.close()
    return hops

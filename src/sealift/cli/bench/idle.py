"""What a guest costs that does nothing: processor time of its two processes, the VMM's peak memory, rounds, downtime.

The guest has moved some times, so its migration handler is connected and idle too; it is watched once it rests. Peak
memory is the kernel's VmHWM of a VMM process over its whole life: for the source, launching and sending a guest; for
the target, receiving it. The design has it independent of the guest's size; that is what two sizes show. The last round
of each move has nothing to send: what it takes is what any round costs beside its pages.
"""

from __future__ import annotations

import re
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec

from sealift.cli.bench.cputime import cpu_s
from sealift.cli.bench.migrate import Say
from sealift.cli.bench.moves import Burden, HoppingGuest
from sealift.cli.scratch import Scratch
from sealift.cli.vmm_process import VmmProcess
from sealift.cli.way import RING
from sealift.errors import InternalError, LostError

SIZES: Final = (64 << 20, 8 << 30)
"""Guest RAM, small and large; nearly all of it is never touched."""

_LOOK_S: Final = 0.1
_LOOKS: Final = 300
_REST_S: Final = 0.001
"""Seconds of processor time between two looks, one per cent: half a minute of more is no rest."""

_PAYLOAD: Final = 1 << 20
_PEAK: Final = re.compile(r"^VmHWM:\s+(\d+) kB$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Watch:
    """How long each guest is watched, in seconds, after how many moves; medians of those count."""

    span_s: float = 5.0
    hops: int = 5


class IdleGuest(msgspec.Struct, frozen=True):
    """One guest of `memory` bytes: processor time in seconds over `span_s`, peaks in bytes.

    `round_s` is a round without pages, `downtime` the parts of the whole standstill in seconds; medians of some moves.
    """

    memory: int
    span_s: float
    vmm_cpu_s: float
    platform_cpu_s: float
    source_vmm_peak_bytes: int
    target_vmm_peak_bytes: int
    round_s: float
    downtime_s: float
    downtime: dict[str, float]


class IdleResult(msgspec.Struct, frozen=True):
    """Guests of all sizes."""

    guests: list[IdleGuest]


def measure_idle(scratch: Scratch, say: Say, sizes: Sequence[int] = SIZES, watch: Watch = Watch()) -> IdleResult:
    """Launch, move and watch a guest of each size in bytes.

    Raises:
        SealiftError: a guest could not be launched or moved.
    """
    return IdleResult([_measure(scratch, number, memory, watch, say) for number, memory in enumerate(sizes)])


def _measure(scratch: Scratch, number: int, memory: int, watch: Watch, say: Say) -> IdleGuest:
    say(f"launching and moving a guest of {memory >> 20:,} MiB")
    guest = HoppingGuest(scratch, f"idle-{number}", RING, Burden(_PAYLOAD, memory=memory))
    source = guest.vmm
    peaks: list[int] = []
    hops = [guest.hop(lambda: peaks.append(peak_bytes(source.pid)))]
    target_peak = peak_bytes(guest.vmm.pid)
    hops += [guest.hop() for _ in range(watch.hops - 1)]
    vmm, platform = guest.vmm.pid, guest.vmm.platform_pid()
    say("waiting until it rests")
    wait_for_rest(lambda: cpu_s(vmm) + cpu_s(platform), lambda: _pass_time(guest.vmm, _LOOK_S))
    say(f"watching it do nothing for {watch.span_s:g} s")
    before, begun = (cpu_s(vmm), cpu_s(platform)), time.monotonic()
    _pass_time(guest.vmm, watch.span_s)
    after, span = (cpu_s(vmm), cpu_s(platform)), time.monotonic() - begun
    guest.close()
    return IdleGuest(
        memory,
        span,
        after[0] - before[0],
        after[1] - before[1],
        peaks[0],
        target_peak,
        round_s=statistics.median(hop.last_round_s for hop in hops),
        downtime_s=statistics.median(hop.downtime_s for hop in hops),
        downtime={part: statistics.median(hop.downtime[part] for hop in hops) for part in hops[0].downtime},
    )


def wait_for_rest(used_s: Callable[[], float], look: Callable[[], None]) -> None:
    """Return once processes use next to no processor time from one look to the next: what a start or an arrival left.

    Raises:
        LostError: they do not come to rest.
    """
    before = used_s()
    for _ in range(_LOOKS):
        look()
        now = used_s()
        if now - before < _REST_S:
            return
        before = now
    raise LostError("a guest that has nothing to do does not come to rest")


def _pass_time(vmm: VmmProcess, seconds: float) -> None:
    """Wait so long.

    Raises:
        LostError: the VMM has ended meanwhile.
    """
    until = time.monotonic() + seconds
    while (left := until - time.monotonic()) > 0:
        vmm.qmp.next_event(left)


def peak_bytes(pid: int) -> int:
    """The most memory that was ever resident in a process."""
    match = _PEAK.search((Path("/proc") / str(pid) / "status").read_text())
    if match is None:
        raise InternalError(f"/proc does not tell the peak memory of process {pid}")
    return int(match[1]) << 10

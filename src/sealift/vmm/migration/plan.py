"""A plan: what a migration of this guest to that target would cost, from what is measured now.

How fast memory can be sealed is measured as well, by sealing some: a way may be faster than the cipher.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from typing import Final

from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from sealift.errors import RefusedError
from sealift.vmm.migration.clock import Clock
from sealift.vmm.migration.dirtyrate import DirtyRateMeter, MachineWrites, Measurement
from sealift.vmm.migration.forecast import Conditions, Forecast, Leeway, Remedy, WorkingSet, predict, remedies
from sealift.vmm.migration.parameters import Capability, Parameters
from sealift.vmm.migration.preflight import Candidate, Findings, Path, content_pages, examine, measure_path
from sealift.vmm.migration.stats import PAGE_COST
from sealift.wire.handover import Method, Transfer
from sealift.wire.obstacle import Code

SAMPLE_S: Final = 1.0
"""How long a plan looks at what the guest writes, unless it is told."""

_RECORD_SIZE: Final = 1 << 20
_RECORDS: Final = 32
"""Enough for no cache to hold them all."""

_MAILBOX_PAGES: Final = 15_000
"""Pages a second through the mailbox (SPECIFICATION, figures) on a machine with nothing else to do."""

_SETUP_S: Final = 0.2
"""A receiver's launch and the exchange of keys, where no migration is on record."""

_STANDSTILL_S: Final = 0.02
"""vCPUs leave, state is sealed, opened and verified, where no migration is on record; and `_COMMIT_TRIPS`."""

_COMMIT_TRIPS: Final = 2
"""Round trips while the guest is stopped: the end of the stream to PREPARED, then FINAL to STARTED."""

_MORE_CHANNELS: Final = (2, 4, 8)
"""What is tried where one does not do: beyond that no machine here ever won anything."""


@dataclass(frozen=True, slots=True)
class Wishes:
    """What the user asks of a migration: its longest downtime (None: as the parameters have it) and time in all."""

    downtime_limit_ms: int | None = None
    within_s: float = math.inf
    sample_s: float = SAMPLE_S


@dataclass(frozen=True, slots=True)
class Experience:
    """What earlier migrations from this host took beside their pages; medians.

    Attributes:
        migrations: how many they were.
        setup_s: connecting, launching the receiver, exchanging keys.
        standstill_s: of their downtime, all but the last pages.
    """

    migrations: int
    setup_s: float
    standstill_s: float


@dataclass(frozen=True, slots=True)
class Plan:
    """What was measured, and what follows from it.

    Attributes:
        uri: where to.
        measured: what the guest writes.
        path: the way there.
        content: pages that the first round sends.
        conditions: what the migration will find.
        experience: where set-up and standstill are from, if not assumed.
        forecast: what it costs.
        remedies: what would make it suffice, if it does not.
    """

    uri: str
    measured: Measurement
    path: Path
    content: int
    conditions: Conditions
    experience: Experience | None
    forecast: Forecast
    remedies: tuple[Remedy, ...]


def make_plan(
    candidate: Candidate, uri: str, wishes: Wishes, meter: DirtyRateMeter, clock: Clock, experience: Experience | None
) -> Plan:
    """Measure guest, way and cipher, and predict.

    Raises:
        UserError: `uri` is no address, or the guest is being measured already.
        RefusedError: the target cannot be reached.
    """
    path = _reached(examine(candidate, uri, clock))
    measured = meter.measure(MachineWrites(candidate.machine), wishes.sample_s)
    if measured.error is not None:
        raise RefusedError(f"what the guest writes cannot be measured: {measured.error}")
    parameters, sealing = candidate.parameters, _sealing(candidate.parameters, clock)
    conditions = _conditions(parameters, wishes, min(path.bytes_per_s, sealing), path, experience)
    content = content_pages(candidate.machine)
    writes = WorkingSet(measured.samples, candidate.machine.layout.pages)
    forecast = predict(content, writes, conditions)
    ways_out: tuple[Remedy, ...] = ()
    if not forecast.suffices:
        channels = {
            count: min(measure_path(candidate, uri, count, clock).bytes_per_s, sealing)
            for count in (_MORE_CHANNELS if _may_have_more(parameters) else ())
            if count > parameters.channels
        }
        ways_out = remedies(content, writes, conditions, Leeway(parameters.throttling, sealing, channels))
    return Plan(uri, measured, path, content, conditions, experience, forecast, ways_out)


def _conditions(
    parameters: Parameters, wishes: Wishes, bytes_per_s: float, path: Path, experience: Experience | None
) -> Conditions:
    limit_ms = parameters.downtime_limit_ms if wishes.downtime_limit_ms is None else wishes.downtime_limit_ms
    if experience is None:
        experience = Experience(0, _SETUP_S, _STANDSTILL_S + _COMMIT_TRIPS * path.round_trip_s)
    return Conditions(
        bytes_per_s,
        limit_ms / 1e3,
        experience.standstill_s,
        experience.setup_s,
        parameters.max_bandwidth,
        parameters.throttling if Capability.AUTO_CONVERGE in parameters.capabilities else None,
        wishes.within_s,
    )


def _may_have_more(parameters: Parameters) -> bool:
    """Whether more channels are possible, and are not held back by what the user allows them."""
    return parameters.method is Method.MH and parameters.transfer is Transfer.RING and not parameters.max_bandwidth


def _reached(findings: Findings) -> Path:
    if findings.path is None:
        if not findings.obstacles:
            raise RefusedError("there is no way to measure to a file; its device alone decides how fast that is")
        reasons = [found.sentence for found in findings.obstacles if found.code in {Code.UNREACHABLE, Code.NOT_ASKED}]
        raise RefusedError("; and ".join(reasons))
    return findings.path


def _sealing(parameters: Parameters, clock: Clock) -> float:
    """Bytes a second, were the way endlessly fast."""
    if parameters.method is Method.MH and parameters.transfer is Transfer.MAILBOX:
        return float(_MAILBOX_PAGES * PAGE_COST)
    return sealing_rate(parameters.method, clock)


def sealing_rate(method: Method, clock: Clock) -> float:
    """Bytes a second that memory takes on its way from page to page, but for the wire: copied, sealed, opened, copied.

    Both ends do so at once, each its half; but they may share a machine, and one core must do with the whole then. Of
    method psp it is SHA-256 in AMD's HMAC that takes longest.
    """
    memory, there = memoryview(bytearray(_RECORDS * _RECORD_SIZE)), bytearray(_RECORDS * _RECORD_SIZE)
    cipher = AESGCM(AESGCM.generate_key(256))
    began = clock.monotonic()
    for number in range(_RECORDS):
        place = slice(number * _RECORD_SIZE, (number + 1) * _RECORD_SIZE)
        record = bytes(memory[place])
        match method:
            case Method.MH:
                nonce = number.to_bytes(12, "big")
                record = cipher.decrypt(nonce, cipher.encrypt(nonce, record, None), None)
            case Method.PSP:
                hashlib.sha256(record).digest()
                hashlib.sha256(record).digest()
            case Method.PLAIN:
                pass
        there[place] = record
    return _RECORDS * _RECORD_SIZE / max(clock.monotonic() - began, 1e-9)

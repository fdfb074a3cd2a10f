"""Before a migration: everything that is in its way, and how good the way is.

Source, target, both platforms and the owner are asked (`sealift.wire.inquiry`, `sealift.wire.obstacle`); the list is
whole, so that a user mends once and not once for each attempt. The target stays as it was, and can be asked again.
"""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Final

import msgspec

from sealift.errors import LostError, SealiftError, StreamError, UserError, sentence
from sealift.sev import certificate
from sealift.vmm.launch import Launched
from sealift.vmm.machine import Machine
from sealift.vmm.migration.clock import Clock
from sealift.vmm.migration.handed import ExecAddress, FdAddress
from sealift.vmm.migration.parameters import Parameters
from sealift.vmm.migration.route import Route
from sealift.vmm.migration.stats import PAGE_COST
from sealift.vmm.migration.stream_file import check_place
from sealift.vmm.migration.streamio import StreamReader
from sealift.vmm.migration.transport import FileAddress, parse_uri
from sealift.wire.handover import Disk, Method, Refusal, blocks_of
from sealift.wire.inquiry import (
    PROBE_LIMIT,
    Answer,
    InquiryFrame,
    InquiryKind,
    Question,
    encode_front,
    read_frame_front,
)
from sealift.wire.obstacle import Code, Obstacle
from sealift.wire.packed import unpack
from sealift.wire.platform import Count, CountPopulated, PdhCertExport, PdhCertificates

_ANSWER_LIMIT_S: Final = 30.0
"""A target that waits may have to start its platform and to ask an owner elsewhere; neither takes this long."""

_TRIPS: Final = 5
"""Empty probes; the quickest of them is the way's, the others waited for something else."""

_LONG_ENOUGH_S: Final = 0.1
"""Of a probe, so that start and buffers do not matter; the sizes below grow until it takes so long."""

_PROBE_SIZES: Final = (1, 8, 64)
"""PROBEs of 1 MiB underway together."""

_NOTHING: Final = bytes(PROBE_LIMIT)

_SLOW_S: Final = 600.0
"""A first round that takes longer than ten minutes is worth a warning."""

_SKEW_S: Final = 2.0
"""Hosts that follow any time service agree to much better than this."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """A guest that might be moved, and how."""

    machine: Machine
    launched: Launched
    name: str
    parameters: Parameters


@dataclass(frozen=True, slots=True)
class Path:
    """A way to a target, as measured: bytes a second on all connections together, and seconds there and back."""

    bytes_per_s: float
    round_trip_s: float


@dataclass(frozen=True, slots=True)
class Findings:
    """What a preflight found; no path if the target was not reached."""

    obstacles: tuple[Obstacle, ...]
    path: Path | None = None

    @property
    def possible(self) -> bool:
        """Whether nothing forbids the migration."""
        return not any(obstacle.blocks for obstacle in self.obstacles)


def examine(candidate: Candidate, uri: str, clock: Clock, wall_clock: Callable[[], float] = time.time) -> Findings:
    """Ask the target, and measure the way there.

    Raises:
        UserError: `uri` is no address.
    """
    address = parse_uri(uri)
    if isinstance(address, FdAddress | ExecAddress):
        # What was handed here is one connection, and the guest needs it.
        return Findings((Obstacle(Code.NOT_ASKED, f"{address} is one connection, on which no target can be asked"),))
    if isinstance(address, FileAddress) and candidate.parameters.method is Method.PLAIN:
        try:
            check_place(address)
        except UserError as error:
            return Findings((Obstacle(Code.UNREACHABLE, sentence(error)),))
        return Findings(())
    question, parameters = question_about(candidate), candidate.parameters
    try:
        route = Route(address, parameters.tls_creds, parameters.tls_hostname)
        route.check(parameters.channels)
        with contextlib.closing(route), contextlib.closing(route.connect()) as sock:
            inquiry = Inquiry(sock, clock)
            answer = inquiry.ask(question)
            skew = answer.wall_clock - wall_clock()  # it looked when it had judged, which may have taken a while
            path = _measured(route, inquiry, parameters.channels, clock)
    except SealiftError as error:
        return Findings((Obstacle(Code.UNREACHABLE, sentence(error)),))
    obstacles = [*answer.obstacles]
    if abs(skew) > _SKEW_S:
        ahead = "ahead of" if skew > 0 else "behind"
        obstacles.append(Obstacle(Code.CLOCK_SKEW, f"the target's clock is {abs(skew):.0f} s {ahead} this host's"))
    first_s = content_pages(candidate.machine) * PAGE_COST / path.bytes_per_s
    if first_s > _SLOW_S:
        slow = f"the way takes {path.bytes_per_s / 1e6:.1f} MB/s, so the first round alone takes {first_s / 60:.0f} min"
        obstacles.append(Obstacle(Code.SLOW_PATH, slow))
    return Findings(tuple(obstacles), path)


def measure_path(candidate: Candidate, uri: str, connections: int, clock: Clock) -> Path:
    """What so many connections to a target that was examined take together.

    Raises:
        SealiftError: they cannot be made.
    """
    route = Route(parse_uri(uri), candidate.parameters.tls_creds, candidate.parameters.tls_hostname)
    with contextlib.closing(route), contextlib.closing(route.connect()) as sock:
        first = Inquiry(sock, clock)
        first.begin()
        return _measured(route, first, connections, clock)


def _measured(route: Route, first: Inquiry, connections: int, clock: Clock) -> Path:
    with contextlib.ExitStack() as ending:
        inquiries = [first]
        for _ in range(connections - 1):
            inquiries.append(Inquiry(ending.enter_context(contextlib.closing(route.connect())), clock))
            inquiries[-1].begin()
        return measure(inquiries, clock)


def measure(inquiries: Sequence[Inquiry], clock: Clock) -> Path:
    """The way's round trip, then how much it takes; about a tenth of a second, unless it is slow.

    Raises:
        LostError: the target is gone.
    """

    def probe(count: int, payload: bytes) -> float:
        began = clock.monotonic()
        for done in [threads.submit(inquiry.probe, count, payload) for inquiry in inquiries]:
            done.result()
        return clock.monotonic() - began

    with ThreadPoolExecutor(len(inquiries), "probe") as threads:
        trip = min(inquiries[0].probe(1, b"") for _ in range(_TRIPS))
        seconds, sent = 0.0, 0
        for count in _PROBE_SIZES:
            seconds, sent = probe(count, _NOTHING), len(inquiries) * count * len(_NOTHING)
            if seconds >= _LONG_ENOUGH_S:
                break
    return Path(sent / max(seconds - trip, 1e-9), trip)


def content_pages(machine: Machine) -> int:
    """Pages that a first round sends with content: private ones that are no holes, and shared ones."""
    return machine.platform.request(CountPopulated(), Count).pages + len(machine.shared_pages_now())


def question_about(candidate: Candidate) -> Question:
    """What a target has to know of the guest."""
    machine, parameters = candidate.machine, candidate.parameters
    info, cpu = machine.platform.info(), machine.platform.cpu
    chain = machine.platform.request(PdhCertExport(), PdhCertificates).cert_chain
    return Question(
        guest=candidate.name,
        method=parameters.method.value,
        transfer=parameters.transfer.value,
        engine=info.engine,
        machine=machine.spec.type.value,
        vcpus=machine.vcpu_count,
        blocks=blocks_of(machine.layout),
        cbit=cpu.cbit,
        cpu=cpu.description,
        disks=tuple(Disk(disk.sectors, disk.read_only) for disk in machine.spec.disks),
        policy=candidate.launched.policy,
        measure=candidate.launched.measure,
        handler=info.handler_digest,
        oca=chain[certificate.SIZE :][: certificate.SIZE],
    )


class Inquiry:
    """Asks one target over one connection."""

    def __init__(self, sock: socket.socket, clock: Clock) -> None:
        self._sock = sock
        self._reader = StreamReader(sock)
        self._clock = clock

    def begin(self) -> None:
        """Say what this connection is; for who only measures, without `ask`.

        Raises:
            LostError: the target is gone.
        """
        self._send(encode_front())

    def ask(self, question: Question) -> Answer:
        """The target's answer.

        Raises:
            LostError: it does not answer.
            StreamError: it answers with something else.
            SealiftError: why it does not judge.
        """
        asked = InquiryFrame(InquiryKind.QUESTION, msgspec.msgpack.encode(question))
        self.begin()
        self._send(asked.encode())
        return unpack(self._expect(InquiryKind.ANSWER), Answer, "the target's answer")

    def probe(self, count: int, payload: bytes) -> float:
        """Seconds until so many probes have arrived.

        Raises:
            LostError: the target is gone.
        """
        frame = InquiryFrame(InquiryKind.PROBE, payload).encode()
        began = self._clock.monotonic()
        for _ in range(count):
            self._send(frame)
        for _ in range(count):
            self._expect(InquiryKind.ECHO)
        return self._clock.monotonic() - began

    def _expect(self, due: InquiryKind) -> bytes:
        with self._reader.within(_ANSWER_LIMIT_S):
            kind, length = read_frame_front(self._reader.take)
            payload = self._reader.take(length)
        if kind is InquiryKind.REFUSED:
            raise Refusal.decode(payload).error()
        if kind is not due:
            raise StreamError(f"the target sent {kind.name} where {due.name} was due")
        return payload

    def _send(self, data: bytes) -> None:
        try:
            self._sock.sendall(data)
        except OSError as error:
            raise LostError("the target is gone") from error

"""What leaves a running guest, wherever it goes: rounds while it runs, the stop, the last round, all state.

A migration sends it over a connection (`sending`), a snapshot writes it to a file (`snapshot`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from sealift.pageset import PageSet
from sealift.vmm.machine import Machine
from sealift.vmm.migration import machine_state
from sealift.vmm.migration.convergence import AutoConverge, Convergence
from sealift.vmm.migration.lanes import Lanes
from sealift.vmm.migration.method import RoundsMethod
from sealift.vmm.migration.parameters import Capability, Parameters
from sealift.vmm.migration.shared_ram import RamEncoder, SharedLog
from sealift.vmm.migration.stats import PAGE_COST, DowntimePart, Statistics
from sealift.vmm.runstate import RunState
from sealift.wire.handover import Disk, Hardware, Hello, SealedKind, blocks_of


@dataclass(frozen=True, slots=True)
class Watch:
    """How it is watched: `check` raises if it is to be given up; the others mark what was reached, and raise so too.

    `switchover` may keep a stopped guest waiting. After `settled` nobody may give it up any more.
    """

    check: Callable[[], None]
    active: Callable[[], None]
    switchover: Callable[[], None]
    settled: Callable[[], None]
    pass_begun: Callable[[int], None]


@dataclass(frozen=True, slots=True)
class Subject:
    """What is moved or saved: the machine and its name."""

    machine: Machine
    name: str


class LiveCopy:
    """Copies one guest to one stream; `introduce`, `rounds`, `stop`, `finish`, in this order.

    `parameters` gives them as they are now.
    """

    def __init__(
        self,
        subject: Subject,
        method: RoundsMethod,
        lanes: Lanes,
        parameters: Callable[[], Parameters],
        stats: Statistics,
        watch: Watch,
    ) -> None:
        self._before = RunState.RUNNING
        self._subject = subject
        self._machine = subject.machine
        self._method = method
        self._lanes = lanes
        self._out = lanes.out
        self._parameters = parameters
        self._stats = stats
        self._watch = watch
        self._log = SharedLog(subject.machine, method.excluded())
        self._encoder = RamEncoder(subject.machine.memory)

    def introduce(
        self, offer: bytes, connections: int = 1, ticket: bytes = b"", *, keep_s: int = 0, resumes: bool = False
    ) -> None:
        """Begin the stream: what machine it is, the method's offer, and the rest of a `Hello`."""
        hello = Hello(
            method=self._parameters().method.value,
            guest=self._subject.name,
            vcpus=self._machine.vcpu_count,
            blocks=blocks_of(self._machine.layout),
            hardware=_hardware(self._machine),
            offer=offer,
            connections=connections,
            ticket=ticket,
            keep_s=keep_s,
            resumes=resumes,
        )
        self._out.begin(self._machine.layout)
        self._out.piece(SealedKind.HELLO, hello.encode())

    # --- rounds ----------------------------------------------------------------------------------------------------

    def rounds(self) -> None:
        """Until what remains fits the downtime limit at the bandwidth measured."""
        progress = Convergence()
        converge = AutoConverge(self._parameters().throttling)
        while True:
            before = self._lanes.sent
            self._round()
            self._stats.dirtied(self._method.unsent() + self._log.count())
            parameters = self._parameters()
            self._stats.cutover = self._stats.bandwidth.bytes_in(parameters.downtime_limit_ms / 1e3)
            expected_s = self._stats.bandwidth.seconds_for(self._stats.remaining)
            if expected_s * 1e3 <= parameters.downtime_limit_ms:
                return
            self._stats.advice = progress.advice(self._stats.remaining, expected_s)
            if Capability.AUTO_CONVERGE in parameters.capabilities:
                converge.settings = parameters.throttling
                self._slow_down(converge.after_round(self._lanes.sent - before, self._stats.remaining))

    def _slow_down(self, percentage: int) -> None:
        """From here on the guest runs so much less, until it is stopped, or the attempt ends."""
        self._machine.throttle.set(percentage)
        self._stats.cpu_throttle_percentage = percentage

    def _round(self) -> None:
        private = self._method.begin_round()
        shared = self._log.take()
        if not self._stats.rounds:
            self._stats.hole_pages = self._machine.layout.pages - private
        self._stats.remaining = (private + len(shared)) * PAGE_COST
        with self._stats.round():
            self._watch.pass_begun(self._stats.rounds)
            self._send_private()
            self._send_shared(shared)
            self._lanes.flush()
            self._count()

    def _send_private(self) -> None:
        for record in self._method.records():
            self._watch.check()
            self._lanes.record(record)
            self._stats.private_pages += record.pages
            self._progressed(record.pages)

    def _send_shared(self, pages: PageSet) -> None:
        for batch in self._encoder.batches(pages):
            self._watch.check()
            self._out.ram(batch)
            self._stats.shared_pages += batch.content_pages
            self._stats.zero_pages += batch.zero_pages
            self._progressed(batch.content_pages + batch.zero_pages)

    def _progressed(self, pages: int) -> None:
        self._stats.remaining = max(0, self._stats.remaining - pages * PAGE_COST)
        self._count()

    def _count(self) -> None:
        self._stats.sent = self._lanes.sent
        self._stats.sent_beside = self._lanes.sent_beside

    # --- the guest is stopped ----------------------------------------------------------------------------------------

    def stop(self) -> None:
        """Stop the guest and send what it wrote since the last round."""
        self._stats.downtime_part(DowntimePart.PAUSE)
        self._before = self._machine.begin_handover()
        self._slow_down(0)
        self._watch.switchover()
        self._method.stop()
        self._stats.downtime_part(DowntimePart.LAST_ROUND)
        self._round()

    def finish(self) -> None:
        """Send all state, and end the stream."""
        self._stats.downtime_part(DowntimePart.STATE)
        for record in self._method.end_records():
            self._watch.check()
            self._lanes.record(record)
        self._lanes.end()
        self._out.end(machine_state.save(self._machine, self._before))
        self._count()


def _hardware(machine: Machine) -> Hardware:
    disks = tuple(Disk(disk.sectors, disk.read_only) for disk in machine.spec.disks)
    cpu = machine.platform.cpu
    return Hardware(machine.spec.type.value, cpu.cbit, cpu.description, disks)

"""Method psp: the two hosts' secure processors move the guest with SEND_* and RECEIVE_*; the VMMs carry.

The guest's policy and the secure processors decide, without the owner: NOSEND forbids it, DOMAIN and SEV say whose
platform a target must be. A policy with neither lets the source's VMM send the guest to any key it likes. So an owner
who allows it at all asks for one of them.

What this method does not promise (design.md, section 1), since AMD's protocol does not:

- A packet does not say where it belongs, nor when it was made. Whoever controls the network can put it to another
  address, leave it out, or bring an older one of the same session; only a packet that was altered, or is of another
  session, is refused (BAD_MEASUREMENT).
- Registers of a guest without SEV-ES, page states and devices travel in clear and are authenticated by nothing.
- Packets can be received again: SEND_CANCEL after all of them were collected leaves a guest here and a copy there.

Between honest VMMs the guest is never in two places: the target says PREPARED when everything is there; the source's
SEND_FINISH, after which the guest can never run there, comes before FINAL; the target's RECEIVE_FINISH comes after it.
Before SEND_FINISH a failure ends in SEND_CANCEL, and the guest runs on. After it there is no way back: a target that is
lost then takes the guest with it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from sealift.address import PAGE_SHIFT, RamLayout
from sealift.errors import RefusedError, StreamError, UserError
from sealift.pageset import PageSet
from sealift.sev.policy import Policy
from sealift.vmm.launch import Launched
from sealift.vmm.machine import Machine
from sealift.vmm.migration.method import NO_LEGS, Entered, Record
from sealift.wire import platform as wire
from sealift.wire import psp
from sealift.wire.obstacle import Code, Obstacle
from sealift.wire.platform import GuestStatus, Phase
from sealift.wire.psp import PACKET_FRONT, RECORD_FRONT, RecordFront, RecordKind, Word

_SLOT: Final = 0
"""Commands of a secure processor come one after the other: one slot each way is enough."""

_NOT_READY: Final = (
    "the guest does not say that it can be migrated (MSR_KVM_MIGRATION_CONTROL): nobody would know which of its pages "
    "are shared"
)


def blocked(status: GuestStatus) -> tuple[Obstacle, ...]:
    """What stands in the way of every migration by this method, whatever the target."""
    policy, obstacles = Policy(status.policy), []
    if policy & Policy.NOSEND:
        forbidden = "its policy has NOSEND, which forbids its secure processor to send it; launch it without nosend"
        obstacles.append(Obstacle(Code.NOSEND, forbidden))
    if not status.ready:
        obstacles.append(Obstacle(Code.NOT_READY, _NOT_READY))
    return tuple(obstacles)


def runs_in_packets(layout: RamLayout, pages: PageSet, limit: int) -> Iterator[tuple[int, int]]:
    """The pages as (GPA, count) pieces of contiguous guest memory, of at most `limit` pages each."""
    blocks = [(start >> PAGE_SHIFT, block) for block, start in layout.ranges()]
    for first, count in pages.runs():
        for start, block in blocks:
            low, high = max(first, start), min(first + count, start + (block.size >> PAGE_SHIFT))
            for page in range(low, high, limit):
                yield block.gpa + ((page - start) << PAGE_SHIFT), min(limit, high - page)


class PspRounds:
    """What leaves a secure processor, wherever it goes (`method.RoundsMethod`)."""

    def __init__(self, machine: Machine, packet_pages: int) -> None:
        """For a guest, in packets of at most so many pages.

        Raises:
            RefusedError: this guest cannot be sent so.
        """
        self._machine = machine
        self._platform = machine.platform
        self._packet_pages = packet_pages
        status = self._platform.status()
        self._policy = status.policy
        if obstacles := blocked(status):
            reasons = "; and ".join(obstacle.sentence for obstacle in obstacles)
            raise RefusedError(f"the guest cannot be migrated by its secure processor: {reasons}")
        self._packets = self._platform.open_packets()
        self._nonce = b""
        self._pending = PageSet(machine.layout.pages)
        self._round = PageSet(machine.layout.pages)
        self._sent = 0

    def identity(self) -> bytes:
        """The session's nonce."""
        return self._nonce

    def excluded(self) -> PageSet:
        """None: the handler and its mailbox, which are not moved, are not the target's."""
        return PageSet(self._machine.layout.pages)

    def begin_round(self) -> int:
        """Take the private dirty log; pages in this round."""
        self._round = self._sendable()
        self._pending -= self._round
        return len(self._round)

    def records(self) -> Iterator[Record]:
        """SEND_UPDATE_DATA for every piece of the round."""
        for gpa, pages in runs_in_packets(self._machine.layout, self._round, self._packet_pages):
            yield self._packet(RecordKind.DATA, gpa, wire.SendUpdateData(gpa, pages << PAGE_SHIFT, _SLOT), pages)

    def unsent(self) -> int:
        """Private pages written since the round began."""
        return len(self._sendable())

    def stop(self) -> None:
        """Ask once more whether the guest can be moved, now that it can take nothing back.

        Raises:
            RefusedError: it says that it cannot.
        """
        if not self._platform.status().ready:
            raise RefusedError(_NOT_READY)

    def end_records(self) -> Iterator[Record]:
        """What a VMM may know of the guest anyway, in clear, and the end."""
        for regions in psp.encode_regions(self._machine.shared_pages_now()):
            yield _plain(RecordKind.REGIONS, len(regions), regions)
        vm = self._platform.request(wire.GetVmState(), wire.VmState)
        yield _plain(RecordKind.VM, 0, psp.VmRecord(vm.engine, vm.state).encode())
        for index in range(self._machine.vcpu_count):
            if Policy.ES in Policy(self._policy):
                yield self._packet(RecordKind.VMSA, index, wire.SendUpdateVmsa(index, _SLOT))
            vcpu = self._platform.request(wire.GetVcpuState(index), wire.VcpuState)
            yield _plain(RecordKind.VCPU, index, vcpu.state)
        yield _plain(RecordKind.END, self._sent, self._nonce)

    def cancel(self) -> None:
        """SEND_CANCEL, if there is a session."""
        if self._platform.status().phase is Phase.SENDING:
            self._platform.do(wire.SendCancel())

    def _begin(self, target: psp.Answer) -> psp.Confirm:
        """SEND_START for a platform with these certificates; what its RECEIVE_START needs."""
        own = self._platform.request(wire.PdhCertExport(), wire.PdhCertificates)
        started = self._platform.request(
            wire.SendStart(target.pdh, target.plat_certs, target.amd_certs), wire.SendStarted
        )
        self._nonce = psp.nonce_of(started.session)
        return psp.Confirm(started.policy, own.pdh, started.session)

    def _sendable(self) -> PageSet:
        """What the log has had of private pages; marks of shared ones are kept until they are private again."""
        self._pending |= self._platform.private_dirty()
        pages = self._pending.copy()
        pages -= self._machine.shared_pages_now()
        return pages

    def _packet(
        self, kind: RecordKind, place: int, request: wire.SendUpdateData | wire.SendUpdateVmsa, pages: int = 0
    ) -> Record:
        sent = self._platform.request(request, wire.PacketSent)
        self._sent += 1
        return Record((RecordFront(kind, place).encode(), self._packets.slot_out(_SLOT, sent.length)), pages)


class PspSource(PspRounds):
    """The source's secure processor as a migration method (`method.SourceMethod`)."""

    def start(self) -> bytes:
        """The policy, so that a target with no place for such a guest says so at once."""
        return psp.Offer(self._policy).encode()

    def agree(self, answer: bytes) -> bytes:
        """SEND_START for the target's certificates; what its RECEIVE_START needs."""
        return self._begin(psp.Answer.decode(answer)).encode()

    def fence(self, prepared: bytes) -> bytes:
        """SEND_FINISH: from here on the guest can never run here."""
        Word.PREPARED.expect(prepared, self._nonce)
        self._platform.do(wire.SendFinish())
        return Word.FINAL.encode(self._nonce)

    def release(self, answer: bytes) -> bool:
        """STARTED: it runs there."""
        Word.STARTED.expect(answer, self._nonce)
        return True

    def receipt(self) -> bytes:
        """None: secure processors share no key with the guest's owner that outlives the launch."""
        return b""

    def resume_request(self) -> bytes:
        """None: its owner has no word in it."""
        raise UserError("only a guest that its own handler was moving can be let run on by its owner (method mh)")

    def fenced(self) -> bool:
        """Whether SEND_FINISH took effect; nothing takes it back."""
        return self._platform.status().phase is Phase.GONE

    def resumable(self) -> None:
        """Never."""

    def way_out(self, name: str) -> str:
        """There is none but the target."""
        return (
            "it is not known whether the guest runs on the target, and SEND_FINISH has closed it here for good; if it "
            f"does run there, say so with the target's token: sealift token import {name} FILE"
        )

    def late(self) -> None:
        """It moves whole."""


def _plain(kind: RecordKind, place: int, content: bytes) -> Record:
    return Record((RecordFront(kind, place).encode(), content), 0)


def _content(length: int) -> int:
    """Bytes of the payload in a packet's record of `length` bytes."""
    content = length - RECORD_FRONT - PACKET_FRONT
    if content <= 0:
        raise StreamError(f"a packet's record of {length} bytes has no payload")
    return content


class PspEntrance:
    """Lets in what a secure processor brings (`method.Entrance`): its policy has decided that, at the source.

    Nobody else is asked. What the owner can say about targets is in the policy: NOSEND, DOMAIN, SEV.
    """

    def __init__(self) -> None:
        self._policy = Policy(0)

    def admit(self, offer: bytes) -> None:
        """Any guest that this host has a place for."""
        self._policy = Policy(psp.Offer.decode(offer).policy)

    @property
    def es(self) -> bool:
        """As the policy says that RECEIVE_START will be given."""
        return Policy.ES in self._policy

    def enter(self, machine: Machine) -> Entered:
        """Nothing is launched: RECEIVE_START makes the guest. It brings no measurement that could be known here."""
        return Entered(Launched(int(self._policy), b""), PspTarget(machine, es=self.es))


class PspTarget:
    """The target's secure processor as a migration method (`method.TargetMethod`)."""

    def __init__(self, machine: Machine, *, es: bool) -> None:
        self._machine = machine
        self._platform = machine.platform
        self._packets = self._platform.open_packets()
        self._nonce = b""
        self._shared = PageSet(machine.layout.pages)
        self._has_vm = False
        self._vmsas_due = set(range(machine.vcpu_count)) if es else set()
        self._vcpus: set[int] = set()
        self._received = 0
        self._announced: int | None = None

    def identity(self) -> bytes:
        """The session's nonce."""
        return self._nonce

    def answer(self, offer: bytes) -> bytes:
        """This host's certificates; the offer was judged when the guest was admitted."""
        del offer
        own = self._platform.request(wire.PdhCertExport(), wire.PdhCertificates)
        return psp.Answer(own.pdh, own.cert_chain, self._platform.info().ca_chain).encode()

    def agreed(self, confirm: bytes) -> None:
        """RECEIVE_START."""
        source = psp.Confirm.decode(confirm)
        self._platform.do(wire.ReceiveStart(source.policy, source.pdh, source.session))
        self._nonce = psp.nonce_of(source.session)

    def space(self, length: int) -> memoryview:
        """The front of the one slot: whatever lay there has been taken."""
        slot = self._packets.slot_in(_SLOT)
        if length > len(slot):
            raise StreamError(f"a record of {length} bytes is over a slot's {len(slot)}")
        return slot[:length]

    def take(self, length: int) -> None:
        """Carry it out at once."""
        record = self._packets.slot_in(_SLOT)[:length]
        front = RecordFront.decode(bytes(record[:RECORD_FRONT]))
        if self._announced is not None:
            raise StreamError(f"a {front.kind.name} record came behind the END record")
        match front.kind:
            case RecordKind.DATA:
                self._receive(wire.ReceiveUpdateData(front.place, _content(length), _SLOT, RECORD_FRONT))
            case RecordKind.VMSA:
                self._receive(wire.ReceiveUpdateVmsa(front.place, _content(length), _SLOT, RECORD_FRONT))
                self._vmsas_due.discard(front.place)
            case RecordKind.REGIONS:
                psp.add_regions(self._shared, bytes(record[RECORD_FRONT:]))
            case RecordKind.VM:
                self._load_vm(psp.VmRecord.decode(bytes(record[RECORD_FRONT:])))
            case RecordKind.VCPU:
                self._load_vcpu(front.place, bytes(record[RECORD_FRONT:]))
            case RecordKind.END:
                self._end(front.place, bytes(record[RECORD_FRONT:]))

    def settle(self) -> None:
        """Nothing is underway between two records."""

    def answer_leg(self, _: bytes) -> bytes:
        """Never."""
        raise RefusedError(NO_LEGS)

    def prepared(self) -> bytes:
        """PREPARED, once everything is here that an honest source sends."""
        if self._announced is None:
            raise StreamError("the stream ended without an END record")
        if self._announced != self._received:
            raise StreamError(f"the source sent {self._announced} packets, and {self._received} arrived")
        if self._vcpus != set(range(self._machine.vcpu_count)) or self._vmsas_due:
            raise StreamError("the stream ended without the state of every vCPU")
        return Word.PREPARED.encode(self._nonce)

    def ready(self, final: bytes) -> None:
        """FINAL: the source's SEND_FINISH is done."""
        Word.FINAL.expect(final, self._nonce)

    def started(self) -> bytes:
        """RECEIVE_FINISH: the guest may run here."""
        self._platform.do(wire.ReceiveFinish())
        return Word.STARTED.encode(self._nonce)

    def _receive(self, packet: wire.ReceiveUpdateData | wire.ReceiveUpdateVmsa) -> None:
        self._platform.do(packet)
        self._received += 1

    def _end(self, packets: int, nonce: bytes) -> None:
        if nonce != self._nonce:
            raise StreamError("the END record is of another session")
        self._announced = packets

    def _load_vm(self, vm: psp.VmRecord) -> None:
        if self._has_vm:
            raise StreamError("the machine's state comes twice")
        self._has_vm = True
        self._platform.set_page_states(self._shared)
        self._platform.do(wire.SetVmState(vm.engine, vm.state))

    def _load_vcpu(self, index: int, state: bytes) -> None:
        if not self._has_vm or index in self._vcpus or index >= self._machine.vcpu_count:
            raise StreamError(
                f"the state of vCPU {index} comes twice, before the machine's, or for no vCPU of this one"
            )
        self._platform.do(wire.SetVcpuState(index, state))
        self._vcpus.add(index)

    def receipt(self) -> bytes:
        """None, as on the source."""
        return b""

    def abort(self) -> bytes:
        """Nothing that a target could say brings a guest back behind SEND_FINISH; before, none is needed."""
        return b""

    def late(self) -> None:
        """It came whole."""

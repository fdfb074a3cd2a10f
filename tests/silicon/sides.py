"""Source and target of a migration as objects: real memory, engine, gate and handler; no process and no socket."""

from __future__ import annotations

import os
from dataclasses import dataclass, field, replace

from sealift.address import PAGE_SHIFT, PAGE_SIZE, Gpa
from sealift.guest.handler.commit import Role
from sealift.guest.handler.handler import MigrationHandler
from sealift.guest.handler.interfaces import LaunchFacts
from sealift.guest.handler.sealer import Pull
from sealift.launch.secrets import MigrationSecret, pair_key
from sealift.pageset import PageSet
from sealift.silicon.engines.interface import MAP_GPA_RANGE, Hypercall
from sealift.silicon.process.gate import RunGate
from sealift.silicon.process.guest_access import GuestMachine, MonotonicClock, guest_access
from sealift.silicon.process.hypercalls import carry_out
from sealift.silicon.process.vcpu_service import VcpuService
from sealift.wire.exits import exit_link
from sealift.wire.platform import Halt, Phase
from sealift.wire.record import MAX_RECORD
from sealift.wire.token import TokenKind

from .board import CODE, LAYOUT, Board, EngineKind, Ports
from .code import HLT, VMMCALL, forever, mov, port_in, store

WINDOWS = {address: address + 0x20_000 for address in (0x20_000, 0x21_000, 0x22_000, 0x23_000)}
"""Addresses of the guest's data with the C-bit, and of the same pages without it."""

VCPUS = 2
CHANNELS = 2
MAILBOX = (6, 7)
"""RAM pages that never travel."""

_ENCRYPTED = 1 << 4
_PORT = 0x80
_STORE, _CALL = 0, 1

_NEXT = port_in(4)
_CALLS = (
    _NEXT
    + b"\x48\x89\xc3"  # mov rbx, rax
    + _NEXT
    + b"\x48\x89\xc1"  # mov rcx, rax
    + _NEXT
    + b"\x48\x89\xc6"  # mov rsi, rax
    + mov("rax", MAP_GPA_RANGE)
    + b"\x48\x87\xd6"
    + VMMCALL
    + b"\x48\x87\xd6"  # xchg rdx, rsi, and back
    + HLT
)
_STORES = (
    _NEXT
    + b"\x48\x89\xc3"  # mov rbx, rax
    + _NEXT
    + b"\x49\x89\xc1"  # mov r9, rax
    + _NEXT
    + b"\x48\xc1\xe0\x20\x4c\x09\xc8"  # shl rax, 32; or rax, r9
    + store("rbx", "rax")
    + HLT
    + b"\xeb"
    + bytes([len(_CALLS)])  # jmp behind the calls
)
PROGRAM = forever(_NEXT + b"\x85\xc0\x75" + bytes([len(_STORES)]) + _STORES + _CALLS)  # test eax, eax; jnz calls
"""Does what a port tells it, one step a run: so translations stay warm from step to step."""


def facts(cbit: int) -> LaunchFacts:
    """A guest as its launch described it."""
    return LaunchFacts(
        measure=bytes(range(48)),
        policy=1,
        cbit=cbit,
        layout=LAYOUT,
        vcpus=VCPUS,
        mailbox_gpa=Gpa(MAILBOX[0] << PAGE_SHIFT),
        excluded=MAILBOX,
    )


class Side:
    """One host's guest and its handler."""

    def __init__(self, kind: EngineKind, role: Role, launched: LaunchFacts, secret: MigrationSecret) -> None:
        self.board = Board(kind, VCPUS)
        self.memory = self.board.memory
        self.gate = RunGate(lambda: Phase.RUNNING)
        self._links = [exit_link() for _ in range(VCPUS)]
        self.services = {
            index: VcpuService(vcpu, self._links[index][0], self.memory, self.gate)
            for index, vcpu in enumerate(self.board.vcpus)
        }
        machine = GuestMachine(self.memory, self.gate, self.board.engine, self.services, self._renew)
        self.handler = MigrationHandler(role, launched, secret, guest_access(self.memory, machine), MonotonicClock())
        if role is Role.TARGET:
            self.gate.bar()

    def close(self) -> None:
        """Let go of links and engine."""
        self.board.close()
        for ours, theirs in self._links:
            ours.close()
            theirs.close()

    def _renew(self, index: int) -> None:
        self.services[index].vcpu = self.board.vcpus[index] = self.board.engine.create_vcpu(index)

    def boot(self) -> None:
        """Map more pages without C-bit, and start the program on every vCPU."""
        for page, without in WINDOWS.items():
            self.board.map(without, page, encrypted=False)
        for index, vcpu in enumerate(self.board.vcpus):
            self.memory.write_private(CODE + index * PAGE_SIZE, PROGRAM)
            vcpu.set_registers(self.board.registers(CODE + index * PAGE_SIZE, rdx=_PORT))

    def step(self, index: int, *told: int) -> None:
        """The program takes one step on a vCPU."""
        ports = Ports(list(told))
        with self.gate.entered():
            while isinstance(outcome := self.board.vcpus[index].run(ports), Hypercall):
                result, _ = carry_out(self.memory, outcome)
                assert result == 0
                self.board.vcpus[index].complete_hypercall(result)
        assert outcome == Halt()
        assert not ports.answers

    def store(self, index: int, address: int, value: int) -> None:
        """The guest stores 64 bits."""
        self.step(index, _STORE, address, value & 0xFFFF_FFFF, value >> 32)

    def declare(self, index: int, gpa: int, pages: int, *, encrypted: bool) -> None:
        """The guest declares pages private or shared."""
        self.step(index, _CALL, gpa, pages, _ENCRYPTED if encrypted else 0)


@dataclass
class Migration:
    """The VMMs between a source and one receiver after the other.

    Attributes:
        carried: every record that travelled.
    """

    kind: EngineKind
    key: bytes = field(default_factory=lambda: os.urandom(32))
    instance: bytes = field(default_factory=lambda: os.urandom(16))
    carried: list[bytes] = field(default_factory=list)
    target: Side | None = None

    def __post_init__(self) -> None:
        self._facts = facts(self.kind.factory().cbit)
        self.source = Side(self.kind, Role.SOURCE, self._facts, MigrationSecret(self.instance, self.key))
        self.source.boot()
        self._slot = memoryview(bytearray(MAX_RECORD))
        self._requests = [0] * CHANNELS
        self._shared_pending = PageSet(LAYOUT.pages)
        self._device_dirty = PageSet(LAYOUT.pages)

    def close(self) -> None:
        """Let go of both sides."""
        self.source.close()
        if self.target is not None:
            self.target.close()

    def connect(self) -> None:
        """Launch a receiver, full of its own start-up code, and exchange keys; an earlier session ends."""
        if self.target is not None:
            self.target.close()
        launched = replace(self._facts, measure=os.urandom(48))
        secret = MigrationSecret(self.instance, os.urandom(32), pair_key(self.key, launched.measure))
        self.target = Side(self.kind, Role.TARGET, launched, secret)
        self.target.memory.private.data[:] = b"receiver" * (LAYOUT.size // 8)
        source, target = self.source.handler, self.target.handler
        target.confirmed(source.confirm(target.answer(source.offer(CHANNELS))))
        if source.may_run:
            self.source.gate.lift()
        self._requests = [0] * CHANNELS
        self._shared_pending = self.source.memory.states.copy()

    def pull(self, channel: int, pages: int) -> bool:
        """Carry the next record of the round; False when nothing is left of it."""
        self._requests[channel] += 1
        sealed = self.source.handler.pull(Pull(channel, self._requests[channel], pages), self._slot)
        self._carry(bytes(self._slot[: sealed.length]))
        return sealed.length > 0

    def finish_round(self) -> None:
        """The rest of the round, channels taking turns, and the tokens that close it."""
        channel = 0
        while self.pull(channel, 16):
            channel = (channel + 1) % CHANNELS
        for channel in range(CHANNELS):
            self._carry(self.source.handler.end_epoch(channel))

    def device_writes(self, page: int, word: int, value: int) -> None:
        """A device of the VMM stores 64 bits on the shared plane: write first, mark second, in the VMM's own set."""
        self.source.memory.shared.words[page, word] = value
        self._device_dirty.mark(page)

    def send_shared(self) -> None:
        """The VMM's part: pages of the shared plane that were written, as far as they are shared now."""
        assert self.target is not None
        self._shared_pending |= self.source.memory.take_shared_dirty()
        self._shared_pending |= self._device_dirty.take()
        sending = self._shared_pending.copy()
        sending &= self.source.memory.states
        numbers = sending.numbers()
        self.target.memory.shared.words[numbers] = self.source.memory.shared.words[numbers]
        self._shared_pending.clear()

    def stop(self) -> None:
        """Bar the source's vCPUs and enter the last round."""
        self.source.gate.bar()
        self.source.handler.stop()

    def cancel(self) -> None:
        """Give up; the guest may run again."""
        self.source.handler.cancel()
        self.source.gate.lift()

    def close_stream(self) -> None:
        """Last round, machine state, close record, and what is shared."""
        self.source.handler.begin_epoch()
        self.finish_round()
        while (sealed := self.source.handler.seal_state(self._slot[:600])).length:
            self._carry(bytes(self._slot[: sealed.length]))
        self._carry(self.source.handler.close())
        self.send_shared()

    def hand_over(self) -> Side:
        """PREPARED, FINAL, STARTED; the side that runs now."""
        assert self.target is not None
        source, target = self.source.handler, self.target.handler
        source.deliver(target.token(TokenKind.PREPARED))
        target.deliver(source.token(TokenKind.FINAL))
        source.deliver(target.token(TokenKind.STARTED))
        self.target.gate.lift()
        return self.target

    def _carry(self, record: bytes) -> None:
        if record:
            assert self.target is not None
            self.carried.append(record)
            self.target.handler.open(memoryview(bytearray(record)))

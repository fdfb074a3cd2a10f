"""``python -m sealift.silicon.engines.kvm.selftest``: runs a few instructions on KVM, to see whether it can be used.

A device node proves nothing: there are nested KVMs that run simple code, but hang on VMMCALL or cannot emulate SSE.
So this makes the engine itself do what guests need, stage by stage: long mode with SSE, both windows and their logs,
a port access, VMMCALL, a page-state change, a kick. The exit status is 0 if all went well; otherwise the last line of
standard output is the reason. It is a process of its own because a vCPU that hangs may take its process with it.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from sealift.address import PAGE_SHIFT, PAGE_SIZE, Gpa, RamBlock, RamLayout
from sealift.errors import SealiftError, sentence
from sealift.silicon.engines.interface import Hypercall, Outcome, VmShape
from sealift.silicon.engines.kvm.engine import KvmFactory
from sealift.silicon.engines.kvm.msrs import SEV_ENABLED
from sealift.silicon.engines.kvm.vcpu import catch_kicks
from sealift.silicon.memory.guest_memory import GuestMemory
from sealift.silicon.memory.xts import KEY_BYTES
from sealift.wire.platform import Fault, Halt, Interrupted, MmioRead, MmioWrite, PortIn, PortOut, Registers

STAGE_LIMIT_S: Final = 2.0
"""A stage takes some hundred microseconds, and under software emulation some hundred times as long."""

_LAYOUT: Final = RamLayout((RamBlock("ram", Gpa(0), 2 << 20),))
_PML4, _PDPT, _PD, _PT, _CODE = 0x10000, 0x11000, 0x12000, 0x13000, 0x4000
_DATA, _OTHER, _OTHER_OPEN = 0x20000, 0x21000, 0x41000
_PRESENT_WRITABLE: Final = 3
_FIRST, _SECOND = 0x1122334455667788, 0x99AABBCCDDEEFF00
_PORT: Final = 0x80

_PROGRAM: Final = b"".join(
    (
        bytes.fromhex("66480f6ec0"),  # movq xmm0, rax
        bytes.fromhex("f3480fb8f8"),  # popcnt rdi, rax
        bytes.fromhex("b9310101c0"),  # mov ecx, SEV_STATUS
        bytes.fromhex("4989c1"),  # mov r9, rax
        bytes.fromhex("0f32"),  # rdmsr
        bytes.fromhex("4989c2"),  # mov r10, rax
        bytes.fromhex("4c89c8"),  # mov rax, r9
        bytes.fromhex("488903"),  # mov [rbx], rax
        bytes.fromhex("488906"),  # mov [rsi], rax
        bytes.fromhex("e680"),  # out 0x80, al
        bytes.fromhex("b80c000000"),  # mov eax, 12
        bytes.fromhex("bb00100200"),  # mov ebx, 0x21000
        bytes.fromhex("b901000000"),  # mov ecx, 1
        bytes.fromhex("31d2"),  # xor edx, edx
        bytes.fromhex("0f01d9"),  # vmmcall
        bytes.fromhex("4c8906"),  # mov [rsi], r8
        bytes.fromhex("f4"),  # hlt
        bytes.fromhex("ebfe"),  # jmp to itself
    )
)


class _Unfit(Exception):  # noqa: N818  # what is unfit is this KVM
    """KVM did something else than it should; the message says what."""


class _Board:
    """A guest of 2 MiB with one vCPU."""

    def __init__(self) -> None:
        self.memory = GuestMemory(_LAYOUT, os.urandom(KEY_BYTES))
        self._engine = KvmFactory().make(self.memory, VmShape(vcpus=1))
        self.vcpu = self._engine.create_vcpu(0)
        self._cbit = 1 << self._engine.cbit
        for table, below in ((_PML4, _PDPT), (_PDPT, _PD), (_PD, _PT)):
            self._poke(table, below | self._cbit | _PRESENT_WRITABLE)
        for address in range(0, _LAYOUT.size, PAGE_SIZE):
            self._poke(_PT + address // PAGE_SIZE * 8, address | self._cbit | _PRESENT_WRITABLE)
        self._poke(_PT + _OTHER_OPEN // PAGE_SIZE * 8, _OTHER | _PRESENT_WRITABLE)
        self.memory.private.data[_CODE : _CODE + len(_PROGRAM)] = _PROGRAM
        self.vcpu.set_registers(self._registers())

    def _registers(self) -> Registers:
        general = [0] * 16
        general[0], general[1], general[4], general[8] = _FIRST, _DATA, _OTHER_OPEN, _SECOND
        return Registers(
            general=tuple(general),
            rip=_CODE,
            rflags=2,
            cr0=0x8005_0033,
            cr2=0,
            cr3=_PML4 | self._cbit,
            cr4=0x620,
            efer=0xD00,
        )

    def _poke(self, address: int, value: int) -> None:
        self.memory.private.words[address // PAGE_SIZE, address % PAGE_SIZE // 8] = value

    def run(self, asked: list[object]) -> Outcome:
        """Until it leaves guest mode; device accesses are appended to `asked`."""

        def device_io(access: PortIn | PortOut | MmioRead | MmioWrite) -> int:
            asked.append(access)
            return 0

        return self.vcpu.run(device_io)

    def logged(self) -> tuple[set[int], set[int]]:
        """Pages written since the last call, with C-bit and without."""
        with self._engine.quiesced():
            logs = self._engine.take_logs(self.memory.states.span)
        encrypted, plain = ({int(page) for page in log.numbers()} for log in (logs.encrypted, logs.plain))
        return encrypted, plain


def _say(reason: str) -> None:
    sys.stdout.write(f"{reason}\n")
    sys.stdout.flush()


def _expect(what: str, found: object, wanted: object) -> None:
    if isinstance(found, Fault):
        raise _Unfit(f"{what} ended otherwise: {found.reason}")
    if found != wanted:
        raise _Unfit(f"{what}: KVM gave {found!r} where {wanted!r} was due")


@contextmanager
def _stage(name: str) -> Iterator[None]:
    """End the process with a reason if a stage hangs."""

    def give_up() -> None:
        _say(f"a vCPU hangs in {name}")
        os._exit(1)

    timer = threading.Timer(STAGE_LIMIT_S, give_up)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _test() -> None:
    board = _Board()
    other = _OTHER >> PAGE_SHIFT
    asked: list[object] = []
    with _stage("long mode, SSE, MSRs and VMMCALL"):
        outcome = board.run(asked)
    _expect("a hypercall after SSE and a port access", outcome, Hypercall(12, (_OTHER, 1, 0, 0)))
    _expect("MSR SEV_STATUS", board.vcpu.registers().general[10], SEV_ENABLED)
    _expect("a port access", asked, [PortOut(_PORT, 1, _FIRST & 0xFF)])
    encrypted, plain = board.logged()
    _expect(
        "the log of the window with C-bit", _DATA >> PAGE_SHIFT in encrypted and other not in encrypted, wanted=True
    )
    _expect("the log of the window without C-bit", plain, {other})
    _expect("memory behind both windows", _words(board), (_FIRST, _FIRST))
    board.memory.convert(other, 1, to_shared=True)
    with _stage("going on after VMMCALL"):
        board.vcpu.complete_hypercall(0)
        _expect("the end of the program", board.run(asked), Halt())
    _expect("memory behind a page that became shared", int(board.memory.shared.words[other, 0]), _SECOND)
    _expect("the log of a shared page", board.logged()[1], {other})
    with _stage("a loop, which a signal should end"):
        threading.Timer(0.01, board.vcpu.kick).start()
        _expect("a kick", board.run(asked), Interrupted())


def _words(board: _Board) -> tuple[int, int]:
    words = board.memory.private.words
    return int(words[_DATA >> PAGE_SHIFT, 0]), int(words[_OTHER >> PAGE_SHIFT, 0])


def main() -> int:
    """Run the test; the exit status."""
    catch_kicks()
    try:
        _test()
    except (_Unfit, SealiftError) as error:
        _say(sentence(error))
        return 1
    except OSError as error:
        _say(f"the kernel refuses it ({error.strerror})")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""What gdb's packets do to a guest: one session, from when a debugger comes until it goes."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Final

from sealift.errors import SealiftError, UserError, sentence
from sealift.vmm.debug.cpu import CpuRegisters, read_cpu
from sealift.vmm.debug.memory import debug_memory
from sealift.vmm.debug.virtual import VirtualMemory
from sealift.vmm.events import ShutdownCause
from sealift.vmm.gdb import target
from sealift.vmm.gdb.packet import PACKET_LIMIT
from sealift.vmm.guest import Guest
from sealift.vmm.qmp.human import Viewpoint
from sealift.vmm.runstate import RunState
from sealift.wire import platform as wire

Monitor = Callable[[Guest, str, Viewpoint], str]
"""Carries out a line of the human monitor; what it shows."""

_READ_LIMIT: Final = PACKET_LIMIT // 2 - 16
"""Bytes of memory that fit a reply."""
_OK: Final = b"OK"
_UNREADABLE: Final = b"E14"
_SIGINT: Final = 2
_SIGTRAP: Final = 5


class Session:
    """Answers packets about a guest, which is stopped while gdb asks.

    Attributes:
        over: gdb has left.
        running: the guest was let go; the next thing that gdb hears is why it stopped.
    """

    def __init__(self, guest: Guest, monitor: Monitor) -> None:
        self._guest = guest
        self._monitor = monitor
        self._cpu = 0
        self._physical = False
        self._sentences = False
        self.over = False
        self.running = False
        self._packets: dict[str, Callable[[str], bytes | None]] = {
            "?": self._why_stopped,
            "g": self._all_registers,
            "p": self._one_register,
            "P": self._set_one_register,
            "m": self._read_memory,
            "M": self._write_hexadecimal,
            "X": self._write_binary,
            "H": self._choose_thread,
            "T": self._alive,
            "c": self._continue,
            "s": self._step,
            "D": self._detach,
            "Z": self._breakpoint,
            "z": self._agree,
            "k": self._kill,
            "qSupported": self._supported,
            "QStartNoAckMode": self._agree,
            "qSymbol": self._agree,
            "qC": self._current,
            "qAttached": lambda _: b"1",
            "qfThreadInfo": self._first_threads,
            "qsThreadInfo": lambda _: b"l",
            "qThreadExtraInfo,": self._thread_info,
            "qXfer:": self._transfer,
            "qRcmd,": self._command,
            "qqemu.Supported": lambda _: b"PhyMemMode",
            "qqemu.PhyMemMode": lambda _: b"%d" % self._physical,
            "Qqemu.PhyMemMode:": self._set_physical,
        }
        self._ran = guest.state is RunState.RUNNING
        guest.stop()

    def answer(self, packet: bytes) -> bytes | None:
        """The reply to a packet; None if there is none (yet). What is not known has an empty one."""
        try:
            return self._answer(packet.decode("latin-1"))
        except SealiftError as error:
            # Only as a stop's reply does every gdb understand a sentence; older ones take that for memory's content.
            if packet[:1] in b"mMX" and not self._sentences:
                return _UNREADABLE
            return f"E.{sentence(error)}".encode()
        except ValueError:
            return b"E22"

    def interrupt(self) -> bytes | None:
        """Ctrl-C: the guest stops, and gdb hears of it."""
        if not self.running:
            return None
        try:
            self._guest.stop()
        except UserError:
            return None  # it is being handed over: `stopped` tells of its end
        return self._stop_reply(_SIGINT)

    def stopped(self) -> bytes | None:
        """Why a guest stopped that was let go, if it did: by somebody else, or as it ended."""
        if not self.running or self._guest.state in {RunState.RUNNING, RunState.FINISH_MIGRATE}:
            return None
        return self._stop_reply(_SIGTRAP)

    def lost(self) -> None:
        """Gdb is gone without a word: a guest that it found running goes on."""
        if self._ran and self._guest.state is RunState.PAUSED:
            with contextlib.suppress(SealiftError):  # it has ended meanwhile, or is being dumped
                self._guest.resume()

    def _stop_reply(self, signal: int) -> bytes:
        self.running = False
        if self._guest.state in {RunState.SHUTDOWN, RunState.POSTMIGRATE}:
            self.over = True
            return b"W00"
        return b"T%02xthread:%x;" % (signal, self._cpu + 1)

    def _answer(self, packet: str) -> bytes | None:
        for name, handler in self._packets.items():
            if packet.startswith(name):
                return handler(packet.removeprefix(name))
        return b""

    # --- running and stopping ------------------------------------------------------------------------------------

    def _why_stopped(self, _: str) -> bytes:
        return self._stop_reply(_SIGTRAP)

    def _continue(self, address: str) -> bytes | None:
        if address:
            return b""  # gdb sets rip instead
        self._guest.resume()
        self.running = True
        return None

    def _step(self, _: str) -> bytes:
        """Gdb asks for this without asking whether it is there, and waits for ever for another answer."""
        raise UserError("this guest cannot be stepped through yet; let it run with `continue`, and stop it with Ctrl-C")

    def _breakpoint(self, _: str) -> bytes:
        """An empty reply would have gdb write INT3 into the guest, which dies of it."""
        raise UserError("this guest cannot be given breakpoints yet")

    def _kill(self, _: str) -> None:
        self.over = True
        self._guest.end(ShutdownCause.HOST_QMP_QUIT)

    def _detach(self, _: str) -> bytes:
        self.over = True
        self._guest.resume()
        return _OK

    # --- registers and memory ------------------------------------------------------------------------------------

    def _all_registers(self, _: str) -> bytes:
        return target.all_shown(self._registers()).encode()

    def _one_register(self, number: str) -> bytes:
        return target.shown(self._registers(), _register(number)).encode()

    def _set_one_register(self, rest: str) -> bytes:
        number, _, value = rest.partition("=")
        return self._set_register(_register(number), bytes.fromhex(value))

    def _read_memory(self, rest: str) -> bytes:
        address, length = _place(rest)
        return b"E22" if length > _READ_LIMIT else self._read(address, length).hex().encode()

    def _write_hexadecimal(self, rest: str) -> bytes:
        place, _, data = rest.partition(":")
        return self._write(*_place(place), bytes.fromhex(data))

    def _write_binary(self, rest: str) -> bytes:
        place, _, data = rest.partition(":")
        return self._write(*_place(place), data.encode("latin-1"))

    def _registers(self) -> CpuRegisters:
        with self._guest.machine.stilled():
            return read_cpu(self._guest.machine, self._cpu)

    def _set_register(self, register: target.Register, value: bytes) -> bytes:
        if self._guest.machine.spec.es:
            raise UserError("the registers of an SEV-ES guest can be read by a debugger, but not set")
        if len(value) != register.size:
            return b"E22"
        changed = target.with_value(self._registers().registers, register, int.from_bytes(value, "little"))
        if changed is None:
            raise UserError(f"register {register.name} can be read by a debugger, but not set")
        self._guest.machine.platform.do(wire.SetRegisters(self._cpu, changed))
        return _OK

    def _virtual(self) -> VirtualMemory:
        return VirtualMemory(debug_memory(self._guest.machine), self._registers().paging)

    def _read(self, address: int, length: int) -> bytes:
        if self._physical:
            return debug_memory(self._guest.machine).read(address, length)
        return self._virtual().read(address, length)

    def _write(self, address: int, length: int, data: bytes) -> bytes:
        if len(data) != length:
            return b"E22"
        if not data:
            return _OK  # gdb tries whether X is known
        if self._physical:
            debug_memory(self._guest.machine).write(address, data)
        else:
            self._virtual().write(address, data)
        return _OK

    # --- queries -------------------------------------------------------------------------------------------------

    def _thread(self, number: str) -> int:
        """The vCPU that a thread id means; 0 and -1 leave the choice to us."""
        thread = int(number, 16)
        if thread in {0, -1}:
            return self._cpu
        if not 1 <= thread <= self._guest.machine.vcpu_count:
            raise ValueError(number)
        return thread - 1

    def _choose_thread(self, rest: str) -> bytes:
        """``Hg`` and ``Hc``: which vCPU's registers and page tables are meant."""
        self._cpu = self._thread(rest[1:])
        return _OK

    def _alive(self, rest: str) -> bytes:
        self._thread(rest)
        return _OK

    def _supported(self, features: str) -> bytes:
        self._sentences = "error-message+" in features.lstrip(":").split(";")
        return b"PacketSize=%x;qXfer:features:read+;qXfer:threads:read+;QStartNoAckMode+" % PACKET_LIMIT

    def _agree(self, _: str) -> bytes:
        return _OK

    def _current(self, _: str) -> bytes:
        return b"QC%x" % (self._cpu + 1)

    def _first_threads(self, _: str) -> bytes:
        return ("m" + ",".join(f"{index + 1:x}" for index in range(self._guest.machine.vcpu_count))).encode()

    def _set_physical(self, rest: str) -> bytes:
        self._physical = bool(int(rest, 16))
        return _OK

    def _thread_info(self, thread: str) -> bytes:
        return self._extra_info(self._thread(thread)).encode().hex().encode()

    def _command(self, line: str) -> bytes:
        shown = self._monitor(self._guest, bytes.fromhex(line).decode("utf-8"), Viewpoint(self._cpu))
        return shown.encode().hex().encode() or _OK

    def _extra_info(self, cpu: int) -> str:
        return f"CPU#{cpu} [{'halted' if cpu in self._guest.machine.vcpus.halted else 'running'}]"

    def _transfer(self, what: str) -> bytes:
        """A part of a document: ``object:read:annex:offset,length``."""
        match what.split(":"):
            case ["features", "read", "target.xml", place]:
                document = target.description()
            case ["threads", "read", "", place]:
                document = self._threads()
            case _:
                return b"E00"
        offset, length = _place(place)
        part = document[offset : offset + min(length, _READ_LIMIT)]
        return ("m" if offset + len(part) < len(document) else "l").encode() + part.encode()

    def _threads(self) -> str:
        each = (
            f'<thread id="{cpu + 1:x}" core="{cpu}" name="vcpu{cpu}">{self._extra_info(cpu)}</thread>'
            for cpu in range(self._guest.machine.vcpu_count)
        )
        return f'<?xml version="1.0"?><threads>{"".join(each)}</threads>'


def _place(text: str) -> tuple[int, int]:
    """``address,length``, both hexadecimal."""
    address, comma, length = text.partition(",")
    if not comma:
        raise ValueError(text)
    place = int(address, 16), int(length, 16)
    if min(place) < 0 or place[0] >= 1 << 64:
        raise ValueError(text)
    return place


def _register(number: str) -> target.Register:
    index = int(number, 16)
    if not 0 <= index < len(target.REGISTERS):
        raise ValueError(number)
    return target.REGISTERS[index]

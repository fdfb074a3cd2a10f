"""One vCPU's exchange of Run and exits: a page for each direction, which both processes map, and a socket.

A Linux guest makes thousands of port and MMIO accesses, each a round trip between two processes. So messages lie in
memory, and who waits looks there for a moment before it sleeps; then no system call is on the way::

    VMM                                                   platform
     │  message, then its number ──► page 0 ────────────►│  waits for the next number, copies once, checks, uses
     │◄──────────── page 1 ◄── message, then its number  │
     │◄ ─ ─ ─ ─ ─ ─ ─ ─ ─ a byte on the socket ─ ─ ─ ─ ─►│  only to an end that sleeps; hang-up ends every wait

Each page: the number of the last message, whether its *writer* sleeps, and the message: the frequent ones in a fixed
layout, the others as msgpack behind it. The ends take turns, so a message stays until it has been answered.

An end sets its flag before it looks for the last time and sleeps; the other writes its number before it looks at the
flag. One of them sees the other's, as long as a full barrier lies between writing and looking: taking a lock. That a
number is never seen before its message needs a processor that keeps stores in order, as x86 does. Elsewhere an end
always sleeps and is always woken, and the socket gives the order.

The platform trusts nothing in here. A VMM that writes rubbish into either page, or bytes into the socket, gets
Failed or makes its own vCPU wait for ever.
"""

from __future__ import annotations

import contextlib
import fcntl
import mmap
import os
import socket
import struct
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, Generic, TypeAlias, TypeVar

import msgspec
from msgspec.structs import astuple

from sealift.address import PAGE_SIZE
from sealift.errors import InternalError, LostError, StreamError
from sealift.wire import platform as wire
from sealift.wire.lookout import CREDIT_NS, PAID_BACK_NS, PATIENCE_NS, SAVED_NS
from sealift.wire.packed import UNDECODABLE

_AREA_SIZE: Final = 2 * PAGE_SIZE
_NUMBER: Final = 0
_ASLEEP: Final = 8  # in words of 8 bytes: a cache line of its own, since the other end reads it at every message
_KIND: Final = 128
_FIELDS: Final = _KIND + 1
_PACKED: Final = 0  # the kind of every message without a layout; its only field is the length of the msgpack behind it
_LENGTH: Final = struct.Struct("<Q")
_CONTENT: Final = _FIELDS + _LENGTH.size
_CONTENT_LIMIT: Final = PAGE_SIZE - _CONTENT

_BELL: Final = b"\x01"
_BELLS: Final = 64
_RING_ONLY: Final = int(socket.MSG_NOSIGNAL | socket.MSG_DONTWAIT)  # a plain number: flags are slow to combine

Incoming = TypeVar("Incoming")
Outgoing = TypeVar("Outgoing", bound=msgspec.Struct)


@dataclass(frozen=True, slots=True)
class _Layout:
    """How a frequent message lies in its page: which kind it is, then its fields in their order."""

    kind: int
    message: Callable[..., Any]
    pack_into: Callable[..., None]
    unpack_from: Callable[[memoryview, int], tuple[Any, ...]]


def _layout(kind: int, message: Callable[..., Any], fields: str) -> _Layout:
    return _Layout(kind, message, struct.Struct(f"<B{fields}").pack_into, struct.Struct(f"<{fields}").unpack_from)


_LAYOUTS: Final = (
    _layout(1, wire.Run, "Q?"),
    _layout(2, wire.Interrupted, ""),
    _layout(3, wire.PortIn, "HB"),
    _layout(4, wire.PortOut, "HBI"),
    _layout(5, wire.MmioRead, "QB"),
    _layout(6, wire.MmioWrite, "QBQ"),
)
_BY_MESSAGE: Final[dict[Any, _Layout]] = {layout.message: layout for layout in _LAYOUTS}
_RUNS: Final = {layout.kind: layout for layout in _LAYOUTS if layout.message is wire.Run}
_EXITS: Final = {layout.kind: layout for layout in _LAYOUTS if layout.message is not wire.Run}


@dataclass(frozen=True, slots=True)
class LinkParts:
    """What an end is made of: its socket, and a descriptor of the memory that both ends map."""

    sock: socket.socket
    area: int

    def close(self) -> None:
        """Let go of both; an end that was made of them has them no more."""
        self.sock.close()
        os.close(self.area)


class ExitLink(Generic[Incoming, Outgoing]):
    """One end; `send` and `receive` take turns, in one thread. See `vmm_end` and `platform_end`.

    Args:
        parts: taken over.
        page: the one that this end writes, 0 or 1.
        layouts: of the frequent messages that this end takes, by their kinds.
        rare: the (union) type of the other messages it takes; None where there are none.
        patience_ns: how long `receive` looks before it sleeps.
    """

    def __init__(
        self,
        parts: LinkParts,
        page: int,
        layouts: dict[int, _Layout],
        rare: Any = None,  # noqa: ANN401  # a union is no type[Incoming]
        *,
        patience_ns: int = PATIENCE_NS,
    ) -> None:
        self._sock = parts.sock
        self._recv, self._send = parts.sock.recv, parts.sock.send
        self._patience_ns = patience_ns
        self._layouts = layouts
        self._encoder = msgspec.msgpack.Encoder()
        self._decoder: msgspec.msgpack.Decoder[Incoming] | None = None
        if rare is not None:
            self._decoder = msgspec.msgpack.Decoder(rare)
        memory = memoryview(mmap.mmap(parts.area, _AREA_SIZE))
        os.close(parts.area)
        pages = memory[:PAGE_SIZE], memory[PAGE_SIZE:]
        self._ours, self._theirs = pages[page], pages[1 - page]
        self._our_words, self._their_words = self._ours.cast("Q"), self._theirs.cast("Q")
        self._our_words[_ASLEEP] = self._asleep = not patience_ns
        self._sent = self._received = 0
        self._balance_ns = CREDIT_NS  # of what looking has saved and cost
        barrier = threading.Lock()  # see the module: taken and given back for what that does to memory alone
        self._take, self._give = barrier.acquire, barrier.release

    def send(self, message: Outgoing) -> None:
        """Put a message into our page, and wake the other end if it sleeps.

        Raises:
            LostError: the other end is gone.
        """
        layout = _BY_MESSAGE.get(type(message))
        if layout is None:
            self._write_packed(message)
        else:
            layout.pack_into(self._ours, _KIND, layout.kind, *astuple(message))
        self._sent += 1
        self._our_words[_NUMBER] = self._sent
        self._take()
        self._give()
        if self._their_words[_ASLEEP]:
            self._wake()

    def receive(self) -> Incoming:
        """Wait for the other end's next message.

        Raises:
            LostError: the other end is gone.
            StreamError: it is none of those that this end takes.
        """
        number, words = self._received + 1, self._their_words
        if not self._patience_ns:
            self._hear()
        elif words[_NUMBER] != number and self._balance_ns >= 0:
            self._look(number)
        if words[_NUMBER] != number:
            self._sleep(number)
        self._received = number
        return self._read()

    def shutdown(self) -> None:
        """Wake both ends: every wait ends with LostError."""
        with contextlib.suppress(OSError):  # already disconnected: nobody is waiting
            self._sock.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Close this end; the memory goes with the last reference to it."""
        self._sock.close()

    # --- waiting -------------------------------------------------------------------------------------------------

    def _look(self, number: int) -> None:
        """Look for the message for a while, and keep account as a `Lookout` does; here a call for each look shows."""
        words, clock = self._their_words, time.monotonic_ns
        begun, took = clock(), 0
        while words[_NUMBER] != number and took <= self._patience_ns:
            # The other end may need this very processor, and another thread here the interpreter.
            os.sched_yield()
            took = clock() - begun
        if took > self._patience_ns:
            self._balance_ns -= took
        elif self._balance_ns < CREDIT_NS:
            self._balance_ns += SAVED_NS

    def _sleep(self, number: int) -> None:
        """Wait for the bell; who is not going to look at the next message either stays marked as asleep."""
        if not self._asleep:
            self._our_words[_ASLEEP] = self._asleep = True
            self._take()
            self._give()
        while self._their_words[_NUMBER] != number:
            self._hear()
        if self._balance_ns < 0:
            self._balance_ns += PAID_BACK_NS
        if self._balance_ns >= 0 and self._patience_ns:
            self._our_words[_ASLEEP] = self._asleep = False

    def _hear(self) -> None:
        """Wait for the bell, and take all that it was rung."""
        try:
            bells = self._recv(_BELLS)
        except OSError as error:
            raise LostError(f"the other process is gone ({error.strerror})") from error
        if not bells:
            raise LostError("the other process closed the connection")

    def _wake(self) -> None:
        try:
            self._send(_BELL, _RING_ONLY)
        except BlockingIOError:
            return  # more bells than it has heard: it cannot miss this one
        except OSError as error:
            raise LostError(f"the other process is gone ({error.strerror})") from error

    # --- messages ------------------------------------------------------------------------------------------------

    def _write_packed(self, message: Outgoing) -> None:
        data = self._encoder.encode(message)
        if len(data) > _CONTENT_LIMIT:
            raise InternalError(f"a {type(message).__name__} of {len(data)} bytes does not fit its page")
        self._ours[_KIND] = _PACKED
        _LENGTH.pack_into(self._ours, _FIELDS, len(data))
        self._ours[_CONTENT : _CONTENT + len(data)] = data

    def _read(self) -> Incoming:
        # Each byte is looked at once: what was checked cannot change afterwards.
        kind = self._theirs[_KIND]
        layout = self._layouts.get(kind)
        if layout is not None:
            message: Incoming = layout.message(*layout.unpack_from(self._theirs, _FIELDS))
            return message
        if kind != _PACKED or self._decoder is None:
            raise StreamError("a message does not parse")
        (length,) = _LENGTH.unpack_from(self._theirs, _FIELDS)
        if length > _CONTENT_LIMIT:
            raise StreamError(f"a message is over the limit of {_CONTENT_LIMIT} bytes")
        try:
            return self._decoder.decode(bytes(self._theirs[_CONTENT : _CONTENT + length]))
        except UNDECODABLE as error:
            raise StreamError("a message does not parse") from error


VmmEnd: TypeAlias = ExitLink[wire.Exit, wire.Run]
PlatformEnd: TypeAlias = ExitLink[wire.Run, wire.Exit]


def vmm_end(parts: LinkParts, *, patience_ns: int = PATIENCE_NS) -> VmmEnd:
    """The end that says Run and takes exits."""
    return ExitLink(parts, 0, _EXITS, wire.Exit, patience_ns=patience_ns)


def exit_link(*, patience_ns: int = PATIENCE_NS) -> tuple[PlatformEnd, LinkParts]:
    """The platform's end of a new link, which takes Run and says why the guest was left; and what is the VMM's.

    Nobody can change the size of its memory, so a hostile VMM cannot take it away.
    """
    area = os.memfd_create("sealift-exits", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.ftruncate(area, _AREA_SIZE)
    fcntl.fcntl(area, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    end: PlatformEnd = ExitLink(LinkParts(ours, os.dup(area)), 1, _RUNS, patience_ns=patience_ns)
    return end, LinkParts(theirs, area)

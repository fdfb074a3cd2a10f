"""Both directions of a migration's connections, cut into messages with names.

::

    a stream       front blocks hello │ confirm { record | ram | epoch }… state… close device… description │ final taken
    beside it      side { record | epoch }… side-end; or for post-copy's demands: side taken │ demand… filled
    an inquiry     inquiry question probe…
    what comes back  answer prepared started receipt, or refused | aborted;  verdict echo…

A message is whole: a section of the stream with its footer, a frame, a record with its length; its *content* is what
lies inside that framing. What is not understood (TLS, another version, a stream that was tampered with) is passed on
as it comes, as `BYTES`. No Python runs for a single page.
"""

from __future__ import annotations

import contextlib
import enum
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final

import numpy as np

from sealift.address import PAGE_SIZE
from sealift.errors import StreamError
from sealift.wire import inquiry, psp, record, side_connection
from sealift.wire.handover import FrameKind, Refusal, SealedKind, read_frame
from sealift.wire.inquiry import InquiryKind
from sealift.wire.qemu_stream import (
    FLAGS_MASK,
    PAGE_ENTRY,
    RAM,
    SEALED,
    ZERO_ENTRY,
    RamFlag,
    Section,
    SectionType,
    read_block_list,
    read_description,
    read_footer,
    read_front,
    read_name,
    read_piece,
    read_section,
    read_state,
)

MESSAGE_LIMIT: Final = 64 << 20
"""Bytes of one message that is held back: a sealed record has 2 MiB at most, and QEMU's parts of `ram` a few."""

_GREED: Final = 256 * 1024
"""Bytes asked for at once where it is not known how many are due."""

_HEADER_SIZE: Final = 8
_TLS_HANDSHAKE: Final = 0x16
"""First byte of a TLS connection, on both sides (RFC 8446, 5.1)."""


class Side(enum.Enum):
    """Who sends."""

    SOURCE = "source"
    TARGET = "target"


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of message: who sends it (None: both), and what it is."""

    side: Side | None
    words: str


BYTES: Final = "bytes"
"""Stands for whatever passes, understood or not."""

KINDS: Final[Mapping[str, Kind]] = MappingProxyType(
    {
        "front": Kind(Side.SOURCE, "how a stream begins: magic, version, machine"),
        "blocks": Kind(Side.SOURCE, "the list of RAMBlocks"),
        "hello": Kind(Side.SOURCE, "the source's introduction, with its method's offer"),
        "confirm": Kind(Side.SOURCE, "the source's last word in the key exchange"),
        "record": Kind(Side.SOURCE, "sealed guest memory: a record (mh) or a packet (psp)"),
        "epoch": Kind(Side.SOURCE, "the token that closes a round on its channel (mh)"),
        "ram": Kind(Side.SOURCE, "shared pages, in clear"),
        "state": Kind(Side.SOURCE, "registers and page states, sealed (mh)"),
        "close": Kind(Side.SOURCE, "the record that counts all others (mh)"),
        "vmsa": Kind(Side.SOURCE, "a vCPU's encrypted registers (psp)"),
        "regions": Kind(Side.SOURCE, "which pages are shared (psp)"),
        "vm": Kind(Side.SOURCE, "the machine's state (psp)"),
        "vcpu": Kind(Side.SOURCE, "a vCPU's registers, in clear (psp)"),
        "end": Kind(Side.SOURCE, "how many packets there were (psp)"),
        "device": Kind(Side.SOURCE, "the state of one device, in clear"),
        "description": Kind(Side.SOURCE, "how a stream ends: its layout, for people and tools"),
        "final": Kind(Side.SOURCE, "the token that hands the guest over"),
        "taken": Kind(Side.SOURCE, "the source took the target's token"),
        "side": Kind(Side.SOURCE, "how a further channel's connection begins"),
        "side-end": Kind(Side.SOURCE, "how it ends"),
        "inquiry": Kind(Side.SOURCE, "how a check or plan begins, which moves nothing"),
        "question": Kind(Side.SOURCE, "the guest that might come"),
        "probe": Kind(Side.SOURCE, "bytes that measure the way"),
        "answer": Kind(Side.TARGET, "the target's part of the key exchange"),
        "prepared": Kind(Side.TARGET, "the token that says that all has come"),
        "started": Kind(Side.TARGET, "the token that says that the guest runs there"),
        "receipt": Kind(Side.TARGET, "the target's half of the receipt"),
        "demand": Kind(Side.TARGET, "missing pages that the guest waits for (post-copy)"),
        "filled": Kind(Side.TARGET, "the token that says that no page is missing (post-copy)"),
        "refused": Kind(Side.TARGET, "why the target gave up, without a token"),
        "aborted": Kind(Side.TARGET, "why it gave up, with the token that gives the guest back"),
        "verdict": Kind(Side.TARGET, "the answer to a question"),
        "echo": Kind(Side.TARGET, "the answer to a probe"),
        BYTES: Kind(None, "anything by its place in a connection, understood or not (TLS)"),
    }
)
"""Every message by its name."""

SEALED_NAMES: Final[Mapping[SealedKind, str | None]] = MappingProxyType(
    {SealedKind.HELLO: "hello", SealedKind.CONFIRM: "confirm", SealedKind.RECORD: None}
)
"""A RECORD has the name of what it is."""

RECORD_NAMES: Final[Mapping[record.RecordKind, str]] = MappingProxyType(
    {
        record.RecordKind.PAGES: "record",
        record.RecordKind.EPOCH: "epoch",
        record.RecordKind.STATE: "state",
        record.RecordKind.CLOSE: "close",
    }
)

PSP_NAMES: Final[Mapping[psp.RecordKind, str]] = MappingProxyType(
    {
        psp.RecordKind.DATA: "record",
        psp.RecordKind.VMSA: "vmsa",
        psp.RecordKind.REGIONS: "regions",
        psp.RecordKind.VM: "vm",
        psp.RecordKind.VCPU: "vcpu",
        psp.RecordKind.END: "end",
    }
)

FRAME_NAMES: Final[Mapping[FrameKind, str]] = MappingProxyType(
    {
        FrameKind.ANSWER: "answer",
        FrameKind.REFUSED: "refused",
        FrameKind.PREPARED: "prepared",
        FrameKind.FINAL: "final",
        FrameKind.STARTED: "started",
        FrameKind.TAKEN: "taken",
        FrameKind.RECEIPT: "receipt",
        FrameKind.DEMAND: "demand",
        FrameKind.FILLED: "filled",
    }
)
"""A REFUSED with a token is `aborted`."""

INQUIRY_NAMES: Final[Mapping[InquiryKind, str]] = MappingProxyType(
    {
        InquiryKind.REFUSED: "refused",
        InquiryKind.QUESTION: "question",
        InquiryKind.ANSWER: "verdict",
        InquiryKind.PROBE: "probe",
        InquiryKind.ECHO: "echo",
    }
)


class _EndedError(Exception):
    """The connection has no more bytes."""


@dataclass(frozen=True, slots=True)
class Message:
    """One message.

    Attributes:
        name: a key of `KINDS`.
        channel: of the connection it came on; 0 is the stream's.
        data: all its bytes, for whoever handles it to change; valid until the next message is asked for.
        start: where its content begins.
        end: and where that ends.
    """

    name: str
    channel: int
    data: memoryview
    start: int
    end: int


class Splitter:
    """One direction of one connection, as messages; `receive` fills a buffer and gives 0 at the end.

    Attributes:
        understood: whether what comes next is cut into messages; else it comes as `BYTES`.
    """

    def __init__(self, side: Side, receive: Callable[[memoryview], int]) -> None:
        self.understood = True
        self._side = side
        self._receive = receive
        self._buffer = memoryview(bytearray(2 * _GREED))
        self._at = self._filled = 0
        self._channel = 0

    def messages(self) -> Iterator[Message]:
        """All there are, to the connection's end."""
        try:
            with contextlib.suppress(StreamError):  # what begins here is none of our messages
                yield from self._understood()
            self.understood = False
            self._at = 0
            while True:
                if not self._filled:
                    self._fill(1)
                self._at = self._filled
                yield from self._whole(BYTES, 0)
        except _EndedError:
            if self._filled:
                self._at = self._filled
                yield from self._whole(BYTES, 0)

    # --- the bytes of the message that comes --------------------------------------------------------------------------

    def _peek(self, least: int) -> memoryview:
        while self._filled - self._at < least:
            self._fill(least - (self._filled - self._at))
        return self._buffer[self._at : self._filled]

    def _take(self, length: int) -> bytes:
        return bytes(self._skip(length))

    def _skip(self, length: int) -> memoryview:
        found = self._peek(length)[:length]
        self._at += length
        return found

    def _fill(self, least: int) -> None:
        """Receive something; make room for `least` bytes and a little more.

        Raises:
            _EndedError: nothing comes any more.
            StreamError: no message is as long as this one.
        """
        needed = self._filled + max(least, _GREED)
        if needed > MESSAGE_LIMIT:
            raise StreamError(f"a message is over the limit of {MESSAGE_LIMIT} bytes")
        if needed > len(self._buffer):
            larger = memoryview(bytearray(2 * needed))
            larger[: self._filled] = self._buffer[: self._filled]
            self._buffer = larger
        got = self._receive(self._buffer[self._filled : needed])
        if not got:
            raise _EndedError
        self._filled += got

    def _whole(self, name: str, start: int, end: int | None = None) -> Iterator[Message]:
        """The message up to here, whose content lies between `start` and `end`; the next begins behind it."""
        yield Message(name, self._channel, self._buffer[: self._at], start, self._at if end is None else end)
        rest = bytes(self._buffer[self._at : self._filled])
        self._buffer[: len(rest)] = rest
        self._at, self._filled = 0, len(rest)

    # --- what is understood -------------------------------------------------------------------------------------------

    def _understood(self) -> Iterator[Message]:
        """All messages, until there is one that is none."""
        if self._peek(1)[0] == _TLS_HANDSHAKE:
            return
        if self._side is Side.TARGET:
            while True:
                yield from self._frame()
        begins = bytes(self._peek(len(inquiry.MAGIC))[: len(inquiry.MAGIC)])
        match begins:
            case inquiry.MAGIC:
                inquiry.read_front(self._take)
                yield from self._whole("inquiry", 0)
            case side_connection.MAGIC:
                yield from self._beside()
            case _:
                yield from self._stream()
        while True:
            yield from self._frame()

    def _frame(self) -> Iterator[Message]:
        if self._peek(1)[0] in InquiryKind.__members__.values() and self._buffer[self._at] != FrameKind.REFUSED:
            asked, length = inquiry.read_frame_front(self._take)
            start = self._at
            self._skip(length)
            yield from self._whole(INQUIRY_NAMES[asked], start)
            return
        frame = read_frame(self._take)
        name = FRAME_NAMES[frame.kind]
        if frame.kind is FrameKind.REFUSED and Refusal.decode(frame.payload).token:
            name = "aborted"
        yield from self._whole(name, self._at - len(frame.payload))

    def _beside(self) -> Iterator[Message]:
        front = side_connection.SideFront.decode(self._take(side_connection.FRONT_SIZE))
        self._channel = front.channel
        yield from self._whole("side", 0)
        if self._peek(1)[0]:
            return  # no length, but a frame: it brings the target's demands
        while length := side_connection.decode_length(self._take(side_connection.LENGTH_SIZE)):
            name = record_name(self._skip(length))
            yield from self._whole(name, side_connection.LENGTH_SIZE)
        yield from self._whole("side-end", self._at)

    def _stream(self) -> Iterator[Message]:
        read_front(self._take)
        yield from self._whole("front", 0)
        names: dict[int, str] = {}
        while (section := read_section(self._take)) is not None:
            if section.type in {SectionType.START, SectionType.FULL}:
                names[section.id] = section.name
            yield from self._section(section, names.get(section.id, ""))
        read_description(self._take)
        yield from self._whole("description", 0)

    def _section(self, section: Section, name: str) -> Iterator[Message]:
        start = self._at
        match name:
            case "":
                raise StreamError(f"section {section.id} never started")
            case _ if name == SEALED:
                kind, length = read_piece(self._take)
                start = self._at
                found = sealed_name(kind, self._skip(length))
            case _ if name != RAM:
                length = len(read_state(self._take, name))
                start, found = self._at - length, "device"
            case _ if section.type is SectionType.START:
                read_block_list(self._take)
                found = "blocks"
            case _:
                self._pages()
                found = "ram"
        end = self._at
        read_footer(self._take, section)
        yield from self._whole(found, start, end)

    def _pages(self) -> None:
        """Go on to the end of a part of `ram`."""
        while True:
            flags = int.from_bytes(self._peek(_HEADER_SIZE)[:_HEADER_SIZE], "big") & FLAGS_MASK
            match flags:
                case RamFlag.EOS:
                    self._skip(_HEADER_SIZE)
                    return
                case RamFlag.PAGE | RamFlag.ZERO:
                    self._skip(_HEADER_SIZE)
                    read_name(self._take)
                    self._skip(PAGE_SIZE if flags == RamFlag.PAGE else 1)
                case _ if flags == RamFlag.PAGE | RamFlag.CONTINUE:
                    self._run(PAGE_ENTRY, flags)
                case _ if flags == RamFlag.ZERO | RamFlag.CONTINUE:
                    self._run(ZERO_ENTRY, flags)
                case _:
                    raise StreamError(f"a page of the ram section has the unknown flags {flags:#x}")

    def _run(self, entry: np.dtype[Any], flags: int) -> None:
        """Go on behind as many entries with these flags as have come, at least one."""
        held = self._peek(entry.itemsize)
        entries = np.frombuffer(held, entry, len(held) // entry.itemsize)
        same = (entries["header"] & np.uint64(FLAGS_MASK)) == flags
        self._at += entry.itemsize * (len(entries) if same.all() else int(same.argmin()))


def sealed_name(kind: int, content: memoryview) -> str:
    """The name of a piece of the sealed section.

    Raises:
        StreamError: it is none that is known.
    """
    if kind not in SEALED_NAMES:
        raise StreamError(f"a piece of the sealed section has the unknown kind {kind}")
    return SEALED_NAMES[SealedKind(kind)] or record_name(content)


def record_name(content: memoryview) -> str:
    """The name of a record, of whichever method.

    Raises:
        StreamError: it is none.
    """
    if content[: len(record.MAGIC)] == record.MAGIC:
        return RECORD_NAMES[record.RecordHeader.decode(content).kind]
    return PSP_NAMES[psp.RecordFront.decode(bytes(content[: psp.RECORD_FRONT])).kind]

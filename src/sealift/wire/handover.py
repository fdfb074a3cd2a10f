"""What two VMMs say to each other around a QEMU stream.

::

    source VMM                                                                  target VMM
      │══ QEMU stream: header, `ram` START (RAMBlocks), `sealift/sealed` HELLO ═══►│ makes the machine, lets
      │◄───────────────────────────────────── ANSWER (key exchange), or REFUSED ──│ the method prepare it
      │══ stream: CONFIRM ════════════════════════════════════════════════════════►│
      │══ stream: rounds of RECORDs and `ram` pages, devices, EOF, description ═══►│ opens, restores, verifies
      │◄──────────────────────────────────────────────── PREPARED, or REFUSED ────│
      │── FINAL ─────────────────────────────────────────────────────────────────►│ (the source is fenced)
      │◄────────────────────────────────────────────────── STARTED, or REFUSED ───│ runs the guest
      │◄──────────────────── RECEIPT: the target's half, empty where there is none│
      │── TAKEN: the target's token did its work here ───────────────────────────►│ (or keeps the token in a file)

Post-copy: behind a STARTED of a target that misses pages the source connects anew, and again if it is lost, with a
HELLO that resumes, and two connections beside the stream (`sealift.wire.side_connection`), each used one way::

      │══ stream: HELLO with a leg request ══════════════════════════════════════►│
      │◄────────────────────────────────────────────────── ANSWER: the leg answer ─│
      │══ stream: RECORDs of pages nobody has demanded ═══════════════════════════►│ installs
      │◄──────────────────────────────── on side 2, DEMAND: pages, ever again ───│
      │══ on side 1: RECORDs of pages that were demanded ═════════════════════════►│ installs
      │◄──────────────────────────────────────────────────── on side 2, FILLED ───│
      │── on side 2, TAKEN ──────────────────────────────────────────────────────►│

``══`` is the stream of `sealift.wire.qemu_stream`; ``──`` are frames: u8 kind (0 is invalid), be32 length, payload.
A HELLO names the method; its offer, ANSWER, CONFIRM, RECORDs, PREPARED, FINAL and STARTED are the method's own
(`sealift.wire.handshake`, `record`, `token` for mh, `sealift.wire.psp` for psp).
REFUSED may come at any moment and is the target's last word; its token, if any, is an ABORTED of the target's
handler, which alone can unfence a source. A source that gives up just closes the connection.

Versions: a HELLO names the version of all this; a target takes `VERSION` and nothing else.
"""

from __future__ import annotations

import enum
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import msgspec

from sealift import errors
from sealift.address import RamLayout
from sealift.errors import StreamError
from sealift.wire import handshake, psp
from sealift.wire.failure import from_failed
from sealift.wire.packed import UNDECODABLE, unpack
from sealift.wire.platform import CPU_LIMIT, Block, Failed
from sealift.wire.receipt import STATEMENT_SIZE
from sealift.wire.record import MAX_CHANNELS
from sealift.wire.side_connection import TICKET_SIZE
from sealift.wire.token import TOKEN_SIZE

VERSION = 6

HELLO_LIMIT = 64 * 1024
"""Bytes of a HELLO: an offer at its longest, the RAMBlock table and a name fit several times."""

NAME_LIMIT = 255
"""Characters of a guest's name, as libvirt's and QEMU's users know them."""

REFUSAL_LIMIT = 16 * 1024
"""Bytes of a REFUSED: one sentence with all its causes, and a token."""

BLOCKS_LIMIT = 16
"""RAMBlocks of a guest; QEMU's machines have a handful."""

DISKS_LIMIT = 16
"""Disks of a guest: more than a machine here has slots for."""

RAM_LIMIT = 16 << 40
"""Bytes of a guest's memory: more than any host has today, and few enough for every count of pages."""

VCPUS_LIMIT = 288
"""vCPUs of a guest, each a thread and a socket here; QEMU's own limit for a q35 machine."""

_SENTENCE_LIMIT = 4096
"""Characters of a refusal's sentence that are shown to a person."""

_FRAME = struct.Struct(">BI")
_VERSION = struct.Struct(">H")

Take = Callable[[int], bytes]
"""Reads exactly so many bytes."""


class FrameKind(enum.IntEnum):
    """What a frame holds; 0 is invalid."""

    ANSWER = 1
    REFUSED = 2
    PREPARED = 3
    FINAL = 4
    STARTED = 5
    TAKEN = 6
    RECEIPT = 7
    DEMAND = 8
    FILLED = 9


DEMANDS_LIMIT = 512
"""Pages in one DEMAND: more than vCPUs can wait for at a time; a flip of many pages takes several."""

_DEMANDED = struct.Struct(">Q")

FRAME_LIMITS = {
    FrameKind.ANSWER: max(handshake.MAX_MESSAGE, psp.ANSWER_LIMIT),
    FrameKind.REFUSED: REFUSAL_LIMIT,
    FrameKind.PREPARED: TOKEN_SIZE,
    FrameKind.FINAL: TOKEN_SIZE,
    FrameKind.STARTED: TOKEN_SIZE,
    FrameKind.TAKEN: 0,
    FrameKind.RECEIPT: STATEMENT_SIZE,
    FrameKind.DEMAND: DEMANDS_LIMIT * _DEMANDED.size,
    FrameKind.FILLED: TOKEN_SIZE,
}
"""Longest payload of each kind; whatever is longer is refused unread."""


KEEP_LIMIT_S = 3600
"""A target that waits for a lost source holds the memory of its guest."""


class SealedKind(enum.IntEnum):
    """What a piece of the `sealift/sealed` section holds; 0 is invalid."""

    HELLO = 1
    CONFIRM = 2
    RECORD = 3


class Method(enum.Enum):
    """Who encrypts a guest for its way."""

    MH = "mh"
    """Its own migration handler, with keys of its owner."""
    PSP = "psp"
    """The two hosts' secure processors, as its policy lets them."""
    PLAIN = "plain"
    """Nobody: the guest is not confidential."""


class Transfer(enum.Enum):
    """How records leave and enter the migration handlers (method mh)."""

    RING = "ring"
    MAILBOX = "mailbox"


@dataclass(frozen=True, slots=True)
class Frame:
    """One frame."""

    kind: FrameKind
    payload: bytes

    def encode(self) -> bytes:
        """Its bytes."""
        return _FRAME.pack(self.kind, len(self.payload)) + self.payload


TAKEN = Frame(FrameKind.TAKEN, b"")
"""The source's last word: it took the token of a STARTED, or of a REFUSED that came after FINAL."""


def demand(pages: Sequence[int]) -> Frame:
    """A DEMAND of at most `DEMANDS_LIMIT` RAM pages."""
    return Frame(FrameKind.DEMAND, b"".join(map(_DEMANDED.pack, pages)))


def demanded(payload: bytes) -> list[int]:
    """The pages of a DEMAND.

    Raises:
        StreamError: not a whole number of them.
    """
    if len(payload) % _DEMANDED.size:
        raise StreamError(f"a demand of {len(payload)} bytes is no list of pages")
    return [page for (page,) in _DEMANDED.iter_unpack(payload)]


def read_frame(take: Take) -> Frame:
    """Read one frame.

    Raises:
        StreamError: an unknown kind, or a payload over the limit of its kind.
    """
    kind, length = _FRAME.unpack(take(_FRAME.size))
    if kind not in FrameKind.__members__.values():
        raise StreamError(f"a frame has the unknown kind {kind}")
    limit = FRAME_LIMITS[FrameKind(kind)]
    if length > limit:
        raise StreamError(f"a {FrameKind(kind).name} frame of {length} bytes is over the limit of {limit}")
    return Frame(FrameKind(kind), take(length))


class Refusal(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Why the target gave up: a branch of the error tree and its sentence; `token` is its ABORTED, or empty."""

    branch: str
    reason: str
    token: bytes = b""

    @classmethod
    def of(cls, error: errors.SealiftError, token: bytes = b"") -> Refusal:
        """The refusal that an error causes."""
        return cls(type(error).__name__, errors.sentence(error)[:_SENTENCE_LIMIT], token)

    def frame(self) -> Frame:
        """As a frame."""
        return Frame(FrameKind.REFUSED, msgspec.msgpack.encode(self))

    @classmethod
    def decode(cls, payload: bytes) -> Refusal:
        """Parse the payload of a REFUSED frame.

        Raises:
            StreamError: it does not parse.
        """
        try:
            refusal = msgspec.msgpack.decode(payload, type=cls)
        except UNDECODABLE as error:
            raise StreamError("the target's refusal does not parse") from error
        printable = "".join(letter if letter.isprintable() else " " for letter in refusal.reason)
        return cls(refusal.branch, printable[:_SENTENCE_LIMIT], refusal.token)

    def error(self) -> errors.SealiftError:
        """The error it carries."""
        return from_failed(Failed(self.reason, self.branch))


class Disk(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A disk of the guest, whose content does not travel: the target has the same image. Sectors of 512 bytes."""

    sectors: int
    read_only: bool


class Hardware(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The machine that the guest is used to.

    Attributes:
        machine: its type by name (`sealift.launch.machine`).
        cbit: position of the C-bit.
        cpu: the source platform's description of the CPU; opaque here, empty for engines that have but one.
    """

    machine: str
    cbit: int
    cpu: bytes
    disks: tuple[Disk, ...] = ()


class Hello(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The source's introduction.

    Attributes:
        method: a `Method`'s value.
        guest: the guest's name, for people.
        hardware: the machine.
        blocks: the RAMBlock table with the addresses that QEMU's block list does not hold.
        offer: the method's own; opaque here.
        connections: this one, and those that will come beside it (`sealift.wire.side_connection`).
        ticket: tells those from strangers'; empty if there are none.
        keep_s: should the connections be lost, the target keeps what has come for so many seconds (method mh).
        resumes: it is such a source that comes back, and the offer is for a new leg of its migration.
        late: pages may come behind the switch (post-copy, method mh): the target listens on for that.
    """

    method: str
    guest: str
    vcpus: int
    blocks: tuple[Block, ...]
    hardware: Hardware
    offer: bytes
    connections: int = 1
    ticket: bytes = b""
    keep_s: int = 0
    resumes: bool = False
    late: bool = False

    def encode(self) -> bytes:
        """Version and content."""
        return _VERSION.pack(VERSION) + msgspec.msgpack.encode(self)

    @classmethod
    def decode(cls, data: bytes) -> Hello:
        """Parse `encode`; the shape only, what it claims is judged elsewhere.

        Raises:
            StreamError: another version, or it does not parse.
        """
        if len(data) < _VERSION.size:
            raise StreamError("the source's introduction is truncated")
        (version,) = _VERSION.unpack_from(data)
        if version != VERSION:
            raise StreamError(f"the source speaks version {version} of the migration protocol, this target {VERSION}")
        try:
            hello = msgspec.msgpack.decode(data[_VERSION.size :], type=cls)
        except UNDECODABLE as error:
            raise StreamError("the source's introduction does not parse") from error
        known = [method.value for method in Method]
        if hello.method not in known:
            raise StreamError(
                f"the source uses the migration method {hello.method!r:.40}; this target knows {', '.join(known)}"
            )
        if len(hello.guest) > NAME_LIMIT:
            raise StreamError("the source's introduction holds a name of impossible length")
        sizes = [block.size for block in hello.blocks]
        if not 0 < len(sizes) <= BLOCKS_LIMIT or min(sizes) <= 0 or sum(sizes) > RAM_LIMIT:
            raise StreamError(f"the source's guest has more than {BLOCKS_LIMIT} RAMBlocks, {RAM_LIMIT} bytes, or none")
        hardware = hello.hardware
        if not 0 < hardware.cbit < 64 or len(hardware.cpu) > CPU_LIMIT or len(hardware.disks) > DISKS_LIMIT:
            raise StreamError("the source's guest has hardware that makes no sense")
        if not 0 < hello.vcpus <= VCPUS_LIMIT:
            raise StreamError(f"the source's guest has {hello.vcpus} vCPUs; this target takes 1 to {VCPUS_LIMIT}")
        _check_connections(hello)
        return hello


def _check_connections(hello: Hello) -> None:
    if not 1 <= hello.connections <= MAX_CHANNELS or len(hello.ticket) != (hello.connections > 1) * TICKET_SIZE:
        raise StreamError(f"the source wants {hello.connections} connections, which makes no sense")
    if not 0 <= hello.keep_s <= KEEP_LIMIT_S:
        raise StreamError(f"the source asks to be waited for {hello.keep_s} s, should it be lost")
    if (hello.keep_s or hello.resumes or hello.late) and hello.method != Method.MH.value:
        raise StreamError(f"the source wants to come back, which method {hello.method} does not know")


class HandlerOffer(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The offer of method mh.

    Attributes:
        measure: LAUNCH_MEASURE output of the source's launch, 48 bytes: names the guest to its owner.
        transfer: how records are to enter the target's handler.
        offer: the source handler's OFFER; opaque here.
    """

    measure: bytes
    transfer: Transfer
    offer: bytes

    def encode(self) -> bytes:
        """Its bytes."""
        return msgspec.msgpack.encode(self)

    @classmethod
    def decode(cls, data: bytes) -> HandlerOffer:
        """Parse `encode`; the shape only, what it claims is judged elsewhere.

        Raises:
            StreamError: it does not parse.
        """
        offer = unpack(data, cls, "the source's offer")
        if len(offer.measure) != handshake.MEASURE_SIZE:
            raise StreamError("the source's offer holds a measurement of impossible length")
        return offer


def blocks_of(layout: RamLayout) -> tuple[Block, ...]:
    """The RAMBlock table for a HELLO."""
    return tuple(Block(block.name, block.gpa, block.size) for block in layout.blocks)

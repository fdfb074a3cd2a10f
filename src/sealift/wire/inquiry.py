"""What a source asks a target that waits, before it is that target's source: a target answers as often as it is asked.

::

    source VMM                                                                  target VMM
      │══ "SLIQ", be16 version ═══════════════════════════════════════════════════►│
      │── QUESTION: the guest, as a HELLO would describe it ──────────────────────►│ judges it, and makes nothing
      │◄──────────────────────────────── ANSWER: everything that is in the way ───│ (or REFUSED, a frame of handover)
      │── PROBE: so many bytes of nothing ────────────────────────────────────────►│ throws them away
      │◄─────────────────────────────────────────────────────────────────── ECHO ─│ once they are all there
      ⋮   more PROBEs, several underway at a time; then the source closes

What several connections take together is measured on as many inquiries; those beside the first begin with a PROBE.
Frames are those of `sealift.wire.handover`: u8 kind (0 is invalid), be32 length, payload. The answer tells a source
what a refused migration would have told it, all at once; of the target's host it names nothing that does not concern
this guest. Owners are asked for their opinion, which makes no session and releases nothing.

Versions: a target answers `VERSION` and nothing else.
"""

from __future__ import annotations

import enum
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Final

import msgspec

from sealift.errors import StreamError
from sealift.wire import handshake
from sealift.wire.handover import BLOCKS_LIMIT, DISKS_LIMIT, NAME_LIMIT, RAM_LIMIT, VCPUS_LIMIT, Disk
from sealift.wire.obstacle import Obstacle
from sealift.wire.packed import unpack
from sealift.wire.platform import CPU_LIMIT, Block

MAGIC: Final = b"SLIQ"
VERSION: Final = 1

MESSAGE_LIMIT: Final = 64 * 1024
"""Bytes of a QUESTION or ANSWER: a CPU's description or a few dozen sentences, several times."""

PROBE_LIMIT: Final = 1 << 20
"""Bytes of a PROBE: as a sealed record has."""

PROBES_LIMIT: Final = 1024
"""PROBEs of one inquiry, together no more than 1 GiB: a second of the fastest way there is."""

_FRONT: Final = struct.Struct(">4sH")
_FRAME: Final = struct.Struct(">BI")
_WORD_LIMIT: Final = 64
"""Characters of a name of a method, machine or engine."""

Take = Callable[[int], bytes]
"""Reads exactly so many bytes."""

_Word = Annotated[str, msgspec.Meta(max_length=_WORD_LIMIT)]


class InquiryKind(enum.IntEnum):
    """What a frame of an inquiry holds; 0 is invalid, and 2 is handover's REFUSED."""

    REFUSED = 2
    QUESTION = 32
    ANSWER = 33
    PROBE = 34
    ECHO = 35


LIMITS: Final = {
    InquiryKind.REFUSED: MESSAGE_LIMIT,
    InquiryKind.QUESTION: MESSAGE_LIMIT,
    InquiryKind.ANSWER: MESSAGE_LIMIT,
    InquiryKind.PROBE: PROBE_LIMIT,
    InquiryKind.ECHO: 0,
}
"""Longest payload of each kind; whatever is longer is refused unread."""


class Question(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A guest that might come; what a word means is for the target to judge, so that it can say everything at once.

    Attributes:
        method: a `Method`'s value; `transfer` a `Transfer`'s.
        engine: what runs its vCPUs at the source; `cbit` and `cpu` are as in a HELLO's hardware.
        policy: the guest's, 32 bits.
        measure: LAUNCH_MEASURE output of its launch, by which its owner knows it.
        handler: digest of the source's migration handler.
        oca: certificate of the source platform's owner.
    """

    guest: Annotated[str, msgspec.Meta(max_length=NAME_LIMIT)]
    method: _Word
    transfer: _Word
    engine: _Word
    machine: _Word
    vcpus: Annotated[int, msgspec.Meta(gt=0, le=VCPUS_LIMIT)]
    blocks: Annotated[tuple[Block, ...], msgspec.Meta(min_length=1, max_length=BLOCKS_LIMIT)]
    cbit: Annotated[int, msgspec.Meta(gt=0, lt=64)]
    cpu: Annotated[bytes, msgspec.Meta(max_length=CPU_LIMIT)]
    disks: Annotated[tuple[Disk, ...], msgspec.Meta(max_length=DISKS_LIMIT)]
    policy: Annotated[int, msgspec.Meta(ge=0, lt=1 << 32)]
    measure: Annotated[bytes, msgspec.Meta(max_length=handshake.MEASURE_SIZE)]
    handler: Annotated[bytes, msgspec.Meta(max_length=32)]
    oca: Annotated[bytes, msgspec.Meta(max_length=4096)]

    @property
    def ram(self) -> int:
        """Bytes of its memory."""
        return sum(block.size for block in self.blocks)


class Answer(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the target found; `wall_clock` is its seconds since the epoch."""

    obstacles: tuple[Obstacle, ...]
    wall_clock: float


@dataclass(frozen=True, slots=True)
class InquiryFrame:
    """One frame."""

    kind: InquiryKind
    payload: bytes = b""

    def encode(self) -> bytes:
        """Its bytes."""
        return _FRAME.pack(self.kind, len(self.payload)) + self.payload


def encode_front() -> bytes:
    """What an inquiry begins with."""
    return _FRONT.pack(MAGIC, VERSION)


def read_front(take: Take) -> None:
    """Check `encode_front`.

    Raises:
        StreamError: another version.
    """
    _, version = _FRONT.unpack(take(_FRONT.size))
    if version != VERSION:
        raise StreamError(f"the source asks in version {version} of the inquiry protocol; this target knows {VERSION}")


def read_frame_front(take: Take) -> tuple[InquiryKind, int]:
    """Kind and length of the next frame.

    Raises:
        StreamError: an unknown kind, or a payload over the limit of its kind.
    """
    kind, length = _FRAME.unpack(take(_FRAME.size))
    if kind not in InquiryKind.__members__.values():
        raise StreamError(f"a frame of an inquiry has the unknown kind {kind}")
    limit = LIMITS[InquiryKind(kind)]
    if length > limit:
        raise StreamError(f"a {InquiryKind(kind).name} of {length} bytes is over the limit of {limit}")
    return InquiryKind(kind), length


def read_question(take: Take) -> Question:
    """The frame that an inquiry begins with.

    Raises:
        StreamError: it is none.
    """
    kind, length = read_frame_front(take)
    if kind is not InquiryKind.QUESTION:
        raise StreamError(f"an inquiry sent {kind.name} where QUESTION was due")
    question = unpack(take(length), Question, "the source's question")
    if min(block.size for block in question.blocks) <= 0 or question.ram > RAM_LIMIT:
        raise StreamError("the source's question is about a guest whose memory makes no sense")
    return question

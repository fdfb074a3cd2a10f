"""What method psp puts into a migration stream: what two secure processors need of each other, and packets.

::

    source                                                        target
      OFFER    policy ────────────────────────────────────────────►   (in the HELLO)
      ◄──────────────── ANSWER  PDH, PEK‖OCA‖CEK, ASK‖ARK ─────────
      CONFIRM  policy, source's PDH, session ─────────────────────►   RECEIVE_START
      RECORD   DATA … (VMSA …) packets of SEND_UPDATE_* ──────────►   RECEIVE_UPDATE_*
      RECORD   REGIONS …, VM, VCPU …, END ────────────────────────►   in clear: what a VMM may know anyway
      ◄──────────────────────────────────── PREPARED ──────────────
      FINAL    after SEND_FINISH ─────────────────────────────────►   RECEIVE_FINISH
      ◄──────────────────────────────────── STARTED ───────────────

A record is u8 kind (0 is invalid), be64 place, content. A packet, the content of DATA and VMSA, is the nonce of its
session, which only names it, the secure processor's header of 52 bytes and the payload. PREPARED, FINAL and STARTED
are words between honest VMMs: nothing authenticates them.
"""

from __future__ import annotations

import enum
import struct
from dataclasses import dataclass
from typing import Final

import msgspec
import numpy as np

from sealift.errors import StreamError
from sealift.pageset import PageSet
from sealift.sev import certificate, packet, session
from sealift.wire.packed import unpack

ANSWER_LIMIT: Final = 16 * 1024
"""Bytes of an ANSWER: four certificates of 2084 bytes and two of at most 1600, as one CA chain is for 4096-bit keys."""

CONFIRM_LIMIT: Final = 4 * 1024
"""Bytes of a CONFIRM: one certificate and a session."""

MAX_PACKET_PAGES: Final = 256
"""Pages in a packet: 1 MiB, where the fixed cost of a packet no longer shows, as with the handler's records."""

PACKET_FRONT: Final = session.NONCE_SIZE + packet.HEADER_SIZE
"""Bytes of a packet before its payload."""

REGIONS_IN_RECORD: Final = 32 * 1024
"""Runs of shared pages in one REGIONS record: half a MiB."""

_RECORD: Final = struct.Struct(">BQ")
_WORD: Final = struct.Struct(">4sB16s")
_WORD_MAGIC: Final = b"SLPW"

RECORD_FRONT: Final = _RECORD.size
WORD_SIZE: Final = _WORD.size


class RecordKind(enum.IntEnum):
    """What a record holds, and what its place means; 0 is invalid."""

    DATA = 1
    """A packet of guest memory; its first GPA."""
    VMSA = 2
    """A packet with a vCPU's encrypted state; the vCPU's index."""
    REGIONS = 3
    """Runs of RAM pages in shared state, be64 first and be64 count each; how many."""
    VM = 4
    """State of the machine that is neither memory nor vCPU; 0."""
    VCPU = 5
    """What the host may see of a vCPU: all its state, without SEV-ES; its index."""
    END = 6
    """The session's nonce, and nothing follows; how many packets came before."""


@dataclass(frozen=True, slots=True)
class RecordFront:
    """The front of a record."""

    kind: RecordKind
    place: int

    def encode(self) -> bytes:
        """Its bytes."""
        return _RECORD.pack(self.kind, self.place)

    @classmethod
    def decode(cls, data: bytes) -> RecordFront:
        """Parse the front of a record.

        Raises:
            StreamError: it is truncated, or of an unknown kind.
        """
        if len(data) < _RECORD.size:
            raise StreamError("a record of method psp is truncated")
        kind, place = _RECORD.unpack_from(data)
        if kind not in RecordKind.__members__.values():
            raise StreamError(f"a record of method psp has the unknown kind {kind}")
        return cls(RecordKind(kind), place)


@dataclass(frozen=True, slots=True)
class PacketParts:
    """A packet: the session it belongs to, the secure processor's header, and the payload."""

    nonce: bytes
    header: bytes
    payload: bytes

    @classmethod
    def decode(cls, data: bytes) -> PacketParts:
        """Cut a packet into its parts; what they hold is the secure processor's to judge.

        Raises:
            StreamError: it is truncated.
        """
        if len(data) <= PACKET_FRONT:
            raise StreamError(f"a packet of {len(data)} bytes has no payload")
        return cls(data[: session.NONCE_SIZE], data[session.NONCE_SIZE : PACKET_FRONT], data[PACKET_FRONT:])


# --- the exchange --------------------------------------------------------------------------------------------------


class Offer(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The source's: the guest's policy, so that a target can say early that it has no place for such a guest."""

    policy: int

    def encode(self) -> bytes:
        """Its bytes."""
        return msgspec.msgpack.encode(self)

    @classmethod
    def decode(cls, data: bytes) -> Offer:
        """Parse `encode`.

        Raises:
            StreamError: it does not parse.
        """
        return unpack(data, cls, "the source's offer")


class Answer(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The target's: PDH, PEK‖OCA‖CEK and ASK‖ARK, for SEND_START; the source's secure processor judges them."""

    pdh: bytes
    plat_certs: bytes
    amd_certs: bytes

    def encode(self) -> bytes:
        """Its bytes."""
        return msgspec.msgpack.encode(self)

    @classmethod
    def decode(cls, data: bytes) -> Answer:
        """Parse `encode`.

        Raises:
            StreamError: it does not parse.
        """
        return unpack(data, cls, "the target's answer")


class Confirm(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The source's: policy, its PDH and the session that SEND_START made, for RECEIVE_START."""

    policy: int
    pdh: bytes
    session: bytes

    def encode(self) -> bytes:
        """Its bytes."""
        return msgspec.msgpack.encode(self)

    @classmethod
    def decode(cls, data: bytes) -> Confirm:
        """Parse `encode`; the shape only.

        Raises:
            StreamError: it does not parse.
        """
        confirm = unpack(data, cls, "the source's confirmation")
        if len(confirm.session) != session.SIZE or len(confirm.pdh) != certificate.SIZE:
            raise StreamError("the source's confirmation holds a session or a PDH of impossible length")
        return confirm


def nonce_of(session_blob: bytes) -> bytes:
    """The nonce of a session, 16 bytes: random, public, and so its name."""
    return session_blob[: session.NONCE_SIZE]


# --- shared regions ------------------------------------------------------------------------------------------------


def encode_regions(pages: PageSet) -> list[bytes]:
    """The contents of as many REGIONS records as it takes."""
    runs = np.array(pages.runs(), ">u8").reshape(-1, 2)
    return [runs[at : at + REGIONS_IN_RECORD].tobytes() for at in range(0, len(runs), REGIONS_IN_RECORD)]


def add_regions(pages: PageSet, data: bytes) -> None:
    """Add the runs of a REGIONS record.

    Raises:
        StreamError: they do not parse, or are not among the pages of RAM.
    """
    if len(data) % 16:
        raise StreamError("the shared regions do not parse")
    for first, count in np.frombuffer(data, ">u8").reshape(-1, 2).tolist():
        if first + count > pages.pages:
            raise StreamError(f"shared pages {first} to {first + count} are not among the {pages.pages} of RAM")
        pages.add_range(first, count)


class VmRecord(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Content of a VM record: the platform's `VmState`."""

    engine: str
    state: bytes

    def encode(self) -> bytes:
        """Its bytes."""
        return msgspec.msgpack.encode(self)

    @classmethod
    def decode(cls, data: bytes) -> VmRecord:
        """Parse `encode`.

        Raises:
            StreamError: it does not parse.
        """
        return unpack(data, cls, "the machine's state")


# --- words ---------------------------------------------------------------------------------------------------------


class Word(enum.IntEnum):
    """What one VMM tells the other; 0 is invalid."""

    PREPARED = 1
    FINAL = 2
    STARTED = 3

    def encode(self, nonce: bytes) -> bytes:
        """For the migration whose session has this nonce."""
        return _WORD.pack(_WORD_MAGIC, self, nonce)

    def expect(self, data: bytes, nonce: bytes) -> None:
        """Demand this word, for that migration.

        Raises:
            StreamError: it is another.
        """
        if data != self.encode(nonce):
            raise StreamError(f"this is not the {self.name} of migration {nonce.hex()}")

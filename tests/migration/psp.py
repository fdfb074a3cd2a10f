"""Method psp in tests: a policy that allows it, its parameters, and somebody on the wire who knows its records."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

from sealift.sev.policy import Policy
from sealift.vmm.migration.parameters import Parameters
from sealift.wire.handover import Method, SealedKind
from sealift.wire.psp import RECORD_FRONT, RecordFront, RecordKind
from sealift.wire.qemu_stream import SEALED, SectionType

from . import rig

SENDABLE = Policy.NODBG | Policy.SEV
PARAMETERS = Parameters(method=Method.PSP)
PAGEWISE = replace(PARAMETERS, packet_pages=1)

_FOOTER = 5
_PIECE = 5


@dataclass(frozen=True)
class OnTheWire:
    """One record in the write that carries it."""

    data: bytes
    at: int

    @property
    def record(self) -> bytes:
        """The record's bytes."""
        return self.data[self.at : -_FOOTER]

    @property
    def front(self) -> RecordFront:
        """Its front."""
        return RecordFront.decode(self.record)

    def with_record(self, record: bytes) -> bytes:
        """The write with another record of the same length."""
        assert len(record) == len(self.record)
        return self.data[: self.at] + record + self.data[-_FOOTER:]

    def moved_to(self, place: int) -> bytes:
        """The write with the same record for another place."""
        return self.with_record(RecordFront(self.front.kind, place).encode() + self.record[RECORD_FRONT:])

    def flipped(self, offset: int) -> bytes:
        """The write with one bit of the record's content flipped."""
        record = bytearray(self.record)
        record[RECORD_FRONT + offset] ^= 1
        return self.with_record(bytes(record))


def on_the_wire(data: bytes) -> OnTheWire | None:
    """The record that a write carries, if it does."""
    if data[:1] == bytes([SectionType.PART]):
        at = 5
    elif data[:1] == bytes([SectionType.START]) and data[6 : 6 + len(SEALED)] == SEALED.encode():
        at = 14 + len(SEALED)
    else:
        return None
    if data[at] != SealedKind.RECORD or at + _PIECE + int.from_bytes(data[at + 1 : at + _PIECE], "big") > len(data):
        return None
    return OnTheWire(data, at + _PIECE)


@dataclass
class Meddler:
    """Somebody between the hosts: `meddle` gets every record and gives what is sent instead.

    Attributes:
        packets: every DATA record so far.
        meddled: how many writes were changed.
    """

    meddle: Callable[[Meddler, OnTheWire], bytes]
    packets: list[OnTheWire] = field(default_factory=list)
    meddled: int = 0

    def __call__(self, data: bytes, _before: int) -> bytes:
        """For `rig.attempt`'s `edit`."""
        found = on_the_wire(data)
        if found is None:
            return data
        sent = self.meddle(self, found)
        self.meddled += sent != data
        if found.front.kind is RecordKind.DATA:
            self.packets.append(found)
        return sent


def moved(world: rig.World, guest: rig.Guest, parameters: Parameters = PARAMETERS) -> tuple[rig.Guest, rig.Attempt]:
    """The guest, moved, and the migration that did it."""
    attempt = rig.attempt(world, guest, parameters)
    attempt.begin()
    info = attempt.end()
    assert info.status == "completed", info
    return attempt.guest(), attempt

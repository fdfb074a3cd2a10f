"""Somebody between two hosts plays records and whole migrations again (drops and the like: `test_tamper`).

Records are whole sections of the stream here, so each attack leaves a stream that parses: what refuses it is the
target's handler (or the stream's own rules), with a reason, and the source's guest runs on.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest

from sealift.vmm.migration.parameters import Parameters
from sealift.wire.handover import Transfer
from sealift.wire.qemu_stream import SectionType
from sealift.wire.record import MAGIC, RecordHeader, RecordKind

from . import rig

Attack = Callable[[list[bytes], bytes], bytes]
"""Gets the records before and the one that is due; gives what is sent in its place."""

SECTION_AND_PIECE = 10
"""Bytes before a record in a PART: type, section id, kind of piece, length."""


def replaced_by_an_older_one(before: list[bytes], _due: bytes) -> bytes:
    return before[-2]


def sent_again_before_it(before: list[bytes], due: bytes) -> bytes:
    return before[-1] + due


class Meddler:
    """Attacks the third of the records of one kind that are parts of a section of their length."""

    def __init__(self, kind: RecordKind, attack: Attack) -> None:
        self._kind = kind
        self._attack = attack
        self._seen: list[bytes] = []
        self.attacked = False

    def __call__(self, data: bytes, _before: int) -> bytes:
        """What is sent in place of one write."""
        record = data[SECTION_AND_PIECE:]
        if data[:1] != bytes([SectionType.PART]) or not record.startswith(MAGIC):
            return data
        if RecordHeader.decode(record).kind is not self._kind:
            return data
        self._seen.append(data)
        if self.attacked or len(self._seen) < 3:
            return data
        self.attacked = True
        return self._attack(self._seen[:-1], data)


@pytest.mark.attack(
    "network", "replaces records by older ones between two hosts, or sends them again", gains="denial of service"
)
@pytest.mark.parametrize("attack", [replaced_by_an_older_one, sent_again_before_it])
def test_a_page_that_is_not_where_it_belongs_is_refused_and_the_guest_runs_on(world: rig.World, attack: Attack) -> None:
    guest = world.start()
    guest.work(4)
    meddler = Meddler(RecordKind.PAGES, attack)
    attempt = rig.attempt(world, guest, Parameters(transfer=Transfer.MAILBOX), edit=meddler)
    attempt.begin()
    info = attempt.end(listening=True)
    assert meddler.attacked
    assert info.status == "failed", info
    assert "the target refused: " in (info.error_desc or "")
    assert "not authentic, or not for this place" in (info.error_desc or ""), info.error_desc
    assert attempt.arrived is None
    guest.work(8)


@pytest.mark.attack("whole migrations", "plays the wire of an earlier one to a new target", gains="denial of service")
def test_an_earlier_migration_cannot_be_played_to_a_new_target(world: rig.World) -> None:
    """The whole wire of a migration that was given up, sent again: the new receiver has other keys."""
    guest = world.start()
    guest.work(4)
    first = rig.attempt(world, guest, edit=lambda data, _: data)
    first.begin()
    info = first.end()
    assert info.status == "completed"
    replayed = bytearray(first.wire)
    second_guest = world.start()
    second_guest.work(4)

    def replay(_data: bytes, before: int) -> bytes:
        return bytes(replayed) if before == 0 else b""

    second = rig.attempt(world, second_guest, edit=replay)
    second.begin()
    info = second.end(listening=True)
    assert info.status == "failed", info
    assert second.arrived is None
    second_guest.work(8)

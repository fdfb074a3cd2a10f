"""What a target checks, rule by rule: here an honest key makes records that break one rule each.

An attacker without the keys cannot make these; they stand for a source handler with a fault.
"""

from __future__ import annotations

import os

import numpy as np
import pytest

from sealift.address import PAGE_SIZE
from sealift.errors import PeerError, SealError, UserError
from sealift.guest.handler.channels import SealingChannel
from sealift.guest.handler.commit import State
from sealift.guest.handler.handler import EXCHANGE_LIMIT_S
from sealift.guest.handler.state import MAX_VCPU_STATE, presence_size
from sealift.pageset import PageSet
from sealift.wire.record import (
    ChannelEnd,
    RecordHeader,
    RecordKind,
    StatePiece,
    encode_close,
    page_record_size,
)
from sealift.wire.token import TokenKind

from .rig import MAILBOX, Hosts, write_some


class Forge:
    """Seals whatever it is told under the session's true keys."""

    def __init__(self, channels: int = 1) -> None:
        self.hosts = Hosts()
        self.hosts.connect(channels)
        incoming = self.hosts.target._incoming
        assert incoming is not None
        self.ends = [SealingChannel(number, incoming.session) for number in range(channels)]

    def pages(self, numbers: list[int], epoch: int = 1, channel: int = 0) -> None:
        """Seal and deliver a PAGES record."""
        out = bytearray(page_record_size(len(numbers)))
        plain = os.urandom(len(numbers) * PAGE_SIZE)
        self.ends[channel].seal(RecordKind.PAGES, epoch, np.array(numbers, np.uint64), plain, memoryview(out))
        self.hosts.target.open(memoryview(out))

    def other(self, kind: RecordKind, plain: bytes = b"", epoch: int = 1, channel: int = 0) -> None:
        """Seal and deliver a record without pages."""
        self.hosts.target.open(memoryview(self.ends[channel].seal_bytes(kind, epoch, plain)))

    def state(self, blob: bytes, epoch: int = 1) -> None:
        """Seal and deliver a whole state."""
        self.other(RecordKind.STATE, StatePiece(len(blob), 0, blob).encode(), epoch)

    def close(self, epoch: int = 1) -> None:
        """Seal and deliver a true close record."""
        self.other(RecordKind.CLOSE, encode_close(tuple(end.end() for end in self.ends)), epoch)


PAGES = Hosts().guest.pages
NOTHING = 2 * PageSet(PAGES).to_bytes()


@pytest.mark.parametrize(
    ("numbers", "reason"),
    [
        ([3, 3], "do not ascend"),
        ([4, 3], "do not ascend"),
        ([8, 9, 7, 11], "do not ascend"),
        ([(1 << 64) - 1, 0], "do not ascend"),
        ([PAGES], "not in RAM"),
        ([3, (1 << 64) - 1], "not in RAM"),
        ([1 << 51], "not in RAM"),
        ([3, MAILBOX[0]], "never travels"),
        ([MAILBOX[1]], "never travels"),
    ],
)
def test_page_numbers_that_no_record_may_have_are_refused(numbers: list[int], reason: str) -> None:
    forge = Forge()
    with pytest.raises(SealError, match=reason):
        forge.pages(numbers)
    assert forge.hosts.target.state is State.ABORTED


def test_a_page_may_come_once_an_epoch_over_all_channels() -> None:
    forge = Forge(2)
    forge.pages([1, 2, 3], channel=0)
    with pytest.raises(SealError, match="comes again in epoch 1"):
        forge.pages([3], channel=1)


def test_a_page_may_come_again_in_a_later_epoch() -> None:
    forge = Forge()
    forge.pages([1])
    forge.other(RecordKind.EPOCH)
    forge.pages([1], epoch=2)


def test_no_channel_goes_on_after_its_token() -> None:
    forge = Forge(2)
    forge.other(RecordKind.EPOCH)
    with pytest.raises(SealError, match="after its channel's token"):
        forge.pages([1])


def test_no_page_comes_after_the_machine_state() -> None:
    forge = Forge()
    forge.state(NOTHING + b"registers")
    with pytest.raises(SealError, match="after the machine state"):
        forge.pages([1])


def test_no_epoch_ends_after_the_machine_state() -> None:
    forge = Forge()
    forge.state(NOTHING + b"registers")
    with pytest.raises(SealError, match="after the machine state"):
        forge.other(RecordKind.EPOCH)


def test_a_stream_cannot_close_without_state() -> None:
    forge = Forge()
    with pytest.raises(SealError, match="ends after 0 of 0 bytes"):
        forge.close()


@pytest.mark.parametrize(
    ("pieces", "reason"),
    [
        ([(100, 1, b"x")], "out of place"),
        ([(100, 0, b"x"), (100, 0, b"x")], "out of place"),
        ([(100, 0, b"x"), (101, 1, b"x")], "was 100 bytes long and is now 101"),
        ([(1, 0, b"xy")], "out of place"),
        ([(4 * presence_size(PAGES) + MAX_VCPU_STATE + 1, 0, b"x")], "over the limit"),
    ],
)
def test_pieces_of_state_must_fit_together(pieces: list[tuple[int, int, bytes]], reason: str) -> None:
    forge = Forge()
    *fitting, bad = [StatePiece(*piece).encode() for piece in pieces]
    for piece in fitting:
        forge.other(RecordKind.STATE, piece)
    with pytest.raises(SealError, match=reason):
        forge.other(RecordKind.STATE, bad)


def test_a_stream_that_lacks_a_page_of_the_presence_set_never_prepares() -> None:
    forge = Forge()
    forge.pages([1, 2])
    presence = PageSet.of(PAGES, np.array([1, 2, 7], np.uint64))
    forge.state(presence.to_bytes() + PageSet(PAGES).to_bytes() + b"registers")
    with pytest.raises(SealError, match="without 1 pages, the first is 7"):
        forge.close()
    assert forge.hosts.target.state is State.ABORTED


def test_a_presence_set_of_another_guests_shape_is_refused() -> None:
    forge = Forge()
    forge.state(NOTHING[:-1])
    with pytest.raises(SealError, match="do not fit this guest"):
        forge.close()


@pytest.mark.parametrize(
    ("present", "missing", "reason"),
    [([1, 2], [7], "page 7 missing, which does not exist"), ([1, MAILBOX[0]], [MAILBOX[0]], "never travels")],
)
@pytest.mark.attack("post-copy", "calls pages missing that are none, or that never travel", gains="denial of service")
def test_only_pages_that_travel_can_be_missing(present: list[int], missing: list[int], reason: str) -> None:
    forge = Forge()
    forge.pages([1, 2])
    sets = [PageSet.of(PAGES, np.array(each, np.uint64)).to_bytes() for each in (present, missing)]
    forge.state(b"".join(sets) + b"registers")
    with pytest.raises(SealError, match=reason):
        forge.close()
    assert forge.hosts.target.state is State.ABORTED


def test_machine_state_that_makes_no_sense_aborts_the_target() -> None:
    forge = Forge()
    forge.state(NOTHING + b"gibberish")
    with pytest.raises(SealError, match="makes no sense"):
        forge.close()
    assert forge.hosts.target.state is State.ABORTED


@pytest.mark.parametrize("ends", [(), (ChannelEnd(1, bytes(32)), ChannelEnd(0, bytes(32)))])
def test_a_close_record_that_counts_otherwise_is_refused(ends: tuple[ChannelEnd, ...]) -> None:
    forge = Forge()
    forge.state(NOTHING + b"registers")
    with pytest.raises(PeerError, match=r"counts other records|cannot hold"):
        forge.other(RecordKind.CLOSE, encode_close(ends))


def test_nothing_is_opened_after_the_close_record() -> None:
    forge = Forge()
    forge.state(NOTHING + b"registers")
    forge.close()
    with pytest.raises(UserError, match="cannot open a record in state PREPARED"):
        forge.pages([1])


@pytest.mark.attack("records", "relabels one as of another leg", gains="denial of service")
def test_a_record_of_another_leg_is_refused() -> None:
    hosts = Hosts()
    write_some(hosts.guest)
    record = bytearray(hosts.connect().round()[0])
    header = RecordHeader.decode(record)
    record[8] = header.leg + 1
    with pytest.raises(SealError, match="belongs to leg 2"):
        hosts.target.open(memoryview(record))


def test_no_record_opens_before_the_source_is_confirmed() -> None:
    hosts = Hosts()
    write_some(hosts.guest)
    hosts.source.confirm(hosts.target.answer(hosts.source.offer()))
    with pytest.raises(UserError, match="ANSWERED"):
        hosts.target.open(memoryview(b""))
    assert hosts.target.state is State.ANSWERED


def test_a_late_confirmation_aborts_the_target() -> None:
    hosts = Hosts()
    confirm = hosts.source.confirm(hosts.target.answer(hosts.source.offer()))
    hosts.clock.now += EXCHANGE_LIMIT_S + 1
    with pytest.raises(UserError, match="launch a new receiver"):
        hosts.target.confirmed(confirm)
    assert hosts.target.state is State.ABORTED


def test_an_aborted_targets_keys_are_gone_but_its_token_is_not() -> None:
    forge = Forge()
    with pytest.raises(SealError):
        forge.pages([PAGES])
    assert forge.hosts.target._incoming is None
    assert forge.hosts.target.token(TokenKind.ABORTED) == forge.hosts.target.token(TokenKind.ABORTED)

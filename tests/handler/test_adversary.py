"""Attacks by whoever carries the records: each is refused with its reason, and ends a target for good.

A receiver serves one session in its life, so every attack has its own pair of hosts.
"""

from __future__ import annotations

import itertools
import mmap
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sealift.address import PAGE_SIZE, Gpa, RamBlock, RamLayout
from sealift.errors import PeerError, SealError, StreamError, UserError
from sealift.guest.handler.commit import State
from sealift.guest.handler.mailbox import Mailbox
from sealift.wire.mailbox import AREA_SIZE, IO_HEADER, Command, Result, answered, copy_record, post
from sealift.wire.record import HEADER_SIZE, MAX_RECORD, RecordHeader, RecordKind
from sealift.wire.token import TokenKind

from .rig import SOURCE_FACTS, TARGET_FACTS, FakeGuest, Hosts, Vmm, write_some


def course(channels: int = 2) -> tuple[Hosts, list[bytes]]:
    """A migration of three rounds, all of it sealed and nothing opened yet."""
    hosts = Hosts()
    write_some(hosts.guest)
    vmm = hosts.connect(channels)
    records = vmm.round()
    write_some(hosts.guest)
    records += vmm.round()
    hosts.guest.write(33, b"late")
    return hosts, records + vmm.finish()


def index_of(records: list[bytes], kind: RecordKind, channel: int = 0, epoch: int | None = None) -> int:
    """Where the first record of that kind lies."""
    for index, record in enumerate(records):
        header = RecordHeader.decode(record)
        if header.kind is kind and header.channel == channel and epoch in {None, header.epoch}:
            return index
    raise AssertionError("no such record")


def refused(hosts: Hosts, records: list[bytes], match: str) -> None:
    """Feed records to the target: one must be refused for that reason, and the target must be dead and unrunnable."""
    vmm = Vmm(hosts, 1)
    with pytest.raises((SealError, StreamError), match=match):
        vmm.deliver(records)
    assert_aborted(hosts)


def assert_aborted(hosts: Hosts) -> None:
    assert hosts.target.state is State.ABORTED
    assert not hosts.target.may_run
    with pytest.raises(UserError, match="no PREPARED token"):
        hosts.target.token(TokenKind.PREPARED)
    with pytest.raises(UserError, match="ABORTED"):
        hosts.target.open(memoryview(b""))


@pytest.mark.attack("records", "drops one, whichever it is", gains="denial of service")
def test_a_dropped_record_is_refused_whichever_it_is() -> None:
    count = len(course()[1])
    for index in range(count - 1):
        hosts, records = course()
        refused(hosts, records[:index] + records[index + 1 :], "out of turn|epoch token is missing|counts other")


@pytest.mark.attack("records", "repeats one, whichever it is", gains="denial of service")
def test_a_repeated_record_is_refused_whichever_it_is() -> None:
    count = len(course()[1])
    for index in range(count - 1):
        hosts, records = course()
        refused(hosts, [*records[: index + 1], *records[index:]], "out of turn")


@pytest.mark.attack("records", "plays a whole round again", gains="denial of service")
def test_an_old_round_cannot_be_played_again() -> None:
    hosts, records = course(1)
    end = index_of(records, RecordKind.EPOCH) + 1
    refused(hosts, records[:end] + records[:end], "out of turn")


@pytest.mark.attack("records", "reorders two of a channel", gains="denial of service")
def test_two_records_of_a_channel_cannot_change_places() -> None:
    hosts, records = course(1)
    records[0], records[1] = records[1], records[0]
    refused(hosts, records, "out of turn")


@pytest.mark.attack("records", "passes one channel's off as another's", gains="denial of service")
def test_a_channels_records_cannot_be_passed_off_as_anothers() -> None:
    hosts, records = course(2)
    first = RecordHeader.decode(records[0])
    moved = RecordHeader(
        first.kind, first.leg, 1, first.epoch, first.sequence, first.migration, first.count, first.length
    )
    refused(hosts, [moved.encode() + records[0][HEADER_SIZE:]], "not authentic")


@pytest.mark.attack("records", "keeps an epoch token back, to mix two rounds", gains="denial of service")
def test_no_record_of_the_next_epoch_opens_before_every_channels_token() -> None:
    hosts, records = course(2)
    token = index_of(records, RecordKind.EPOCH, channel=1)
    refused(hosts, records[:token] + records[token + 1 :], "belongs to epoch 2 while 1 is open")


@pytest.mark.attack("records", "brings one of an earlier epoch late", gains="denial of service")
def test_a_record_of_an_earlier_epoch_cannot_come_late() -> None:
    hosts, records = course(2)
    late = index_of(records, RecordKind.PAGES, channel=1)
    second = index_of(records, RecordKind.PAGES, channel=0, epoch=2)
    kept = [record for index, record in enumerate(records[:second]) if index != late]
    refused(hosts, [*kept, records[late]], "out of turn|epoch")


@pytest.mark.attack("records", "brings those of another migration of the same guest", gains="denial of service")
def test_records_of_another_migration_of_the_same_guest_are_refused() -> None:
    hosts, old = course()
    hosts.source.cancel()
    hosts.guest.halted = False
    hosts.receive_anew()
    hosts.connect(2)
    refused(hosts, old, "another migration")


@pytest.mark.attack("records", "relabels one of another migration as one of this", gains="denial of service")
def test_a_record_of_another_migration_relabelled_is_refused() -> None:
    hosts, old = course()
    hosts.source.cancel()
    hosts.guest.halted = False
    hosts.receive_anew()
    now = RecordHeader.decode(hosts.connect(2).round()[0])
    header = RecordHeader.decode(old[0])
    relabelled = RecordHeader(
        header.kind, header.leg, header.channel, header.epoch, 0, now.migration, header.count, header.length
    )
    refused(hosts, [relabelled.encode() + old[0][HEADER_SIZE:]], "not authentic")


@pytest.mark.attack("records", "reflects them to the source", gains="nothing")
def test_records_sent_back_to_their_maker_are_refused() -> None:
    hosts, records = course()
    with pytest.raises(UserError, match="cannot open a record in state CLOSED"):
        hosts.source.open(memoryview(records[0]))
    assert hosts.source.state is State.CLOSED


@pytest.mark.attack("records", "leaves the close record out", gains="denial of service")
def test_a_stream_cut_short_never_prepares_the_target() -> None:
    hosts, records = course()
    Vmm(hosts, 2).deliver(records[:-1])
    assert hosts.target.state is State.RECEIVING
    assert not hosts.target.may_run


REASONS = (
    "not authentic|out of turn|belongs to epoch|another migration|leg|names channel|its magic|has version|"
    "unknown kind|cannot hold|truncated or too long|do not ascend|not in RAM|never travels|comes again"
)


@pytest.mark.attack("records", "changes any bit of any one", gains="denial of service")
@settings(max_examples=150, deadline=None)
@given(st.data())
def test_one_changed_bit_anywhere_in_any_record_is_refused(data: st.DataObject) -> None:
    hosts, records = course()
    index = data.draw(st.integers(0, len(records) - 1))
    # Half of the bits in the header and page numbers, half anywhere.
    reach = data.draw(st.sampled_from([HEADER_SIZE + 32, len(records[index])]))
    bit = data.draw(st.integers(0, min(reach, len(records[index])) * 8 - 1))
    edited = bytearray(records[index])
    edited[bit >> 3] ^= 1 << (bit & 7)
    refused(hosts, [*records[:index], bytes(edited)], REASONS)


@pytest.mark.attack("lengths and addresses", "cuts a record off anywhere, or lengthens it", gains="denial of service")
@settings(max_examples=60, deadline=None)
@given(st.data())
def test_a_record_cut_or_lengthened_anywhere_is_refused(data: st.DataObject) -> None:
    hosts, records = course()
    index = data.draw(st.integers(0, len(records) - 1))
    length = data.draw(st.integers(0, len(records[index]) - 1))
    wrong = data.draw(st.sampled_from([records[index][:length], records[index] + bytes(length + 1)]))
    refused(hosts, [*records[:index], wrong], "truncated|too long|over the limit")


@pytest.mark.attack("lengths and addresses", "brings a record that is longer than any", gains="denial of service")
def test_a_record_over_the_limit_is_refused_unread() -> None:
    hosts, _ = course()
    refused(hosts, [bytes(MAX_RECORD + 1)], "over the limit")


def edited_bits(message: bytes) -> Iterator[bytes]:
    """The message with one bit of each byte changed, a different one from byte to byte."""
    for index in range(len(message)):
        edited = bytearray(message)
        edited[index] ^= 1 << (index % 8)
        yield bytes(edited)


@pytest.mark.attack("key exchange", "changes any byte of OFFER", gains="denial of service")
def test_one_changed_bit_in_the_offer_ends_the_exchange() -> None:
    """Test that the target refuses an edited offer, or answers it in a way the source refuses."""
    hosts = Hosts()
    offer = hosts.source.offer()
    for edited in edited_bits(offer):
        hosts.receive_anew()
        with pytest.raises(PeerError):
            hosts.source.confirm(hosts.target.answer(edited))
        assert hosts.source.state is State.OFFERED


@pytest.mark.attack("key exchange", "changes any byte of ANSWER", gains="nothing")
def test_one_changed_bit_in_the_answer_is_refused_and_the_true_one_still_taken() -> None:
    hosts = Hosts()
    answer = hosts.target.answer(hosts.source.offer())
    for edited in edited_bits(answer):
        with pytest.raises(PeerError):
            hosts.source.confirm(edited)
    hosts.target.confirmed(hosts.source.confirm(answer))


@pytest.mark.attack("key exchange", "changes any byte of CONFIRM", gains="denial of service")
def test_one_changed_bit_in_the_confirmation_aborts_the_target() -> None:
    hosts = Hosts()
    confirm = hosts.source.confirm(hosts.target.answer(hosts.source.offer()))
    for index in range(len(confirm)):
        hosts.receive_anew()
        edited = bytearray(hosts.source.confirm(hosts.target.answer(hosts.source.offer())))
        edited[index] ^= 1 << (index % 8)
        with pytest.raises(PeerError):
            hosts.target.confirmed(bytes(edited))
        assert_aborted(hosts)


@pytest.mark.parametrize("cut", [0, 1, 23, 24, 100, -1])
def test_truncated_handshake_messages_are_refused(cut: int) -> None:
    hosts = Hosts()
    offer = hosts.source.offer()
    with pytest.raises(StreamError, match="truncated"):
        hosts.target.answer(offer[:cut])
    answer = hosts.target.answer(offer)
    with pytest.raises(PeerError):
        hosts.source.confirm(answer[:cut])


@pytest.mark.attack("key exchange", "reflects OFFER and ANSWER to their makers", gains="denial of service")
def test_a_handshake_message_sent_back_to_its_maker_is_refused() -> None:
    hosts = Hosts()
    offer = hosts.source.offer()
    with pytest.raises(StreamError, match="where ANSWER was due"):
        hosts.source.confirm(offer)
    answer = hosts.target.answer(offer)
    with pytest.raises(StreamError, match="where CONFIRM was due"):
        hosts.target.confirmed(answer)


@pytest.mark.attack("tokens", "changes any byte of PREPARED, FINAL and STARTED", gains="nothing")
def test_edited_tokens_are_refused_and_change_nothing() -> None:
    hosts, records = course()
    Vmm(hosts, 2).deliver(records)
    prepared = hosts.target.token(TokenKind.PREPARED)
    for edited in edited_bits(prepared):
        with pytest.raises(PeerError):
            hosts.source.deliver(edited)
        assert hosts.source.state is State.CLOSED
    hosts.source.deliver(prepared)
    final = hosts.source.token(TokenKind.FINAL)
    for edited in edited_bits(final):
        with pytest.raises(PeerError):
            hosts.target.deliver(edited)
        assert hosts.target.state is State.PREPARED
    hosts.target.deliver(final)
    started = hosts.target.token(TokenKind.STARTED)
    for edited in edited_bits(started):
        with pytest.raises(PeerError):
            hosts.source.deliver(edited)
        assert hosts.source.state is State.FENCED


@pytest.mark.attack("tokens", "reflects them, or brings those of another guest", gains="nothing")
def test_tokens_sent_back_to_their_maker_or_from_another_migration_are_refused() -> None:
    hosts, records = course()
    Vmm(hosts, 2).deliver(records)
    prepared = hosts.target.token(TokenKind.PREPARED)
    with pytest.raises(SealError, match="not authentic"):
        hosts.target.deliver(prepared)
    other, _ = course()
    with pytest.raises(SealError, match="another migration"):
        other.source.deliver(prepared)
    hosts.source.deliver(prepared)
    with pytest.raises(SealError, match="not authentic"):
        hosts.source.deliver(hosts.source.token(TokenKind.FINAL))


# --- memory that changes while it is used ---------------------------------------------------------------------------


def between_check_and_use(guest: FakeGuest, change: Callable[[], None]) -> None:
    """Have `change` happen whenever the handler has checked its input and asks for the guest's pages."""
    window = guest.window

    def changing(first: int, count: int) -> memoryview:
        change()
        return window(first, count)

    guest.window = changing  # type: ignore[method-assign]  # one moment in a race, made certain


@pytest.mark.attack("memory under way", "rewrites a record between check and use", gains="nothing")
@pytest.mark.parametrize("start", [0, HEADER_SIZE, HEADER_SIZE + 8, HEADER_SIZE + 8 + 4000])
def test_a_slot_rewritten_between_check_and_use_changes_nothing(start: int) -> None:
    hosts = Hosts()
    hosts.guest.write(30, os.urandom(PAGE_SIZE))
    record = bytearray(hosts.connect().round()[0])

    def rewrite() -> None:
        record[start:] = os.urandom(len(record) - start)

    between_check_and_use(hosts.landed, rewrite)
    hosts.target.open(memoryview(record))
    assert hosts.landed.content(30) == hosts.guest.content(30)


@pytest.mark.attack("memory under way", "rewrites the mailbox between check and use", gains="nothing")
def test_a_mailbox_rewritten_between_check_and_use_changes_nothing() -> None:
    """Test that ENCRYPT and DECRYPT go on with what they copied, and answer the request they were asked."""
    hosts = Hosts()
    write_some(hosts.guest)
    hosts.connect()
    hosts.source.begin_epoch()
    area = memoryview(bytearray(AREA_SIZE))

    def rewrite() -> None:
        area[:] = os.urandom(AREA_SIZE)
        area[24:32] = bytes(8)

    between_check_and_use(hosts.guest, rewrite)
    between_check_and_use(hosts.landed, rewrite)
    post(area, Command.ENCRYPT, Gpa(10 * PAGE_SIZE), 1)
    Mailbox(hosts.source, area).serve()
    assert answered(area, 1) is Result.OK
    post(area, Command.DECRYPT, Gpa(10 * PAGE_SIZE), 2)
    Mailbox(hosts.target, area).serve()
    assert answered(area, 2) is Result.OK
    assert hosts.landed.content(10) == hosts.guest.content(10)


@contextmanager
def flipping(area: mmap.mmap, place: int) -> Iterator[None]:
    """Another process, as the VMM is, flips a bit of shared memory back and forth until the block ends.

    The block begins when both values were seen: the race is known to run.
    """
    stop = mmap.mmap(-1, 1)
    parent = os.getpid()
    child = os.fork()
    if child == 0:
        while not stop[0] and os.getppid() == parent:
            for _ in range(1000):
                area[place] ^= 1
        os._exit(0)
    try:
        seen = {area[place]}
        while len(seen) < 2:
            seen.add(area[place])
        yield
    finally:
        stop[0] = 1
        os.waitpid(child, 0)
        stop.close()


RACES = 40
"""Tries; in each the slot is found altered with a chance of one half."""

BIG = RamLayout((RamBlock("ram", Gpa(0), 512 * PAGE_SIZE),))


def big_hosts() -> Hosts:
    """Guests of 2 MiB with nothing excluded, for records that take long enough to be raced."""
    facts: dict[str, Any] = {"layout": BIG, "excluded": ()}
    hosts = Hosts(replace(SOURCE_FACTS, **facts), replace(TARGET_FACTS, **facts))
    hosts.guest.ram[:] = os.urandom(BIG.size)
    hosts.guest.present.add_range(0, BIG.pages)
    return hosts


@pytest.mark.attack("memory under way", "changes a record all the time while it is opened", gains="denial of service")
@pytest.mark.parametrize("place", [HEADER_SIZE + 9, HEADER_SIZE + 512 * 8 + 1000, HEADER_SIZE + 512 * 8 + 2_000_000])
def test_a_slot_that_changes_while_it_is_opened_never_gives_wrong_content(place: int) -> None:
    """Test that each racing open is refused, or gives exactly what the source sealed."""
    outcomes: set[str] = set()
    for _ in range(RACES):
        if outcomes == {"refused", "accepted"}:
            break
        hosts = big_hosts()
        vmm = hosts.connect()
        hosts.source.begin_epoch()
        record = vmm.pull(0, 512)
        assert record is not None
        slot = mmap.mmap(-1, len(record))
        slot[:] = record
        with flipping(slot, place), memoryview(slot) as view:
            try:
                hosts.target.open(view)
            except (SealError, StreamError):
                assert_aborted(hosts)
                outcomes.add("refused")
            else:
                assert bytes(hosts.landed.ram) == bytes(hosts.guest.ram)
                outcomes.add("accepted")
        slot.close()
    assert "refused" in outcomes, "the copy was taken at an altered moment at least once"


def test_a_guest_that_writes_a_page_while_it_is_sealed_does_not_break_its_record() -> None:
    """Test that AES-GCM over plaintext that changes gives a record the target accepts; its page comes again."""
    for _ in range(8):
        hosts = big_hosts()
        ram = mmap.mmap(-1, BIG.size)
        ram[:] = bytes(hosts.guest.ram)
        hosts.guest.ram = ram
        vmm = hosts.connect()
        hosts.source.begin_epoch()
        with flipping(ram, 1_000_000):
            record = vmm.pull(0, 512)
        assert record is not None
        hosts.target.open(memoryview(record))
        assert sum(a != b for a, b in zip(bytes(hosts.landed.ram), bytes(ram), strict=True)) <= 1


@pytest.mark.attack(
    "memory under way", "changes the mailbox all the time while a page is sealed into it", gains="denial of service"
)
def test_a_mailbox_that_changes_while_a_page_is_sealed_never_holds_a_forged_tag() -> None:
    """Test that what ENCRYPT leaves is refused, or opens to the page as it was."""
    outcomes: set[str] = set()
    places = (IO_HEADER + 4 + HEADER_SIZE + 2, 0x1000 + 100, 0x1000 + 4000)
    for attempt, place in enumerate(itertools.cycle(places)):
        if attempt >= len(places) and (attempt == RACES or "refused" in outcomes):
            break
        hosts = big_hosts()
        hosts.connect()
        hosts.source.begin_epoch()
        shared = mmap.mmap(-1, AREA_SIZE)
        with memoryview(shared) as area:
            mailbox = Mailbox(hosts.source, area)
            with flipping(shared, place):
                for number in range(1, 40):
                    post(area, Command.ENCRYPT, Gpa((number - 1) * PAGE_SIZE), number)
                    assert mailbox.serve()
                    assert answered(area, number) is Result.OK
                    record = copy_record(area)
                    try:
                        hosts.target.open(memoryview(record))
                    except (SealError, StreamError):
                        outcomes.add("refused")
                        break
                    page = number - 1
                    assert hosts.landed.content(page) == hosts.guest.content(page)
                    outcomes.add("accepted")
            del mailbox
        shared.close()
    assert "refused" in outcomes, "the mailbox was altered between two looks at least once"

"""Whole migrations between two handlers, with no platform, VMM or network."""

from __future__ import annotations

import os

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sealift.address import PAGE_SHIFT, Gpa
from sealift.errors import UserError
from sealift.guest.handler.commit import Role, State
from sealift.guest.handler.handler import MigrationHandler
from sealift.guest.handler.mailbox import Mailbox
from sealift.wire.mailbox import AREA_SIZE, Command, Result, answered, copy_record, post, put_record
from sealift.wire.record import RecordKind
from sealift.wire.token import TokenKind

from .rig import LAYOUT, MAILBOX, Hosts, Vmm, write_some


class MailboxVmm:
    """An honest VMM that moves pages through both mailboxes, one a request."""

    def __init__(self, hosts: Hosts) -> None:
        self.source, self.target = hosts.source, hosts.target
        self.areas = [memoryview(bytearray(AREA_SIZE)) for _ in range(2)]
        self.ends = [Mailbox(hosts.source, self.areas[0]), Mailbox(hosts.target, self.areas[1])]
        self.number = 0

    def ask(self, end: int, command: Command, page: int = 0) -> Result:
        """One request and its answer."""
        self.number += 1
        post(self.areas[end], command, Gpa(LAYOUT.gpa(page << PAGE_SHIFT)), self.number)
        assert self.ends[end].serve()
        result = answered(self.areas[end], self.number)
        assert result is not None
        return result

    def move_round(self) -> None:
        """Every page left in the round, as the handler lists them."""
        first = 0
        while (pages := self.source.round_pages(first, 5)).size:
            for page in pages.tolist():
                assert self.ask(0, Command.ENCRYPT, page) is Result.OK
                put_record(self.areas[1], copy_record(self.areas[0]))
                assert self.ask(1, Command.DECRYPT, page) is Result.OK
            first = int(pages[-1]) + 1


@pytest.mark.parametrize("channels", [1, 2, 3])
def test_the_target_ends_with_the_sources_pages_and_registers(channels: int) -> None:
    hosts = Hosts()
    write_some(hosts.guest)
    hosts.guest.registers = b"registers" + os.urandom(1000)
    vmm = hosts.connect(channels)
    vmm.deliver(vmm.round())
    hosts.guest.write(30, b"again")
    hosts.guest.write(50, b"new")
    vmm.deliver(vmm.round())
    hosts.guest.write(50, b"newer")
    vmm.deliver(vmm.finish())
    assert hosts.target.state is State.PREPARED
    assert hosts.same()
    vmm.hand_over()
    assert (hosts.source.may_run, hosts.target.may_run) == (False, True)


def test_pages_that_never_travel_stay_as_they_were_on_both_sides() -> None:
    hosts = Hosts()
    write_some(hosts.guest)
    vmm = hosts.connect()
    vmm.deliver([*vmm.round(), *vmm.finish()])
    assert all(hosts.landed.content(page).startswith(b"receiver image") for page in MAILBOX)


def test_pages_the_source_never_wrote_are_not_sent_and_read_as_zeros() -> None:
    hosts = Hosts()
    hosts.guest.write(30, b"only this")
    vmm = hosts.connect()
    records = vmm.round()
    vmm.deliver(records)
    assert [len(record) > 4096 for record in records] == [True, False]
    vmm.deliver(vmm.finish())
    assert hosts.landed.content(31) == bytes(4096)
    assert hosts.same()


def test_a_hole_that_only_reading_populated_is_not_sent_and_reads_as_zeros() -> None:
    hosts = Hosts()
    write_some(hosts.guest)
    vmm = hosts.connect()
    vmm.deliver(vmm.round())
    hosts.guest.present.mark(70)
    vmm.deliver(vmm.finish())
    assert hosts.target.state is State.PREPARED
    assert 70 not in hosts.landed.present
    assert hosts.landed.content(70) == bytes(4096)


def test_a_started_target_can_be_a_source_for_its_next_hop() -> None:
    hosts = Hosts()
    write_some(hosts.guest)
    vmm = hosts.connect()
    vmm.deliver([*vmm.round(), *vmm.finish()])
    vmm.hand_over()
    hop = Hosts(source_facts=hosts.target_facts, instance=hosts.instance)
    hop.source, hop.guest, hop.source_secret = hosts.target, hosts.landed, hosts.target_secret
    hop.receive_anew()
    hop.guest.write(60, b"written on the second host")
    onward = hop.connect(2)
    onward.deliver([*onward.round(), *onward.finish()])
    onward.hand_over()
    assert hop.same()


def test_both_mailboxes_move_a_guest_as_the_ring_does() -> None:
    hosts = Hosts()
    write_some(hosts.guest)
    vmm = hosts.connect()
    mailboxes = MailboxVmm(hosts)
    assert [mailboxes.ask(end, Command.INIT) for end in (0, 1)] == [Result.OK, Result.OK]
    hosts.source.begin_epoch()
    mailboxes.move_round()
    vmm.deliver([hosts.source.end_epoch(0)])
    hosts.guest.write(80, b"late")
    vmm.halt()
    hosts.source.begin_epoch()
    mailboxes.move_round()
    vmm.deliver([hosts.source.end_epoch(0), *vmm.state(), hosts.source.close()])
    assert hosts.same()
    vmm.hand_over()


def test_everything_is_sent_again_to_the_next_target_after_a_cancel() -> None:
    hosts = Hosts()
    write_some(hosts.guest)
    vmm = hosts.connect(2)
    vmm.deliver(vmm.round())
    hosts.source.cancel()
    assert hosts.source.may_run
    hosts.receive_anew()
    vmm = hosts.connect(2)
    vmm.deliver([*vmm.round(), *vmm.finish()])
    assert hosts.same()


def test_what_is_left_to_move_is_told_and_shrinks_to_nothing() -> None:
    hosts = Hosts()
    write_some(hosts.guest)
    vmm = hosts.connect()
    pages = len(hosts.guest.present)
    assert hosts.source.unsent_pages() == pages
    assert hosts.source.begin_epoch() == (1, pages - 1), "the excluded page is left out"
    vmm.pull(0, 6)
    assert hosts.source.unsent_pages() == pages - 7
    hosts.guest.write(30, b"again")
    vmm.rest_of_round()
    assert hosts.source.unsent_pages() == 1


def test_no_key_from_the_owner_means_no_migration() -> None:
    hosts = Hosts()
    keyless = MigrationHandler(Role.SOURCE, hosts.source_facts, None, hosts.guest.parts(), hosts.clock)
    with pytest.raises(UserError, match="owner gave no migration key"):
        keyless.offer()
    keyless_target = MigrationHandler(Role.TARGET, hosts.target_facts, None, hosts.landed.parts(), hosts.clock)
    with pytest.raises(UserError, match="owner gave no migration key"):
        keyless_target.answer(hosts.source.offer())


writes = st.lists(st.integers(0, LAYOUT.pages - 1), max_size=12)
rounds = st.lists(st.tuples(writes, writes, st.integers(1, 9)), min_size=1, max_size=4)
attempt = st.tuples(st.integers(1, 3), st.booleans(), rounds)


def play_rounds(vmm: Vmm, hosts: Hosts, plan: list[tuple[list[int], list[int], int]]) -> None:
    """Rounds through the ring, with writes before each one and between its pulls."""
    for before, between, pages in plan:
        for page in before:
            hosts.guest.write(page, os.urandom(8))
        hosts.source.begin_epoch()
        for number, page in enumerate(between):
            record = vmm.pull(number % vmm.channels, pages)
            hosts.guest.write(page, os.urandom(8))
            if record is not None:
                vmm.deliver([record])
        vmm.deliver(vmm.rest_of_round(pages))


def play_mailbox_rounds(vmm: Vmm, hosts: Hosts, plan: list[tuple[list[int], list[int], int]]) -> None:
    """The same through the mailboxes."""
    mailboxes = MailboxVmm(hosts)
    for before, between, _pages in plan:
        for page in before:
            hosts.guest.write(page, os.urandom(8))
        hosts.source.begin_epoch()
        for page in between:
            hosts.guest.write(page, os.urandom(8))
        mailboxes.move_round()
        vmm.deliver([hosts.source.end_epoch(number) for number in range(vmm.channels)])


@settings(max_examples=60, deadline=None)
@given(st.lists(attempt, min_size=1, max_size=3), writes)
def test_any_course_of_writes_rounds_and_cancels_ends_in_an_equal_guest(
    attempts: list[tuple[int, bool, list[tuple[list[int], list[int], int]]]], late: list[int]
) -> None:
    """Test that after any writes between any pulls, by ring or mailbox, after any given-up tries, nothing is lost."""
    hosts = Hosts()
    for channels, by_mailbox, plan in attempts:
        hosts.receive_anew()
        vmm = hosts.connect(channels)
        (play_mailbox_rounds if by_mailbox else play_rounds)(vmm, hosts, plan)
    for page in late:
        hosts.guest.write(page, os.urandom(8))
    vmm.deliver(vmm.finish())
    assert hosts.same()
    vmm.hand_over()


def test_a_close_record_is_what_prepares_the_target() -> None:
    hosts = Hosts()
    write_some(hosts.guest)
    vmm = hosts.connect()
    records = [*vmm.round(), *vmm.finish()]
    vmm.deliver(records[:-1])
    states = [hosts.target.state]
    with pytest.raises(UserError, match="no PREPARED token"):
        hosts.target.token(TokenKind.PREPARED)
    assert hosts.target.open(memoryview(records[-1])).kind is RecordKind.CLOSE
    assert [*states, hosts.target.state] == [State.RECEIVING, State.PREPARED]

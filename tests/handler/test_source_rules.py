"""What a source does and refuses, rule by rule."""

from __future__ import annotations

import itertools

import pytest

from sealift.errors import RefusedError, SealError, UserError
from sealift.guest.handler.commit import State
from sealift.guest.handler.handler import EXCHANGE_LIMIT_S, NOT_READY
from sealift.guest.handler.sealer import Pull
from sealift.wire.record import HEADER_SIZE, RecordHeader, page_record_size
from sealift.wire.token import TokenKind

from .rig import Hosts, Vmm, write_some


def sending(channels: int = 1) -> tuple[Hosts, Vmm]:
    hosts = Hosts()
    write_some(hosts.guest)
    return hosts, hosts.connect(channels)


def closed() -> tuple[Hosts, Vmm]:
    hosts, vmm = sending()
    vmm.deliver([*vmm.round(), *vmm.finish()])
    return hosts, vmm


def test_no_nonce_is_used_twice_over_a_whole_migration() -> None:
    _, vmm = sending(3)
    headers = [RecordHeader.decode(record) for record in [*vmm.round(), *vmm.round(), *vmm.finish()]]
    by_channel = itertools.groupby(sorted((h.channel, h.sequence) for h in headers), key=lambda pair: pair[0])
    for _, group in by_channel:
        sequences = [sequence for _, sequence in group]
        assert sequences == list(range(len(sequences)))


@pytest.mark.attack("requests", "repeats a pull, for two ciphertexts under one nonce", gains="nothing")
def test_a_repeated_pull_gets_nothing_and_seals_nothing() -> None:
    hosts, vmm = sending()
    hosts.source.begin_epoch()
    vmm.pull(0)
    hosts.guest.write(10, b"written after it was sealed")
    elsewhere = bytearray(len(vmm.slot))
    with pytest.raises(UserError, match="out of turn"):
        hosts.source.pull(Pull(0, 1, 4), memoryview(elsewhere))
    assert not any(elsewhere)
    following = vmm.pull(0)
    assert following is not None
    assert RecordHeader.decode(following).sequence == 1


@pytest.mark.parametrize("number", [0, 1, 4])
def test_a_pull_out_of_turn_gets_nothing(number: int) -> None:
    hosts, vmm = sending()
    hosts.source.begin_epoch()
    vmm.pull(0)
    vmm.pull(0)
    with pytest.raises(UserError, match="out of turn"):
        hosts.source.pull(Pull(0, number, 4), memoryview(vmm.slot))


@pytest.mark.parametrize(("space", "pages"), [(page_record_size(1) - 1, 4), (1 << 20, 0), (0, 1)])
def test_a_pull_without_room_for_a_page_takes_none(space: int, pages: int) -> None:
    hosts, vmm = sending()
    _, before = hosts.source.begin_epoch()
    with pytest.raises(UserError, match="hold no page"):
        hosts.source.pull(Pull(0, 1, pages), memoryview(bytearray(space)))
    assert hosts.source.unsent_pages() == before
    assert vmm.pull(0) is not None


def test_a_record_stays_within_its_slot() -> None:
    hosts, _ = sending()
    hosts.source.begin_epoch()
    slot = bytearray(page_record_size(3) + 100)
    sealed = hosts.source.pull(Pull(0, 1, 50), memoryview(slot))
    assert (sealed.pages, sealed.length) == (3, page_record_size(3))
    assert slot[sealed.length :] == bytes(100)


def test_no_plaintext_is_in_any_record() -> None:
    hosts, vmm = sending()
    marker = b"a secret long enough to be found"
    hosts.guest.write(12, marker)
    hosts.guest.registers = b"registers" + marker
    records = [*vmm.round(), *vmm.finish()]
    assert marker in bytes(hosts.guest.ram), "the search works"
    assert not any(marker in record for record in records)


def test_a_page_that_never_travels_is_in_no_round() -> None:
    hosts, _ = sending()
    hosts.source.begin_epoch()
    assert not set(hosts.source.round_pages(0, 1000).tolist()) & set(hosts.source_facts.excluded)


def test_the_round_is_listed_in_chunks_from_any_page() -> None:
    hosts, _ = sending()
    hosts.source.begin_epoch()
    everything = hosts.source.round_pages(0, 1000).tolist()
    assert everything == [*range(10, 20), 30, 33, 37, 40, 90]
    assert hosts.source.round_pages(31, 2).tolist() == [33, 37]
    assert hosts.source.round_pages(91, 5).size == 0
    assert hosts.source.round_pages(1 << 40, 5).size == 0


def test_a_round_cannot_end_with_pages_left_nor_the_next_begin_before_every_token() -> None:
    hosts, vmm = sending(2)
    with pytest.raises(UserError, match="no epoch was begun"):
        hosts.source.end_epoch(0)
    hosts.source.begin_epoch()
    with pytest.raises(UserError, match="15 pages left"):
        hosts.source.end_epoch(0)
    vmm.pull(0, 500)
    token = hosts.source.end_epoch(0)
    assert hosts.source.end_epoch(0) == token
    with pytest.raises(UserError, match="not closed on channel 1"):
        hosts.source.begin_epoch()
    with pytest.raises(UserError, match="is closed on this channel"):
        vmm.pull(0)
    hosts.source.end_epoch(1)
    assert hosts.source.begin_epoch() == (2, 0)
    with pytest.raises(UserError, match="no channel 2"):
        hosts.source.end_epoch(2)


def test_the_guest_must_be_stopped_before_the_last_round() -> None:
    hosts, _ = sending()
    with pytest.raises(UserError, match="not stopped"):
        hosts.source.stop()
    assert hosts.source.may_run
    hosts.guest.halted = True
    hosts.source.stop()
    assert not hosts.source.may_run


@pytest.mark.attack("dirty sets", "closes the stream over pages that were written since", gains="nothing")
def test_the_stream_cannot_close_while_anything_is_unsent() -> None:
    hosts, vmm = sending()
    vmm.round()
    hosts.guest.write(60, b"dirty")
    with pytest.raises(UserError, match="cannot close the stream in state SENDING"):
        hosts.source.close()
    vmm.halt()
    with pytest.raises(UserError, match="1 pages were written"):
        vmm.state()
    hosts.source.begin_epoch()
    with pytest.raises(UserError, match="epoch 2 is not closed"):
        vmm.state()
    vmm.rest_of_round()
    with pytest.raises(UserError, match="state is not sealed"):
        hosts.source.close()
    hosts.source.seal_state(memoryview(vmm.slot)[:120])
    with pytest.raises(UserError, match="state is not sealed"):
        hosts.source.close()
    with pytest.raises(UserError, match="state is already sealed"):
        hosts.source.begin_epoch()
    vmm.state()
    hosts.guest.halted = False
    with pytest.raises(UserError, match="not stopped"):
        hosts.source.close()
    hosts.guest.halted = True
    record = hosts.source.close()
    assert hosts.source.close() == record


@pytest.mark.attack("dirty sets", "has FINAL made over a page that was written after the close record", gains="nothing")
def test_final_is_not_made_once_something_was_written_after_the_close() -> None:
    hosts, _ = closed()
    hosts.source.deliver(hosts.target.token(TokenKind.PREPARED))
    hosts.guest.dirty.mark(20)
    with pytest.raises(UserError, match="1 pages were written"):
        hosts.source.token(TokenKind.FINAL)
    assert hosts.source.state is State.CLEARED


@pytest.mark.attack(
    "two targets", "seals for one target and offers to another in the middle", gains="denial of service"
)
def test_a_new_offer_ends_the_session_before_it() -> None:
    hosts, vmm = sending()
    hosts.source.begin_epoch()
    old = vmm.pull(0)
    assert old is not None
    hosts.receive_anew()
    fresh = hosts.connect()
    with pytest.raises(UserError, match="no epoch was begun"):
        hosts.source.end_epoch(0)
    with pytest.raises(SealError, match="another migration"):
        fresh.deliver([old])


def test_a_late_answer_is_refused_and_a_new_offer_possible() -> None:
    hosts = Hosts()
    answer = hosts.target.answer(hosts.source.offer())
    hosts.clock.now += EXCHANGE_LIMIT_S + 1
    with pytest.raises(UserError, match="offer again"):
        hosts.source.confirm(answer)
    assert hosts.source.state is State.RUNNING
    hosts.source.offer()


@pytest.mark.parametrize("channels", [0, -1, 17])
def test_an_impossible_number_of_channels_is_refused(channels: int) -> None:
    with pytest.raises(UserError, match="1 to 16"):
        Hosts().source.offer(channels)


def test_page_numbers_stand_in_clear_but_authenticated_in_front_of_the_ciphertext() -> None:
    hosts, vmm = sending()
    hosts.source.begin_epoch()
    record = vmm.pull(0, 2)
    assert record is not None
    assert record[HEADER_SIZE : HEADER_SIZE + 16] == (10).to_bytes(8, "little") + (11).to_bytes(8, "little")


def test_a_pull_under_way_while_the_session_ends_seals_nothing() -> None:
    hosts, vmm = sending()
    hosts.source.begin_epoch()
    outgoing = hosts.source._outgoing
    assert outgoing is not None
    hosts.source.cancel()
    assert outgoing.sealer.pull(Pull(0, 1, 4), memoryview(vmm.slot)).length == 0


def test_no_offer_is_made_for_a_guest_that_does_not_say_that_it_can_be_migrated() -> None:
    hosts = Hosts()
    assert hosts.source.blocked() == ()
    hosts.guest.willing = False
    assert hosts.source.blocked() == (NOT_READY,)
    with pytest.raises(RefusedError, match="MSR_KVM_MIGRATION_CONTROL"):
        hosts.source.offer()
    assert hosts.source.state is State.RUNNING
    hosts.guest.willing = True
    assert hosts.source.offer()


def test_a_guest_that_takes_its_readiness_back_before_the_stop_is_not_stopped_and_runs_on_after_a_cancel() -> None:
    hosts, vmm = sending()
    vmm.round()
    hosts.guest.willing = False
    with pytest.raises(RefusedError, match="MSR_KVM_MIGRATION_CONTROL"):
        vmm.halt()
    assert hosts.source.may_run
    hosts.source.cancel()
    assert hosts.source.state is State.RUNNING

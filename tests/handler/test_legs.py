"""A migration whose connections were lost goes on: what arrived stays, and nobody can use the old leg any more."""

from __future__ import annotations

import dataclasses
import random

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sealift.errors import SealError, SealiftError, StreamError, UserError
from sealift.guest.handler.commit import State
from sealift.guest.handler.keys import LegSecrets, mac
from sealift.launch.secrets import NO_FLAGS, MigrationFlags
from sealift.wire.leg import LegRequest, split_leg_answer, split_leg_request
from sealift.wire.record import RecordHeader
from sealift.wire.token import TokenKind

from .rig import Hosts, Vmm, write_some


def sending(channels: int = 1, flags: MigrationFlags = NO_FLAGS) -> tuple[Hosts, Vmm]:
    hosts = Hosts(flags=flags)
    write_some(hosts.guest)
    return hosts, hosts.connect(channels)


def go_on(hosts: Hosts, channels: int = 1) -> Vmm:
    """A new leg over new connections."""
    hosts.source.begin_leg(hosts.target.answer_leg(hosts.source.ask_for_leg()))
    return Vmm(hosts, channels)


def pages_in(records: list[bytes]) -> int:
    return sum(RecordHeader.decode(record).count for record in records)


def test_only_what_did_not_arrive_or_is_newer_is_sent_again() -> None:
    hosts, vmm = sending()
    sent = vmm.round()
    vmm.deliver(sent[:2])  # two records of four pages
    hosts.guest.write(11, b"newer")
    again = go_on(hosts).round()
    assert pages_in(sent) - 8 + 1 == pages_in(again)


def test_nothing_is_sent_again_when_all_had_arrived() -> None:
    hosts, vmm = sending()
    vmm.deliver(vmm.round())
    vmm = go_on(hosts)
    assert pages_in(vmm.round()) == 0


def test_what_was_pulled_and_never_sent_is_sent_again() -> None:
    hosts, vmm = sending(2)
    hosts.source.begin_epoch()
    assert vmm.pull(0) is not None
    assert vmm.pull(1) is not None
    vmm = go_on(hosts, 2)
    assert pages_in(vmm.round()) == 15
    assert hosts.source.unsent_pages() == 0


def test_the_guest_is_whole_after_many_legs_and_hands_over() -> None:
    hosts, vmm = sending(3)
    for lost in (0, 1, 3, 5):
        vmm.deliver(vmm.round(2)[:lost])
        hosts.guest.write(12, bytes([lost]) * 50)
        vmm = go_on(hosts, 3)
    vmm.deliver([*vmm.round(), *vmm.finish()])
    assert hosts.same()
    vmm.hand_over()
    assert hosts.source.receipt()


@given(
    st.randoms(use_true_random=False), st.integers(1, 3), st.sampled_from([NO_FLAGS, MigrationFlags.SKIP_ZERO_PAGES])
)
def test_whatever_is_lost_wherever_the_guest_arrives_whole(
    chances: random.Random, channels: int, flags: MigrationFlags
) -> None:
    hosts, vmm = sending(channels, flags)
    for _ in range(chances.randrange(5)):
        for _ in range(chances.randrange(3)):
            vmm.deliver(vmm.round(chances.randrange(1, 6)))
            _write(hosts, chances)
        hosts.source.begin_epoch()
        _write(hosts, chances)
        records = [record for channel in range(channels) if (record := vmm.pull(channel, 3)) is not None]
        vmm.deliver(records[: chances.randrange(len(records) + 1)])
        for _ in range(chances.randrange(3)):
            hosts.target.answer_leg(hosts.source.ask_for_leg())  # the answer is lost
        vmm = go_on(hosts, channels)
    vmm.deliver([*vmm.round(), *vmm.finish()])
    assert hosts.same()
    vmm.hand_over()


def _write(hosts: Hosts, chances: random.Random) -> None:
    for _ in range(chances.randrange(8)):
        content = bytes(64) if chances.random() < 0.3 else chances.randbytes(64)
        hosts.guest.write(chances.randrange(hosts.guest.pages), content)


def test_no_key_seals_or_opens_on_two_legs() -> None:
    hosts, vmm = sending()
    first = vmm.round()
    vmm.deliver(first)
    second = go_on(hosts).round()
    assert RecordHeader.decode(second[0]).leg == RecordHeader.decode(first[0]).leg + 1
    assert second[0] != first[0]
    forged = msgspec.structs.replace(RecordHeader.decode(first[-1]), leg=2, sequence=0, epoch=3).encode()
    with pytest.raises(SealError, match="not authentic"):
        hosts.target.open(memoryview(forged + first[-1][len(forged) :]))


@pytest.mark.attack("records", "brings a record of a leg whose connections were lost", gains="denial of service")
def test_a_record_of_the_old_leg_ends_the_target() -> None:
    hosts, vmm = sending()
    records = vmm.round()
    vmm.deliver(records[:1])
    go_on(hosts)
    with pytest.raises(SealError, match="belongs to leg 1"):
        hosts.target.open(memoryview(records[1]))
    assert hosts.target.state is State.ABORTED


@pytest.mark.attack("key exchange", "repeats the request for a new leg, to have it opened twice", gains="nothing")
def test_a_request_is_taken_once() -> None:
    hosts, vmm = sending()
    vmm.deliver(vmm.round()[:1])
    request = hosts.source.ask_for_leg()
    answer = hosts.target.answer_leg(request)
    with pytest.raises(SealError, match="is leg 2 already"):
        hosts.target.answer_leg(request)
    hosts.source.begin_leg(answer)
    vmm = Vmm(hosts, 1)
    vmm.deliver([*vmm.round(), *vmm.finish()])
    assert hosts.same()


@pytest.mark.attack("key exchange", "alters, truncates or reflects the messages about a new leg", gains="nothing")
def test_altered_messages_are_refused_and_change_nothing() -> None:
    hosts, vmm = sending()
    vmm.deliver(vmm.round()[:1])
    request = hosts.source.ask_for_leg()
    for bad in _altered(request):
        with pytest.raises((StreamError, SealError)):
            hosts.target.answer_leg(bad)
    answer = hosts.target.answer_leg(request)
    for bad in [*_altered(answer), request]:
        with pytest.raises((StreamError, SealError)):
            hosts.source.begin_leg(bad)
    hosts.source.begin_leg(answer)
    vmm = Vmm(hosts, 1)
    vmm.deliver([*vmm.round(), *vmm.finish()])
    assert hosts.same()


def _altered(message: bytes) -> list[bytes]:
    flipped = [bytes(b ^ (at == place) for at, b in enumerate(message)) for place in range(0, len(message), 5)]
    return [*flipped, message[:-1], message + b"\0", b""]


@pytest.mark.attack("key exchange", "brings a source the answer to an earlier request for a leg", gains="nothing")
def test_an_answer_to_another_request_is_refused() -> None:
    hosts, vmm = sending()
    vmm.deliver(vmm.round()[:1])
    old = hosts.target.answer_leg(hosts.source.ask_for_leg())
    request = hosts.source.ask_for_leg()
    with pytest.raises(SealError, match="not about this request"):
        hosts.source.begin_leg(old)
    hosts.source.begin_leg(hosts.target.answer_leg(request))
    vmm = Vmm(hosts, 1)
    vmm.deliver([*vmm.round(), *vmm.finish()])
    assert hosts.same()


def test_claims_that_make_no_sense_are_refused_though_they_are_authentic() -> None:
    hosts, vmm = sending()
    vmm.deliver(vmm.round())
    incoming, outgoing = hosts.target._incoming, hosts.source._outgoing
    assert incoming is not None
    assert outgoing is not None
    secrets = LegSecrets.of(incoming.session.keys)
    for epoch in (0, 1, 2):  # epoch 2 is open
        body = LegRequest(incoming.migration, 2, epoch, bytes(32)).body()
        with pytest.raises(SealError, match="is open already"):
            hosts.target.answer_leg(body + mac(secrets.request, body))
    body = LegRequest(bytes(16), 2, 9, bytes(32)).body()
    with pytest.raises(SealError, match="another migration"):
        hosts.target.answer_leg(body + mac(secrets.request, body))
    request = hosts.source.ask_for_leg()
    answer = split_leg_answer(hosts.target.answer_leg(request))[0]
    for accepted, why in (((1000,), "accepted 1000 of"), ((0, 0), "2 channels")):
        body = dataclasses.replace(answer, accepted=accepted).body()
        with pytest.raises(SealError, match=why):
            hosts.source.begin_leg(body + mac(secrets.answer, request + body))


def test_a_leg_is_for_a_migration_that_sends() -> None:
    hosts = Hosts()
    for call in (hosts.source.ask_for_leg, lambda: hosts.source.begin_leg(b""), lambda: hosts.target.answer_leg(b"")):
        with pytest.raises(UserError):
            call()
    hosts, vmm = sending()
    with pytest.raises(UserError, match="no new leg was asked for"):
        hosts.source.begin_leg(b"")
    vmm.deliver(vmm.round())
    request = hosts.source.ask_for_leg()
    vmm.deliver(vmm.finish())
    with pytest.raises(UserError, match="state CLOSED"):
        hosts.source.ask_for_leg()
    with pytest.raises(UserError, match="state PREPARED"):
        hosts.target.answer_leg(request)
    vmm.hand_over()


def test_a_leg_cannot_begin_once_machine_state_has_come() -> None:
    hosts, vmm = sending()
    vmm.deliver(vmm.round())
    hosts.source.ask_for_leg()
    request = hosts.source.ask_for_leg()
    vmm.halt()
    vmm.deliver([*vmm.round(), *vmm.state()])
    with pytest.raises(SealError, match="after the machine state"):
        hosts.target.answer_leg(request)
    vmm.deliver([hosts.source.close()])
    assert hosts.target.token(TokenKind.PREPARED)


def test_a_cancelled_migration_has_no_further_leg() -> None:
    hosts, vmm = sending()
    vmm.deliver(vmm.round()[:1])
    request = hosts.source.ask_for_leg()
    hosts.source.cancel()
    answer = hosts.target.answer_leg(request)
    with pytest.raises(UserError):
        hosts.source.begin_leg(answer)
    assert hosts.source.state is State.RUNNING


@given(st.binary(max_size=400))
def test_rubbish_is_no_message_about_a_leg(data: bytes) -> None:
    for parse in (split_leg_request, split_leg_answer):
        try:
            parse(data)
        except SealiftError as error:
            assert isinstance(error, StreamError)  # noqa: PT017  # rubbish may parse by chance; nothing else is allowed

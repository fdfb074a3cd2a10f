"""The key exchange: only the approved receiver, only the same guest, only once."""

from __future__ import annotations

import os
from dataclasses import fields, replace

import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from sealift.address import PAGE_SIZE, Gpa, RamBlock, RamLayout
from sealift.errors import PeerError, SealError, UserError
from sealift.guest.handler.commit import Role, State
from sealift.guest.handler.handler import MigrationHandler
from sealift.guest.handler.interfaces import LaunchFacts
from sealift.guest.handler.keys import SessionKeys, derive
from sealift.launch.secrets import MigrationSecret, pair_key
from sealift.wire.handshake import MAX_MESSAGE, decode_answer, decode_offer

from .rig import LAYOUT, SOURCE_FACTS, TARGET_FACTS, Hosts

LOW_ORDER = [
    bytes(32),
    b"\1" + bytes(31),
    bytes.fromhex("e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800"),
    bytes.fromhex("5f9c95bca3508c24b1d0b1559c83ef5b04445cc4581c8e86d8224eddd09f1157"),
    b"\xec" + b"\xff" * 30 + b"\x7f",
]
"""Points of small order on Curve25519 (Bernstein; RFC 7748, section 6.1 has them give an all-zero secret)."""

WIDER = RamLayout((*LAYOUT.blocks[:1], RamBlock("high", Gpa(1 << 32), 33 * PAGE_SIZE)))
RENAMED = RamLayout((*LAYOUT.blocks[:1], RamBlock("other", Gpa(1 << 32), 32 * PAGE_SIZE)))


@pytest.mark.attack("receivers", "launches one with another policy, memory, C-bit or number of vCPUs", gains="nothing")
@pytest.mark.parametrize(
    ("facts", "named"),
    [
        (replace(TARGET_FACTS, policy=4), "policy"),
        (replace(TARGET_FACTS, cbit=47), "C-bit position"),
        (replace(TARGET_FACTS, vcpus=3), "number of vCPUs"),
        (replace(TARGET_FACTS, layout=WIDER), "RAMBlock table"),
        (replace(TARGET_FACTS, layout=RENAMED), "RAMBlock table"),
        (replace(TARGET_FACTS, mailbox_gpa=Gpa(0x6000)), "mailbox address"),
        (replace(TARGET_FACTS, excluded=(5,)), "set of excluded pages"),
        (replace(TARGET_FACTS, policy=4, vcpus=3), "policy, number of vCPUs"),
    ],
)
def test_a_receiver_for_another_guest_says_all_that_differs(facts: LaunchFacts, named: str) -> None:
    hosts = Hosts(target_facts=facts)
    with pytest.raises(SealError, match=f"its {named} differ"):
        hosts.target.answer(hosts.source.offer())
    assert hosts.target.state is State.WAITING


@pytest.mark.attack("receivers", "offers another instance of the same guest", gains="nothing")
def test_a_receiver_of_another_instance_is_refused() -> None:
    hosts, other = Hosts(), Hosts()
    with pytest.raises(SealError, match="its instance id differ"):
        hosts.target.answer(other.source.offer())


@pytest.mark.attack("receivers", "uses one that the owner did not approve", gains="nothing")
def test_a_receiver_the_owner_did_not_approve_cannot_answer() -> None:
    hosts = Hosts()
    unapproved = MigrationSecret(hosts.instance, os.urandom(32))
    target = MigrationHandler(Role.TARGET, TARGET_FACTS, unapproved, hosts.landed.parts(), hosts.clock)
    with pytest.raises(UserError, match="have the owner approve it"):
        target.answer(hosts.source.offer())


@pytest.mark.attack(
    "receivers", "uses one that was approved for another guest, or as another receiver", gains="denial of service"
)
@pytest.mark.parametrize("stolen", ["another pair key", "another receiver's pair key"])
def test_a_receiver_with_a_wrong_pair_key_is_found_out(stolen: str) -> None:
    hosts = Hosts()
    key = os.urandom(32) if stolen == "another pair key" else pair_key(hosts.source_secret.key, bytes(48))
    secret = MigrationSecret(hosts.instance, os.urandom(32), key)
    target = MigrationHandler(Role.TARGET, TARGET_FACTS, secret, hosts.landed.parts(), hosts.clock)
    with pytest.raises(SealError, match="owner approved another receiver"):
        hosts.source.confirm(target.answer(hosts.source.offer()))
    assert hosts.source.may_run


@pytest.mark.attack("key exchange", "poses as the source", gains="denial of service")
def test_a_source_without_the_guests_migration_key_is_found_out() -> None:
    hosts = Hosts()
    thief = Hosts(instance=hosts.instance)
    answer = hosts.target.answer(thief.source.offer())
    with pytest.raises(SealError, match="not authentic"):
        thief.source.confirm(answer)


@pytest.mark.attack("key exchange", "brings the ANSWER to an earlier OFFER", gains="nothing")
def test_an_answer_to_an_earlier_offer_is_refused() -> None:
    hosts = Hosts()
    answer = hosts.target.answer(hosts.source.offer())
    hosts.source.offer()
    with pytest.raises(SealError, match="another migration"):
        hosts.source.confirm(answer)


@pytest.mark.attack("key exchange", "puts a key of low order into OFFER or ANSWER", gains="denial of service")
@pytest.mark.parametrize("point", LOW_ORDER)
def test_a_public_key_of_low_order_is_refused_by_both(point: bytes) -> None:
    hosts = Hosts()
    offer = hosts.source.offer()
    public = decode_offer(offer).party.public
    with pytest.raises(SealError, match="low order"):
        hosts.target.answer(offer.replace(public, point))
    answer = hosts.target.answer(offer)
    public = decode_answer(answer).hello.party.public
    with pytest.raises(SealError, match="low order"):
        hosts.source.confirm(answer.replace(public, point))


@pytest.mark.attack("key exchange", "sends the source its own key back", gains="denial of service")
def test_ones_own_public_key_is_refused() -> None:
    hosts = Hosts()
    offer = hosts.source.offer()
    own = decode_offer(offer).party.public
    answer = hosts.target.answer(offer)
    public = decode_answer(answer).hello.party.public
    with pytest.raises(SealError, match="our own public key"):
        hosts.source.confirm(answer.replace(public, own))


def test_a_receiver_cannot_offer_nor_a_source_answer() -> None:
    hosts = Hosts()
    with pytest.raises(UserError, match="WAITING"):
        hosts.target.offer()
    with pytest.raises(UserError, match="RUNNING"):
        hosts.source.answer(b"")


@pytest.mark.attack("lengths and addresses", "brings a key exchange message longer than any", gains="denial of service")
def test_an_overlong_message_is_refused_unread() -> None:
    with pytest.raises(PeerError, match="over the limit"):
        Hosts().target.answer(bytes(MAX_MESSAGE + 1))


def test_every_key_is_another_and_depends_on_every_input() -> None:
    base = (bytes(32), b"\1" * 32, b"\2" * 32)
    inputs = [base, (b"\3" * 32, *base[1:]), (base[0], b"\3" * 32, base[2]), (*base[:2], b"\3" * 32)]
    keys = [getattr(derive(*each), field.name) for each in inputs for field in fields(SessionKeys)]
    assert len(set(keys)) == len(keys) == 28


def test_keys_are_never_shown() -> None:
    keys = derive(b"\1" * 32, b"\2" * 32, b"\3" * 32)
    assert repr(keys) == "SessionKeys()"


def test_two_exchanges_share_no_key_and_no_id() -> None:
    hosts = Hosts()
    first, second = decode_offer(hosts.source.offer()), decode_offer(hosts.source.offer())
    assert first.migration != second.migration
    assert first.party.public != second.party.public
    assert len(X25519PrivateKey.generate().public_key().public_bytes_raw()) == len(first.party.public)


def test_facts_that_no_launch_can_have_are_refused() -> None:
    with pytest.raises(ValueError, match="48 bytes"):
        replace(SOURCE_FACTS, measure=b"")
    with pytest.raises(ValueError, match="ascending"):
        replace(SOURCE_FACTS, excluded=(6, 5))
    with pytest.raises(ValueError, match="in RAM"):
        replace(SOURCE_FACTS, excluded=(SOURCE_FACTS.layout.pages,))

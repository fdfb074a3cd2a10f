"""Hosts whose VMMs lie, with a real guest that notices: about dirty pages, page states, and whose guest it is.

The ledger verifies every page it has: private ones must never be lost or changed; shared ones are the VMMs' to spoil.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import replace

import msgspec
import pytest

from sealift.address import PAGE_SIZE
from sealift.pageset import PageSet
from sealift.sev.policy import Policy
from sealift.vmm import launch
from sealift.vmm.machine import Machine
from sealift.vmm.migration import landing, mh, target
from sealift.vmm.migration.receiving import Introduction
from sealift.vmm.migration.ring import RingSource
from sealift.vmm.platform import Platform
from sealift.wire.handover import HandlerOffer, Hello, SealedKind
from sealift.wire.owner import OwnerService
from sealift.wire.platform import Phase
from sealift.wire.qemu_stream import SEALED, SEALED_VERSION, Section, SectionType, encode_piece, read_piece

from . import rig


def moved(attempt: rig.Attempt, guest: rig.Guest) -> rig.Guest:
    """The guest at the target, after a migration that was completed."""
    attempt.begin()
    info = attempt.end()
    assert info.status == "completed", info
    assert guest.machine.platform.status().phase is Phase.GONE
    return attempt.guest()


def fails(attempt: rig.Attempt, guest: rig.Guest, reason: str) -> None:
    """The migration comes to nothing, for that reason, and the guest runs on."""
    attempt.begin()
    info = attempt.end(listening=True)
    assert info.status == "failed", info
    assert re.search(reason, info.error_desc or ""), info.error_desc
    assert attempt.arrived is None
    assert guest.machine.platform.status().phase is Phase.RUNNING
    guest.work(8)


def scribble(machine: Machine, pages: PageSet) -> None:
    """Write rubbish into the shared plane at these pages."""
    for first, count in pages.runs():
        machine.memory.mapping.view[first * PAGE_SIZE : (first + count) * PAGE_SIZE] = os.urandom(count * PAGE_SIZE)


def private(machine: Machine, shared: PageSet) -> PageSet:
    """All pages but those."""
    pages = PageSet.full(machine.layout.pages)
    pages -= shared
    return pages


# --- what is shared, and what is not ---------------------------------------------------------------------------------


@pytest.mark.attack(
    "page states", "takes every page for a shared one, and sends rubbish for those that are private", gains="nothing"
)
def test_pages_that_a_vmm_calls_shared_are_what_the_guest_says(
    world: rig.World, monkeypatch: pytest.MonkeyPatch
) -> None:
    guest = world.start()
    guest.work(4)
    scribble(guest.machine, private(guest.machine, guest.machine.platform.page_states()))
    monkeypatch.setattr(guest.machine, "shared_pages_now", lambda: PageSet.full(guest.machine.layout.pages))
    there = moved(rig.attempt(world, guest), guest)
    there.work(16)


@pytest.mark.attack(
    "guest memory",
    "writes rubbish where private pages lie, before records are opened, behind the last, and while the guest runs",
    gains="nothing",
)
def test_a_targets_vmm_reaches_no_private_page_at_any_moment(world: rig.World, monkeypatch: pytest.MonkeyPatch) -> None:
    make = landing.make_machine

    def make_and_scribble(host: landing.TargetHost, platform: Platform, who: Introduction, *, es: bool) -> Machine:
        machine = make(host, platform, who, es=es)
        scribble(machine, PageSet.full(machine.layout.pages))
        behind_the_last = machine.replace_shared_pages

        def replace_and_scribble(pages: PageSet) -> None:
            scribble(machine, private(machine, pages))
            behind_the_last(pages)

        monkeypatch.setattr(machine, "replace_shared_pages", replace_and_scribble)
        return machine

    monkeypatch.setattr(target, "make_machine", make_and_scribble)
    guest = world.start()
    guest.work(4)
    there = moved(rig.attempt(world, guest), guest)
    for _ in range(4):
        there.work(4)
        there.machine.pause()
        scribble(there.machine, private(there.machine, there.machine.platform.page_states()))
        there.machine.resume()
    there.work(8)


@pytest.mark.attack(
    "dirty sets",
    "keeps shared pages back, so that the target's shared plane is stale",
    gains="shared pages, which are the VMM's anyway: the guest notices, and nothing private is touched",
)
def test_a_stale_shared_plane_spoils_shared_pages_alone(world: rig.World) -> None:
    guest = world.start()
    guest.work(4)
    attempt = rig.attempt(world, guest, edit=lambda data, _: b"" if data.startswith(b"\x02\0\0\0\0") else data)
    there = moved(attempt, guest)
    there.wait_until(lambda: "FAULT" in there.screen.tail)
    assert re.search(r"ledger FAULT 0 (shared|kept) page", there.text)


# --- what is dirty ---------------------------------------------------------------------------------------------------


@pytest.mark.attack("dirty sets", "says that a round has no pages left, and asks for none", gains="denial of service")
def test_pages_that_a_vmm_does_not_ask_for_keep_the_round_open(
    world: rig.World, monkeypatch: pytest.MonkeyPatch
) -> None:
    guest = world.start()
    guest.work(4)
    monkeypatch.setattr(RingSource, "records", lambda *_: iter(()))
    fails(rig.attempt(world, guest), guest, r"epoch 1 has \d+ pages left")


# --- whose guest it is -----------------------------------------------------------------------------------------------


def saying(change: Callable[[HandlerOffer], HandlerOffer]) -> Callable[[bytes, int], bytes]:
    """An edit of the source's HELLO: its method's offer says something else."""
    front = len(Section(SectionType.START, 0, SEALED, 0, SEALED_VERSION).encode())
    start = front + len(encode_piece(SealedKind.HELLO, 0))

    def edit(data: bytes, _: int) -> bytes:
        if data[0] != SectionType.START or data[front : front + 1] != bytes([SealedKind.HELLO]):
            return data
        end = start + read_piece(lambda length: data[front : front + length])[1]
        hello = Hello.decode(data[start:end])
        offer = change(HandlerOffer.decode(hello.offer))
        altered = msgspec.structs.replace(hello, offer=offer.encode()).encode()
        return data[:front] + encode_piece(SealedKind.HELLO, len(altered)) + altered + data[end:]

    return edit


@pytest.mark.attack(
    "receivers",
    "has the owner approve a receiver for one of its guests, and sends it another",
    gains="denial of service",
)
def test_a_receiver_that_was_approved_for_one_guest_takes_no_other_of_the_same_owner(world: rig.World) -> None:
    guest, other = world.start(), world.start()
    guest.work(4)
    edit = saying(lambda offer: msgspec.structs.replace(offer, measure=other.launched.measure))
    fails(rig.attempt(world, guest, edit=edit), guest, "instance id differ")
    other.work(4)


@pytest.mark.attack(
    "receivers", "launches the receiver under a policy of its own instead of the owner's", gains="denial of service"
)
def test_a_receiver_is_launched_under_the_owners_policy_or_not_at_all(
    world: rig.World, monkeypatch: pytest.MonkeyPatch
) -> None:
    guest = world.start()
    guest.work(4)
    begin = launch.begin

    def begin_otherwise(platform: Platform, owner: OwnerService, receiver_of: bytes | None = None) -> launch.Begun:
        begun = begin(platform, owner, receiver_of)
        return replace(begun, grant=msgspec.structs.replace(begun.grant, policy=int(Policy.NOKS)))

    monkeypatch.setattr(mh, "begin", begin_otherwise)
    fails(rig.attempt(world, guest), guest, "policy|session")


@pytest.mark.attack("receivers", "launches a receiver with start-up code of its own", gains="denial of service")
def test_a_receiver_with_other_code_gets_no_key(world: rig.World) -> None:
    guest = world.start()
    guest.work(4)
    attempt = rig.attempt(world, guest)
    host = attempt.incoming._host
    attempt.incoming._host = replace(host, startup=bytes([host.startup[0] ^ 1]) + host.startup[1:])
    fails(attempt, guest, "measurement")

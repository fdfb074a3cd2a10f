"""The receipt that comes with a migration, and what a lying or silent VMM makes of it: none that an owner believes."""

from __future__ import annotations

import os

import pytest

from sealift.owner.receipts import Verdict, verify
from sealift.vmm.migration.mh import HandlerTarget
from sealift.vmm.migration.parameters import Capability, Parameters
from sealift.wire.handover import Method, Transfer
from sealift.wire.receipt import STATEMENT_SIZE, Receipt

from . import rig

SEVERAL = Parameters(capabilities=frozenset({Capability.MULTIFD}), multifd_channels=3)


def moved(
    world: rig.World, guest: rig.Guest, parameters: Parameters | None = None
) -> tuple[rig.Guest, Receipt | None, int]:
    """A guest elsewhere, the receipt, and the private pages that the VMM counted."""
    attempt = rig.attempt(world, guest, parameters)
    attempt.begin()
    info = attempt.end()
    assert info.status == "completed", info
    assert info.x_sealift_pages is not None
    return attempt.guest(), info.x_sealift_receipt, info.x_sealift_pages.private_pages


def judged(world: rig.World, receipt: Receipt | None) -> Verdict:
    assert receipt is not None
    return verify(receipt, world.owner.ledger)


@pytest.mark.parametrize("parameters", [SEVERAL, Parameters(transfer=Transfer.MAILBOX)])
def test_both_handlers_count_what_the_vmm_moved_hop_by_hop(world: rig.World, parameters: Parameters) -> None:
    guest = world.start()
    guest.work(4)
    seen = set()
    for _ in range(2):
        guest, receipt, pages = moved(world, guest, parameters)
        assert judged(world, receipt).faults == ()
        assert receipt is not None
        assert receipt.source is not None
        assert receipt.source.pages == pages
        seen.add(receipt.source.migration)
        guest.work(4)
    assert len(seen) == 2


def test_secure_processors_leave_no_receipt(sendable: rig.World) -> None:
    guest = sendable.start()
    there, receipt, _ = moved(sendable, guest, Parameters(method=Method.PSP))
    assert receipt is None
    there.work(4)


@pytest.mark.parametrize("half", [b"", os.urandom(STATEMENT_SIZE), b"short"])
def test_a_target_that_keeps_its_half_back_keeps_nothing_else(
    world: rig.World, monkeypatch: pytest.MonkeyPatch, half: bytes
) -> None:
    monkeypatch.setattr(HandlerTarget, "receipt", lambda _: half)
    there, receipt, _ = moved(world, world.start())
    there.work(4)
    assert judged(world, receipt).faults == ("the target's half is missing",)


@pytest.mark.attack("tokens", "shows half of an earlier migration's receipt", gains="nothing")
def test_a_half_of_an_earlier_migration_is_found_out(world: rig.World, monkeypatch: pytest.MonkeyPatch) -> None:
    first, earlier, _ = moved(world, world.start())
    assert earlier is not None
    assert earlier.target is not None
    replayed = earlier.target.encode()
    monkeypatch.setattr(HandlerTarget, "receipt", lambda _: replayed)
    _, receipt, _ = moved(world, first)
    faults = judged(world, receipt).faults
    assert len(faults) == 1
    assert "the halves are not of one migration: their migration id" in faults[0]

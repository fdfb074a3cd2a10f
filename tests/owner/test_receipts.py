"""Receipts that real handlers made, before the owner of both launches: the true one, and all that somebody touched."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec
import pytest

from handler.rig import SOURCE_FACTS, TARGET_FACTS, Hosts, write_some
from sealift.errors import UserError
from sealift.guest.handler.commit import Role
from sealift.guest.handler.handler import MigrationHandler
from sealift.launch.image import GuestRecipe
from sealift.launch.secrets import MigrationSecret
from sealift.owner.owner import Owner
from sealift.owner.receipts import Verdict, verify
from sealift.wire.receipt import Claims, Receipt, Statement

from .conftest import Host
from .test_owner import MakeHost, _launch, _receive
from .tool import owner as tool

Launched = tuple[bytes, MigrationSecret]


@dataclass
class Moves:
    """An owner's launches, and migrations between them."""

    owner: Owner
    recipe: GuestRecipe
    make_host: MakeHost
    hosts: int = 0

    def launch(self) -> Launched:
        """A guest's own launch."""
        return _launch(self.owner, self._host(), self.recipe)

    def receiver(self, source: Launched) -> Launched:
        """A launch that may receive that one's guest."""
        return _receive(self.owner, self._host(), self.recipe, source[0])

    def move(self, source: Launched, target: Launched, pages: int = 0) -> Receipt:
        """Move a guest with so many more pages from one launch to the other."""
        hosts = Hosts(replace(SOURCE_FACTS, measure=source[0]), replace(TARGET_FACTS, measure=target[0]))
        hosts.source = MigrationHandler(Role.SOURCE, hosts.source_facts, source[1], hosts.guest.parts(), hosts.clock)
        hosts.target = MigrationHandler(Role.TARGET, hosts.target_facts, target[1], hosts.landed.parts(), hosts.clock)
        vmm = hosts.connect(channels=2)
        write_some(hosts.guest)
        vmm.deliver(vmm.round())
        for page in range(50, 50 + pages):
            hosts.guest.write(page, b"more")
        vmm.deliver(vmm.finish())
        vmm.hand_over()
        receipt = Receipt.of(hosts.source.receipt(), hosts.target.receipt())
        assert receipt is not None
        return receipt

    def verify(self, receipt: Receipt, guest: bytes | None = None) -> Verdict:
        """What the owner finds."""
        return verify(receipt, self.owner.ledger, guest)

    def faults(self, receipt: Receipt) -> str:
        """What the owner finds to be wrong, which must be something."""
        found = "; ".join(self.verify(receipt).faults)
        assert found, "nothing was found to be wrong"
        return found

    def _host(self) -> Host:
        self.hosts += 1
        return self.make_host(f"receipt-{self.hosts}")


@pytest.fixture
def moves(owner: Owner, recipe: GuestRecipe, make_host: MakeHost) -> Moves:
    return Moves(owner, recipe, make_host)


def halves(receipt: Receipt) -> tuple[Statement, Statement]:
    assert receipt.source is not None
    assert receipt.target is not None
    return receipt.source, receipt.target


def change(half: Statement, **fields: object) -> Statement:
    return msgspec.structs.replace(half, **fields)


# --- the true one -------------------------------------------------------------------------------------------------


def test_a_receipt_states_what_moved_from_which_launch_to_which(moves: Moves) -> None:
    source = moves.launch()
    target = moves.receiver(source)
    receipt = moves.move(source, target, pages=3)
    verdict = moves.verify(receipt, source[1].instance_id)
    assert verdict.faults == ()
    assert verdict.source is not None
    assert verdict.target is not None
    assert (verdict.source.measure, verdict.target.measure) == (source[0], target[0])
    for half in halves(receipt):
        assert half.pages == 15 + 3  # what `write_some` wrote but for the mailbox, and three more
        assert half.length > half.pages * 4096


def test_every_hop_has_its_own(moves: Moves) -> None:
    first = moves.launch()
    second = moves.receiver(first)
    third = moves.receiver(second)
    assert moves.verify(moves.move(first, second)).faults == ()
    assert moves.verify(moves.move(second, third)).faults == ()


def test_the_vmms_claims_are_anybodys(moves: Moves) -> None:
    """Whatever they say, the receipt stays valid: they are no part of what it proves."""
    source = moves.launch()
    receipt = moves.move(source, moves.receiver(source))
    claims = Claims("x", "tcp:nowhere:1", "yesterday", 0, 0)
    assert moves.verify(msgspec.structs.replace(receipt, claimed_by_the_vmm=claims)).faults == ()


# --- all others ---------------------------------------------------------------------------------------------------


ALTERED: dict[str, tuple[Callable[[Statement], Statement], str]] = {
    "migration": (lambda half: change(half, migration="00" * 16), "migration id"),
    "guest": (lambda half: change(half, guest="00" * 16), "guest"),
    "records": (lambda half: change(half, records=half.records + 1), "number of records"),
    "pages": (lambda half: change(half, pages=half.pages - 1), "number of pages"),
    "bytes": (lambda half: change(half, length=0), "number of bytes"),
    "tags": (lambda half: change(half, tags="00" * 32), "digest of the record tags"),
    "source's launch": (lambda half: change(half, from_launch="00" * 48), "launch it left"),
    "target's launch": (lambda half: change(half, to_launch="00" * 48), "launch that received it"),
}


@pytest.mark.attack("tokens", "alters a receipt", gains="nothing")
@pytest.mark.parametrize("field", ALTERED)
def test_an_altered_field_of_either_half_is_named(moves: Moves, field: str) -> None:
    source = moves.launch()
    receipt = moves.move(source, moves.receiver(source))
    alter, words = ALTERED[field]
    ours, theirs = halves(receipt)
    assert moves.faults(Receipt(alter(ours), theirs)) == (
        f"the source's half was altered: its {words} differ from the other half's"
    )
    assert moves.faults(Receipt(ours, alter(theirs))) == (
        f"the target's half was altered: its {words} differ from the other half's"
    )
    both = moves.faults(Receipt(alter(ours), alter(theirs)))
    assert "the source's half" in both
    assert "the target's half" in both


def test_an_altered_mac_is_no_authentic_half(moves: Moves) -> None:
    source = moves.launch()
    receipt = moves.move(source, moves.receiver(source))
    ours, theirs = halves(receipt)
    assert moves.faults(Receipt(change(ours, mac="00" * 32), theirs)) == (
        "the source's half is not authentic: altered, or made under another launch's key"
    )


def test_a_missing_half_is_named(moves: Moves) -> None:
    source = moves.launch()
    ours, theirs = halves(moves.move(source, moves.receiver(source)))
    assert moves.faults(Receipt(source=ours)) == "the target's half is missing"
    assert moves.faults(Receipt(target=theirs)) == "the source's half is missing"
    assert "source's half is missing; the target's half is missing" in moves.faults(Receipt())


def test_swapped_halves_are_found(moves: Moves) -> None:
    source = moves.launch()
    ours, theirs = halves(moves.move(source, moves.receiver(source)))
    assert "in the place of the source's half stands one of a target" in moves.faults(Receipt(theirs, ours))
    relabelled = Receipt(change(theirs, side=ours.side), change(ours, side=theirs.side))
    assert "not authentic" in moves.faults(relabelled)


def test_halves_of_two_migrations_make_no_receipt(moves: Moves) -> None:
    """Each is authentic by itself: of one guest that was launched twice from the same launch, or moved on."""
    source = moves.launch()
    target, other = moves.receiver(source), moves.receiver(source)
    ours, _ = halves(moves.move(source, target))
    _, theirs = halves(moves.move(source, other))
    found = moves.faults(Receipt(ours, theirs))
    assert found.startswith("the halves are not of one migration: their migration id, launch that received it")


def test_a_receipt_of_another_guest_or_owner_is_named(moves: Moves, tmp_path: Path) -> None:
    source, stranger = moves.launch(), moves.launch()
    receipt = moves.move(source, moves.receiver(source))
    assert moves.verify(receipt, stranger[1].instance_id).faults == (
        f"it is about guest {source[1].instance_id.hex()}, not {stranger[1].instance_id.hex()}",
    )
    other = verify(receipt, Owner(tmp_path / "other").ledger)
    assert len(other.faults) == 2
    assert all("names a launch that this owner never released" in fault for fault in other.faults)


def test_a_handler_has_no_receipt_before_it_has_moved() -> None:
    hosts = Hosts()
    for handler in (hosts.source, hosts.target):
        with pytest.raises(UserError, match="there is no receipt"):
            handler.receipt()


# --- the command --------------------------------------------------------------------------------------------------


def test_the_command_says_what_is_right_or_wrong(moves: Moves, tmp_path: Path) -> None:
    source = moves.launch()
    receipt = moves.move(source, moves.receiver(source))
    claims = Claims("demo\x1b[2J", "tcp:b:1", "2026-11-26T02:00:00Z", 500, 30)
    file = tmp_path / "moved.json"
    place = ("--owner", tmp_path / "owner")
    file.write_bytes(msgspec.json.encode(msgspec.structs.replace(receipt, claimed_by_the_vmm=claims)))
    good = tool("receipt", file, *place).out
    assert "moved      15 private pages in " in good
    assert "OK: the handlers of both launches state this\n" in good
    assert good.endswith(
        "nothing proves: demo?[2J to tcp:b:1, ended 2026-11-26T02:00:00Z, 500 ms in all, 30 ms of downtime\n"
    )

    ours, theirs = halves(receipt)
    file.write_bytes(msgspec.json.encode(Receipt(change(ours, pages=1), theirs)))
    bad = tool("receipt", file, *place, status=1)
    assert bad.complaint.startswith("sealift: the receipt proves nothing: the source's half was altered: its number of")
    assert bad.out == ""
    answer = msgspec.json.decode(tool("receipt", file, "--json", *place, status=1).out)
    assert answer["valid"] is False
    assert len(answer["faults"]) == 1

    file.write_text("{}x")
    assert "this is no receipt of a migration" in tool("receipt", file, *place, status=1).complaint

"""An owner whose guest hides its registers: it expects their first state to be measured, wherever the guest goes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from sealift.errors import RefusedError
from sealift.launch.entry import EntryState
from sealift.launch.image import GuestRecipe
from sealift.owner.definition import GuestDefinition
from sealift.owner.guestimage import DirectBoot
from sealift.owner.measured import measure
from sealift.owner.owner import Owner
from sealift.sev.policy import DEFAULT_POLICY, Policy

from .conftest import Host

ES = DEFAULT_POLICY | Policy.ES


@pytest.fixture
def definition(definition: GuestDefinition) -> GuestDefinition:
    return replace(definition, policy=ES)


def test_a_guest_and_its_receiver_are_measured_with_their_registers(
    owner: Owner, make_host: Callable[[str], Host], recipe: GuestRecipe
) -> None:
    here, there = make_host("a"), make_host("b")
    grant = owner.begin(here.evidence())
    assert grant.policy == int(ES)
    source = here.load(grant, recipe)
    owner.release(grant.launch_id, source)
    onward = owner.begin_receiver(there.evidence(), source)
    assert onward.policy == int(ES)
    owner.release(onward.launch_id, there.load(onward, recipe.receiver()))


def test_other_registers_get_no_secret(
    owner: Owner, host: Host, recipe: GuestRecipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A VMM that starts a vCPU elsewhere is found out."""
    grant = owner.begin(host.evidence())
    honest = EntryState.vmsa
    monkeypatch.setattr(EntryState, "vmsa", lambda entry: honest(replace(entry, rip=entry.rip + 2)))
    measured = host.load(grant, recipe)
    monkeypatch.undo()
    with pytest.raises(RefusedError, match="its measurement differs"):
        owner.release(grant.launch_id, measured)


def test_the_pieces_that_people_see_end_with_the_registers(recipe: GuestRecipe) -> None:
    image = measure(DirectBoot(recipe.under(ES)).buffers())
    assert image.digest == recipe.under(ES).launch_digest().hex()
    assert [(piece.name, piece.gpa) for piece in image.pieces[-2:]] == [
        ("VMSA of vCPU 0", None),
        ("VMSA of vCPU 1", None),
    ]

"""Method psp: a guest that its secure processors move is in exactly one place, with everything it had."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from sealift.sev.policy import Policy
from sealift.vmm.migration.parameters import Parameters
from sealift.vmm.migration.status import MigrationStatus
from sealift.wire.handover import Method

from . import rig

_S = MigrationStatus
SENDABLE = Policy.NODBG | Policy.SEV
PSP = Parameters(method=Method.PSP)


@pytest.fixture
def world(hosts: Path) -> Iterator[rig.World]:
    """Two hosts and an owner whose guest may go to any genuine platform."""
    with rig.world(hosts, rig.recipe(), SENDABLE) as found:
        yield found


def moved(world: rig.World, guest: rig.Guest, parameters: Parameters = PSP) -> tuple[rig.Guest, rig.Attempt]:
    attempt = rig.attempt(world, guest, parameters)
    attempt.begin()
    info = attempt.end()
    assert info.status == "completed", info
    return attempt.guest(), attempt


@pytest.mark.parametrize("packet_pages", [1, 256])
def test_a_guest_goes_on_at_the_target_where_it_stopped(world: rig.World, packet_pages: int) -> None:
    """The chain it prints depends on every page it ever wrote, so an unmoved twin must print the same, line by line."""
    guest = world.start()
    guest.work(8)
    there, attempt = moved(world, guest, Parameters(method=Method.PSP, packet_pages=packet_pages))
    assert attempt.statuses == [_S.SETUP, _S.ACTIVE, _S.DEVICE, _S.COMPLETED]
    there.work(40)
    there.machine.pause()
    twin = world.start()
    twin.wait_until(lambda: twin.updates() >= there.updates())
    whole = guest.text + there.text
    assert twin.text.startswith(whole[: whole.rindex("\n")])

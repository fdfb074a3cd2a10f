"""A guest whose registers are encrypted moves as every other, and takes them with it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from sealift.errors import RefusedError
from sealift.sev.policy import DEFAULT_POLICY, Policy
from sealift.vmm.migration.parameters import Parameters
from sealift.wire.handover import Transfer

from . import rig
from .test_end_to_end import moved


@pytest.fixture
def world(hosts: Path) -> Iterator[rig.World]:
    with rig.world(hosts, rig.recipe(vcpus=2), DEFAULT_POLICY | Policy.ES) as made:
        yield made


@pytest.mark.parametrize("transfer", Transfer)
def test_a_guest_with_es_goes_on_at_the_target_where_it_stopped(world: rig.World, transfer: Transfer) -> None:
    """What it prints depends on all it ever computed, so an unmoved twin must print the same on its first vCPU."""
    guest = world.start()
    assert guest.machine.platform.info().engine == "unicorn"
    guest.work(8)
    there, _ = moved(world, guest, Parameters(transfer=transfer))
    there.work(16)
    there.machine.pause()
    with pytest.raises(RefusedError, match="encrypted"):
        there.machine.platform.registers(0)
    twin = world.start()
    twin.wait_until(lambda: twin.updates() >= there.updates())
    mine, whole = rig.chain_in(guest.text + there.text), rig.chain_in(twin.text)
    assert len(mine) > 4
    assert {count: whole[count] for count in mine if count in whole} == mine


def test_it_moves_on_from_there(world: rig.World) -> None:
    guest = world.start()
    guest.work(4)
    there, _ = moved(world, guest)
    there.work(4)
    further, _ = moved(world, there)
    further.work(8)


def test_a_paused_guest_arrives_paused_and_goes_on(world: rig.World) -> None:
    guest = world.start()
    guest.work(4)
    guest.machine.pause()
    there, _ = moved(world, guest)
    there.machine.resume()
    there.work(8)

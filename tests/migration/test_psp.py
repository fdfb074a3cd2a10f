"""Method psp: a guest that secure processors move is in exactly one place, with everything it had."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from sealift.errors import FirmwareError, SealiftError
from sealift.sev.policy import DEFAULT_POLICY, Policy
from sealift.vmm.migration.parameters import Parameters
from sealift.vmm.migration.status import MigrationStatus
from sealift.vmm.platform import Platform
from sealift.vmm.qmp.commands import COMMANDS
from sealift.vmm.qmp.message import QmpError, Request
from sealift.vmm.runstate import RunState
from sealift.wire import platform as wire
from sealift.wire.platform import Phase
from sealift.wire.psp import RecordKind

from . import psp, rig
from .test_orders import controlled

_S = MigrationStatus
BUSY = "ws=96 flip=12 every=4 burst=4 pause=100000"
ES = psp.SENDABLE | Policy.ES


@pytest.mark.parametrize("packet_pages", [1, 256])
def test_a_guest_goes_on_at_the_target_where_it_stopped(sendable: rig.World, packet_pages: int) -> None:
    """The chain it prints depends on every page it ever wrote, so an unmoved twin must print the same, line by line."""
    guest = sendable.start()
    guest.work(8)
    there, attempt = psp.moved(sendable, guest, replace(psp.PARAMETERS, packet_pages=packet_pages))
    assert attempt.statuses == [_S.SETUP, _S.ACTIVE, _S.DEVICE, _S.COMPLETED]
    there.work(40)
    there.machine.pause()
    twin = sendable.start()
    twin.wait_until(lambda: twin.updates() >= there.updates())
    whole = guest.text + there.text
    assert twin.text.startswith(whole[: whole.rindex("\n")])


def test_no_page_is_lost_while_several_vcpus_write_and_flip_pages(hosts: Path) -> None:
    """At 1 MB/s and 40 ms of downtime the guest is chased for several rounds, and verifies all it has afterwards."""
    made = rig.recipe(vcpus=2, command_line=f"{BUSY} marker={rig.MARKER}")
    with rig.world(hosts, made, psp.SENDABLE) as world:
        guest = world.start()
        guest.work(48)
        parameters = replace(psp.PARAMETERS, max_bandwidth=1_000_000, downtime_limit_ms=40)
        attempt = rig.attempt(world, guest, parameters)
        rig.chase(attempt.migration, guest)
        attempt.begin()
        info = attempt.end()
        assert info.status == "completed", info
        assert info.ram is not None
        assert info.ram.dirty_sync_count >= 3
        attempt.guest().work(96)


def test_the_registers_of_an_es_guest_move_encrypted(hosts: Path) -> None:
    with rig.world(hosts, rig.recipe(vcpus=2), ES) as world:
        guest = world.start()
        guest.work(4)
        there, _ = psp.moved(world, guest)
        there.work(4)
        second, _ = psp.moved(world, there)
        second.work(4)


def test_the_registers_of_an_es_guest_leave_no_other_way(hosts: Path) -> None:
    """What travels of a vCPU in clear holds its GHCB MSR and nothing of its VMSA."""
    states: list[bytes] = []

    def look(_: psp.Meddler, found: psp.OnTheWire) -> bytes:
        if found.front.kind is RecordKind.VCPU:
            states.append(found.record)
        return found.data

    with rig.world(hosts, rig.recipe(), ES) as world:
        guest = world.start()
        guest.work(8)
        attempt = rig.attempt(world, guest, psp.PARAMETERS, edit=psp.Meddler(look))
        attempt.begin()
        assert attempt.end().status == "completed"
        attempt.guest().work(4)
    assert [len(state) < 64 for state in states] == [True]


def test_the_source_cannot_run_what_it_gave_away_and_keeps_nothing_of_it(sendable: rig.World) -> None:
    guest = sendable.start()
    guest.work(8)
    psp.moved(sendable, guest)
    assert guest.machine.state is RunState.POSTMIGRATE
    assert guest.machine.platform.status().phase is Phase.GONE
    with pytest.raises(SealiftError, match="not possible while the VM is gone"):
        guest.machine.platform.request(wire.SendUpdateData(0, 4096, 0), wire.PacketSent)


def test_a_guest_moves_on_from_where_its_secure_processor_brought_it(sendable: rig.World) -> None:
    guest = sendable.start()
    guest.work(4)
    second, _ = psp.moved(sendable, guest)
    second.work(4)
    third, _ = psp.moved(sendable, second)
    third.work(8)
    counts = list(rig.chain_in(guest.text + second.text + third.text))
    assert counts == list(range(4, max(counts) + 1, 4))


def test_a_guest_that_its_handler_brought_moves_on_by_secure_processor(sendable: rig.World) -> None:
    guest = sendable.start()
    guest.work(4)
    second, _ = psp.moved(sendable, guest, Parameters())
    second.work(4)
    third, _ = psp.moved(sendable, second)
    third.work(4)


def test_a_guest_that_its_secure_processor_brought_has_no_measurement_here(sendable: rig.World) -> None:
    """Whoever wants one asks where it was launched; the report of this platform says zeros, as AMD's does."""
    guest = sendable.start()
    there, _ = psp.moved(sendable, guest)
    user = controlled(there)
    call = COMMANDS.find("query-sev-launch-measure").bind(Request("query-sev-launch-measure", {}), user)
    with pytest.raises(QmpError, match="was not launched on this host"):
        call()


def test_the_handler_stays_behind_and_the_guest_says_so(sendable: rig.World) -> None:
    """The migration key is in the source's platform, which a secure processor does not send."""
    guest = sendable.start()
    there, _ = psp.moved(sendable, guest)
    attempt = rig.attempt(sendable, there, Parameters())
    attempt.begin()
    assert "does not bring the migration key" in (attempt.end(listening=True).error_desc or "")
    there.work(4)


def test_a_paused_guest_arrives_paused_and_whole(sendable: rig.World) -> None:
    guest = sendable.start()
    guest.work(8)
    guest.machine.pause()
    there, _ = psp.moved(sendable, guest)
    assert there.machine.state is RunState.PAUSED
    there.machine.resume()
    there.work(4)


def test_the_wire_shows_what_is_shared_and_nothing_that_is_private(sendable: rig.World) -> None:
    guest = sendable.start()
    guest.work(8)
    _, attempt = psp.moved(sendable, guest)
    assert rig.MARKER.encode() in attempt.wire
    assert rig.SECRET[:16] not in attempt.wire
    assert attempt.info is not None
    assert bytes.fromhex(attempt.info.x_sealift_migration_id or "") in attempt.wire


def test_the_target_of_a_secure_processor_asks_no_owner(sendable: rig.World, hosts: Path) -> None:
    """The policy decides, and the source's secure processor enforces it."""
    guest = sendable.start()
    with rig.world(hosts, rig.recipe()) as strangers:
        attempt = rig.attempt(sendable, guest, psp.PARAMETERS, owner=strangers.owner)
        attempt.begin()
        assert attempt.end().status == "completed"
        attempt.guest().work(4)
        assert not list(strangers.owner.ledger.released())


# --- what the policy says --------------------------------------------------------------------------------------------


def test_nosend_is_named_before_anything_is_tried(world: rig.World) -> None:
    """It is in the default policy."""
    assert Policy.NOSEND in DEFAULT_POLICY
    guest = world.start()
    user = controlled(guest)
    user.adjust(lambda _: psp.PARAMETERS)
    (reason,) = user.blocked_reasons()
    assert "its policy has NOSEND" in reason
    attempt = rig.attempt(world, guest, psp.PARAMETERS)
    attempt.begin()
    assert "its policy has NOSEND" in (attempt.end(listening=True).error_desc or "")
    assert not attempt.tapes
    guest.work(4)


def test_nosend_is_enforced_by_the_secure_processor_itself(world: rig.World) -> None:
    platform = world.start().machine.platform
    own = platform.request(wire.PdhCertExport(), wire.PdhCertificates)
    with pytest.raises(FirmwareError, match="the policy has NOSEND"):
        platform.request(wire.SendStart(own.pdh, own.cert_chain, platform.info().ca_chain), wire.SendStarted)
    assert platform.status().phase is Phase.RUNNING


@pytest.mark.parametrize(
    ("policy", "manufacturer", "reason"),
    [
        (psp.SENDABLE, "manufacturer", None),
        (psp.SENDABLE, "another-manufacturer", "the policy has SEV, and the target's chain does not hold"),
        (Policy.NODBG, "another-manufacturer", None),
        (Policy.NODBG | Policy.DOMAIN, "manufacturer", "the policy has DOMAIN, and the target's OCA is not"),
    ],
)
def test_the_policy_decides_which_platform_gets_the_guest(
    hosts: Path, policy: Policy, manufacturer: str, reason: str | None
) -> None:
    """A policy with neither SEV nor DOMAIN gives it to whoever asks: that is AMD's protocol, and why owners set one."""
    with rig.world(hosts, rig.recipe(), policy) as world:
        guest = world.start()
        guest.work(4)
        world.target = lambda: Platform.start(hosts / f"of-{manufacturer}", hosts / manufacturer)
        attempt = rig.attempt(world, guest, psp.PARAMETERS)
        attempt.begin()
        info = attempt.end(listening=reason is not None)
        if reason is None:
            assert info.status == "completed", info
            attempt.guest().work(4)
        else:
            assert reason in (info.error_desc or "")
            assert guest.machine.platform.status().phase is Phase.RUNNING
            guest.work(4)


def test_a_domain_is_the_hosts_of_one_owner(tmp_path: Path) -> None:
    """Both platforms are provisioned by the same owner, and the guest goes from one to the other."""
    tmp_path.chmod(0o700)
    with rig.world(tmp_path, rig.recipe(), Policy.NODBG | Policy.DOMAIN) as world:
        rig.provision(world, "a", "b")
        guest = world.start()
        guest.work(4)
        there, _ = psp.moved(world, guest)
        there.work(4)

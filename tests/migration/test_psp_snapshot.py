"""A secure processor sends a guest to itself, some time later: it goes on there, and the original as well."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from threading import Event

import msgspec
import pytest

from sealift.errors import UserError, sentence
from sealift.sev import session
from sealift.sev.certificate import Certificate
from sealift.sev.policy import DEFAULT_POLICY, Policy
from sealift.vmm.guest import Guest
from sealift.vmm.migration.clock import SystemClock
from sealift.vmm.migration.parameters import Parameters
from sealift.vmm.migration.restore import restore
from sealift.vmm.migration.snapshot import Snapshot
from sealift.vmm.migration.stats import MigrationInfo
from sealift.vmm.migration.status import MigrationStatus
from sealift.vmm.runstate import RunState
from sealift.wire import platform as wire
from sealift.wire.handover import Method
from sealift.wire.obstacle import Code, Obstacle
from sealift.wire.psp import RecordFront, RecordKind
from sealift.wire.snapshot_file import END_SIZE, decode_end, encode_end
from sealift.wire.token import NO_CLOSE, split_token, whole_digest

from . import rig

SENDABLE = Policy.NODBG | Policy.SEV
PSP = Parameters(method=Method.PSP)


@pytest.fixture
def world(hosts: Path) -> Iterator[rig.World]:
    """Two hosts, and a guest whose policy lets its secure processor send it."""
    with rig.world(hosts, rig.recipe(), SENDABLE) as found:
        yield found


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "guest.snap"


def save(guest: rig.Guest, path: Path, parameters: Parameters = PSP) -> MigrationInfo:
    made = Snapshot(guest.machine, guest.launched, guest.name, parameters, lambda _: None, SystemClock())
    return made.run(str(path))


def restored(world: rig.World, path: Path, host: str = "a") -> rig.Guest:
    screen = rig.Screen()
    found = restore(path, replace(world.host(screen.console), platform=lambda: world.platform(host)))
    guest = rig.Guest(found.machine, found.launched, screen, found.name)
    world.guests.append(guest)
    return guest


def refused(world: rig.World, path: Path, reason: str, host: str = "a") -> None:
    with pytest.raises(UserError) as caught:
        restored(world, path, host)
    assert re.search(reason, sentence(caught.value)), sentence(caught.value)


def saved(world: rig.World, path: Path) -> rig.Guest:
    guest = world.start()
    guest.work(8)
    assert save(guest, path).status == "completed"
    assert guest.machine.state is RunState.RUNNING
    return guest


def test_a_saved_guest_is_restored_twice_on_its_host_and_all_three_go_on_alike(world: rig.World, file: Path) -> None:
    guest = saved(world, file)
    copies = [restored(world, file), restored(world, file)]
    for each in (guest, *copies):
        each.work(24)
        each.machine.pause()
    original = rig.chain_in(guest.text)
    for copy in copies:
        found = rig.chain_in(copy.text)
        both = found.keys() & original.keys()
        assert both
        assert all(found[count] == original[count] for count in both)


def test_its_source_is_saved_and_moved_again_by_either_method(world: rig.World, file: Path) -> None:
    guest = saved(world, file)
    for name, parameters in (("again", PSP), ("handler", Parameters())):
        assert save(guest, file.with_name(name), parameters).status == "completed"
        guest.work(4)
    attempt = rig.attempt(world, guest, PSP)
    attempt.begin()
    assert attempt.end().status == "completed"
    attempt.guest().work(4)


def test_a_restored_guest_is_saved_and_moved_again_but_not_by_the_handler_that_stayed_behind(
    world: rig.World, file: Path
) -> None:
    saved(world, file)
    copy = restored(world, file)
    copy.work(4)
    assert "has no migration handler" in (save(copy, file.with_name("handler"), Parameters()).error_desc or "")
    again = file.with_name("again")
    assert save(copy, again).status == "completed"
    restored(world, again).work(4)
    attempt = rig.attempt(world, copy, PSP)
    attempt.begin()
    assert attempt.end().status == "completed"
    attempt.guest().work(4)


def test_a_guest_without_a_handler_is_saved_when_psp_is_asked_for_this_once(
    world: rig.World, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Test that what blocks the method that is set up does not block the one that is asked for, and the other way."""
    guest = world.start()
    guest.work(4)
    status = guest.machine.platform.status
    blocked = (Obstacle(Code.NO_HANDLER, "it has no handler"),)
    monkeypatch.setattr(guest.machine.platform, "status", lambda: msgspec.structs.replace(status(), blocked=blocked))
    user = Guest("ledger", Parameters())
    user.attach(guest.machine, guest.launched)
    with pytest.raises(UserError, match="guest ledger cannot be saved: it has no handler"):
        user.snapshot(file, without_disks=False)
    ended = Event()
    user.events.listen(lambda event: ended.set() if "completed" in str(event) else None)
    user.snapshot(file, without_disks=False, once=lambda _: PSP)
    assert ended.wait(60)
    restored(world, file).work(4)


def test_no_other_host_can_restore_it(world: rig.World, file: Path) -> None:
    saved(world, file)
    refused(world, file, "this host's secure processor did not seal the snapshot", host="b")


def test_a_policy_with_nosend_forbids_it_and_the_guest_runs_on(hosts: Path, file: Path) -> None:
    with rig.world(hosts, rig.recipe(), DEFAULT_POLICY) as world:
        guest = world.start()
        guest.work(4)
        info = save(guest, file)
        assert info.status == "failed"
        assert "NOSEND" in (info.error_desc or "")
        assert not file.exists()
        guest.work(4)


@pytest.mark.attack("files", "changes a packet in a snapshot of method psp", gains="denial of service")
def test_a_packet_that_was_altered_is_refused_by_the_secure_processor(world: rig.World, file: Path) -> None:
    saved(world, file)
    data = bytearray(file.read_bytes())
    data[len(data) // 3] ^= 1
    file.write_bytes(data)
    refused(world, file, "BAD_MEASUREMENT|measurement")


def test_damage_in_what_is_in_clear_is_found_by_the_last_line(world: rig.World, file: Path) -> None:
    saved(world, file)
    file.write_bytes(file.read_bytes().replace(rig.MARKER.encode(), rig.MARKER.lower().encode()))
    refused(world, file, "the snapshot was damaged")


def with_a_new_end(data: bytes) -> bytes:
    """The file with a last line about the bytes that are before it now, under the MAC that it had."""
    stream, (token, mac) = data[:-END_SIZE], split_token(decode_end(data[-END_SIZE:]))
    claims = replace(token, close_digest=whole_digest(NO_CLOSE, hashlib.sha256(stream).digest()))
    return stream + encode_end(claims.body() + mac)


def with_another_marker(data: bytes) -> bytes:
    """What the guest shares: the page with its marker."""
    return data.replace(rig.MARKER.encode(), rig.MARKER.lower().encode())


def with_other_registers(data: bytes) -> bytes:
    """A register of a guest without SEV-ES: the lowest byte of vCPU 0's RIP, which EFLAGS follow."""
    place = data.index(b"\xa6EFLAGS", data.index(RecordFront(RecordKind.VCPU, 0).encode())) - 1
    return data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]


def with_another_description(data: bytes) -> bytes:
    """What lies behind all records: a digit in QEMU's description, which nobody here reads."""
    place = data.rindex(b'"version"')
    digit = next(at for at in range(place, len(data)) if data[at : at + 1].isdigit())
    return data[:digit] + b"7" + data[digit + 1 :]


@pytest.mark.attack(
    "files", "changes what lies in clear in one of method psp, with an end to fit", gains="denial of service"
)
@pytest.mark.parametrize("change", [with_another_marker, with_other_registers, with_another_description])
def test_who_has_the_file_alone_changes_nothing_in_clear_either(
    world: rig.World, file: Path, change: Callable[[bytes], bytes]
) -> None:
    """Test that the MAC of the session stands between a file and a guest with other registers: a key, not a digest."""
    saved(world, file)
    data = file.read_bytes()
    file.write_bytes(change(data))
    assert file.read_bytes() != data
    refused(world, file, "the snapshot was damaged|does not parse|cannot be")
    file.write_bytes(with_a_new_end(change(data)))
    refused(world, file, "the MAC over what came beside the packets fails")
    file.write_bytes(with_a_new_end(data))
    restored(world, file).work(4)


@pytest.mark.attack("files", "makes one of method psp itself, for a host whose PDH it knows", gains="nothing")
def test_a_session_that_somebody_else_has_with_this_host_restores_nothing(world: rig.World, file: Path) -> None:
    """Test a session that RECEIVE_START would take, since anybody can make one for a PDH."""
    saved(world, file)
    platform = world.platform("a")
    own = platform.request(wire.PdhCertExport(), wire.PdhCertificates).pdh
    platform.close()
    made = session.offer(Certificate.decode(own), SENDABLE)
    data = file.read_bytes()
    place = data.index(own) + len(own)
    theirs = data.index(b"session", place) + len(b"session") + 2
    forged = data[:theirs] + made.session + data[theirs + len(made.session) :]
    file.write_bytes(with_a_new_end(forged.replace(own, made.dh_cert)))
    refused(world, file, "this host's secure processor did not seal the snapshot")
    file.write_bytes(with_a_new_end(forged))
    refused(world, file, "WRAP_MAC")


@pytest.mark.parametrize("left", [-1, -END_SIZE, -END_SIZE - 100])
def test_a_truncated_file_is_refused(world: rig.World, file: Path, left: int) -> None:
    saved(world, file)
    file.write_bytes(file.read_bytes()[:left])
    refused(world, file, "truncated|do not end together|no snapshot")


@pytest.mark.parametrize("moment", [MigrationStatus.ACTIVE, MigrationStatus.DEVICE])
def test_a_cancelled_one_leaves_no_file_and_a_guest_that_runs_on(
    world: rig.World, file: Path, moment: MigrationStatus
) -> None:
    guest = world.start()
    guest.work(4)

    def cancel(status: MigrationStatus) -> None:
        if status is moment:
            made.cancel()

    made = Snapshot(guest.machine, guest.launched, guest.name, PSP, cancel, SystemClock())
    assert made.run(str(file)).status == "cancelled"
    assert list(file.parent.iterdir()) == []
    guest.work(8)
    assert save(guest, file).status == "completed"


def test_what_the_guest_keeps_private_is_not_in_the_file(world: rig.World, file: Path) -> None:
    saved(world, file)
    data = file.read_bytes()
    assert rig.MARKER.encode() in data
    assert rig.SECRET[:16] not in data

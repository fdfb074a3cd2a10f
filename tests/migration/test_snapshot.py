"""A guest that was saved goes on where it was, wherever and as often as its owner lets it, and the original as well."""

from __future__ import annotations

import json
import os
import re
import signal
import stat
import threading
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from sealift.errors import UserError, sentence
from sealift.owner.owner import Owner
from sealift.owner.receivers import ReceiverRule, Scope
from sealift.owner.settings import RestoreRule
from sealift.sev.policy import Policy
from sealift.vmm.migration.clock import SystemClock
from sealift.vmm.migration.parameters import Parameters
from sealift.vmm.migration.restore import restore
from sealift.vmm.migration.snapshot import Snapshot
from sealift.vmm.migration.stats import MigrationInfo
from sealift.vmm.migration.status import MigrationStatus
from sealift.vmm.runstate import RunState
from sealift.wire.handover import Method, Transfer
from sealift.wire.qemu_stream import SectionType
from sealift.wire.snapshot_file import END_SIZE

from . import rig

_S = MigrationStatus


@dataclass
class Saving:
    """A snapshot of `guest`, ready to be taken."""

    guest: rig.Guest
    parameters: Parameters = field(default_factory=Parameters)
    at: Callable[[MigrationStatus], None] = lambda _: None

    def __post_init__(self) -> None:
        self.statuses: list[MigrationStatus] = []
        guest = self.guest
        self.snapshot = Snapshot(
            guest.machine, guest.launched, guest.name, self.parameters, self._changed, SystemClock()
        )

    def _changed(self, status: MigrationStatus) -> None:
        self.statuses.append(status)
        self.at(status)

    def to(self, path: Path) -> MigrationInfo:
        """Take it."""
        return self.snapshot.run(str(path))


def saved(guest: rig.Guest, path: Path, parameters: Parameters | None = None) -> MigrationInfo:
    info = Saving(guest, parameters or Parameters()).to(path)
    assert info.status == "completed", info
    return info


def restored(world: rig.World, path: Path, owner: Owner | None = None) -> rig.Guest:
    screen = rig.Screen()
    found = restore(path, world.host(screen.console, owner))
    guest = rig.Guest(found.machine, found.launched, screen, found.name)
    world.guests.append(guest)
    return guest


def refused(world: rig.World, path: Path, reason: str, owner: Owner | None = None) -> None:
    """It is refused for that reason, before anything of the guest ran, and nothing is left."""
    screen = rig.Screen()
    with pytest.raises(UserError) as caught:
        restore(path, world.host(screen.console, owner))
    assert re.search(reason, sentence(caught.value)), sentence(caught.value)
    assert not screen.text


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "snapshots" / "guest.snap"


@pytest.fixture(autouse=True)
def _directory(file: Path) -> None:
    file.parent.mkdir()


@pytest.fixture(autouse=True)
def _allowed(world: rig.World) -> None:
    world.owner.set_restores(RestoreRule.ALLOWED)


def owner_log(world: rig.World) -> str:
    return "\n".join(decision.sentence for decision in world.owner.log.read())


# --- what it is for ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("transfer", Transfer)
def test_a_saved_guest_is_restored_twice_and_all_three_go_on_alike(
    world: rig.World, file: Path, transfer: Transfer
) -> None:
    """Every line depends on all pages ever written: both copies print what the original prints behind the snapshot."""
    guest = world.start()
    guest.work(8)
    info = saved(guest, file, Parameters(transfer=transfer))
    assert guest.machine.state is RunState.RUNNING
    copies = [restored(world, file), restored(world, file)]
    for each in (guest, *copies):
        each.work(24)
    for each in (guest, *copies):
        each.machine.pause()
        assert "FAULT" not in each.text
    original = rig.chain_in(guest.text)
    for copy in copies:
        found = rig.chain_in(copy.text)
        assert min(found) <= max(original)
        assert min(found) > 8
        both = found.keys() & original.keys()
        assert both
        assert all(found[count] == original[count] for count in both)
        assert list(found) == list(range(min(found), max(found) + 1, 4))
    assert info.x_sealift_snapshot == str(file)
    log = owner_log(world)
    assert len(re.findall(r"began a restore of snapshot \w{32} of launch", log)) == 2
    assert log.count("released a secret") == 3


def test_a_snapshot_is_taken_while_the_guest_runs_and_writes(hosts: Path, file: Path) -> None:
    """Its pause is a part of the whole, and the guest does what it does meanwhile."""
    heavy = rig.COMMAND_LINE.replace("ws=16", "ws=512").replace("pause=10000", "pause=1000")
    with rig.world(hosts, rig.recipe(vcpus=2, command_line=heavy)) as world:
        world.owner.set_restores(RestoreRule.ALLOWED)
        guest = world.start()
        guest.work(8)
        info = saved(guest, file, Parameters(max_bandwidth=8_000_000, downtime_limit_ms=50))
        assert info.ram is not None
        assert info.ram.dirty_sync_count >= 2
        assert info.downtime is not None
        assert info.downtime < info.total_time / 2
        guest.work(8)
        restored(world, file).work(8)


def test_what_query_migrate_says_of_a_snapshot_adds_up(world: rig.World, file: Path) -> None:
    guest = world.start()
    guest.work(4)
    saving = Saving(guest)
    info = saving.to(file)
    assert saving.statuses == [_S.SETUP, _S.ACTIVE, _S.DEVICE, _S.COMPLETED]
    assert info.ram is not None
    assert info.ram.transferred == file.stat().st_size
    assert set(info.x_sealift_downtime_parts or {}) == {"stop", "last-pages", "state"}
    assert info.x_sealift_migration_id is not None
    assert len(info.x_sealift_migration_id) == 32


def test_a_paused_guest_is_saved_paused_and_restored_paused(world: rig.World, file: Path) -> None:
    guest = world.start()
    guest.work(8)
    guest.machine.pause()
    saved(guest, file)
    assert guest.machine.state is RunState.PAUSED
    copy = restored(world, file)
    assert copy.machine.state is RunState.PAUSED
    assert not copy.text
    for each in (guest, copy):
        each.machine.resume()
        each.work(4)


def test_a_restored_guest_moves_on_and_is_saved_again(world: rig.World, file: Path) -> None:
    guest = world.start()
    guest.work(4)
    saved(guest, file)
    copy = restored(world, file)
    copy.work(4)
    attempt = rig.attempt(world, copy)
    attempt.begin()
    assert attempt.end().status == "completed"
    there = attempt.guest()
    there.work(4)
    again = file.with_name("again.snap")
    saved(there, again)
    last = restored(world, again)
    last.work(8)
    counts = list(rig.chain_in(copy.text + there.text))
    assert min(rig.chain_in(last.text)) > min(counts)


def test_a_guest_is_moved_after_it_was_saved(world: rig.World, file: Path) -> None:
    guest = world.start()
    guest.work(4)
    saved(guest, file)
    attempt = rig.attempt(world, guest)
    attempt.begin()
    assert attempt.end().status == "completed"
    attempt.guest().work(8)
    refused_source = Saving(guest).to(file.with_name("gone.snap"))
    assert refused_source.status == "failed"
    assert list(file.parent.iterdir()) == [file]


# --- who may have it --------------------------------------------------------------------------------------------------


def test_the_file_is_the_users_alone_and_shows_what_is_shared_and_nothing_that_is_private(
    world: rig.World, file: Path
) -> None:
    """The marker stands in every shared page: that it is found says that the search for the secret would find it."""
    guest = world.start()
    guest.work(8)
    saved(guest, file)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    data = file.read_bytes()
    assert rig.MARKER.encode() in data
    assert rig.SECRET[:16] not in data


def test_an_owner_that_lets_nothing_be_restored_is_asked_and_obeyed(world: rig.World, file: Path) -> None:
    guest = world.start()
    guest.work(4)
    saved(guest, file)
    restored(world, file)
    world.owner.set_restores(RestoreRule.REFUSED)
    refused(world, file, "the owner lets no snapshot be restored")
    assert "refused a restore" in owner_log(world)
    world.owner.set_restores(RestoreRule.ALLOWED)
    restored(world, file).work(4)


@pytest.mark.attack("files", "restores it on a host of its own", gains="nothing")
def test_a_host_that_the_owner_did_not_list_restores_nothing(world: rig.World, file: Path) -> None:
    guest = world.start()
    guest.work(4)
    saved(guest, file)
    world.owner.set_receivers(ReceiverRule(Scope.ANY, approved=False))
    refused(world, file, "may not receive the guest: the owner has revoked any host")


def test_another_owner_cannot_restore_it(world: rig.World, hosts: Path, file: Path) -> None:
    guest = world.start()
    guest.work(4)
    saved(guest, file)
    with rig.world(hosts, rig.recipe()) as other:
        other.owner.set_restores(RestoreRule.ALLOWED)
        refused(world, file, "no released launch has the measurement", other.owner)


# --- whoever holds the file -------------------------------------------------------------------------------------------


@pytest.mark.attack("files", "changes a snapshot's file anywhere", gains="denial of service")
def test_an_altered_file_is_refused_wherever_it_was_altered(world: rig.World, file: Path) -> None:
    """In what is sealed and in what is in clear: headers, shared pages, devices, description, end."""
    guest = world.start()
    guest.work(4)
    saved(guest, file)
    whole = file.read_bytes()
    places = (
        6,
        whole.index(b"hardware") + 12,
        len(whole) // 3,
        whole.index(rig.MARKER.encode()),
        whole.index(b"sealift/vcpus") + len(b"sealift/vcpus") + 20,
        len(whole) - END_SIZE - 10,
        len(whole) - 10,
    )
    altered = file.with_name("altered.snap")
    for at in places:
        altered.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        refused(world, altered, "cannot be restored")


@pytest.mark.attack("files", "changes a shared page in it, which nothing seals", gains="denial of service")
def test_a_shared_page_that_was_altered_is_found_by_the_end_alone(world: rig.World, file: Path) -> None:
    guest = world.start()
    guest.work(4)
    saved(guest, file)
    data = file.read_bytes().replace(rig.MARKER.encode(), rig.MARKER.lower().encode())
    file.write_bytes(data)
    refused(world, file, "the snapshot was altered")


@pytest.mark.attack("files", "cuts it off", gains="denial of service")
@pytest.mark.parametrize("left", [0, 3, 100, -END_SIZE - 1, -END_SIZE, -1])
def test_a_truncated_file_is_refused(world: rig.World, file: Path, left: int) -> None:
    guest = world.start()
    guest.work(4)
    saved(guest, file)
    file.write_bytes(file.read_bytes()[:left])
    refused(world, file, "truncated|too short|do not end together|no snapshot")


def test_a_file_with_more_behind_its_end_is_refused(world: rig.World, file: Path) -> None:
    guest = world.start()
    guest.work(4)
    saved(guest, file)
    with file.open("ab") as end:
        end.write(b"\n")
    refused(world, file, "do not end together")


@pytest.mark.attack("files", "puts the front of one before the rest of another", gains="denial of service")
def test_two_snapshots_of_one_guest_cannot_be_mixed(world: rig.World, file: Path) -> None:
    """The older one's front before the newer one's rest, as somebody would who wants both."""
    guest = world.start()
    guest.work(4)
    guest.machine.pause()
    newer = file.with_name("newer.snap")
    for path in (file, newer):
        saved(guest, path)
    old, new = file.read_bytes(), newer.read_bytes()
    assert len(old) == len(new)
    half = len(old) // 2
    for mixed in (old[:half] + new[half:], old[:-END_SIZE] + new[-END_SIZE:], new[:600] + old[600:]):
        file.write_bytes(mixed)
        refused(world, file, "another migration|not authentic")


@pytest.mark.parametrize("content", [b"", b"no snapshot" * 100, bytes(4096)])
def test_what_is_no_snapshot_is_refused_before_the_owner_is_asked(world: rig.World, file: Path, content: bytes) -> None:
    file.write_bytes(content)
    refused(world, file, "cannot be restored: ")
    refused(world, file.with_name("missing"), "cannot be read: No such file")
    refused(world, file.parent, "no file")


def test_a_recorded_migration_is_no_snapshot(world: rig.World, file: Path) -> None:
    guest = world.start()
    guest.work(4)
    attempt = rig.attempt(world, guest)
    attempt.begin()
    attempt.end()
    file.write_bytes(attempt.wire + b" " * END_SIZE)
    refused(world, file, "the owner refuses a restore: a handshake message of kind 1")


# --- when it goes wrong -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("moment", [_S.SETUP, _S.ACTIVE, _S.DEVICE])
def test_a_cancelled_snapshot_leaves_no_file_and_a_guest_that_runs_on(
    world: rig.World, file: Path, moment: MigrationStatus
) -> None:
    guest = world.start()
    guest.work(4)

    def cancel(status: MigrationStatus) -> None:
        if status is moment:
            saving.snapshot.cancel()

    saving = Saving(guest, at=cancel)
    info = saving.to(file)
    assert (info.status, info.error_desc) == ("cancelled", "the snapshot was cancelled")
    assert list(file.parent.iterdir()) == []
    guest.work(8)
    saved(guest, file)
    restored(world, file).work(4)


def test_a_throttled_snapshot_is_cancelled_at_once(world: rig.World, file: Path) -> None:
    guest = world.start()
    guest.work(4)
    active = threading.Event()

    def note(status: MigrationStatus) -> None:
        if status is _S.ACTIVE:
            active.set()

    saving = Saving(guest, Parameters(max_bandwidth=10_000), note)
    ended: list[MigrationInfo] = []
    thread = threading.Thread(target=lambda: ended.append(saving.to(file)))
    thread.start()
    assert active.wait(rig.PATIENCE_S)
    saving.snapshot.cancel()
    thread.join(rig.PATIENCE_S)
    assert [info.status for info in ended] == ["cancelled"]
    assert list(file.parent.iterdir()) == []
    guest.work(4)


def test_a_full_disk_is_a_sentence_and_the_guest_runs_on(
    world: rig.World, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    guest = world.start()
    guest.work(4)
    written = 0
    writev = os.writev

    def full(fd: int, parts: list[memoryview]) -> int:
        nonlocal written
        written += sum(part.nbytes for part in parts)
        if written > 100_000:
            raise OSError(28, os.strerror(28))
        return writev(fd, parts)

    monkeypatch.setattr(os, "writev", full)
    info = Saving(guest).to(file)
    assert info.status == "failed"
    assert info.error_desc == f"the snapshot cannot be written to {file}: No space left on device"
    assert list(file.parent.iterdir()) == []
    monkeypatch.undo()
    guest.work(8)
    saved(guest, file)


def test_a_file_that_exists_is_never_overwritten(world: rig.World, file: Path) -> None:
    guest = world.start()
    guest.work(4)
    file.write_text("something dear")
    info = Saving(guest).to(file)
    assert info.status == "failed"
    assert "exists already; choose another name" in (info.error_desc or "")
    assert file.read_text() == "something dear"
    guest.work(4)


def test_a_name_that_is_taken_meanwhile_stays_its_owners(world: rig.World, file: Path) -> None:
    guest = world.start()
    guest.work(4)

    def take_name(status: MigrationStatus) -> None:
        if status is _S.DEVICE:
            file.write_text("new")

    info = Saving(guest, at=take_name).to(file)
    assert info.status == "failed"
    assert [path.read_text() for path in file.parent.iterdir()] == ["new"]


def test_a_directory_that_does_not_exist_is_named(world: rig.World, file: Path) -> None:
    guest = world.start()
    info = Saving(guest).to(file.parent / "missing" / "guest.snap")
    assert info.status == "failed"
    assert "missing: No such file or directory" in (info.error_desc or "")
    guest.work(4)


def test_a_platform_that_is_lost_leaves_no_file(world: rig.World, file: Path) -> None:
    guest = world.start()
    guest.work(4)

    def lose(status: MigrationStatus) -> None:
        if status is _S.ACTIVE:
            os.kill(guest.machine.platform.pid, signal.SIGKILL)

    info = Saving(guest, at=lose).to(file)
    assert info.status == "failed"
    assert list(file.parent.iterdir()) == []


def test_qemus_analyser_finds_the_description_of_a_snapshot(world: rig.World, file: Path) -> None:
    """Its last line has neither a zero byte nor a brace: the analyser looks for the one behind the other."""
    guest = world.start()
    guest.work(4)
    saved(guest, file)
    data = file.read_bytes()
    at = data.index(b"{", data.rindex(b"\0"))
    assert data[at - 5] == SectionType.DESCRIPTION
    length = int.from_bytes(data[at - 4 : at], "big")
    assert at + length + END_SIZE == len(data)
    assert {device["name"] for device in json.loads(data[at : at + length])["devices"]} >= {"sealift/sealed", "serial"}


@pytest.mark.parametrize("method", [Method.MH, Method.PSP])
def test_a_guest_with_sev_es_is_saved_and_restored(hosts: Path, file: Path, method: Method) -> None:
    """Its registers are in private memory, and come back with it."""
    policy = Policy.NODBG | Policy.ES | Policy.SEV
    with rig.world(hosts, rig.recipe(vcpus=2), policy) as world:
        world.owner.set_restores(RestoreRule.ALLOWED)
        guest = world.start()
        guest.work(8)
        saved(guest, file, Parameters(method=method))
        screen = rig.Screen()
        host = replace(world.host(screen.console), platform=lambda: world.platform("a"))
        found = restore(file, host)
        copy = rig.Guest(found.machine, found.launched, screen)
        world.guests.append(copy)
        for each in (guest, copy):
            each.work(8)

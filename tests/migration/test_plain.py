"""A guest that is not confidential: it moves and is saved as any QEMU guest is, and never passes for another type."""

from __future__ import annotations

import re
import stat
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest

from sealift.errors import RefusedError, UserError, sentence
from sealift.vmm.migration.clock import SystemClock
from sealift.vmm.migration.parameters import Parameters
from sealift.vmm.migration.preflight import Candidate, examine
from sealift.vmm.migration.snapshot import Snapshot
from sealift.vmm.migration.stats import MigrationInfo
from sealift.vmm.migration.status import MigrationStatus
from sealift.vmm.migration.stream_file import FileIncoming, Save
from sealift.vmm.migration.target import Arrived
from sealift.vmm.migration.transport import FileAddress
from sealift.vmm.qmp.commands import COMMANDS
from sealift.vmm.qmp.message import QmpError, Request
from sealift.vmm.runstate import RunState
from sealift.wire import platform as wire
from sealift.wire.handover import Method
from sealift.wire.obstacle import Code
from sealift.wire.platform import Phase

from . import psp, qemu_reader, rig
from .test_inquiry import asked, candidate, waiting
from .test_orders import controlled

PARAMETERS = Parameters(method=Method.PLAIN)
PAYLOAD = b"payload " * 100
"""Part of what the guest keeps on private pages, if it has any."""
_S = MigrationStatus


@pytest.fixture
def plain(world: rig.World) -> rig.World:
    """Hosts with a guest that is not confidential."""
    world.plain = True
    return world


@pytest.fixture
def saved(plain: rig.World, tmp_path: Path) -> tuple[rig.Guest, Path]:
    """A paused guest with two vCPUs that was saved, and the file."""
    plain.recipe = rig.recipe(vcpus=2)
    guest = plain.start()
    guest.work(8)
    guest.machine.pause()
    path = tmp_path / "guest.qemu"
    info, _ = save(guest, path)
    assert info.status == "completed", info.error_desc
    return guest, path


def save(
    guest: rig.Guest, path: Path, parameters: Parameters = PARAMETERS, offset: int = 0
) -> tuple[MigrationInfo, list[MigrationStatus]]:
    statuses: list[MigrationStatus] = []
    attempt = Save(guest.machine, guest.launched, guest.name, parameters, statuses.append, SystemClock())
    return attempt.run(str(FileAddress(path, offset))), statuses


def load(world: rig.World, path: Path, offset: int = 0) -> rig.Guest:
    screen = rig.Screen()
    arrived: Arrived = FileIncoming(FileAddress(path, offset), world.host(screen.console)).serve()
    found = rig.Guest(arrived.machine, arrived.launched, screen, arrived.name)
    world.guests.append(found)
    return found


def all_registers(guest: rig.Guest) -> list[wire.Registers]:
    return [guest.machine.platform.registers(index) for index in range(guest.machine.vcpu_count)]


def follows(world: rig.World, before: rig.Guest, after: rig.Guest) -> None:
    """An unmoved twin prints the same, line by line: the chain depends on every page that was ever written."""
    after.work(40)
    after.machine.pause()
    twin = world.start()
    twin.wait_until(lambda: twin.updates() >= after.updates())
    whole = before.text + after.text
    assert twin.text.startswith(whole[: whole.rindex("\n")])


# --- what it is ----------------------------------------------------------------------------------------------------


def test_its_host_sees_its_memory(plain: rig.World) -> None:
    """What must never be seen of a confidential guest is the control here."""
    guest = plain.start()
    guest.work(8)
    assert rig.MARKER.encode() in bytes(guest.machine.memory.mapping.view)
    status = guest.machine.platform.status()
    assert (status.phase, status.handle, status.policy) == (Phase.PLAIN, 0, 0)


def test_it_cannot_be_launched_or_attested(plain: rig.World) -> None:
    platform = plain.start().machine.platform
    for request in (wire.LaunchStart(0, b"", b""), wire.GetAttestation(bytes(16)), wire.OpenHandler()):
        with pytest.raises(RefusedError, match="not possible while the VM is plain"):
            platform.do(request)


def test_qmp_says_that_sev_is_not_enabled(plain: rig.World) -> None:
    """In QEMU's words (target/i386/sev.c)."""
    user = controlled(plain.start())

    def answer(name: str, **arguments: str) -> object:
        return COMMANDS.find(name).bind(Request(name, arguments), user)()

    assert msgspec.to_builtins(answer("query-sev"))["enabled"] is False
    secret = {"packet-header": "AAAA", "secret": "AAAA"}
    for name, arguments, said in (
        ("query-sev-launch-measure", {}, "SEV launch measurement is not available"),
        ("query-sev-attestation-report", {"mnonce": "AAAA"}, "SEV is not enabled"),
        ("sev-inject-launch-secret", secret, "SEV not enabled for guest"),
    ):
        with pytest.raises(QmpError, match=said):
            answer(name, **arguments)


# --- a file in QEMU's layout ---------------------------------------------------------------------------------------


def test_an_independent_reader_finds_all_memory_and_registers_in_the_file(saved: tuple[rig.Guest, Path]) -> None:
    guest, path = saved
    found = qemu_reader.read(path.read_bytes())
    assert found.machine == "sealift-1"
    assert bytes(found.ram["pc.ram"]) == bytes(guest.machine.memory.mapping.view)
    assert PAYLOAD in bytes(found.ram["pc.ram"])
    assert found.zero_pages > found.content_pages, "pages of zeros are told apart by content"
    for index in range(2):
        state = guest.machine.platform.request(wire.GetVcpuState(index), wire.VcpuState).state
        (section,) = found.sections["cpu", index]
        assert section["state"] == state
    assert {name for name, _ in found.sections} >= {"cpu", "sealift/vm", "sealift/vcpus", "sealift/digest"}


def test_the_same_reader_tells_a_stream_with_encrypted_pages_apart(sendable: rig.World) -> None:
    """The control: it finds a confidential guest's stream well formed, and neither private memory nor registers."""
    guest = sendable.start()
    guest.work(8)
    _, attempt = psp.moved(sendable, guest)
    data = attempt.wire
    found = qemu_reader.read(_stream_alone(data))
    assert PAYLOAD not in bytes(found.ram["pc.ram"])
    assert ("cpu", 0) not in found.sections


def _stream_alone(data: bytes) -> bytes:
    """Without the frames behind the description."""
    at = data.rindex(b'{"page_size"')
    return data[: at + int.from_bytes(data[at - 4 : at], "big")]


def test_a_guest_goes_on_from_the_file_with_the_registers_it_had(
    plain: rig.World, saved: tuple[rig.Guest, Path]
) -> None:
    guest, path = saved
    assert guest.machine.state is RunState.POSTMIGRATE
    there = load(plain, path)
    assert there.machine.state is RunState.PAUSED, "as it was"
    assert all_registers(there) == all_registers(guest)
    assert bytes(there.machine.memory.mapping.view) == bytes(guest.machine.memory.mapping.view)
    there.machine.resume()
    there.work(32)


def test_a_running_guest_is_saved_behind_an_offset_and_goes_on_where_it_stopped(
    plain: rig.World, tmp_path: Path
) -> None:
    guest = plain.start()
    guest.work(8)
    path = tmp_path / "guest.qemu"
    info, statuses = save(guest, path, offset=4096)
    assert (info.status, statuses) == ("completed", [_S.SETUP, _S.ACTIVE, _S.DEVICE, _S.COMPLETED])
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert path.read_bytes()[:4096] == bytes(4096)
    qemu_reader.read(path.read_bytes()[4096:])
    follows(plain, guest, load(plain, path, offset=4096))


def _cut(data: bytes) -> bytes:
    return data[: len(data) * 2 // 3]


def _without_the_last_byte(data: bytes) -> bytes:
    return data[:-1]


def _longer(data: bytes) -> bytes:
    return data + b" "


def _page_altered(data: bytes) -> bytes:
    at = data.index(rig.MARKER.encode())
    return data[:at] + b"X" + data[at + 1 :]


def _register_altered(data: bytes) -> bytes:
    at = data.rindex(b"\x03cpu") + 64
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


def _other_magic(data: bytes) -> bytes:
    return b"QEVN" + data[4:]


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (_cut, "truncated"),
        (_without_the_last_byte, "truncated"),
        (_longer, "something follows its stream"),
        (_page_altered, "damaged"),
        (_register_altered, "damaged|does not"),
        (_other_magic, "no migration stream"),
    ],
)
def test_a_damaged_file_is_refused_and_leaves_nothing(
    plain: rig.World, saved: tuple[rig.Guest, Path], damage: Callable[[bytes], bytes], reason: str
) -> None:
    _, path = saved
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(UserError) as refused:
        load(plain, path)
    assert sentence(refused.value).startswith(f"no guest can be loaded from file:{path}")
    assert re.search(reason, sentence(refused.value))
    assert len(plain.guests) == 1


def test_a_file_that_exists_is_refused_and_the_guest_runs_on(plain: rig.World, tmp_path: Path) -> None:
    path = tmp_path / "precious"
    path.write_text("something")
    guest = plain.start()
    found = examine(candidate(guest, PARAMETERS), f"file:{path}", SystemClock())
    assert [obstacle.code for obstacle in found.obstacles] == [Code.UNREACHABLE]
    info, _ = save(guest, path)
    assert info.status == "failed"
    assert "exists already" in (info.error_desc or "")
    assert path.read_text() == "something"
    guest.work(8)


def test_a_cancelled_save_leaves_no_file_and_the_guest_runs_on(plain: rig.World, tmp_path: Path) -> None:
    guest = plain.start()
    guest.work(8)
    began = threading.Event()
    slow = replace(PARAMETERS, max_bandwidth=10_000)
    attempt = Save(guest.machine, guest.launched, "a", slow, lambda _: began.set(), SystemClock())
    thread = threading.Thread(target=attempt.run, args=(f"file:{tmp_path / 'guest.qemu'}",))
    thread.start()
    assert began.wait(rig.PATIENCE_S)
    attempt.cancel()
    thread.join(rig.PATIENCE_S)
    assert attempt.info().status == "cancelled"
    assert list(tmp_path.iterdir()) == []
    guest.work(8)


def test_a_confidential_guest_is_not_saved_so(world: rig.World, tmp_path: Path) -> None:
    guest = world.start()
    for parameters, reason in ((Parameters(), "sealift snapshot"), (PARAMETERS, "the guest is confidential")):
        attempt = rig.attempt(world, guest, parameters)
        info = attempt.migration.run(f"file:{tmp_path / 'guest.qemu'}")
        attempt.incoming.close()
        assert (info.status, reason in (info.error_desc or "")) == ("failed", True), info.error_desc
    assert list(tmp_path.iterdir()) == []
    guest.work(8)


def test_a_snapshot_of_it_is_refused_with_the_way_to_save_it(plain: rig.World, tmp_path: Path) -> None:
    guest = plain.start()
    path = tmp_path / "a.snap"
    info = Snapshot(guest.machine, guest.launched, "a", PARAMETERS, lambda _: None, SystemClock()).run(str(path))
    assert (info.status, "file:PATH" in (info.error_desc or "")) == ("failed", True)
    assert list(tmp_path.iterdir()) == []
    guest.work(8)


# --- to another host -----------------------------------------------------------------------------------------------


def test_a_guest_goes_on_at_the_target_where_it_stopped(plain: rig.World) -> None:
    guest = plain.start()
    guest.work(8)
    attempt = rig.attempt(plain, guest, PARAMETERS)
    attempt.begin()
    assert attempt.end().status == "completed", attempt.refused
    assert attempt.statuses == [_S.SETUP, _S.ACTIVE, _S.DEVICE, _S.COMPLETED]
    assert rig.MARKER.encode() in attempt.wire, "nobody encrypts it"
    follows(plain, guest, attempt.guest())


def test_no_page_is_lost_while_several_vcpus_write(plain: rig.World) -> None:
    """At 1 MB/s the first round takes a while, and what is written meanwhile has to follow; then it verifies all."""
    plain.recipe = rig.recipe(vcpus=2, command_line=f"ws=96 every=4 burst=4 pause=100000 marker={rig.MARKER}")
    guest = plain.start()
    guest.work(48)
    attempt = rig.attempt(plain, guest, replace(PARAMETERS, max_bandwidth=1_000_000, downtime_limit_ms=40))
    rig.chase(attempt.migration, guest)
    attempt.begin()
    info = attempt.end()
    assert info.status == "completed", attempt.refused
    assert info.ram is not None
    assert info.ram.dirty_sync_count >= 3
    attempt.guest().work(96)


@pytest.mark.parametrize("comes_plain", [True, False])
def test_a_target_takes_no_guest_of_another_type(sendable: rig.World, comes_plain: bool) -> None:  # noqa: FBT001
    sendable.plain = comes_plain
    guest = sendable.start()
    parameters = PARAMETERS if comes_plain else psp.PARAMETERS
    sendable.plain = not comes_plain
    with waiting(sendable, guest) as target:
        found = asked(target, Candidate(guest.machine, guest.launched, guest.name, parameters))
        assert [obstacle.code for obstacle in found.obstacles] == [Code.TYPE]
        attempt = rig.attempt(sendable, guest, parameters)
        attempt.begin()
        info = attempt.end(listening=True)
    assert info.status == "failed"
    assert "sealift run --type" in (info.error_desc or "")
    guest.work(8)


def test_a_method_of_another_type_of_guest_is_a_blocker(plain: rig.World) -> None:
    user = controlled(plain.start())
    assert user.parameters.method is Method.PLAIN, "without anybody having said so"
    assert user.blocked_reasons() == ()
    user.adjust(lambda parameters: replace(parameters, method=Method.MH))
    (reason,) = user.blocked_reasons()
    assert "choose method plain" in reason
    plain.plain = False
    other = controlled(plain.start())
    other.adjust(lambda parameters: replace(parameters, method=Method.PLAIN))
    (reason,) = other.blocked_reasons()
    assert "the guest is confidential" in reason

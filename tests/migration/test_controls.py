"""What a user can do about a migration that runs: slow the guest, wait before the switchover, choose the way."""

from __future__ import annotations

import dataclasses
import os
import shlex
import socket
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

import pytest

from harness import PATIENCE_S, processes_naming
from sealift.errors import UserError
from sealift.launch.secrets import NO_FLAGS, MigrationFlags
from sealift.vmm.cpu_throttle import CpuThrottle
from sealift.vmm.migration import handed
from sealift.vmm.migration.convergence import AutoConverge
from sealift.vmm.migration.handed import ExecAddress, FdAddress, take
from sealift.vmm.migration.parameters import Capability, Parameters, Throttling
from sealift.vmm.migration.route import listen
from sealift.vmm.migration.status import MigrationStatus
from sealift.vmm.migration.transport import FileAddress, TcpAddress
from sealift.vmm.runstate import RunState
from sealift.wire.handover import Transfer

from . import rig
from .test_orders import controlled

_S = MigrationStatus
PAUSING = Parameters(capabilities=frozenset({Capability.PAUSE_BEFORE_SWITCHOVER}))


# --- auto-converge --------------------------------------------------------------------------------------------------


def test_the_guest_is_slowed_after_every_second_round_that_exceeds_the_threshold() -> None:
    converge = AutoConverge(Throttling(initial=30, increment=25, maximum=90))
    steps = [converge.after_round(1000, 501) for _ in range(10)]
    assert steps == [0, 30, 30, 55, 55, 80, 80, 90, 90, 90]


def test_rounds_at_the_threshold_leave_the_guest_alone_and_keep_what_was_reached() -> None:
    converge = AutoConverge(Throttling())
    assert [converge.after_round(1000, 500) for _ in range(4)] == [0] * 4
    assert [converge.after_round(1000, 900) for _ in range(2)] == [0, 20]
    assert converge.after_round(1000, 100) == 20


def test_a_slow_tail_takes_no_more_than_is_missing() -> None:
    """At 20 % the guest runs 80 % of the time; a sixteenth too much is five points."""
    converge = AutoConverge(Throttling(tailslow=True))
    for _ in range(2):
        converge.after_round(1000, 5000)
    steps = [converge.after_round(1875, 1000) for _ in range(2)]
    assert steps == [20, 25]


@pytest.mark.parametrize(
    "wrong",
    [{"initial": 0}, {"initial": 100}, {"increment": 0}, {"maximum": 19}, {"maximum": 100}, {"trigger_threshold": 101}],
)
def test_throttles_beyond_qemus_are_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(UserError, match="is out of range; choose"):
        Throttling(**wrong)  # type: ignore[arg-type]  # all of these are whole numbers


class Vcpus:
    """vCPUs that are held or not."""

    def __init__(self) -> None:
        self.held = False

    def hold(self) -> None:
        """Out of guest mode."""
        self.held = True

    def release(self) -> None:
        """In again."""
        self.held = False


class Slices:
    """A clock that notes for how long the vCPUs ran and were held, and ends after so many waits."""

    def __init__(self, vcpus: Vcpus, waits: int) -> None:
        self._vcpus = vcpus
        self._waits = waits
        self.seen: list[tuple[bool, float]] = []
        self.over = threading.Event()

    def monotonic(self) -> float:
        """Never asked for."""
        raise AssertionError

    def wait(self, wake: threading.Event, seconds: float) -> bool:
        """Note it; then wait for the end."""
        if len(self.seen) < self._waits:
            self.seen.append((self._vcpus.held, round(seconds, 4)))
            return wake.is_set()
        self.over.set()
        return wake.wait(rig.PATIENCE_S)


@pytest.mark.parametrize(("percentage", "held_s"), [(20, 0.0025), (50, 0.01), (99, 0.99)])
def test_vcpus_are_held_for_their_share_of_the_time_and_released_at_the_end(percentage: int, held_s: float) -> None:
    vcpus = Vcpus()
    clock = Slices(vcpus, 6)
    throttle = CpuThrottle(vcpus, clock)
    throttle.set(percentage)
    assert clock.over.wait(rig.PATIENCE_S)
    assert clock.seen == [(False, 0.01), (True, held_s)] * 3
    throttle.set(0)
    assert throttle.percentage == 0
    assert not vcpus.held


def test_a_held_guest_does_nothing_and_goes_on_when_released(world: rig.World) -> None:
    guest = world.start()
    guest.work(4)
    vcpus = guest.machine.vcpus
    vcpus.hold()
    guest.machine.pause()  # waits until every vCPU is out
    before = guest.text
    guest.machine.resume()
    assert guest.machine.state is RunState.RUNNING
    assert not vcpus.wait_all_halted(0.1)
    assert guest.text == before
    vcpus.release()
    guest.work(4)


def test_a_guest_that_writes_too_fast_is_slowed_until_it_converges_and_then_no_more(hosts: Path) -> None:
    """The downtime has no room for a single page, and the guest writes some in every round that it is awake in."""
    busy = rig.COMMAND_LINE.replace("ws=16", "ws=64").replace("burst=4 pause=10000", "burst=16 pause=2000")
    with rig.world(hosts, rig.recipe(command_line=busy)) as world:
        guest = world.start()
        guest.work(4)
        parameters = Parameters(
            max_bandwidth=500_000,
            downtime_limit_ms=5,
            capabilities=frozenset({Capability.AUTO_CONVERGE}),
            throttling=Throttling(initial=50, increment=49, trigger_threshold=1),
        )
        attempt = rig.attempt(world, guest, parameters)
        throttled: list[int] = []
        set_throttle = guest.machine.throttle.set

        def noted(percentage: int) -> None:
            throttled.append(percentage)
            set_throttle(percentage)

        guest.machine.throttle.set = noted  # type: ignore[method-assign]  # looked at, not replaced
        rig.chase(attempt.migration, guest)
        attempt.begin()
        info = attempt.end()
        assert info.status == "completed", info
        assert max(throttled) >= 50
        assert throttled[-1] == 0
        assert info.cpu_throttle_percentage == 0
        attempt.guest().work(8)


def test_a_migration_that_does_not_converge_is_rescued_while_it_goes_on(hosts: Path) -> None:
    """With no downtime allowed and a guest that writes in every round it would go on for ever."""
    with rig.world(hosts, rig.recipe()) as world:
        guest = world.start()
        guest.work(4)
        attempt = rig.attempt(world, guest, Parameters(max_bandwidth=500_000, downtime_limit_ms=0))
        user = controlled(guest)
        user._migration, user._migrating = attempt.migration, threading.current_thread()
        rig.chase(attempt.migration, guest, rounds=4)
        hold = attempt.migration.pass_begun

        def change(number: int) -> None:
            hold(number)
            if number == 4:
                user.adjust(lambda now: dataclasses.replace(now, downtime_limit_ms=500, max_bandwidth=0))

        attempt.migration.pass_begun = change
        attempt.begin()
        info = attempt.end()
        assert info.status == "completed", info
        assert info.ram is not None
        assert info.ram.dirty_sync_count >= 4
        assert user.parameters.downtime_limit_ms == 500
        attempt.guest().work(4)


def test_what_two_handlers_agreed_on_does_not_change_underway() -> None:
    began = Parameters(transfer=Transfer.RING, downtime_limit_ms=1)
    now = began.going_on(Parameters(transfer=Transfer.MAILBOX, downtime_limit_ms=2, max_bandwidth=3))
    assert now == Parameters(transfer=Transfer.RING, downtime_limit_ms=2, max_bandwidth=3)


# --- pause-before-switchover ------------------------------------------------------------------------------------------


def waiting(world: rig.World) -> tuple[rig.Guest, rig.Attempt]:
    """A guest whose migration waits before the switchover."""
    guest = world.start()
    guest.work(4)
    attempt = rig.attempt(world, guest, PAUSING)
    reached = threading.Event()
    note = attempt.migration._status._changed

    def changed(status: MigrationStatus) -> None:
        note(status)
        if status is _S.PRE_SWITCHOVER:
            reached.set()

    attempt.migration._status._changed = changed
    attempt.begin()
    assert reached.wait(rig.PATIENCE_S)
    return guest, attempt


def test_a_migration_waits_stopped_until_its_user_lets_it_go_on(world: rig.World) -> None:
    guest, attempt = waiting(world)
    assert guest.machine.state is RunState.FINISH_MIGRATE
    with pytest.raises(UserError, match="not in expected state: pre-switchover"):
        attempt.migration.proceed(_S.DEVICE)
    attempt.migration.proceed(_S.PRE_SWITCHOVER)
    info = attempt.end()
    assert info.status == "completed"
    assert attempt.statuses == [_S.SETUP, _S.ACTIVE, _S.PRE_SWITCHOVER, _S.DEVICE, _S.COMPLETED]
    assert "switchover" in (info.x_sealift_downtime_parts or {})
    attempt.guest().work(4)


def test_a_migration_that_is_cancelled_before_the_switchover_leaves_the_guest_running(world: rig.World) -> None:
    guest, attempt = waiting(world)
    attempt.migration.cancel()
    assert attempt.end().status == "cancelled"
    guest.work(4)


def test_a_target_that_leaves_before_the_switchover_is_noticed_at_once(world: rig.World) -> None:
    guest, attempt = waiting(world)
    attempt.incoming.cancel()
    assert attempt.end().status == "failed"
    guest.work(4)


def test_only_a_migration_that_waits_can_be_let_go_on(world: rig.World) -> None:
    guest = world.start()
    attempt = rig.attempt(world, guest)
    attempt.incoming.close()
    with pytest.raises(UserError, match="not in expected state: none"):
        attempt.migration.proceed(_S.PRE_SWITCHOVER)


# --- other ways -------------------------------------------------------------------------------------------------------


def test_a_guest_moves_over_a_socket_that_both_sides_were_given(world: rig.World) -> None:
    guest = world.start()
    guest.work(4)
    ours, theirs = socket.socketpair()
    for end in (ours, theirs):
        end.set_inheritable(True)
    attempt = rig.attempt(world, guest, address=FdAddress(theirs.detach()))
    attempt.uri = f"fd:{ours.detach()}"
    attempt.begin()
    assert attempt.end().status == "completed", attempt.info
    attempt.guest().work(4)


CARRIER = """
import select, socket, sys
far = socket.create_connection(("127.0.0.1", int(sys.argv[1])))
near = socket.socket(fileno=0)
other = {near: far, far: near}
while ready := select.select([near, far], [], [])[0]:
    for end in ready:
        data = end.recv(1 << 16)
        if not data:
            sys.exit()
        other[end].sendall(data)
"""


def test_a_guest_moves_through_a_command(world: rig.World) -> None:
    guest = world.start()
    guest.work(4)
    attempt = rig.attempt(world, guest)
    address = attempt.incoming.address
    assert isinstance(address, TcpAddress)
    attempt.uri = f"exec:{shlex.join([sys.executable, '-c', CARRIER, str(address.port)])}"
    attempt.begin()
    assert attempt.end().status == "completed", attempt.info
    attempt.guest().work(4)


def test_a_command_that_fails_leaves_the_guest_running(world: rig.World) -> None:
    guest = world.start()
    guest.work(4)
    attempt = rig.attempt(world, guest)
    attempt.uri = "exec:exit 3"
    attempt.begin()
    info = attempt.end(listening=True)
    assert info.status == "failed"
    assert "the target is gone" in (info.error_desc or "")
    guest.work(4)


def test_a_descriptor_that_is_no_stream_is_refused_and_stays_open(tmp_path: Path) -> None:
    with (tmp_path / "file").open("wb") as file, pytest.raises(UserError, match="is no socket"):
        listen(FdAddress(file.fileno()))
    with pytest.raises(UserError, match="this process has no descriptor 9999"):
        listen(FdAddress(9999))
    with socket.socket() as unconnected, pytest.raises(UserError, match="is no connected stream socket"):
        listen(FdAddress(unconnected.fileno()))


def test_a_descriptor_of_the_vmms_own_is_never_given_away(world: rig.World) -> None:
    """A wrong number must not cost the guest its platform."""
    guest = world.start()
    refused = 0
    for number in [int(entry.name) for entry in Path("/proc/self/fd").iterdir()]:
        with suppress(OSError):
            if os.get_inheritable(number):
                continue
        try:
            taken = take(FdAddress(number))
        except UserError as error:
            refused += "is this process's own" in str(error)
        else:
            taken.detach()
    assert refused, "the connection to the platform is one"
    guest.work(4)


@pytest.mark.parametrize("command", ["sleep 1000", "trap '' TERM; while :; do sleep 1; done"])
def test_a_command_does_not_outlive_its_connection(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(handed, "_LAST_WORDS_S", 0.3)
    mark = f"MARK={os.getpid()}x{len(command)}"
    take(ExecAddress(f"{mark}; {command}")).close()
    until = time.monotonic() + PATIENCE_S
    while processes_naming(mark):
        assert time.monotonic() < until
        time.sleep(0.05)


@pytest.mark.parametrize("uri", ["fd:9999", "exec:cat"])
def test_one_connection_has_no_room_for_several_channels(world: rig.World, uri: str) -> None:
    guest = world.start()
    guest.work(4)
    attempt = rig.attempt(world, guest, Parameters(capabilities=frozenset({Capability.MULTIFD})))
    attempt.uri = uri
    attempt.begin()
    assert "is one connection; switch multifd and postcopy-ram off" in (attempt.end(listening=True).error_desc or "")


def test_a_confidential_guest_is_not_moved_to_a_file(world: rig.World, tmp_path: Path) -> None:
    guest = world.start()
    guest.work(4)
    attempt = rig.attempt(world, guest)
    attempt.uri = f"file:{tmp_path / 'stream'}"
    attempt.begin()
    assert "save it with `sealift snapshot`" in (attempt.end(listening=True).error_desc or "")
    assert not (tmp_path / "stream").exists()
    with pytest.raises(UserError, match="sealift run --restore"):
        listen(FileAddress(tmp_path / "stream"))
    guest.work(4)


def test_nobody_waits_for_a_second_connection_of_a_command() -> None:
    listening = listen(ExecAddress("cat"))
    with listening.accept() as first:
        first.sendall(b"and back")
        assert first.recv(8) == b"and back"
    listening.wake()
    with pytest.raises(Exception, match="ended"):
        listening.accept()


# --- zero pages -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("flags", [NO_FLAGS, MigrationFlags.SKIP_ZERO_PAGES])
def test_zero_pages_of_a_guest_cost_their_full_length_unless_its_owner_lets_them_be_seen(
    hosts: Path, flags: MigrationFlags
) -> None:
    """The payload's 2 MiB of zeros are private pages that are no holes."""
    made = dataclasses.replace(rig.recipe(), payload=bytes(2 << 20))
    with rig.world(hosts, made, flags=flags) as world:
        guest = world.start()
        guest.work(4)
        attempt = rig.attempt(world, guest)
        attempt.begin()
        info = attempt.end()
        assert info.status == "completed", info
        assert info.ram is not None
        spared = info.ram.normal_bytes - info.ram.transferred
        assert (spared > 1 << 20) is bool(flags)
        attempt.guest().work(8)

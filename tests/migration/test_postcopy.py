"""Post-copy: the guest runs on the target before all of it is there, and every page comes once, whatever is lost."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from harness import wait_for_end_of
from sealift.address import PAGE_SHIFT
from sealift.errors import LostError, RefusedError, UserError
from sealift.guest.handler.commit import POSTCOPY, Fate, Lost, Passage, fate
from sealift.vmm.migration.parameters import Capability, Parameters
from sealift.vmm.migration.patience import Patience
from sealift.vmm.migration.status import MigrationStatus
from sealift.vmm.migration.transport import TcpAddress
from sealift.vmm.platform import Platform
from sealift.vmm.runstate import RunState
from sealift.wire.handover import Method, Transfer
from sealift.wire.platform import Phase, ReadHostView

from . import rig
from .losses import once
from .network import Network, tampering

LATE = Parameters(
    capabilities=frozenset({Capability.POSTCOPY_RAM}), downtime_limit_ms=0, max_postcopy_bandwidth=1 << 20
)
"""Slow enough that the guest has to ask for pages."""

PAYLOAD_PAGES = 512

_S = MigrationStatus


@pytest.fixture
def world(hosts: Path) -> Iterator[rig.World]:
    recipe = replace(rig.recipe(), payload=os.urandom(PAYLOAD_PAGES << PAGE_SHIFT))
    with rig.world(hosts, recipe) as made:
        yield made


@dataclass
class Late:
    """A migration that has switched early."""

    here: rig.Guest
    attempt: rig.Attempt
    seen: list[tuple[MigrationStatus, str | None]]
    changed: threading.Condition
    moves: threading.Event

    def wait_until_it_moves(self) -> None:
        """Until pages go over the connections that there are now."""
        self.moves.clear()
        assert self.moves.wait(rig.PATIENCE_S)

    def wait_for(self, status: MigrationStatus) -> None:
        """Until the target is in that status."""
        with self.changed:
            assert self.changed.wait_for(lambda: self.seen[-1][0] is status, rig.PATIENCE_S), self.seen

    def wait_here(self, status: MigrationStatus) -> None:
        """Until the source is in that status."""
        with self.changed:
            assert self.changed.wait_for(lambda: self.attempt.statuses[-1] is status, rig.PATIENCE_S)

    def hurry(self) -> None:
        """Push without a limit."""
        self.attempt.migration.adjust(lambda now: replace(now, max_postcopy_bandwidth=0))

    def completes(self) -> None:
        """Everything comes, and both sides say so."""
        self.hurry()
        info = self.attempt.end()
        assert info.status == "completed", info
        self.wait_for(_S.COMPLETED)
        assert self.here.machine.platform.status().phase is Phase.GONE
        assert self.here.machine.state is RunState.POSTMIGRATE

    def close(self) -> None:
        """Whatever has become of it."""
        self.attempt.migration.abandon()
        self.attempt.incoming.close()


Switch = Callable[..., Late]


@pytest.fixture
def switch(world: rig.World) -> Iterator[Switch]:
    """Begins a migration of a new guest which switches in its first round; `before` may spoil something."""
    made: list[Late] = []

    def begin(
        parameters: Parameters = LATE,
        before: Callable[[rig.Attempt], None] = lambda _: None,
        known: Callable[[rig.Guest], None] = lambda _: None,
    ) -> Late:
        guest = world.start()
        guest.work(8)
        moves = threading.Event()

        def see(data: bytes, before: int) -> bytes:
            if before > 1 << 18:
                moves.set()
            return data

        attempt = rig.attempt(world, guest, parameters, see)
        changed = threading.Condition()
        found = Late(guest, attempt, [(_S.NONE, None)], changed, moves)
        made.append(found)
        told = attempt.migration._status._changed

        def tell(status: MigrationStatus) -> None:
            with changed:
                told(status)
                changed.notify_all()

        def hear(status: MigrationStatus, error: str | None) -> None:
            with changed:
                found.seen.append((status, error))
                changed.notify_all()

        attempt.migration._status._changed = tell
        attempt.migration.pass_begun = lambda _: attempt.migration.switch_early()
        before(attempt)
        known(guest)
        attempt.begin()
        attempt._threads[0].join(rig.PATIENCE_S)
        assert attempt.arrived is not None, (attempt.refused, attempt.info)
        assert attempt.arrived.filling is not None, "it switched with pages missing"
        attempt.arrived.filling.start(hear)
        return found

    yield begin
    for each in made:
        each.close()


def test_a_guest_runs_on_the_target_while_its_pages_come(switch: Switch) -> None:
    late = switch()
    there = late.attempt.guest()
    there.work(8)
    late.completes()
    assert [status for status, _ in late.seen] == [_S.NONE, _S.POSTCOPY_ACTIVE, _S.COMPLETED]
    assert late.attempt.statuses[-2:] == [_S.POSTCOPY_ACTIVE, _S.COMPLETED]
    info = late.attempt.migration.info()
    assert info.ram is not None
    assert info.ram.postcopy_requests > 0, "it did not wait for what was pushed"
    assert info.ram.remaining == 0
    there.work(32)


def test_the_source_and_the_target_may_be_paused_and_go_on(switch: Switch) -> None:
    late = switch()
    there = late.attempt.guest()
    uri = str(late.attempt.incoming.address)
    late.wait_for(_S.POSTCOPY_ACTIVE)
    late.wait_here(_S.POSTCOPY_ACTIVE)
    for pause in (late.attempt.migration.pause, late.attempt.arrived.filling.pause):  # type: ignore[union-attr]
        late.wait_until_it_moves()
        pause()
        late.wait_here(_S.POSTCOPY_PAUSED)
        late.wait_for(_S.POSTCOPY_PAUSED)
        late.attempt.migration.recover(uri)
        late.wait_here(_S.POSTCOPY_ACTIVE)
    there.work(8)
    late.completes()
    there.work(32)


def test_the_target_may_await_its_source_at_another_address(switch: Switch) -> None:
    late = switch()
    late.wait_until_it_moves()
    late.attempt.migration.pause()
    late.wait_for(_S.POSTCOPY_PAUSED)
    late.wait_here(_S.POSTCOPY_PAUSED)
    address = late.attempt.incoming.listen_anew(TcpAddress("127.0.0.1", 0))
    late.attempt.migration.recover(str(late.attempt.incoming.address))  # nobody listens there any more
    late.wait_here(_S.POSTCOPY_PAUSED)
    late.attempt.migration.recover(str(address))
    late.completes()
    late.attempt.guest().work(16)


def test_a_stranger_gets_nowhere_while_pages_are_missing(world: rig.World, switch: Switch) -> None:
    stranger = rig.attempt(world, world.start())
    late = switch()
    late.wait_until_it_moves()
    late.attempt.migration.pause()
    late.wait_for(_S.POSTCOPY_PAUSED)
    late.wait_here(_S.POSTCOPY_PAUSED)
    info = stranger.migration.run(str(late.attempt.incoming.address))
    stranger.incoming.close()
    assert info.status == "failed"
    assert "the rest of a guest is awaited here" in (info.error_desc or "")
    late.attempt.migration.recover(str(late.attempt.incoming.address))
    late.completes()
    late.attempt.guest().work(4)


def test_nothing_is_given_up_behind_the_switch(switch: Switch) -> None:
    late = switch()
    with pytest.raises(UserError, match="too late"):
        late.attempt.migration.cancel()
    with pytest.raises(UserError, match="no paused migration"):
        late.attempt.migration.recover("tcp:127.0.0.1:1")
    late.completes()
    with pytest.raises(UserError, match="only supported during postcopy-active"):
        late.attempt.migration.pause()


def test_a_guest_that_misses_pages_cannot_be_looked_into_where_they_are_missing(switch: Switch) -> None:
    late = switch(replace(LATE, max_postcopy_bandwidth=1))
    platform = late.attempt.guest().machine.platform
    with pytest.raises(RefusedError, match="still on the host that the guest comes from"):
        platform.do(ReadHostView(0, late.here.machine.layout.pages))
    late.completes()
    platform.do(ReadHostView(0, late.here.machine.layout.pages))


def test_the_guest_can_move_on_once_it_is_whole(world: rig.World, switch: Switch) -> None:
    late = switch()
    there = late.attempt.guest()
    onward = rig.attempt(world, there)
    info = onward.migration.run(str(onward.incoming.address))
    onward.incoming.close()
    assert info.status == "failed"
    assert "FILLING" in (info.error_desc or "")
    late.completes()
    again = rig.attempt(world, there)
    again.begin()
    assert again.end().status == "completed"
    again.guest().work(16)


@pytest.mark.parametrize(
    ("wish", "reason"),
    [
        ({"method": Method.PSP}, "knows post-copy"),
        ({"transfer": Transfer.MAILBOX}, "knows post-copy"),
        ({"max_postcopy_bandwidth": -1}, "negative"),
    ],
)
def test_what_cannot_be_is_refused(wish: dict[str, Any], reason: str) -> None:
    with pytest.raises(UserError, match=reason):
        replace(LATE, **wish)


@pytest.mark.attack(
    "post-copy",
    "kills a platform process or cuts the link at any message behind the switch",
    gains="denial of service: a host that is lost before all has come takes the guest along",
)
@pytest.mark.parametrize("lost", Lost, ids=lambda lost: lost.name.lower())
@pytest.mark.parametrize("passage", POSTCOPY, ids=lambda passage: passage.message.replace(" ", "-"))
def test_the_guests_fate_behind_the_switch_is_the_tables(
    world: rig.World, switch: Switch, tmp_path: Path, passage: Passage, lost: Lost
) -> None:
    world.token_path = tmp_path / "token"
    limit = 0 if passage.message == "FILLED" else 1
    with ExitStack() as undo:
        nets: list[Network] = []

        def lead(attempt: rig.Attempt) -> None:
            """All that comes behind the switch goes by way of somebody hostile."""
            attempt.incoming.patience = Patience(reply_s=20.0, last_word_s=0.5)
            address = attempt.incoming.address
            assert isinstance(address, TcpAddress)
            nets.append(undo.enter_context(tampering(address, f"cut:{_WIRE[passage.message]}")))
            serve = attempt.migration._serve
            attempt.migration._serve = lambda late, place: serve(late, nets[0].uri or place)  # type: ignore[method-assign]
            name = _WIRE[passage.message].split("/")[0]
            nets[0].at[name] = once(lambda: kill(lost, attempt))

        def kill(lost: Lost, attempt: rig.Attempt) -> None:
            if lost is Lost.LINK:
                return
            victim = attempt.arrived.machine if lost is Lost.TARGET and attempt.arrived else late_here[0].machine
            os.kill(victim.platform.pid, signal.SIGKILL)
            wait_for_end_of([victim.platform.pid])

        late_here: list[rig.Guest] = []
        late = switch(replace(LATE, max_postcopy_bandwidth=limit), lead, late_here.append)
        nets[0].tampered()
        settle(world, late, fate(passage, lost))


_WIRE = {
    "leg request": "hello",
    "leg answer": "answer",
    "demand": "demand",
    "missing page": "record/1",
    "FILLED": "filled",
}


def settle(world: rig.World, late: Late, found: Fate) -> None:
    """See that it is so, and go on from there."""
    here = late.here.machine.platform
    match found:
        case Fate.STRANDED:
            late.wait_here(_S.POSTCOPY_PAUSED)
            late.hurry()
            late.attempt.migration.recover(str(late.attempt.incoming.address))
            late.completes()
            late.attempt.guest().work(8)
        case Fate.SETTLED_THERE:
            late.wait_here(_S.POSTCOPY_PAUSED)
            late.wait_for(_S.COMPLETED)
            assert world.token_path is not None
            late.attempt.migration.settle(world.token_path.read_bytes())
            assert late.attempt.end().status == "completed"
            assert here.status().phase is Phase.GONE
            late.attempt.guest().work(8)
        case Fate.THERE:
            late.wait_for(_S.COMPLETED)
            late.attempt.guest().work(8)
        case Fate.HALVED | Fate.NOWHERE:
            assert late.attempt.arrived is not None
            assert sum(map(answers, (here, late.attempt.arrived.machine.platform))) < 2
            assert late.seen[-1][0] is not _S.COMPLETED
            late.attempt.guest()
        case _:
            raise AssertionError(found)


def answers(platform: Platform) -> bool:
    """Whether it is there."""
    try:
        platform.status()
    except (LostError, OSError):
        return False
    return True

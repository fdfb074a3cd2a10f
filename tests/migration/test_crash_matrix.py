"""Every message of a migration, and whoever may be lost while it is on its way: the guest's fate is the table's.

Platforms are real processes, and killed. A platform that dies takes its VMM's guest along, and a VMM that dies its
platform (`tests/silicon/test_process_life.py`); VMMs that are killed themselves are in `tests/cli/test_crashes.py`.
"""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from harness import wait_for_end_of
from sealift.errors import LostError, SealiftError
from sealift.guest.handler.commit import HANDOVER, Fate, Lost, Passage, fate
from sealift.vmm.migration.patience import Patience
from sealift.vmm.platform import Platform
from sealift.wire.platform import Phase

from . import rig
from .losses import on_the_wire, once, rules
from .network import network


@dataclass
class Crash:
    """A migration in which somebody is lost."""

    world: rig.World
    guest: rig.Guest
    attempt: rig.Attempt
    receivers: list[Platform]

    def lose(self, lost: Lost) -> None:
        """Kill it, and wait until it is dead; a link is cut by its network."""
        if lost is Lost.TARGET and not self.receivers:  # it is not even known yet who comes
            self.attempt.incoming.cancel()
        platforms = {Lost.SOURCE: [self.guest.machine.platform], Lost.TARGET: self.receivers, Lost.LINK: []}[lost]
        for platform in platforms:
            with contextlib.suppress(ProcessLookupError):
                os.kill(platform.pid, signal.SIGKILL)
        wait_for_end_of([platform.pid for platform in platforms])

    def run(self, passage: Passage, lost: Lost) -> None:
        """Move the guest, and lose it while the message is on its way: nobody gets to read that."""
        name = on_the_wire(passage)
        with network(self.attempt, *rules(passage)) as net:
            net.at[name] = once(lambda: self.lose(lost))
            self.attempt.begin()
            self.attempt.end(listening=True)
            assert name in net.names(passage.sender.name.lower()), net.log


@pytest.fixture
def crash(world: rig.World, tmp_path: Path) -> Iterator[Crash]:
    """A guest that is to be moved."""
    world.token_path = tmp_path / "token"
    guest = world.start()
    guest.work(4)
    receivers: list[Platform] = []

    def receiver() -> Platform:
        receivers.append(world.platform("b"))
        return receivers[-1]

    world.target = receiver
    attempt = rig.attempt(world, guest)
    attempt.migration.patience = Patience(reply_s=20.0, last_word_s=0.5)
    attempt.incoming.patience = Patience(reply_s=20.0, last_word_s=0.5)
    yield Crash(world, guest, attempt, receivers)
    if attempt.arrived is not None:
        attempt.guest()  # to be ended with all others


def runs(platform: Platform) -> bool:
    """Whether the guest's vCPUs may run there."""
    try:
        return platform.status().phase is Phase.RUNNING
    except (LostError, OSError):
        return False


@pytest.mark.attack(
    "everything at once",
    "kills a platform process or cuts the link while any message of a migration is on its way",
    gains="denial of service",
)
@pytest.mark.parametrize("lost", Lost, ids=lambda lost: lost.name.lower())
@pytest.mark.parametrize("passage", HANDOVER, ids=lambda passage: passage.message.replace(" ", "-"))
def test_the_guests_fate_is_the_tables_whoever_is_lost_at_whatever_message(
    crash: Crash, passage: Passage, lost: Lost
) -> None:
    crash.run(passage, lost)
    here, there = crash.guest.machine.platform, [platform for platform in crash.receivers if runs(platform)]
    assert runs(here) + len(there) <= 1, "never two"
    match fate(passage, lost):
        case Fate.HERE:
            assert not there
            crash.guest.work(4)
        case Fate.THERE:
            crash.attempt.guest().work(4)
            assert not runs(here)
        case Fate.SETTLED_HERE | Fate.SETTLED_THERE as settled:
            assert here.status().phase is Phase.FENCED
            settle(crash, crash.world.token_path, settled)
        case Fate.OWNER:
            assert not there
            assert here.status().phase is Phase.FENCED
            crash.attempt.migration.settle(crash.world.owner.resume(crash.attempt.migration.resume_request()))
            crash.guest.work(4)
        case Fate.NOWHERE:
            assert not there
            assert not runs(here)
            assert crash.attempt.arrived is None or lost is Lost.TARGET


def settle(crash: Crash, kept: Path | None, settled: Fate) -> None:
    """Bring the source the token that the target kept."""
    assert kept is not None
    crash.attempt.migration.settle(kept.read_bytes())
    if settled is Fate.SETTLED_HERE:
        assert not any(map(runs, crash.receivers))
        crash.guest.work(4)
    else:
        crash.attempt.guest().work(4)
        assert crash.guest.machine.platform.status().phase is Phase.GONE
    with pytest.raises(SealiftError, match="waits for no token"):
        crash.attempt.migration.settle(kept.read_bytes())

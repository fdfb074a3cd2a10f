"""Every message of a migration, and whoever may be lost while it is on its way: the guest's fate is the table's.

Platforms are real processes, and killed. A platform that dies takes its VMM's guest along, and a VMM that dies its
platform (`tests/silicon/test_process_life.py`); VMMs that are killed themselves are in `tests/cli/test_crashes.py`.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from harness import wait_for_end_of
from sealift.errors import LostError, SealiftError
from sealift.guest.handler.commit import HANDOVER, Fate, Lost, Passage, fate
from sealift.vmm.migration.patience import Patience
from sealift.vmm.platform import Platform
from sealift.wire.platform import Phase

from . import rig
from .network import Network, network

ON_THE_WIRE = {
    "offer": "hello",
    "epoch token": "epoch",
    "machine state": "state",
    "close record": "close",
    "PREPARED": "prepared",
    "FINAL": "final",
    "ABORTED": "aborted",
    "STARTED": "started",
}
"""What `sealift.tamper` calls our messages, where it has another word."""


@dataclass
class Crash:
    """A migration in which somebody is lost."""

    world: rig.World
    guest: rig.Guest
    attempt: rig.Attempt
    receivers: list[Platform] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.world.target = self._receiver

    def _receiver(self) -> Platform:
        self.receivers.append(self.world.platform("b"))
        return self.receivers[-1]

    def lose(self, lost: Lost) -> None:
        """Kill it, and wait until it is dead; a link is cut by its network."""
        platforms = {Lost.SOURCE: [self.guest.machine.platform], Lost.TARGET: self.receivers, Lost.LINK: []}[lost]
        for platform in platforms:
            with contextlib.suppress(ProcessLookupError):
                os.kill(platform.pid, signal.SIGKILL)
        wait_for_end_of([platform.pid for platform in platforms])

    def run(self, passage: Passage, lost: Lost) -> None:
        """Move the guest, and lose it while the message is on its way."""
        name = ON_THE_WIRE.get(passage.message, passage.message)
        cut = [f"cut:{name}"] if lost is Lost.LINK else []
        with network(self.attempt, *cut) as net:
            if passage.message == "ABORTED":
                net.at["final"] = self.attempt.incoming.cancel
            net.at[name] = once(lambda: self.lose(lost))
            self.attempt.begin()
            self.attempt.end(listening=True)
            assert came(net, name, passage), net.log


def once(act: Callable[[], None]) -> Callable[[], None]:
    """Only the first time."""
    times = itertools.count()
    return lambda: act() if next(times) == 0 else None


def came(net: Network, name: str, passage: Passage) -> bool:
    """Whether the message was sent by the side that the table says."""
    return name in net.names(passage.sender.name.lower())


@pytest.fixture
def crash(world: rig.World, tmp_path: Path) -> Crash:
    """A guest that is to be moved."""
    world.token_path = tmp_path / "token"
    guest = world.start()
    guest.work(4)
    attempt = rig.attempt(world, guest)
    attempt.migration.patience = Patience(reply_s=20.0)
    attempt.incoming.patience = Patience(reply_s=20.0, last_word_s=2.0)
    return Crash(world, guest, attempt)


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

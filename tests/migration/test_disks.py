"""Who has a guest's disk while the guest moves: one host at a time, whoever comes in between.

The ledger guest has no driver for disks, so its machines get one beside their devices: a real image, really locked.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from sealift.errors import UserError
from sealift.vmm import machine as machines
from sealift.vmm.devices import sets
from sealift.vmm.devices.disk import DiskImage
from sealift.vmm.migration.status import MigrationStatus
from sealift.vmm.runstate import RunState
from sealift.wire.platform import Phase

from . import rig
from .network import network

SIZE = 1 << 16


class Watched(DiskImage):
    """An image that keeps what is done to it.

    Attributes:
        done: in the order in which it was done.
        fails: whether its medium fails when it is flushed.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path, read_only=False)
        self.done: list[str] = []
        self.fails = False

    def flush(self) -> None:
        """Keep it, and fail if told so."""
        if self.fails:
            raise OSError(5, "Input/output error")
        super().flush()
        self.done.append("flush")

    def lock(self) -> bool:
        """Keep it."""
        new = super().lock()
        self.done.append("lock")
        return new

    def unlock(self) -> None:
        """Keep it."""
        super().unlock()
        self.done.append("unlock")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Of the image, which both hosts see."""
    made = tmp_path / "disk"
    made.write_bytes(bytes(SIZE))
    return made


@pytest.fixture
def images(path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Watched]:
    """The image as each machine that is made has it: the source's first."""
    found: list[Watched] = []

    def with_disk(around: sets.Surroundings) -> sets.DeviceSet:
        devices = sets.bare_devices(around)
        found.append(Watched(path))
        devices._disks = (found[-1],)
        return devices

    monkeypatch.setattr(machines, "bare_devices", with_disk)
    return found


@pytest.fixture
def guest(world: rig.World, images: list[Watched]) -> rig.Guest:
    """It runs, and has its disk."""
    started = world.start()
    started.machine.devices.take_disks()
    assert images[0].done == ["lock"]
    started.work(2)
    return started


@contextmanager
def somebody(path: Path) -> Iterator[DiskImage]:
    """Who would like to have the image."""
    image = DiskImage(path, read_only=False)
    try:
        yield image
    finally:
        image.close()


def assert_taken(path: Path) -> None:
    """Nobody else can have it."""
    with somebody(path) as image, pytest.raises(UserError, match="in use by another guest"):
        image.lock()


def migrate(attempt: rig.Attempt, *rules: str, at: dict[str, Callable[[], None]] | None = None) -> MigrationStatus:
    """Over a network that does what it is told."""
    with network(attempt, *rules) as net:
        net.at.update(at or {})
        attempt.begin()
        return attempt.end(listening=True).status


def test_a_disk_is_free_and_complete_before_final_and_taken_before_the_guest_starts(
    world: rig.World, guest: rig.Guest, images: list[Watched], path: Path
) -> None:
    seen: dict[str, list[list[str]]] = {}

    def look(message: str) -> Callable[[], None]:
        return lambda: seen.update({message: [list(image.done) for image in images]})

    def free() -> None:
        look("final")()
        with somebody(path) as image:
            image.lock()

    def taken() -> None:
        look("started")()
        assert_taken(path)

    attempt = rig.attempt(world, guest)
    at = {"prepared": look("prepared"), "final": free, "started": taken}
    assert migrate(attempt, at=at) is MigrationStatus.COMPLETED
    assert seen["prepared"] == [["lock"], []]
    assert seen["final"] == [["lock", "flush", "unlock"], []]
    assert seen["started"] == [["lock", "flush", "unlock"], ["lock"]]
    attempt.guest().work(2)
    assert_taken(path)


def test_who_takes_the_disk_in_between_has_the_guest_wait_where_it_came_from(
    world: rig.World, guest: rig.Guest, path: Path
) -> None:
    """The target cannot start it without, and gives it back; its own host cannot resume it without."""
    attempt = rig.attempt(world, guest)
    with somebody(path) as thief:
        assert migrate(attempt, at={"final": lambda: (thief.lock(), None)[1]}) is MigrationStatus.FAILED
        assert attempt.info is not None
        assert "in use by another guest" in str(attempt.info.error_desc)
        assert attempt.arrived is None
        assert guest.machine.state is RunState.PAUSED
        assert guest.machine.platform.status().phase is Phase.RUNNING
        with pytest.raises(UserError, match="in use by another guest"):
            guest.machine.resume()
    assert guest.machine.resume()
    assert_taken(path)
    guest.work(4)


def test_a_guest_that_comes_back_behind_final_has_its_disk_again(
    world: rig.World, guest: rig.Guest, images: list[Watched], path: Path
) -> None:
    assert migrate(rig.attempt(world, guest), "flip:final") is MigrationStatus.FAILED
    assert images[0].done == ["lock", "flush", "unlock", "lock"]
    assert_taken(path)
    guest.work(4)


def test_a_disk_that_cannot_be_flushed_stays_with_its_guest(
    world: rig.World, guest: rig.Guest, images: list[Watched], path: Path
) -> None:
    images[0].fails = True
    attempt = rig.attempt(world, guest)
    assert migrate(attempt) is MigrationStatus.FAILED
    assert attempt.info is not None
    assert "cannot be flushed" in str(attempt.info.error_desc)
    assert "unlock" not in images[0].done
    assert images[1].done == []
    assert_taken(path)
    guest.work(4)

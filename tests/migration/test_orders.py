"""Whatever a user orders while a guest moves, the guest ends in one place and the migration in one status."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import suppress

import pytest

from sealift.errors import LostError, SealiftError, UserError
from sealift.vmm.events import Direction, GuestEvent, MigrationChanged
from sealift.vmm.guest import Guest
from sealift.vmm.migration.parameters import Parameters
from sealift.vmm.migration.status import MigrationStatus
from sealift.vmm.migration.streamio import StreamWriter
from sealift.vmm.runstate import RunState

from . import rig


def controlled(guest: rig.Guest) -> Guest:
    """The guest as QMP sees it."""
    found = Guest("ledger", Parameters())
    found.attach(guest.machine, guest.launched)
    return found


def at_final(action: Callable[[], None]) -> Callable[[bytes, int], bytes]:
    """Do something just before FINAL is sent."""

    def edit(data: bytes, _: int) -> bytes:
        if b"SLTK" in data:
            action()
        return data

    return edit


def test_stop_and_cont_are_refused_while_the_guest_is_handed_over_and_change_nothing(world: rig.World) -> None:
    guest = world.start()
    guest.work(4)
    user = controlled(guest)
    refused: list[str] = []

    def order() -> None:
        for what in (user.stop, user.resume):
            with pytest.raises(UserError, match="not finalized yet") as caught:
                what()
            refused.append(str(caught.value))
            assert guest.machine.state is RunState.FINISH_MIGRATE

    attempt = rig.attempt(world, guest, edit=at_final(order))
    attempt.begin()
    assert attempt.end().status == "completed"
    assert len(refused) == 2
    attempt.guest().work(4)


@pytest.mark.parametrize("attempts", [4])
def test_orders_at_any_moment_never_keep_a_migration_from_its_end(world: rig.World, attempts: int) -> None:
    """One user stops, another lets run, as fast as they can, while the guest moves from host to host."""
    guest = world.start()
    guest.work(4)
    for _ in range(attempts):
        user, over = controlled(guest), threading.Event()

        def hammer(order: Callable[[], None], over: threading.Event) -> None:
            while not over.is_set():
                with suppress(UserError):
                    order()

        users = [threading.Thread(target=hammer, args=(order, over)) for order in (user.stop, user.resume)]
        for thread in users:
            thread.start()
        attempt = rig.attempt(world, guest)
        attempt.begin()
        info = attempt.end()
        over.set()
        for thread in users:
            thread.join(rig.PATIENCE_S)
        assert info.status == "completed", info
        assert guest.machine.state is RunState.POSTMIGRATE
        guest = attempt.guest()
        guest.machine.resume()
    guest.work(4)


def test_a_migration_whose_target_runs_the_guest_is_completed_whatever_befalls_the_source(world: rig.World) -> None:
    guest = world.start()
    guest.work(4)
    attempt = rig.attempt(world, guest, edit=at_final(lambda: guest.machine.failed(0, LostError("gone"))))
    attempt.begin()
    assert attempt.end().status == "completed"
    assert guest.machine.state is RunState.INTERNAL_ERROR
    attempt.guest().work(4)


def test_a_bug_anywhere_in_a_migration_still_gives_it_an_end(world: rig.World) -> None:
    guest = world.start()
    guest.work(4)

    def bug(*_: object) -> StreamWriter:
        raise ZeroDivisionError

    attempt = rig.attempt(world, guest)
    migration = attempt.migration
    migration.make_writer = bug
    ended: list[BaseException] = []

    def run() -> None:
        try:
            migration.run(str(attempt.incoming.address))
        except ZeroDivisionError as error:
            ended.append(error)

    target = threading.Thread(target=lambda: suppressed(attempt.incoming.serve))
    target.start()
    run()
    attempt.incoming.cancel()
    target.join(rig.PATIENCE_S)
    assert ended
    assert attempt.statuses[-1] is MigrationStatus.FAILED
    assert "ZeroDivisionError" in (migration.info().error_desc or "")
    guest.work(4)


def suppressed(call: Callable[[], object]) -> None:
    """Call it; how it ends is not the question."""
    with suppress(SealiftError):
        call()


def test_a_guest_that_is_ended_while_it_moves_gives_the_migration_up_with_one_sentence(world: rig.World) -> None:
    guest = world.start()
    guest.work(4)
    user = controlled(guest)
    attempt = rig.attempt(world, guest)
    target = threading.Thread(target=lambda: suppressed(attempt.incoming.serve))
    target.start()
    user.adjust(lambda _: Parameters(max_bandwidth=10_000))
    begun = threading.Event()

    def watch(event: GuestEvent) -> None:
        if event == MigrationChanged(Direction.OUTGOING, MigrationStatus.ACTIVE):
            begun.set()

    user.events.listen(watch)
    user.migrate(str(attempt.incoming.address))
    assert begun.wait(rig.PATIENCE_S)
    user.close()
    attempt.incoming.cancel()
    target.join(rig.PATIENCE_S)
    info = user.migration()
    assert info is not None
    assert (info.status, info.error_desc) == ("cancelled", "the guest was ended")
    assert guest.machine.state is RunState.SHUTDOWN


def test_what_is_typed_during_a_handover_reaches_the_guest_that_stays(world: rig.World) -> None:
    guest = world.start()
    guest.work(4)
    guest.machine.pause()
    guest.machine.begin_handover()
    before = guest.machine.devices.serial.save()
    guest.machine.type_in(b"hello")
    assert guest.machine.devices.serial.save() == before
    guest.machine.take_back()
    assert guest.machine.state is RunState.PAUSED
    assert b"hello" in guest.machine.devices.serial.save()

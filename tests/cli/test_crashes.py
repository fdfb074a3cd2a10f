"""The crash matrix with VMMs that are killed themselves: real hosts, and SIGKILL at every message.

Platforms and links: `tests/migration/test_crash_matrix.py`.
"""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Callable
from functools import partial

import pytest

from harness import PATIENCE_S, Sealift, processes_naming, wait_for_end_of
from migration.losses import on_the_wire, once, rules
from migration.network import tampering
from sealift.cli.places import Host, Places, default_owner
from sealift.cli.qmp_client import QmpClient
from sealift.cli.tokens import brought, exported
from sealift.cli.watch import Display, Order, migrate, moved
from sealift.errors import LostError
from sealift.guest.handler.commit import HANDOVER, Fate, Lost, Passage, State, fate
from sealift.owner.owner import Owner
from sealift.vmm.migration.transport import TcpAddress

from .test_migrate import LEDGER, source, target, updates

UNSEEN = Display(lambda _: None, lambda _: None)


def works(process: Sealift) -> None:
    """The guest makes progress there from now on, and found no fault."""
    printed = len(process.stdout.text)
    process.stdout.wait_until(lambda text: len(updates(text[printed:])) > 3, "progress")
    assert "FAULT" not in process.stdout.text


def kill(process: Sealift, host: Host) -> None:
    """Kill a VMM; nothing that it started on its host outlives it."""
    process.process.kill()
    process.wait()
    wait_for_end_of(list(processes_naming(host.path)))


def move(guest: str, host: Host, address: str, passage: Passage, lose: Callable[[], None]) -> bool:
    """Move the guest to an address, and lose somebody while the message is on its way; whether it has moved then.

    Raises:
        LostError: it was the source.
    """
    target_address = TcpAddress("127.0.0.1", int(address.rpartition(":")[2]))
    wire = tampering(target_address, *rules(passage))
    with wire as net, QmpClient(host.run, guest, PATIENCE_S) as qmp:
        net.at[on_the_wire(passage)] = once(lose)
        try:
            return moved(migrate(qmp, Order(net.uri, {}, check=False), UNSEEN))
        finally:
            assert on_the_wire(passage) in net.names(passage.sender.name.lower()), net.log


@pytest.mark.attack(
    "everything at once", "kills the target's VMM at every message of a migration", gains="denial of service"
)
@pytest.mark.timeout(6 * PATIENCE_S)
def test_one_guest_outlives_a_target_killed_at_every_message_but_the_last(
    sealift: Callable[..., Sealift], places: Places, other_host: Host
) -> None:
    guest = source(sealift, *LEDGER)
    for passage in HANDOVER:
        victim, address = target(sealift, other_host, "tcp:127.0.0.1:0")
        has_moved = move("a", places.host, address, passage, partial(kill, victim, other_host))
        match fate(passage, Lost.TARGET):
            case Fate.HERE:
                assert not has_moved, passage
                works(guest)
            case Fate.OWNER:
                assert not has_moved, passage
                request, _ = exported(places.host, "a")
                word = Owner(default_owner()).resume(request, "it was killed")
                with QmpClient(places.host.run, "a") as qmp:
                    assert qmp.execute("query-status")["running"] is False
                    assert "runs on here" in brought(qmp, word)
                works(guest)
            case Fate.NOWHERE:
                assert has_moved, passage
                assert passage.source is State.GONE, "the target had the only right to run"
                assert guest.wait() == 0
            case impossible:
                pytest.fail(f"{passage} must not lead to {impossible}")
    assert processes_naming(places.host.path) == {}


@pytest.mark.attack(
    "everything at once",
    "kills the source's VMM while any message of a migration is on its way",
    gains="denial of service",
)
@pytest.mark.parametrize("passage", HANDOVER, ids=lambda passage: passage.message.replace(" ", "-"))
def test_a_guest_whose_sources_vmm_is_killed_runs_at_the_target_or_nowhere(
    sealift: Callable[..., Sealift], places: Places, other_host: Host, passage: Passage
) -> None:
    victim = source(sealift, *LEDGER)
    survivor, address = target(sealift, other_host, "tcp:127.0.0.1:0")
    with contextlib.suppress(LostError):
        assert move("a", places.host, address, passage, partial(kill, victim, places.host)) is False
    if fate(passage, Lost.SOURCE) is Fate.THERE:
        works(survivor)
    else:
        assert fate(passage, Lost.SOURCE) is Fate.NOWHERE
        if passage.target is State.WAITING:  # nobody said who comes, so it waits for whoever does
            survivor.signal(signal.SIGINT)
        assert survivor.wait() == (0 if passage.target is State.WAITING else 1)
        assert passage.target is State.WAITING or "did not arrive" in survivor.stderr.text
        assert processes_naming(other_host.path) == {}
    assert processes_naming(places.host.path) == {}

"""The built-in guest on the KVM engine, between two VMMs: what runs in the portable engine's tests runs here too."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from migration import rig

PATIENCE_S = 300.0
"""The rig is about 20 times slower than a machine."""


@pytest.fixture
def world(tmp_path: Path, manufacturer: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[rig.World]:
    """Two hosts whose guests run on KVM; the manufacturer's keys, which take minutes in the rig, are the session's."""
    monkeypatch.setattr(rig, "PATIENCE_S", PATIENCE_S)
    tmp_path.chmod(0o700)
    shutil.copytree(manufacturer, tmp_path / "manufacturer")
    with rig.world(tmp_path, rig.recipe(vcpus=2)) as found:
        found.engine = "kvm"
        yield found


@pytest.mark.timeout(2 * PATIENCE_S)
def test_a_ledger_moves_and_finds_every_page_as_it_left_it(world: rig.World) -> None:
    guest = world.start()
    assert guest.machine.platform.info().engine == "kvm"
    guest.work(20)
    attempt = rig.attempt(world, guest)
    attempt.begin()
    info = attempt.end()
    assert info.status == "completed", (info.error_desc, attempt.refused, guest.machine.report)
    moved = attempt.guest()
    moved.work(20)
    console = guest.text + moved.text
    assert "FAULT" not in console
    counts = list(rig.chain_in(console))
    assert counts == list(range(4, max(counts) + 1, 4)), "none twice, none left out"
    assert rig.SECRET not in attempt.wire

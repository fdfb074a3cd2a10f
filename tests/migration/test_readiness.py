"""A guest that does not say that it can be migrated stays where it is, whether or not its VMM asks first."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from sealift.errors import UserError
from sealift.vmm.guest import Guest
from sealift.vmm.migration.parameters import Parameters
from sealift.vmm.platform import Platform
from sealift.wire.channel import socket_pair

from . import rig

_PLATFORM = """
import pathlib, sys
from sealift.silicon.engines.interface import GuestSays
from sealift.silicon.engines.unicorn.engine import UnicornEngine
from sealift.silicon.process.__main__ import main
willing = pathlib.Path(sys.argv.pop())
UnicornEngine.says = property(lambda _: GuestSays(aware=True, ready=willing.exists()))
main()
"""
"""A platform process whose guests are ready while a file exists."""


class MoodyWorld(rig.World):
    """A world whose guest can be migrated only while it is willing."""

    @property
    def _mood(self) -> Path:
        return self.path / "willing"

    def say(self, *, willing: bool) -> None:
        """The guest writes MSR_KVM_MIGRATION_CONTROL."""
        self._mood.touch() if willing else self._mood.unlink(missing_ok=True)

    def platform(self, host: str) -> Platform:
        """A platform process on a host, whose engine tells the guest's mood."""
        ours, theirs = socket_pair()
        with theirs:
            arguments = [str(theirs.fileno()), str(self.path / host), str(self.path / "manufacturer"), "unicorn"]
            command = [sys.executable, "-c", _PLATFORM, *arguments, str(self._mood)]
            process = subprocess.Popen(command, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL)
        return Platform(process, ours)


@pytest.fixture
def moody(world: rig.World) -> MoodyWorld:
    """The usual world, with such a guest; the usual one ends it."""
    found = MoodyWorld(world.path, world.owner, world.recipe, guests=world.guests)
    found.say(willing=False)
    return found


def test_a_user_is_told_why_such_a_guest_cannot_be_migrated(moody: MoodyWorld) -> None:
    guest = moody.start()
    user = Guest("ledger", Parameters())
    user.attach(guest.machine, guest.launched)
    (reason,) = user.blocked_reasons()
    with pytest.raises(UserError) as refused:
        user.migrate("unix:/nobody/is/asked")
    assert str(refused.value) == f"guest ledger cannot be migrated: {reason}"
    assert user.migration() is None
    moody.say(willing=True)
    assert user.blocked_reasons() == ()


def test_a_vmm_that_does_not_ask_gets_no_offer(moody: MoodyWorld) -> None:
    guest = moody.start()
    attempt = rig.attempt(moody, guest)
    attempt.begin()
    info = attempt.end(listening=True)
    assert info.status == "failed"
    assert "does not say that it can be migrated" in (info.error_desc or "")
    guest.work(4)


def test_a_guest_that_takes_its_readiness_back_while_it_moves_runs_on_here(moody: MoodyWorld) -> None:
    moody.say(willing=True)
    guest = moody.start()
    guest.work(4)

    def sulk(data: bytes, _: int) -> bytes:
        moody.say(willing=False)  # what is sent comes after the offer
        return data

    attempt = rig.attempt(moody, guest, edit=sulk)
    attempt.begin()
    info = attempt.end()
    assert info.status == "failed"
    assert "does not say that it can be migrated" in (info.error_desc or "")
    guest.work(4)

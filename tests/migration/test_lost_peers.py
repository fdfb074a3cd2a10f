"""A peer that falls silent after FINAL leaves a guest fenced, never twice, and always with a way out."""

from __future__ import annotations

import base64
import contextlib
import socket
import stat
import threading
from pathlib import Path

import pytest

from sealift.errors import SealiftError, UserError
from sealift.owner.decisions import Outcome
from sealift.vmm.migration.patience import Patience
from sealift.vmm.migration.transport import SILENCE_LIMIT_S, TcpAddress, connect
from sealift.vmm.qmp.commands import COMMANDS
from sealift.vmm.qmp.message import Request
from sealift.vmm.runstate import RunState
from sealift.wire.platform import Phase

from . import rig
from .test_orders import controlled


class Relay:
    """A network between source and target that swallows everything of one direction, from FINAL on."""

    def __init__(self, target: TcpAddress, *, swallow_final: bool) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._target = target
        self._swallow_final = swallow_final
        self._final = threading.Event()
        self.uri = f"tcp:127.0.0.1:{self._listener.getsockname()[1]}"
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        source, _ = self._listener.accept()
        self._listener.close()
        with source, socket.create_connection((self._target.host, self._target.port)) as target:
            back = threading.Thread(target=self._carry, args=(target, source))
            back.start()
            self._carry(source, target, forth=True)
            back.join()

    def _carry(self, start: socket.socket, end: socket.socket, *, forth: bool = False) -> None:
        with contextlib.suppress(OSError):  # either end may leave at any time
            while data := start.recv(1 << 16):
                if forth and b"SLTK" in data:
                    self._final.set()
                if not (self._final.is_set() and forth is self._swallow_final):
                    end.sendall(data)
        with contextlib.suppress(OSError):
            end.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        """Wait for both ends to leave."""
        self._thread.join(rig.PATIENCE_S)
        assert not self._thread.is_alive()


def silenced(world: rig.World, guest: rig.Guest, path: Path, *, swallow_final: bool) -> tuple[rig.Attempt, bytes]:
    """A migration whose handover is swallowed; the token that the target kept."""
    world.token_path = path
    attempt = rig.attempt(world, guest)
    attempt.migration.patience = Patience(reply_s=1.0)
    attempt.incoming.patience = Patience(reply_s=2.0 if swallow_final else 30.0, last_word_s=2.0)
    address = attempt.incoming.address
    assert isinstance(address, TcpAddress)
    relay = Relay(address, swallow_final=swallow_final)
    target = threading.Thread(target=lambda: serve(attempt))
    target.start()
    info = attempt.migration.run(relay.uri)
    target.join(rig.PATIENCE_S)
    relay.close()
    assert info.status == "failed"
    assert info.x_sealift_fenced
    assert "has not answered for 1 s" in (info.error_desc or "")
    assert "sealift token import ledger FILE" in (info.error_desc or "")
    assert guest.machine.platform.status().phase is Phase.FENCED
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    return attempt, path.read_bytes()


def serve(attempt: rig.Attempt) -> None:
    """The target's side."""
    try:
        attempt.arrived = attempt.incoming.serve()
    except SealiftError as error:
        attempt.refused = str(error)


@pytest.mark.attack("network", "swallows everything from FINAL on", gains="denial of service")
def test_a_swallowed_final_ends_with_the_guest_running_at_the_source_once_the_token_is_brought(
    world: rig.World, tmp_path: Path
) -> None:
    guest = world.start()
    guest.work(4)
    attempt, token = silenced(world, guest, tmp_path / "token", swallow_final=True)
    assert attempt.arrived is None
    assert str(tmp_path / "token") in (attempt.refused or "")
    attempt.migration.settle(token)
    assert not attempt.migration.info().x_sealift_fenced
    guest.work(8)


@pytest.mark.attack("network", "swallows everything from STARTED on", gains="denial of service")
def test_a_swallowed_started_ends_with_the_guest_at_the_target_alone(world: rig.World, tmp_path: Path) -> None:
    guest = world.start()
    guest.work(4)
    attempt, token = silenced(world, guest, tmp_path / "token", swallow_final=False)
    there = attempt.guest()
    assert attempt.arrived is not None
    assert attempt.arrived.token_path == tmp_path / "token"
    user = controlled(guest)
    user._migration = attempt.migration
    call = COMMANDS.find("x-sealift-settle").bind(
        Request("x-sealift-settle", {"token": base64.b64encode(token).decode()}), user
    )
    assert call() == {}
    assert attempt.migration.info().status == "completed"
    assert guest.machine.state is RunState.POSTMIGRATE
    assert guest.machine.platform.status().phase is Phase.GONE
    with pytest.raises(UserError, match="waits for no token"):
        user.settle_migration(token)
    there.work(4)


def test_a_guest_whose_target_is_lost_runs_on_at_its_owners_word(world: rig.World, tmp_path: Path) -> None:
    guest = world.start()
    guest.work(4)
    attempt, kept = silenced(world, guest, tmp_path / "token", swallow_final=True)
    request = attempt.migration.resume_request()
    for at in (10, 30, 60, 120, 160):
        altered = bytearray(request)
        altered[at] ^= 1
        with pytest.raises(SealiftError):
            world.owner.resume(bytes(altered))
    assert attempt.migration.info().x_sealift_fenced
    word = world.owner.resume(request, "the host burnt down")
    assert world.owner.resume(request) == word
    attempt.migration.settle(word)
    assert guest.machine.platform.status().phase is Phase.RUNNING
    guest.work(8)
    with pytest.raises(UserError, match="waits for no token"):
        attempt.migration.settle(kept)
    (said, _) = [each for each in world.owner.log.read() if each.outcome is Outcome.RESUMED]
    assert said.reason.endswith("is lost: the host burnt down")
    assert said.launch in said.sentence
    again = rig.attempt(world, guest)
    again.begin()
    assert again.end().status == "completed"
    again.guest().work(4)


@pytest.mark.attack(
    "tokens",
    "runs the guest after its owner gave it up as lost, and asks for more",
    gains="a second copy, which can move nowhere",
)
def test_what_an_owner_gave_up_as_lost_gets_nothing_more(world: rig.World, tmp_path: Path) -> None:
    """The owner was wrong: the target runs. Two copies are what it was warned of; one of them goes nowhere."""
    guest = world.start()
    guest.work(4)
    attempt, _ = silenced(world, guest, tmp_path / "token", swallow_final=False)
    there = attempt.guest()
    attempt.migration.settle(world.owner.resume(attempt.migration.resume_request()))
    guest.work(4)
    onward = rig.attempt(world, there)
    onward.begin()
    info = onward.end(listening=True)
    assert info.status == "failed"
    assert "what runs there must not be: in migration" in (info.error_desc or "")
    there.work(4)


@pytest.mark.attack("tokens", "forges the token that settles a fenced guest", gains="nothing")
def test_a_forged_token_settles_nothing(world: rig.World, tmp_path: Path) -> None:
    guest = world.start()
    guest.work(4)
    attempt, token = silenced(world, guest, tmp_path / "token", swallow_final=True)
    with pytest.raises(SealiftError):
        attempt.migration.settle(token[:-1] + bytes([token[-1] ^ 1]))
    assert attempt.migration.info().x_sealift_fenced
    assert guest.machine.state is RunState.FINISH_MIGRATE


def test_a_delivered_token_leaves_no_file(world: rig.World, tmp_path: Path) -> None:
    world.token_path = tmp_path / "token"
    guest = world.start()
    attempt = rig.attempt(world, guest)
    attempt.begin()
    assert attempt.end().status == "completed"
    attempt.guest()
    assert attempt.arrived is not None
    assert attempt.arrived.token_path is None
    assert not list(tmp_path.iterdir())


def test_a_vanished_host_is_noticed_by_the_connection_itself() -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as listening,
        connect(TcpAddress("127.0.0.1", listening.getsockname()[1])) as sock,
    ):
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == SILENCE_LIMIT_S * 1000

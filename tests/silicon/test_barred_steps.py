"""Steps that let a guest run, or end its running, are whole before any vCPU can enter, though a VMM may always ask.

The steps are taken in this process, so that a test can try to enter in the middle of one.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from sealift.address import Gpa, RamBlock, RamLayout
from sealift.errors import RefusedError
from sealift.guest.handler.commit import State
from sealift.guest.programs import program, startup_blob
from sealift.launch.image import GuestRecipe
from sealift.launch.secrets import MigrationSecret
from sealift.sev import secret, session
from sealift.sev.certificate import Certificate
from sealift.sev.policy import Policy
from sealift.silicon.engines.choice import choose
from sealift.silicon.process.server import Server
from sealift.silicon.process.vm import VirtualMachine
from sealift.silicon.processor.firmware import SecureProcessor
from sealift.silicon.processor.identity import PlatformIdentity
from sealift.wire import handler
from sealift.wire import platform as wire
from sealift.wire.channel import Channel

LAYOUT = RamLayout((RamBlock("pc.ram", Gpa(0), 16 << 20),))


@dataclass
class Platform:
    """A platform's server without its process."""

    processor: SecureProcessor
    server: Server

    @property
    def vm(self) -> VirtualMachine:
        """The VM."""
        assert self.server._vm is not None
        return self.server._vm

    def ask(self, request: wire.Request) -> Any:  # any reply
        """The answer to a request, which must not be a failure."""
        reply, _ = self.server._answer(request)
        assert not isinstance(reply, wire.Failed), reply
        return reply

    def create(self) -> None:
        """An empty VM."""
        blocks = tuple(wire.Block(block.name, block.gpa, block.size) for block in LAYOUT.blocks)
        self.ask(wire.CreateVm(blocks, 1))

    def launch_until_finish(self) -> None:
        """A guest with a migration key, up to LAUNCH_FINISH."""
        self.create()
        digest = self.ask(wire.GetPlatformInfo()).handler_digest
        recipe = GuestRecipe(startup_blob(), LAYOUT, 1, digest, program("idle"))
        owner = session.offer(Certificate.decode(self.ask(wire.PdhCertExport()).pdh), Policy.NODBG)
        self.ask(wire.LaunchStart(int(Policy.NODBG), owner.dh_cert, owner.session))
        for piece in recipe.pieces():
            self.vm.memory.shared.data[piece.gpa : piece.gpa + len(piece.data)] = bytes(piece.data)
            self.ask(wire.LaunchUpdateData(piece.gpa, len(piece.data)))
        measure = self.ask(wire.LaunchMeasure()).measure
        table = secret.build_table([MigrationSecret(os.urandom(16), os.urandom(32)).entry()])
        header, payload = secret.make_packet(owner.transport, measure, table)
        self.ask(wire.LaunchSecret(header, payload, recipe.areas().secret.gpa))

    def enterable(self) -> bool:
        """Whether a vCPU could enter now."""
        try:
            with self.vm.gate.entered():
                return True
        except RefusedError:
            return False


@pytest.fixture
def platform(tmp_path: Path) -> Iterator[Platform]:
    with make_platform(tmp_path) as made:
        yield made


@contextmanager
def make_platform(path: Path) -> Iterator[Platform]:
    """A platform with a chip of its own."""
    processor = SecureProcessor(PlatformIdentity(path / "identity", path / "manufacturer"))
    processor.init()
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        yield Platform(processor, Server(ours, processor, choose("unicorn")))
    processor.close()


def behind(monkeypatch: pytest.MonkeyPatch, owner: object, name: str, look: Callable[[], None]) -> None:
    """Look when the method has done its part, and nothing behind it."""
    method = getattr(owner, name)

    def watched(*arguments: object) -> object:
        result = method(*arguments)
        look()
        return result

    monkeypatch.setattr(owner, name, watched)


def test_no_vcpu_enters_before_the_handler_has_taken_its_key_out_of_memory(
    platform: Platform, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A VMM that set the registers would have the guest read the key out to it."""
    platform.launch_until_finish()
    seen: list[bool] = []
    behind(monkeypatch, platform.processor, "launch_finish", lambda: seen.append(platform.enterable()))
    platform.ask(wire.LaunchFinish())
    assert seen == [False]
    assert platform.enterable(), "and then the guest runs"


@pytest.mark.attack("requests", "runs a vCPU in the middle of RECEIVE_FINISH", gains="nothing")
def test_no_vcpu_enters_before_a_received_guest_is_settled(
    platform: Platform, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it wrote meanwhile would be made a hole."""
    with make_platform(tmp_path / "source") as source:
        source.launch_until_finish()
        source.ask(wire.LaunchFinish())
        target = platform.ask(wire.PdhCertExport())
        started = source.ask(wire.SendStart(target.pdh, target.cert_chain, b""))
        platform.create()
        own = source.ask(wire.PdhCertExport())
        platform.ask(wire.ReceiveStart(started.policy, own.pdh, started.session))
    seen: list[bool] = []
    behind(monkeypatch, platform.processor, "receive_finish", lambda: seen.append(platform.enterable()))
    platform.ask(wire.ReceiveFinish())
    assert seen == [False]
    assert platform.enterable()


@pytest.mark.attack("requests", "asks the handler in the middle of SEND_FINISH, to lift its bar", gains="nothing")
def test_asking_the_handler_lets_no_vcpu_past_send_finish(platform: Platform, monkeypatch: pytest.MonkeyPatch) -> None:
    platform.launch_until_finish()
    platform.ask(wire.LaunchFinish())
    _, (theirs, *_) = platform.server._answer(wire.OpenHandler())
    sock = socket.socket(fileno=os.dup(theirs))
    channel: Channel[handler.HandlerReply, wire.Message] = Channel(sock, handler.HandlerReply)
    own = platform.ask(wire.PdhCertExport())
    platform.ask(wire.SendStart(own.pdh, own.cert_chain, b""))
    seen: list[bool] = []

    def ask_and_enter(*_: object) -> None:
        channel.send(handler.GetStatus())
        status = channel.receive_alone()
        assert isinstance(status, handler.HandlerStatus)
        assert status.state == State.YIELDED.name
        seen.append(platform.enterable())

    monkeypatch.setattr(platform.processor, "send_finish", ask_and_enter)
    with sock:
        platform.ask(wire.SendFinish())
    assert seen == [False]

"""Two hosts and an owner: real platform processes, guests of the built-in programs, migrations over real sockets."""

from __future__ import annotations

import os
import re
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import introspection
from sealift.address import Gpa, RamBlock, RamLayout
from sealift.errors import SealiftError, sentence
from sealift.guest.handler.digest import handler_digest
from sealift.guest.programs import program, startup_blob
from sealift.launch.image import GuestRecipe
from sealift.launch.secrets import GUEST_GUID, NO_FLAGS, MigrationFlags
from sealift.owner.authority import OwnerAuthority
from sealift.owner.definition import GuestDefinition
from sealift.owner.owner import Owner
from sealift.sev.policy import DEFAULT_POLICY, Policy
from sealift.sev.secret import SecretEntry
from sealift.vmm.console import Console
from sealift.vmm.launch import Launched, launch, load_plain
from sealift.vmm.machine import Machine, MachineSpec
from sealift.vmm.memory import Buffer
from sealift.vmm.migration.attempt import Attempt as SealiftAttempt
from sealift.vmm.migration.clock import SystemClock
from sealift.vmm.migration.examining import Examiner
from sealift.vmm.migration.landing import TargetHost
from sealift.vmm.migration.parameters import Parameters
from sealift.vmm.migration.source import Migration
from sealift.vmm.migration.stats import MigrationInfo
from sealift.vmm.migration.status import MigrationStatus
from sealift.vmm.migration.streamio import StreamWriter
from sealift.vmm.migration.target import Arrived, Incoming
from sealift.vmm.migration.transport import Address, TcpAddress
from sealift.vmm.platform import Platform
from sealift.vmm.runstate import RunState
from sealift.wire import platform as wire
from sealift.wire.inquiry import Answer, Question

SECRET = b"a secret that the owner planted, 45 bytes long"
MARKER = "SEALIFT-CONTROL-MARKER"
COMMAND_LINE = f"ws=16 flip=2 every=4 burst=4 pause=10000 marker={MARKER}"
PATIENCE_S = 60.0
"""For a condition that is sure to come; a limit only so that a bug is a failure and not a hang."""


class Tape(StreamWriter):
    """A writer that keeps what it sends, and can change or cut it.

    Attributes:
        sent_bytes: the wire, as sent.
        edit: gets every write's bytes and the count of those before; gives what is sent instead.
    """

    def __init__(self, sock: socket.socket, spend: Callable[[int], None]) -> None:
        super().__init__(sock, spend)
        self.sent_bytes = bytearray()
        self.edit: Callable[[bytes, int], bytes] | None = None

    def write(self, *parts: Buffer) -> None:
        """Keep, edit, send."""
        data = b"".join(bytes(part) for part in parts)
        if self.edit is not None:
            data = self.edit(data, len(self.sent_bytes))
        self.sent_bytes += data
        super().write(data)


class Screen:
    """A console, and all it ever showed (a console itself keeps only the end).

    Attributes:
        stirred: is set whenever something is shown, or the guest's run state changes.
    """

    def __init__(self) -> None:
        self.console = Console()
        self.stirred = threading.Event()
        self._shown = bytearray(self.console.listen(self._show))

    def stir(self, _: RunState) -> None:
        """The guest's run state has changed."""
        self.stirred.set()

    def _show(self, data: bytes) -> None:
        self._shown += data
        self.stirred.set()

    @property
    def tail(self) -> str:
        """The last lines."""
        return self._shown[-1000:].decode()

    @property
    def text(self) -> str:
        """Everything."""
        return self._shown.decode()


@dataclass
class Guest:
    """A guest that runs somewhere."""

    machine: Machine
    launched: Launched
    screen: Screen
    name: str = "ledger"

    @property
    def text(self) -> str:
        """What its console has shown here."""
        return self.screen.text

    def updates(self) -> int:
        """The last count that vCPU 0 reported here."""
        return max(chain_in(self.screen.tail), default=0)

    def wait_until(self, condition: Callable[[], bool]) -> None:
        """Wait for a condition on what the console shows, of a guest that runs."""
        stirred = self.screen.stirred
        stirred.clear()
        while not condition():
            assert self.machine.state is RunState.RUNNING, (self.machine.state, self.machine.report)
            assert stirred.wait(PATIENCE_S), f"the guest says nothing any more:\n{self.text[-2000:]}"
            stirred.clear()

    def work(self, updates: int) -> None:
        """Wait until it made so many more updates; none may have found a fault."""
        self.wait_until(lambda: self.updates() > 0 or "FAULT" in self.screen.tail)
        wanted = self.updates() + updates
        self.wait_until(lambda: self.updates() >= wanted or "FAULT" in self.screen.tail)
        assert "FAULT" not in self.text, self.text


@dataclass
class World:
    """Hosts, owner and everything that was started, to be ended with the test."""

    path: Path
    owner: Owner
    recipe: GuestRecipe
    guests: list[Guest] = field(default_factory=list)
    notices: list[str] = field(default_factory=list)
    token_path: Path | None = None
    engine: str = "auto"
    target: Callable[[], Platform] | None = None
    """Starts a platform process where guests go; host B if None."""
    policy: Policy = DEFAULT_POLICY
    plain: bool = False
    """The guest is not confidential, nor is one that is awaited."""

    def platform(self, host: str) -> Platform:
        """A platform process on a host."""
        return Platform.start(self.path / host, self.path / "manufacturer", engine=self.engine)

    def start(self) -> Guest:
        """Launch the guest on host A and run it."""
        if self.plain:
            return self._start_plain()
        screen = Screen()
        platform = self.platform("a")
        recipe = self.recipe.under(self.policy)
        spec = MachineSpec(recipe.layout, recipe.vcpus, es=recipe.es)
        machine = Machine(platform, spec, screen.console, screen.stir)
        launched = launch(platform, machine.memory, recipe, self.owner).finish()
        machine.resume()
        guest = Guest(machine, launched, screen)
        self.guests.append(guest)
        return guest

    def _start_plain(self) -> Guest:
        screen = Screen()
        platform = self.platform("a")
        spec = MachineSpec(self.recipe.layout, self.recipe.vcpus, plain=True)
        machine = Machine(platform, spec, screen.console, screen.stir)
        guest = Guest(machine, load_plain(platform, machine.memory, self.recipe), screen)
        machine.resume()
        self.guests.append(guest)
        return guest

    def host(
        self, console: Console, owner: Owner | None = None, run_state: Callable[[RunState], None] = lambda _: None
    ) -> TargetHost:
        """A host that takes guests."""
        return TargetHost(
            platform=self.target or (lambda: self.platform("b")),
            owner=owner or self.owner,
            startup=startup_blob(),
            console=lambda: console,
            run_state=run_state,
            token_path=self.token_path,
            plain=self.plain,
            notify=self.notices.append,
        )

    def close(self) -> None:
        """End all guests."""
        for guest in self.guests:
            guest.machine.close()


@dataclass
class Attempt:
    """A migration under way."""

    migration: Migration
    incoming: Incoming
    screen: Screen
    world: World
    statuses: list[MigrationStatus]
    tapes: list[Tape]
    _threads: list[threading.Thread] = field(default_factory=list)
    info: MigrationInfo | None = None
    arrived: Arrived | None = None
    refused: str | None = None
    uri: str | None = None
    """Where the source goes, if that is not where the target listens."""

    @property
    def wire(self) -> bytes:
        """What the source sent."""
        return bytes(self.tapes[0].sent_bytes)

    def cut(self, *, deliver: bool) -> None:
        """Break the line while the source sends: nothing comes back any more, and what it sends arrives or does not."""
        sock, way = (self.incoming._sock, socket.SHUT_WR) if deliver else (self.migration._sock, socket.SHUT_RDWR)
        assert sock is not None
        sock.shutdown(way)

    def begin(self) -> None:
        """Start both sides."""

        def source() -> None:
            self.info = self.migration.run(self.uri or str(self.incoming.address))

        def target() -> None:
            try:
                self.arrived = self.incoming.serve()
            except SealiftError as error:
                # Not the error itself: its traceback would keep what the target let go of.
                self.refused = sentence(error)

        self._threads = [threading.Thread(target=work, name=work.__name__) for work in (target, source)]
        for thread in self._threads:
            thread.start()

    def end(self, *, listening: bool = False) -> MigrationInfo:
        """Wait for both sides; a target that may be left `listening` for another source is told to give up."""
        target, source = self._threads
        for thread in (source, target):
            if thread is target and listening:
                self.incoming.cancel()
            thread.join(PATIENCE_S)
            assert not thread.is_alive(), f"the {thread.name} hangs"
        assert self.info is not None
        introspection.judge(self.info, "MigrationInfo")
        return self.info

    def guest(self) -> Guest:
        """The guest at the target."""
        assert self.arrived is not None, (self.info, self.refused)
        found = Guest(self.arrived.machine, self.arrived.launched, self.screen, self.arrived.name)
        self.world.guests.append(found)
        return found


def provision(world: World, *hosts: str) -> None:
    """Give hosts one external owner."""
    authority = OwnerAuthority.generate()
    for host in hosts:
        platform = world.platform(host)
        try:
            signed = authority.signed(platform.request(wire.PekCsr(), wire.PekRequest).pek)
            platform.do(wire.PekCertImport(signed, authority.certificate.encode()))
        finally:
            platform.close()


def attempt(
    world: World,
    guest: Guest,
    parameters: Parameters | None = None,
    edit: Callable[[bytes, int], bytes] | None = None,
    owner: Owner | None = None,
    address: Address | None = None,
    tls: Path | None = None,
) -> Attempt:
    """A migration of `guest`, ready to begin; the target has the TLS credentials in directory `tls`."""
    screen = Screen()
    incoming = Incoming(
        address or TcpAddress("127.0.0.1", 0), world.host(screen.console, owner, screen.stir), str(tls or "")
    )
    statuses: list[MigrationStatus] = []
    tapes: list[Tape] = []
    migration = Migration(
        guest.machine, guest.launched, guest.name, parameters or Parameters(), statuses.append, SystemClock()
    )

    def tape(sock: socket.socket, spend: Callable[[int], None]) -> Tape:
        made = Tape(sock, spend)
        made.edit = edit
        tapes.append(made)
        return made

    migration.make_writer = tape
    return Attempt(migration, incoming, screen, world, statuses, tapes)


def chase(migration: SealiftAttempt, guest: Guest, rounds: int = 2) -> None:
    """Hold each of the first rounds up until the guest has written, however fast this machine copies."""

    def hold(number: int) -> None:
        if number <= rounds:
            guest.work(16)

    migration.pass_begun = hold


def chain_in(text: str) -> dict[int, str]:
    """The chain value at each update count that vCPU 0 reported in a console's text."""
    return {int(count): value for count, value in re.findall(r"^ledger 0 (\d+) (\w{64})$", text, re.MULTILINE)}


def recipe(vcpus: int = 1, megabytes: int = 16, command_line: str = COMMAND_LINE) -> GuestRecipe:
    """A ledger guest."""
    return GuestRecipe(
        startup=startup_blob(),
        layout=RamLayout((RamBlock("pc.ram", Gpa(0), megabytes << 20),)),
        vcpus=vcpus,
        handler_digest=bytes(32),
        kernel=program("ledger"),
        payload=b"payload " * 1001,
        command_line=command_line,
    )


@contextmanager
def world(
    path: Path, made: GuestRecipe, policy: Policy = DEFAULT_POLICY, flags: MigrationFlags = NO_FLAGS
) -> Iterator[World]:
    """Hosts with their identities in `path`, and a fresh owner that trusts them; its guest has that policy."""
    owner_path = path / f"owner-{os.urandom(4).hex()}"
    owner_path.mkdir(mode=0o700)
    entries = (SecretEntry(GUEST_GUID, SECRET),)
    owner = Owner(owner_path, GuestDefinition(made, policy=policy, entries=entries, flags=flags))
    platform = Platform.start(path / "a", path / "manufacturer")
    try:
        ca_chain = platform.info().ca_chain
    finally:
        platform.close()
    owner.trust(ca_chain[len(ca_chain) // 2 :])
    owner.accept_handler(handler_digest())
    found = World(path, owner, made, policy=policy)
    try:
        yield found
    finally:
        found.close()


class _Nobody(Examiner):
    """For a target that nobody asks."""

    def __init__(self) -> None:
        pass

    def judge(self, question: Question) -> Answer:
        """Not due."""
        raise AssertionError(question)


NOBODY = _Nobody()

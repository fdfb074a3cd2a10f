"""Platform processes with guests in them, driven by hand: the VMM's side of the interface, without a VMM."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from sealift.address import PAGE_SIZE, Gpa, RamBlock, RamLayout
from sealift.guest.programs import program, startup_blob
from sealift.launch.image import GuestRecipe
from sealift.launch.secrets import MigrationSecret, pair_key
from sealift.sev import secret, session
from sealift.sev.certificate import Certificate
from sealift.sev.policy import DEFAULT_POLICY, Policy
from sealift.vmm.handler import HandlerClient
from sealift.vmm.memory import SharedMemory
from sealift.vmm.platform import Platform
from sealift.wire import handler as handler_wire
from sealift.wire import platform as wire
from sealift.wire.exits import VmmEnd
from sealift.wire.token import TokenKind

from . import board
from .code import forever, port_out

SMALL = RamLayout((RamBlock("ram", Gpa(0), 2 << 20),))
RECIPE = GuestRecipe(
    startup=startup_blob(),
    layout=RamLayout((RamBlock("pc.ram", Gpa(0), 16 << 20),)),
    vcpus=1,
    handler_digest=bytes(32),
    kernel=program("idle"),
)
"""A guest that starts, prints and halts."""


@dataclass
class Host:
    """A platform process and what its VMM holds of it."""

    platform: Platform
    vcpu: VmmEnd | None = None
    memory: SharedMemory | None = None
    measure: bytes = b""
    handler: HandlerClient | None = None
    pulls: int = field(default=0)

    # --- small guests, without owner and handler --------------------------------------------------------------

    def create(self, layout: RamLayout = SMALL, *, plain: bool = False) -> None:
        """A VM with one vCPU, of a confidential guest or a plain one."""
        self.memory = self.platform.create_vm(layout, 1, plain=plain)
        self.vcpu = self.platform.create_vcpu(0)

    def start_launch(self, policy: Policy = DEFAULT_POLICY) -> None:
        """LAUNCH_START for nobody: no session, so keys of zeros."""
        self.platform.do(wire.LaunchStart(int(policy), b"", b""))

    def load(self, gpa: int, data: bytes) -> None:
        """LAUNCH_UPDATE_DATA."""
        assert self.memory is not None
        self.memory.place(gpa, data)
        self.platform.do(wire.LaunchUpdateData(gpa, len(data)))

    def finish_launch(self) -> None:
        """Measure and finish."""
        self.measure = self.platform.request(wire.LaunchMeasure(), wire.Measurement).measure
        self.platform.do(wire.LaunchFinish())

    def launch_code(self, code: bytes, policy: Policy = DEFAULT_POLICY, **general: int) -> None:
        """A guest of a few instructions, in the memory and with the tables of the engine tests."""
        self.create()
        self.start_launch(policy)
        c = 1 << self.platform.info().cbit
        rights = c | board.PRESENT | board.WRITABLE
        tables = [_table(board.PDPT | rights), _table(board.PD | rights), _table(board.PT | rights)]
        leaves = b"".join((address | rights).to_bytes(8, "little") for address in range(0, SMALL.size, PAGE_SIZE))
        self.load(board.PML4, b"".join(tables) + leaves)
        self.load(board.CODE, code.ljust(PAGE_SIZE, b"\0"))
        self.finish_launch()
        names = ("rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rbp", "rsp", *(f"r{number}" for number in range(8, 16)))
        registers = wire.Registers(
            general=tuple(general.get(name, 0) for name in names),
            rip=board.CODE,
            rflags=2,
            cr0=0x8005_0033,
            cr2=0,
            cr3=board.PML4 | c,
            cr4=0x620,
            efer=0xD00,
        )
        self.platform.do(wire.SetRegisters(0, registers))

    # --- guests with a handler --------------------------------------------------------------------------------------

    def launch(self, recipe: GuestRecipe, migration: MigrationSecret | None, policy: Policy = DEFAULT_POLICY) -> None:
        """As an owner wants it; the start-up code is not run."""
        self.create(recipe.layout)
        self.launch_on(recipe, lambda _: migration, policy)

    def launch_on(
        self,
        recipe: GuestRecipe,
        secret_for: Callable[[bytes], MigrationSecret | None],
        policy: Policy = DEFAULT_POLICY,
    ) -> None:
        """Launch into the VM that exists, with the secret that an owner makes for its measurement."""
        recipe = replace(recipe, handler_digest=self.platform.info().handler_digest)
        certificates = self.platform.request(wire.PdhCertExport(), wire.PdhCertificates)
        owner = session.offer(Certificate.decode(certificates.pdh), policy)
        self.platform.do(wire.LaunchStart(int(policy), owner.dh_cert, owner.session))
        for piece in recipe.pieces():
            self.load(piece.gpa, piece.data)
        self.measure = self.platform.request(wire.LaunchMeasure(), wire.Measurement).measure
        migration = secret_for(self.measure)
        table = secret.build_table([] if migration is None else [migration.entry()])
        header, payload = secret.make_packet(owner.transport, self.measure, table)
        self.platform.do(wire.LaunchSecret(header, payload, recipe.areas().secret.gpa))
        self.platform.do(wire.LaunchFinish())

    def connect(self) -> HandlerClient:
        """Open the handler."""
        self.handler = self.platform.open_handler()
        return self.handler

    def close(self) -> None:
        """End the process and let go of all that it gave."""
        self.platform.close()
        if self.vcpu is not None:
            self.vcpu.close()

    def run(self) -> wire.Exit:
        """Ask the vCPU to run; what it answers first."""
        assert self.vcpu is not None
        self.vcpu.send(wire.Run())
        return self.vcpu.receive()


def _table(first: int) -> bytes:
    return first.to_bytes(8, "little").ljust(PAGE_SIZE, b"\0")


class Hosts:
    """Platform processes of one manufacturer; all end with the test."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._started: list[Host] = []

    def start(self, name: str = "a") -> Host:
        """A platform process of the host `name`."""
        host = Host(Platform.start(self._path / name, self._path / "manufacturer"))
        self._started.append(host)
        return host

    def close(self) -> None:
        """End them all."""
        for host in self._started:
            host.close()


def migrating(hosts: Hosts) -> tuple[Host, Host]:
    """A source, and a receiver whose owner approved it for that source; both handlers are open."""
    source, target = migrating_to(hosts, "b")
    return source, target


def migrating_to(hosts: Hosts, *targets: str) -> tuple[Host, ...]:
    """A source, and receivers on other hosts whose owner approved them for it; all handlers are open."""
    key, instance = os.urandom(32), os.urandom(16)
    source = hosts.start("a")
    source.launch(RECIPE, MigrationSecret(instance, key))
    found = [source]
    for name in targets:
        target = hosts.start(name)
        target.create(RECIPE.layout)
        target.launch_on(
            RECIPE.receiver(), lambda measure: MigrationSecret(instance, os.urandom(32), pair_key(key, measure))
        )
        found.append(target)
    for host in found:
        host.connect()
    return tuple(found)


def sendable(hosts: Hosts) -> tuple[Host, Host]:
    """A guest that its secure processor may send anywhere and that does nothing but output, and a host for it."""
    source, target = hosts.start("a"), hosts.start("b")
    source.launch_code(forever(port_out(1)), Policy(0), rdx=0x80)
    target.create()
    return source, target


def send_start(source: Host, target: Host) -> wire.SendStarted:
    """SEND_START for that target."""
    own = target.platform.request(wire.PdhCertExport(), wire.PdhCertificates)
    start = wire.SendStart(own.pdh, own.cert_chain, target.platform.info().ca_chain)
    return source.platform.request(start, wire.SendStarted)


def receive_start(source: Host, target: Host, started: wire.SendStarted) -> None:
    """RECEIVE_START for that source."""
    pdh = source.platform.request(wire.PdhCertExport(), wire.PdhCertificates).pdh
    target.platform.do(wire.ReceiveStart(started.policy, pdh, started.session))


def exchange_keys(source: Host, target: Host) -> None:
    """Offer, answer, confirmation."""
    assert source.handler is not None
    assert target.handler is not None
    answer = target.handler.blob(handler_wire.Answer(source.handler.blob(handler_wire.Offer(1))))
    target.handler.do(handler_wire.Confirmed(source.handler.blob(handler_wire.Confirm(answer))))


def carry(source: Host, target: Host, message: wire.Message) -> handler_wire.Sealed:
    """Have the source seal into slot 0, and the target open what lies there (if anything)."""
    assert source.handler is not None
    assert target.handler is not None
    sealed = source.handler.request(message, handler_wire.Sealed)
    if sealed.length:
        target.handler.slot_in(0)[: sealed.length] = source.handler.slot_out(0, sealed.length)
        target.handler.request(handler_wire.Open(0, sealed.length), handler_wire.Opened)
    return sealed


def send_round(source: Host, target: Host) -> None:
    """All that is unsent, and the token that closes the round."""
    assert source.handler is not None
    source.handler.request(handler_wire.BeginEpoch(), handler_wire.EpochBegun)
    while True:
        source.pulls += 1
        if not carry(source, target, handler_wire.Pull(0, source.pulls, 0, 256)).length:
            break
    carry(source, target, handler_wire.EndEpoch(0, 0))


def send_end(source: Host, target: Host) -> None:
    """Stop, last round, machine state, close: the target is PREPARED."""
    assert source.handler is not None
    source.handler.do(handler_wire.Stop())
    send_round(source, target)
    while carry(source, target, handler_wire.SealState(0)).length:
        """The next piece."""
    carry(source, target, handler_wire.Close(0))


def hand_token(giver: Host, taker: Host, kind: TokenKind) -> None:
    """Carry a token across."""
    assert giver.handler is not None
    assert taker.handler is not None
    taker.handler.deliver(giver.handler.fetch(kind))


@contextmanager
def hosts_in(path: Path) -> Iterator[Hosts]:
    """Hosts that keep their identities under `path`."""
    made = Hosts(path)
    try:
        yield made
    finally:
        made.close()

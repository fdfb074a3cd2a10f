"""The one VM of a platform process: memory, engine, vCPUs, handler, and the phase that all of them make up."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable

from sealift.address import PAGE_SHIFT, Gpa, RamLayout, pages_spanned
from sealift.errors import RefusedError, SealiftError, sentence
from sealift.guest.handler.commit import Role, State
from sealift.guest.handler.exchange import NO_KEY
from sealift.guest.handler.handler import NOT_READY, MigrationHandler
from sealift.guest.handler.interfaces import LaunchFacts
from sealift.guest.handler.mailbox import Mailbox
from sealift.launch.areas import Area, StartupAreas, areas_in_memory
from sealift.launch.secrets import MIGRATION_GUID, MigrationSecret, take_migration_secret
from sealift.launch.startup import StartupTable, read_startup_table
from sealift.sev.policy import Policy
from sealift.silicon.engines.interface import Engine, EngineFactory, VmShape
from sealift.silicon.memory.guest_memory import GuestMemory
from sealift.silicon.memory.plain_memory import PlainMemory
from sealift.silicon.memory.xts import KEY_BYTES
from sealift.silicon.process.gate import RunGate
from sealift.silicon.process.guest_access import GuestMachine, MonotonicClock, guest_access
from sealift.silicon.process.handler_service import HandlerService
from sealift.silicon.process.ring import Ring, incoming_ring, outgoing_ring
from sealift.silicon.process.vcpu_service import VcpuService
from sealift.wire.exits import PlatformEnd
from sealift.wire.obstacle import Code, Obstacle
from sealift.wire.platform import Phase

_PHASES = {
    State.RUNNING: Phase.RUNNING,
    State.YIELDED: Phase.RUNNING,
    State.OFFERED: Phase.RUNNING,
    State.SENDING: Phase.RUNNING,
    State.STOPPED: Phase.STOPPED,
    State.CLOSED: Phase.STOPPED,
    State.CLEARED: Phase.STOPPED,
    State.FENCED: Phase.FENCED,
    State.SERVING: Phase.FENCED,
    State.GONE: Phase.GONE,
    State.SAVING: Phase.RUNNING,
    State.HELD: Phase.STOPPED,
    State.SAVED: Phase.STOPPED,
    # A receiver that waits runs its own start-up code, which holds nothing of the guest to come.
    State.WAITING: Phase.RUNNING,
    State.ANSWERED: Phase.INCOMING,
    State.RECEIVING: Phase.INCOMING,
    State.PREPARED: Phase.INCOMING,
    State.BLANK: Phase.RUNNING,
    State.RESTORING: Phase.INCOMING,
    State.RESTORED: Phase.INCOMING,
    State.READY: Phase.INCOMING,
    State.FILLING: Phase.RUNNING,
    State.STARTED: Phase.RUNNING,
    State.ABORTED: Phase.GONE,
}


_CODES = {NO_KEY: Code.NO_KEY, NOT_READY: Code.NOT_READY}
"""What a handler says is in the way, for those who look at codes."""


class VirtualMachine:
    """A VM on an engine of `factory`; its memory encryption key, if any, is made here and dies with the process.

    `launch_phase` tells how far the secure processor is: CREATED, LAUNCHING, RUNNING, or SENDING, RECEIVING and GONE,
    when it moves the guest itself; `digest` is that of the handler modules that were loaded.
    """

    def __init__(
        self,
        layout: RamLayout,
        shape: VmShape,
        factory: EngineFactory,
        launch_phase: Callable[[], Phase],
        digest: bytes,
    ) -> None:
        self.layout = layout
        self.vcpu_count = shape.vcpus
        self._es, self._plain = shape.es, shape.plain
        self.memory = PlainMemory(layout) if shape.plain else GuestMemory(layout, os.urandom(KEY_BYTES))
        try:
            self.engine: Engine = factory.make(self.memory, shape)
        except BaseException:
            self.memory.close()
            raise
        self.gate = RunGate(self.phase)
        self.vcpus: dict[int, VcpuService] = {}
        self._launch_phase = launch_phase
        self._digest = digest
        self._handler: MigrationHandler | None = None
        self._areas: StartupAreas | None = None
        self._no_handler = "the guest has not been launched"
        self._rings: tuple[Ring, Ring] | None = None
        self._injected: list[Area] = []

    def phase(self) -> Phase:
        """Where the VM is in its life."""
        if self._plain:
            return Phase.PLAIN
        launched = self._launch_phase()
        if launched is not Phase.RUNNING or self._handler is None:
            return launched
        return _PHASES[self._handler.state]

    def blocked(self) -> tuple[Obstacle, ...]:
        """What stands in the way of every migration from here."""
        if self._handler is None:
            return (Obstacle(Code.NO_HANDLER, self._no_handler),)
        return tuple(Obstacle(_CODES[reason], reason) for reason in self._handler.blocked())

    def require_kind(self, policy: Policy) -> None:
        """Demand that the VM was created for guests of this policy.

        Raises:
            RefusedError: it hides registers and the policy does not ask for it, or the other way round.
        """
        if (Policy.ES in policy) is not self._es:
            kinds = ("without", "with") if self._es else ("with", "without")
            raise RefusedError(f"the policy is of a guest {kinds[0]} SEV-ES, and the VM was created for one {kinds[1]}")

    def require_pages(self, first: int, count: int) -> None:
        """Demand that RAM has these pages.

        Raises:
            RefusedError: it does not.
        """
        pages = self.layout.pages
        if not 0 <= first <= first + count <= pages:
            raise RefusedError(f"pages {first} to {first + count} are not all among the {pages} of RAM")

    # --- vCPUs ---------------------------------------------------------------------------------------------------

    def create_vcpu(self, index: int, link: PlatformEnd) -> None:
        """Make vCPU `index` and serve it on `link`.

        Raises:
            RefusedError: no such index, or it exists.
        """
        if not 0 <= index < self.vcpu_count or index in self.vcpus:
            raise RefusedError(f"vCPU {index} exists already or is not one of the {self.vcpu_count} of this VM")
        service = VcpuService(self.engine.create_vcpu(index), link, self.memory, self.gate)
        self.vcpus[index] = service
        service.start(f"vcpu-{index}")

    def vcpu(self, index: int) -> VcpuService:
        """The service of vCPU `index`.

        Raises:
            RefusedError: there is none.
        """
        service = self.vcpus.get(index)
        if service is None:
            raise RefusedError(f"there is no vCPU {index}")
        return service

    def _renew_vcpu(self, index: int) -> None:
        """A fresh vCPU: nothing of what the old one had translated or cached is left."""
        self.vcpus[index].vcpu = self.engine.create_vcpu(index)

    # --- handler -------------------------------------------------------------------------------------------------

    def secret_injected(self, gpa: int, length: int) -> None:
        """LAUNCH_SECRET put the owner's secret there."""
        self._injected.append(Area(Gpa(gpa), length))

    def start_handler(self, measure: bytes, policy: int) -> None:
        """LAUNCH_FINISH happened: take the migration key out of guest memory and start the handler.

        A guest without start-up code of ours, or whose measured table names another handler, runs without one, and
        without a key: a VMM may have had the secret put over the start-up code's tables.
        """
        try:
            areas, table = self._find_tables()
            secret = self._take_secret(areas.secret)
            self._check_table(table)
            self._handler = self._make_handler(areas, table, secret, measure, policy)
            self._areas = areas
        except SealiftError as error:
            self._no_handler = f"this guest has no migration handler: {sentence(error)}"

    def _take_secret(self, area: Area) -> MigrationSecret | None:
        """The migration key, with zeros left in its place.

        A VMM may put the owner's packet anywhere, and more than once. Then copies of the key could stay in guest
        memory, so such a guest gets no handler, and nothing of its secrets stays.

        Raises:
            RefusedError: a secret was put elsewhere than to the start of the secret block, or more than once.
        """
        if len(self._injected) > 1 or any(put.gpa != area.gpa or put.size > area.size for put in self._injected):
            for put in self._injected:
                self.memory.write_private(put.gpa, bytes(put.size))
            raise RefusedError("its launch secret was not put once to the start of the secret block, and is wiped")
        content = bytearray(self.memory.read_private(area.gpa, area.size))
        secret = take_migration_secret(content)
        if secret is not None:
            self.memory.write_private(area.gpa, bytes(content))
        return secret

    def _find_tables(self) -> tuple[StartupAreas, StartupTable]:
        """What the start-up code says in guest memory; where that is damaged, no migration key stays there either."""
        try:
            return areas_in_memory(self.memory.read_private), read_startup_table(self.memory.read_private)
        except SealiftError:
            self._wipe_keys()
            raise

    def _wipe_keys(self) -> None:
        """Leave zeros of every secret that holds a migration key, with what else is in it: no honest VMM gets here."""
        for put in self._injected:
            if MIGRATION_GUID.bytes_le in self.memory.read_private(put.gpa, put.size):
                self.memory.write_private(put.gpa, bytes(put.size))

    def _check_table(self, table: StartupTable) -> None:
        if table.handler_digest != self._digest:
            raise RefusedError("the measured start-up table names another version of the handler")
        if table.layout != self.layout or table.vcpus != self.vcpu_count:
            raise RefusedError("the measured start-up table describes a machine of another shape")

    def _make_handler(
        self, areas: StartupAreas, table: StartupTable, secret: MigrationSecret | None, measure: bytes, policy: int
    ) -> MigrationHandler:
        restores = secret is not None and secret.snapshot_key is not None
        receives = Role.RESTORE if restores else Role.TARGET
        role = Role.SOURCE if table.entry else receives
        facts = LaunchFacts(
            measure=measure,
            policy=policy,
            cbit=self.engine.cbit,
            layout=self.layout,
            vcpus=self.vcpu_count,
            mailbox_gpa=areas.mailbox.gpa,
            excluded=self._pages_of(areas.mailbox),
        )
        machine = GuestMachine(self.memory, self.gate, self.engine, self.vcpus, self._renew_vcpu)
        return MigrationHandler(role, facts, secret, guest_access(self.memory, machine), MonotonicClock())

    def _pages_of(self, area: Area) -> tuple[int, ...]:
        offset = self._area_offset(area)
        first = offset >> PAGE_SHIFT
        return tuple(range(first, first + pages_spanned(offset, area.size)))

    def _area_offset(self, area: Area) -> int:
        offset = self.layout.offset(area.gpa, area.size)
        if offset is None:
            raise RefusedError(f"the start-up code's area {area} is not RAM")
        return offset

    def open_handler(self, sock: socket.socket) -> tuple[Ring, Ring, Area]:
        """Serve the handler on `sock`; the outgoing ring, the incoming ring, and where the mailbox is.

        Raises:
            RefusedError: this guest has no handler, or it is being served already.
        """
        if self._handler is None or self._areas is None:
            raise RefusedError(self._no_handler)
        if self._rings is not None:
            raise RefusedError("the handler is being served already")
        outgoing, incoming = self._rings = outgoing_ring(), incoming_ring()
        area = self._areas.mailbox
        offset = self._area_offset(area)
        mailbox = Mailbox(self._handler, self.memory.shared.data[offset : offset + area.size])
        service = HandlerService(
            self._handler, mailbox, self.gate, sock, outgoing=outgoing, incoming=incoming, forget=self.memory.forget
        )
        service.start()
        return outgoing, incoming, area

    # --- migration between secure processors -----------------------------------------------------------------------

    def leave_to_processor(self) -> None:
        """SEND_START is to come: the handler, if there is one, cannot move the guest until `reclaim`.

        Raises:
            UserError: it is just doing so.
        """
        if self._handler is not None:
            self._handler.leave_to_processor()

    def reclaim(self) -> None:
        """SEND_CANCEL happened, or SEND_START failed."""
        if self._handler is not None:
            self._handler.reclaim()

    def received(self) -> None:
        """RECEIVE_FINISH happened. The handler's key did not come: the source's platform keeps it."""
        self.memory.settle_received()
        self._no_handler = (
            "this guest has no migration handler: its secure processor brought it here (method psp), which does not "
            "bring the migration key"
        )

    def load_vcpu(self, index: int, state: bytes) -> None:
        """Give vCPU `index` what another host saw of it.

        Raises:
            RefusedError: there is no such vCPU.
            StreamError: the state does not fit.
        """
        self.vcpu(index)
        self._renew_vcpu(index)
        self.vcpus[index].vcpu.restore_visible(state)

    def require_stopped(self, index: int) -> VcpuService:
        """The service of a vCPU that is out of guest mode, as far as its VMM made sure of that."""
        service = self.vcpu(index)
        if service.inside:
            raise RefusedError(f"vCPU {index} is in guest mode; kick it first")
        return service

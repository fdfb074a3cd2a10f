"""The guest as its migration handler sees it: the handler's small protocols over real memory and vCPUs."""

from __future__ import annotations

import time
from collections.abc import Callable

import msgspec
import numpy as np

from sealift.errors import StreamError
from sealift.guest.handler.interfaces import Guest
from sealift.pageset import PageNumbers, PageSet
from sealift.silicon.engines.interface import Engine
from sealift.silicon.memory.guest_memory import GuestMemory, PageStates
from sealift.silicon.process.gate import RunGate
from sealift.silicon.process.vcpu_service import VcpuService
from sealift.wire.packed import unpack


class PrivatePages:
    """The private plane (`sealift.guest.handler.interfaces.GuestPages`)."""

    def __init__(self, memory: GuestMemory) -> None:
        self._memory = memory
        self.pages = memory.layout.pages
        self._plane = memory.private

    def window(self, first: int, count: int) -> memoryview:
        """A contiguous writable view of `count` pages."""
        return self._plane.window(first, count)

    def gather(self, numbers: PageNumbers, out: memoryview) -> None:
        """Copy the pages, in this order, to the front of `out`."""
        self._plane.gather(numbers, out)

    def scatter(self, numbers: PageNumbers, data: memoryview) -> None:
        """Copy the front of `data` to the pages, in this order."""
        self._plane.scatter(numbers, data)

    def populated(self) -> PageSet:
        """Pages that are no holes of the private memfd."""
        return self._plane.populated()

    def punch(self, pages: PageSet) -> None:
        """Make them holes."""
        self._plane.punch(pages)

    def expect(self, missing: PageSet) -> None:
        """Make them holes for which whoever needs one waits."""
        self._memory.expect(missing)

    def demands(self, limit: int) -> PageNumbers:
        """Expected pages that somebody waits for and that were not given before."""
        return np.array(self._memory.presence.take_demands(limit), np.uint64)

    def demand_again(self) -> None:
        """What was given as demands was lost."""
        self._memory.presence.demand_again()

    def install(self, numbers: PageNumbers, data: memoryview) -> None:
        """Put the content of expected pages in place."""
        self._memory.install(numbers, data)


class UnsentPages:
    """Private pages written since they were last taken (`…interfaces.Unsent`)."""

    def __init__(self, memory: GuestMemory) -> None:
        self._memory = memory

    def take(self) -> PageSet:
        """Get and clear the logs, then move the set out."""
        return self._memory.take_unsent()

    def put_back(self, pages: PageSet) -> None:
        """Add pages to the set."""
        self._memory.put_back(pages)

    def count(self) -> int:
        """Pages in the set, with what the logs hold now."""
        return self._memory.count_unsent()


class _State(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Machine state on the wire, inside sealed records: sets as `PageSet.to_bytes`, one entry a vCPU.

    `engine` is the engine's name, `of_engine` its own state.
    """

    version: int
    engine: str
    of_engine: bytes
    shared: bytes
    sealed: bytes
    opened: bytes
    vcpus: list[bytes]


_STATE_VERSION = 3


class GuestMachine:
    """Page states and vCPUs (`…interfaces.Machine`); `fresh` replaces the vCPU of a service by a new one."""

    def __init__(
        self,
        memory: GuestMemory,
        gate: RunGate,
        engine: Engine,
        vcpus: dict[int, VcpuService],
        fresh: Callable[[int], None],
    ) -> None:
        self._memory = memory
        self._gate = gate
        self._engine = engine
        self._vcpus = vcpus
        self._fresh = fresh

    def stopped(self) -> bool:
        """Whether every vCPU is out of guest mode and barred from entering, with no access pending."""
        return self._gate.barred

    def ready(self) -> bool:
        """Whether the guest says that it can be migrated now."""
        return self._engine.says.ready

    def save(self) -> bytes:
        """Page states and vCPU registers."""
        pages = self._memory.save_states()
        vcpus = [self._vcpus[index].vcpu.save() for index in sorted(self._vcpus)]
        engine = self._engine
        state = _State(
            _STATE_VERSION,
            engine.name,
            engine.save(),
            pages.shared.to_bytes(),
            pages.sealed.to_bytes(),
            pages.opened.to_bytes(),
            vcpus,
        )
        return msgspec.msgpack.encode(state)

    def load(self, data: bytes) -> None:
        """Take over what `save` gave.

        Raises:
            StreamError: it does not fit this machine.
        """
        state = unpack(data, _State, "the machine state")
        pages = self._memory.layout.pages
        try:
            found = PageStates(
                *(PageSet.from_bytes(pages, part) for part in (state.shared, state.sealed, state.opened))
            )
        except ValueError as error:
            raise StreamError("the machine state's page states are not of this machine") from error
        if state.version != _STATE_VERSION:
            raise StreamError(f"the machine state has version {state.version}; this platform reads {_STATE_VERSION}")
        if state.engine != self._engine.name:
            raise StreamError(f"the machine state is of engine {state.engine}; this platform runs {self._engine.name}")
        if sorted(self._vcpus) != list(range(len(state.vcpus))):
            raise StreamError(f"the machine state has {len(state.vcpus)} vCPUs, this machine {len(self._vcpus)}")
        self._engine.restore(state.of_engine)
        # Page states before vCPUs: loading their clocks makes KVM write to pages that are shared.
        self._memory.load_states(found)
        for index, vcpu_state in enumerate(state.vcpus):
            self._fresh(index)
            self._vcpus[index].vcpu.restore(vcpu_state)


class MonotonicClock:
    """The machine's clock (`…interfaces.Clock`)."""

    def monotonic(self) -> float:
        """Seconds since some fixed moment."""
        return time.monotonic()


def guest_access(memory: GuestMemory, machine: GuestMachine) -> Guest:
    """Everything the handler needs of its guest."""
    return Guest(PrivatePages(memory), UnsentPages(memory), machine)

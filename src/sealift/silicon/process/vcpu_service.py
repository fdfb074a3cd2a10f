"""One thread for each vCPU: takes Run from the VMM, answers exits (see `sealift.wire.exits`)."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import assert_never

from sealift.errors import LostError, SealiftError, StreamError
from sealift.silicon.engines.interface import Hypercall, Vcpu
from sealift.silicon.memory.guest_memory import GuestMemory
from sealift.silicon.process.gate import RunGate
from sealift.silicon.process.hypercalls import carry_out
from sealift.wire.exits import PlatformEnd
from sealift.wire.failure import to_failed
from sealift.wire.platform import Exit, Fault, Halt, Interrupted, MmioRead, MmioWrite, PortIn, PortOut, Run


class VcpuService:
    """Serves one vCPU until the other end of its link closes it.

    Attributes:
        vcpu: replaced by a fresh one when migration state is loaded.
        inside: whether a Run is being served now.
    """

    def __init__(self, vcpu: Vcpu, link: PlatformEnd, memory: GuestMemory, gate: RunGate) -> None:
        self.vcpu = vcpu
        self._memory = memory
        self._gate = gate
        self._link = link
        self.inside = False

    def start(self, name: str) -> None:
        """Serve in a thread of its own, which ends with the connection."""
        threading.Thread(target=self._serve, name=name, daemon=True).start()

    def _serve(self) -> None:
        try:
            while True:
                request = self._next_run()
                try:
                    answer: Exit = self._run(request)
                except SealiftError as error:
                    answer = to_failed(error)
                self._link.send(answer)
        except LostError:
            self._link.close()

    def _run(self, request: Run) -> Exit:
        if request.immediate_exit:
            return Interrupted()
        with self._gate.entered(), self._serving():
            return self._until_exit()

    @contextmanager
    def _serving(self) -> Iterator[None]:
        self.inside = True
        try:
            yield
        finally:
            self.inside = False

    def _until_exit(self) -> Exit:
        while True:
            outcome = self.vcpu.run(self._device_io)
            match outcome:
                case Hypercall():
                    result, change = carry_out(self._memory, outcome)
                    self.vcpu.complete_hypercall(result)
                    if change is not None:
                        return change
                case Halt() | Fault() | Interrupted():
                    return outcome
                case _:
                    assert_never(outcome)

    def _device_io(self, access: PortIn | PortOut | MmioRead | MmioWrite) -> int:
        """Exit for a device access; the VMM's next Run brings its data and goes on from inside the instruction."""
        self._link.send(access)
        request = self._next_run()
        if request.immediate_exit:
            self.vcpu.kick()
        return request.data

    def _next_run(self) -> Run:
        """The VMM's next Run; what is none is answered with Failed and changes nothing."""
        while True:
            try:
                return self._link.receive()
            except StreamError as error:
                self._link.send(to_failed(error))

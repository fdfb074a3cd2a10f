"""A migration away from here.

A failure or a cancel before FINAL leaves the guest running here. After FINAL the guest is fenced: only a token of the
target (or the owner's) decides, so a target that is lost then leaves it stopped, and the error says so.
"""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable

from sealift.errors import SealiftError, UserError, sentence
from sealift.vmm.launch import Launched
from sealift.vmm.machine import Machine
from sealift.vmm.migration.attempt import Attempt
from sealift.vmm.migration.clock import Clock
from sealift.vmm.migration.livecopy import Subject
from sealift.vmm.migration.method import SourceMethod
from sealift.vmm.migration.methods import source_method
from sealift.vmm.migration.parameters import Parameters
from sealift.vmm.migration.patience import Patience
from sealift.vmm.migration.sending import Line, Returns, Sender, TargetRefusedError
from sealift.vmm.migration.status import MigrationStatus
from sealift.vmm.migration.streamio import StreamWriter, shut_down
from sealift.vmm.migration.streamout import StreamOut
from sealift.vmm.migration.throttle import Throttle
from sealift.vmm.migration.transport import connect, parse_uri
from sealift.wire.handover import TAKEN


class Migration(Attempt):
    """One attempt to move a guest to the target that listens at the place it is `run` with.

    Attributes:
        make_writer: makes the one writer everything goes through; replace it before `run` to look at the wire.
        patience: how long the target may take.
    """

    what = "migration"

    def __init__(
        self,
        machine: Machine,
        launched: Launched,
        guest_name: str,
        parameters: Parameters,
        listener: Callable[[MigrationStatus], None],
        clock: Clock,
    ) -> None:
        super().__init__(machine, listener, clock)
        self.make_writer: Callable[[socket.socket, Callable[[int], None]], StreamWriter] = StreamWriter
        self.patience = Patience()
        self._name = guest_name
        self._launched = launched
        self._parameters = parameters
        self._sock: socket.socket | None = None
        self._method: SourceMethod | None = None

    def settle(self, token: bytes) -> None:
        """Take a token of the target that came by another way (a file), for a guest that was left fenced.

        Raises:
            UserError: this migration left nothing open.
            SealiftError: the token is not the target's word on this migration.
        """
        with self._lock:
            method = self._method
            if not self._stats.fenced or method is None:
                raise UserError(f"guest {self._name} waits for no token of a target")
            runs_there = method.release(token)
            self._stats.fenced, self._method = False, None
            if runs_there:
                self._stats.error = None
                self._complete()
            else:
                self._stats.error = "the target gave up, and the guest runs on here"
                self._machine.take_back()  # should a disk be in other hands, the guest is paused and can be resumed

    # --- the way there -------------------------------------------------------------------------------------------

    def _carry(self, place: str) -> None:
        self._check()
        method = source_method(self._machine, self._launched, self._parameters)
        sock = self._connect(place)
        self._method = method
        throttle = Throttle(self._parameters.max_bandwidth, self._clock, self._cancelled)
        line = Line(StreamOut(self.make_writer(sock, throttle.spend)), throttle, Returns(sock, self.patience))
        subject = Subject(self._machine, self._name)
        Sender(subject, method, line, self._parameters, self._stats, self._watch(line.returns.check)).move()

    def _connect(self, uri: str) -> socket.socket:
        sock = connect(parse_uri(uri))
        with self._lock:
            self._sock = sock
            self._check()
        return sock

    def _done(self) -> None:
        self._machine.handed_over()

    def _too_late(self) -> UserError:
        return UserError("the guest is being handed over to the target; it is too late to cancel")

    def _wake(self) -> None:
        if self._sock is not None:
            shut_down(self._sock)

    # --- the way back --------------------------------------------------------------------------------------------

    def _recover(self, error: SealiftError) -> bool:
        """Take the guest back, unless it may run on the target."""
        if (method := self._left_with(error)) is not None:
            self._stats.fenced = True
            self._stats.error = f"{sentence(error)}; {method.way_out(self._name)}"
            return False
        self._machine.take_back()
        return True

    def _left_with(self, error: SealiftError) -> SourceMethod | None:
        """None if the guest may run here again; else the method that keeps it from that."""
        method = self._method
        if method is None:
            return None
        if not self._settled or not method.fenced():
            method.cancel()
            return None
        if isinstance(error, TargetRefusedError) and error.token:
            runs_there = method.release(error.token)
            self._say_taken()
            return method if runs_there else None
        return method

    def _say_taken(self) -> None:
        with self._lock, contextlib.suppress(OSError):  # the target is gone: it keeps the token for nothing
            if self._sock is not None:
                self._sock.sendall(TAKEN.encode())

    def _let_go(self) -> None:
        with self._lock:
            sock, self._sock = self._sock, None
        if sock is not None:
            shut_down(sock)
            sock.close()
        if not self._stats.fenced:
            self._method = None

"""A migration away from here: one attempt, from `run` to completed, failed or cancelled.

A failure or a cancel before FINAL leaves the guest running here. After FINAL the guest is fenced: only a token of the
target (or the owner's) decides, so a target that is lost then leaves it stopped, and the error says so.
"""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable

from sealift.errors import InternalError, SealiftError, UserError, sentence
from sealift.vmm.launch import Launched
from sealift.vmm.machine import Machine
from sealift.vmm.migration.clock import Clock
from sealift.vmm.migration.method import SourceMethod
from sealift.vmm.migration.methods import source_method
from sealift.vmm.migration.parameters import Parameters
from sealift.vmm.migration.patience import Patience
from sealift.vmm.migration.sending import Line, Returns, Sender, Subject, TargetRefusedError, Watch
from sealift.vmm.migration.stats import MigrationInfo, Statistics
from sealift.vmm.migration.status import ENDED, MigrationStatus, StatusMachine
from sealift.vmm.migration.streamio import StreamWriter, bulk_work, shut_down
from sealift.vmm.migration.streamout import StreamOut
from sealift.vmm.migration.throttle import Throttle
from sealift.vmm.migration.transport import connect, parse_uri
from sealift.wire.handover import TAKEN

_S = MigrationStatus


class CancelledError(SealiftError):
    """The user gave the migration up."""


class Migration:
    """One attempt to move a guest.

    `listener` is called with every new status, from the thread that changed it.

    Attributes:
        make_writer: makes the one writer everything goes through; replace it before `run` to look at the wire.
        patience: how long the target may take.
    """

    def __init__(
        self,
        machine: Machine,
        launched: Launched,
        guest_name: str,
        parameters: Parameters,
        listener: Callable[[MigrationStatus], None],
        clock: Clock,
    ) -> None:
        self.make_writer: Callable[[socket.socket, Callable[[int], None]], StreamWriter] = StreamWriter
        self.patience = Patience()
        self._machine = machine
        self._name = guest_name
        self._launched = launched
        self._parameters = parameters
        self._clock = clock
        self._status = StatusMachine(listener)
        self._stats = Statistics(machine.layout.size, clock)
        self._lock = threading.RLock()
        self._cancelled = threading.Event()
        self._why_cancelled = "the migration was cancelled"
        self._fencing = False
        self._sock: socket.socket | None = None
        self._method: SourceMethod | None = None

    def info(self) -> MigrationInfo:
        """How it stands, at any time and from any thread."""
        return self._stats.info(self._status.status)

    def run(self, uri: str) -> MigrationInfo:
        """Move the guest to the target that listens at `uri`; blocks, so give it a thread of its own.

        Never raises for what can go wrong with a migration: the answer has its status and the reason.
        """
        self._status.move(_S.SETUP)
        self._stats.begin()
        try:
            with bulk_work():
                self._move(uri)
        except SealiftError as error:
            self._give_up(error)
        except BaseException as error:
            self._give_up(InternalError(f"a bug ended the migration ({type(error).__name__})"))
            raise
        else:
            self._complete()
        finally:
            self._disconnect()
        return self.info()

    def cancel(self, why: str | None = None) -> None:
        """Give it up, from any thread; returns at once. Does nothing once it has ended.

        Args:
            why: a sentence, if it is not the user who gives it up.

        Raises:
            UserError: the guest was handed over already.
        """
        with self._lock:
            if self._status.status in ENDED or self._cancelled.is_set():
                return
            if self._fencing:
                raise UserError("the guest is being handed over to the target; it is too late to cancel")
            self._why_cancelled = why or self._why_cancelled
            self._cancelled.set()
            if self._status.status is not _S.NONE:
                self._status.move(_S.CANCELLING)
            if self._sock is not None:
                shut_down(self._sock)

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

    def _move(self, uri: str) -> None:
        self._check()
        method = source_method(self._machine, self._launched, self._parameters)
        sock = self._connect(uri)
        self._method = method
        throttle = Throttle(self._parameters.max_bandwidth, self._clock, self._cancelled)
        line = Line(StreamOut(self.make_writer(sock, throttle.spend)), throttle, Returns(sock, self.patience))
        Sender(
            Subject(self._machine, self._name), method, line, self._parameters, self._stats, self._watch(line.returns)
        ).move()

    def _connect(self, uri: str) -> socket.socket:
        sock = connect(parse_uri(uri))
        with self._lock:
            self._sock = sock
            self._check()
        return sock

    def _watch(self, returns: Returns) -> Watch:
        def check() -> None:
            self._check()
            returns.check()

        def active() -> None:
            self._enter(_S.ACTIVE)
            self._stats.active()

        return Watch(check, active, lambda: self._enter(_S.DEVICE), self._fence)

    def _check(self) -> None:
        if self._cancelled.is_set():
            raise CancelledError(self._why_cancelled)

    def _enter(self, status: MigrationStatus) -> None:
        with self._lock:
            self._check()
            self._status.move(status)

    def _fence(self) -> None:
        with self._lock:
            self._check()
            self._fencing = True

    def _complete(self) -> None:
        self._stats.end()
        self._stats.remaining = 0
        self._machine.handed_over()
        self._status.move(_S.COMPLETED)

    # --- the way back --------------------------------------------------------------------------------------------

    def _give_up(self, error: SealiftError) -> None:
        """Take the guest back, if that is still possible, and say why it was necessary."""
        self._stats.error = sentence(error)
        ending = _S.FAILED
        try:
            if (method := self._left_with(error)) is not None:
                self._stats.fenced = True
                self._stats.error += f"; {method.way_out(self._name)}"
            else:
                self._machine.take_back()
                if self._cancelled.is_set():
                    self._stats.error, ending = self._why_cancelled, _S.CANCELLED
        except Exception as worse:  # whatever it is, the migration comes to an end
            self._stats.error += f"; and the guest cannot run on here: {sentence(worse)}"
        self._stats.end()
        with self._lock:
            self._fencing = True  # too late for a cancel: it has ended
            if ending is _S.CANCELLED and self._status.status is not _S.CANCELLING:
                self._status.move(_S.CANCELLING)
            self._status.move(ending)

    def _left_with(self, error: SealiftError) -> SourceMethod | None:
        """None if the guest may run here again; else the method that keeps it from that."""
        method = self._method
        if method is None:
            return None
        if not self._fencing or not method.fenced():
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

    def _disconnect(self) -> None:
        with self._lock:
            sock, self._sock = self._sock, None
        if sock is not None:
            shut_down(sock)
            sock.close()
        if not self._stats.fenced:
            self._method = None

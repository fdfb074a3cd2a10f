"""A migration away from here.

A failure or a cancel before FINAL leaves the guest running here. After FINAL the guest is fenced: only a token of the
target (or the owner's) decides, so a target that is lost then leaves it stopped, and the error says so.
"""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable
from contextlib import ExitStack

from sealift.errors import LostError, SealiftError, UserError, sentence
from sealift.vmm.launch import Launched
from sealift.vmm.machine import Machine
from sealift.vmm.migration.attempt import Attempt
from sealift.vmm.migration.clock import Clock
from sealift.vmm.migration.lanes import Lane
from sealift.vmm.migration.livecopy import Subject
from sealift.vmm.migration.method import LegMethod, SourceMethod
from sealift.vmm.migration.methods import source_method
from sealift.vmm.migration.parameters import Capability, Parameters
from sealift.vmm.migration.patience import Patience
from sealift.vmm.migration.route import Route
from sealift.vmm.migration.sending import Line, Returns, Sender, TargetRefusedError
from sealift.vmm.migration.stats import DowntimePart
from sealift.vmm.migration.status import MigrationStatus
from sealift.vmm.migration.streamio import StreamWriter, shut_down
from sealift.vmm.migration.streamout import StreamOut
from sealift.vmm.migration.throttle import Throttle
from sealift.vmm.migration.transport import parse_uri
from sealift.wire.handover import TAKEN
from sealift.wire.side_connection import SideFront

_LOOK_EVERY_S = 0.1
"""While a user is waited for: how often it is asked whether the migration still makes sense."""


NOT_INTERRUPTED = "Cannot resume if there is no paused migration"
"""QEMU's words."""


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
        leg: LegMethod | None = None,
    ) -> None:
        """Begin one, or with what `interrupted` gave of another go on with that."""
        super().__init__(machine, parameters, listener, clock)
        self.make_writer: Callable[[socket.socket, Callable[[int], None]], StreamWriter] = StreamWriter
        self.patience = Patience()
        self._name = guest_name
        self._launched = launched
        self._go_ahead = threading.Event()
        self._route: Route | None = None
        self._sock: socket.socket | None = None
        self._method: SourceMethod | None = leg
        self._leg = leg

    def interrupted(self) -> LegMethod:
        """What can go on of it over other connections, for the migration that does; this one has no more to say of it.

        Raises:
            UserError: it is not such a one.
        """
        with self._lock:
            if not self._stats.resumable or self._leg is None:
                raise UserError(NOT_INTERRUPTED)
            self._stats.resumable = False
            return self._leg

    def cancel(self, why: str | None = None) -> None:
        """Give it up, also if it had ended and could go on."""
        super().cancel(why)
        with self._lock:
            if self._stats.resumable and self._leg is not None:
                self._stats.resumable = False
                self._leg.cancel()

    def settle(self, token: bytes) -> None:
        """Take a token that came by another way (a file), the target's or the owner's, for a guest left fenced.

        Raises:
            UserError: this migration left nothing open.
            SealiftError: the token is nobody's word on this migration.
        """
        with self._lock:
            method = self._method
            if not self._stats.fenced or method is None:
                raise UserError(f"guest {self._name} waits for no token")
            runs_there = method.release(token)
            self._stats.fenced, self._method = False, None
            if runs_there:
                self._stats.error = None
                self._complete()
            else:
                self._stats.error = "the target does not run the guest, which runs on here"
                self._machine.take_back()  # should a disk be in other hands, the guest is paused and can be resumed

    def resume_request(self) -> bytes:
        """What the owner of a guest that was left fenced must see to let it run here.

        Raises:
            UserError: this migration left nothing open, or its method knows no owner.
        """
        with self._lock:
            if not self._stats.fenced or self._method is None:
                raise UserError(f"guest {self._name} waits for no token")
            return self._method.resume_request()

    def proceed(self, expected: MigrationStatus) -> None:
        """Let a migration go on that waits in status `expected` (capability pause-before-switchover).

        Raises:
            UserError: it does not wait there.
        """
        with self._lock:
            if self._status.status is not expected or expected is not MigrationStatus.PRE_SWITCHOVER:
                raise UserError(f"Migration not in expected state: {self._status.status.value}")
            self._go_ahead.set()

    # --- the way there -------------------------------------------------------------------------------------------

    def _carry(self, place: str) -> None:
        self._check()
        method = self._leg or source_method(self._machine, self._launched, self.parameters)
        route = Route(parse_uri(place), self.parameters.tls_creds, self.parameters.tls_hostname)
        route.check(self.parameters.channels)
        with self._lock:
            self._route = route
            self._check()
        sock = self._connect(route)
        self._method = method
        throttle = self._throttle

        def beside(ticket: bytes) -> tuple[Lane, ...]:
            return self._open_beside(route, throttle, ticket)

        out = StreamOut(self.make_writer(sock, throttle.spend))
        line = Line(out, throttle, Returns(sock, self.patience), beside)
        subject = Subject(self._machine, self._name)
        Sender(subject, method, line, self._now, self._stats, self._watch(line.returns.check), self._leg).move()

    def _connect(self, route: Route) -> socket.socket:
        sock = route.connect()
        with self._lock:
            self._sock = sock
            self._check()
        return sock

    def _open_beside(self, route: Route, throttle: Throttle, ticket: bytes) -> tuple[Lane, ...]:
        with ExitStack() as undo:
            lanes = []
            for channel in range(1, self.parameters.channels):
                self._check()
                sock = route.connect()
                lanes.append(Lane(sock, self.make_writer(sock, throttle.spend), SideFront(channel, ticket)))
                undo.callback(lanes[-1].close)
            undo.pop_all()
        return tuple(lanes)

    def _switch_over(self, check: Callable[[], None]) -> None:
        if Capability.PAUSE_BEFORE_SWITCHOVER in self.parameters.capabilities:
            self._enter(MigrationStatus.PRE_SWITCHOVER)
            self._stats.downtime_part(DowntimePart.SWITCHOVER)
            while not self._clock.wait(self._go_ahead, _LOOK_EVERY_S):
                check()
        super()._switch_over(check)

    def _done(self) -> None:
        self._machine.handed_over()

    def _too_late(self) -> UserError:
        return UserError("the guest is being handed over to the target; it is too late to cancel")

    def _wake(self) -> None:
        if self._route is not None:
            self._route.hang_up()

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
            if not self._interrupt(error, method):
                method.cancel()
            return None
        if isinstance(error, TargetRefusedError) and error.token:
            runs_there = method.release(error.token)
            self._say_taken()
            return method if runs_there else None
        return method

    def _interrupt(self, error: SealiftError, method: SourceMethod) -> bool:
        """Whether it can go on: it was to, nobody gave it up, and only connections were lost."""
        if not self.parameters.resume_window_s or self._cancelled.is_set():
            return False
        refused = isinstance(error, TargetRefusedError) and error.token
        if refused or not (isinstance(error, LostError) or self._leg is not None):
            return False
        self._leg = method.resumable()
        if self._leg is None:
            return False
        self._stats.resumable = True
        self._stats.error = (
            f"{sentence(error)}; the guest runs on here, and the target waits for {self.parameters.resume_window_s} s: "
            f"go on with sealift migrate {self._name} URI --resume"
        )
        return True

    def _say_taken(self) -> None:
        with self._lock, contextlib.suppress(OSError):  # the target is gone: it keeps the token for nothing
            if self._sock is not None:
                self._sock.sendall(TAKEN.encode())

    def _let_go(self) -> None:
        with self._lock:
            sock, self._sock = self._sock, None
            route, self._route = self._route, None
        if route is not None:
            route.close()
        if sock is not None:
            shut_down(sock)
            sock.close()
        if not self._stats.fenced:
            self._method = None

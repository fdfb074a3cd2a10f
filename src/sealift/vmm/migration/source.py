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

from sealift.errors import LostError, RefusedError, SealiftError, UserError, sentence
from sealift.vmm.launch import Launched
from sealift.vmm.machine import Machine
from sealift.vmm.migration.attempt import Attempt
from sealift.vmm.migration.clock import Clock
from sealift.vmm.migration.lanes import Lane
from sealift.vmm.migration.livecopy import Subject
from sealift.vmm.migration.method import LateSource, LegMethod, SourceMethod
from sealift.vmm.migration.methods import source_method
from sealift.vmm.migration.parameters import Capability, Parameters
from sealift.vmm.migration.patience import Patience
from sealift.vmm.migration.route import Route
from sealift.vmm.migration.sending import Line, Returns, Sender, TargetRefusedError
from sealift.vmm.migration.serving import CONNECTIONS, Served, ServedLeg, unlimited, why_not_late
from sealift.vmm.migration.stats import DowntimePart
from sealift.vmm.migration.status import ENDED, MigrationStatus
from sealift.vmm.migration.streamio import StreamWriter, shut_down
from sealift.vmm.migration.streamout import StreamOut
from sealift.vmm.migration.throttle import Throttle
from sealift.vmm.migration.transport import parse_uri
from sealift.wire.handover import TAKEN
from sealift.wire.side_connection import SideFront

_LOOK_EVERY_S = 0.1
"""While a user is waited for: how often it is asked whether the migration still makes sense."""


NOT_SERVING = "migrate-pause is currently only supported during postcopy-active or postcopy-recover state"
"""QEMU's words."""

_NO_POSTCOPY = "Enable postcopy with migrate_set_capability before the start of migration"
_TOO_EARLY = "Postcopy must be started after migration has been started"
"""QEMU's words."""

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
        self._switch_now = threading.Event()
        self._hung_up = threading.Event()
        self._late_throttle = Throttle(parameters.max_postcopy_bandwidth, clock, self._hung_up)
        self._moved = threading.Condition(self._lock)
        self._next_place: str | None = None
        self._abandoned = False
        self._serving_on: threading.Thread | None = None

    # --- post-copy ---------------------------------------------------------------------------------------------------

    def switch_early(self) -> None:
        """Have the guest switch now, and its rest come behind (migrate-start-postcopy).

        Raises:
            UserError: the capability is off, or there is nothing to switch.
        """
        if Capability.POSTCOPY_RAM not in self.parameters.capabilities:
            raise UserError(_NO_POSTCOPY)
        if self._status.status in {MigrationStatus.NONE, *ENDED}:
            raise UserError(_TOO_EARLY)
        self._switch_now.set()

    def pause(self) -> None:
        """End the connections over which missing pages go (migrate-pause); `recover` goes on.

        Raises:
            UserError: there are none.
        """
        with self._lock:
            if self._status.status not in {MigrationStatus.POSTCOPY_ACTIVE, MigrationStatus.POSTCOPY_RECOVER}:
                raise UserError(NOT_SERVING)
            self._hang_up()

    def _hang_up(self) -> None:
        self._hung_up.set()
        if self._route is not None:
            self._route.hang_up()

    @property
    def paused(self) -> bool:
        """Whether missing pages wait for new connections."""
        return self._status.status is MigrationStatus.POSTCOPY_PAUSED

    def recover(self, place: str) -> None:
        """Go on with missing pages to a target that listens at `place`; returns at once.

        Raises:
            UserError: it is not paused, or `place` is no address.
        """
        parse_uri(place)
        with self._moved:
            if not self.paused:
                raise UserError(NOT_INTERRUPTED)
            self._next_place = place
            self._moved.notify_all()

    def abandon(self) -> None:
        """The guest's process is to end, whatever the target still misses."""
        with self._moved:
            self._abandoned = True
            if self._status.status in {MigrationStatus.POSTCOPY_ACTIVE, MigrationStatus.POSTCOPY_RECOVER}:
                self._hang_up()
            self._moved.notify_all()

    def adjust(self, change: Callable[[Parameters], Parameters]) -> None:
        """Also how fast missing pages are pushed."""
        super().adjust(change)
        self._late_throttle.limit(self.parameters.max_postcopy_bandwidth)
        self._hung_up.set()  # who waits already would wait as long as the old limit had it
        self._hung_up.clear()

    def _early(self) -> bool:
        return self._switch_now.is_set()

    def _serve(self, late: LateSource, place: str) -> None:
        """Send what the target misses, until it misses nothing, over as many connections as that needs.

        Raises:
            LostError: the guest's process is to end before.
        """
        self._move(MigrationStatus.POSTCOPY_ACTIVE)
        while True:
            try:
                self._serve_leg(late, place)
            except SealiftError as error:
                self._stats.error = f"{sentence(error)}; the guest runs on the target and misses pages of here"
            else:
                self._stats.error = None
                return
            if not late.serving():  # its last word came, and the connection ended behind it
                self._stats.error = None
                return
            self._move(MigrationStatus.POSTCOPY_PAUSED)
            place = self._await_place()
            if not place:
                return
            self._move(MigrationStatus.POSTCOPY_RECOVER)

    def _serve_leg(self, late: LateSource, place: str) -> None:
        route = Route(parse_uri(place), self.parameters.tls_creds, self.parameters.tls_hostname)
        with self._lock:
            before, self._route = self._route, route
            self._hung_up.clear()
        if before is not None:
            before.close()
        sock = route.connect()
        out = StreamOut(self.make_writer(sock, unlimited))
        served = Served(Subject(self._machine, self._name), late, self._stats, self._late_throttle)
        leg = ServedLeg(served, out, Returns(sock, self.patience), route.connect, self._hang_up)
        try:
            leg.begin()
            self._move(MigrationStatus.POSTCOPY_ACTIVE)
            self._stats.error = None
            leg.serve()
        finally:
            leg.close()
            shut_down(sock)
            sock.close()

    def _move(self, status: MigrationStatus) -> None:
        if self._status.status is not status:
            self._status.move(status)

    def _await_place(self) -> str:
        """Where the target is to be found, once somebody says so; empty if there is no more to do.

        Raises:
            LostError: the guest's process is to end.
        """
        with self._moved:
            self._moved.wait_for(lambda: self._next_place is not None or self._abandoned)
            if self._abandoned:
                raise LostError("the guest was ended here while its target missed pages")
            place, self._next_place = self._next_place or "", None
            return place

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
        with self._moved:
            method = self._method
            if not (self._stats.fenced or self.paused) or method is None:
                raise UserError(f"guest {self._name} waits for no token")
            runs_there = method.release(token)
            if self.paused:
                self._next_place = ""
                self._moved.notify_all()
                return
            self._stats.fenced = False
            if runs_there and (late := method.late()) is not None and late.serving():
                self._serving_on = threading.Thread(target=self._serve_on, args=(late,), name="serving", daemon=True)
                self._serving_on.start()
                return
            self._method = None
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
        early = Capability.POSTCOPY_RAM in self.parameters.capabilities
        if early and (why := why_not_late(self._machine)):
            raise RefusedError(why)
        route.check(max(self.parameters.channels, CONNECTIONS if early else 1))
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
        if (late := method.late()) is not None and late.serving():
            sock.close()
            self._serve(late, place)

    def _serve_on(self, late: LateSource) -> None:
        """A token of a target that misses pages came by another way: await it."""
        self._move(MigrationStatus.POSTCOPY_PAUSED)
        try:
            place = self._await_place()
            if place:
                self._move(MigrationStatus.POSTCOPY_RECOVER)
                self._serve(late, place)
            self._complete()
        except SealiftError as error:
            self._give_up(error)
        finally:
            self._let_go()

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

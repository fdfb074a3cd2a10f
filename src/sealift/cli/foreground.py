"""A guest in the foreground: its control sockets, its console on standard output, and how it comes to its end.

The main thread sleeps on one queue. Events of the guest, signals and the departure of QMP clients go in; the first
one that ends the guest decides the exit status.
"""

from __future__ import annotations

import base64
import contextlib
import queue
import signal
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from types import FrameType
from typing import BinaryIO, Final, TypeAlias

from sealift.cli.places import Host
from sealift.cli.printer import Printer
from sealift.cli.rundir import CONSOLE_SOCKET, MONITOR_SOCKET, QMP_SOCKET, RunDirectory
from sealift.cli.wiring import HostedGuest
from sealift.vmm.console_server import ConsoleServer
from sealift.vmm.control import ControlThread, process_end
from sealift.vmm.events import (
    Direction,
    Ending,
    GuestEvent,
    MigrationChanged,
    PassBegun,
    PowerButtonPressed,
    RunStateChanged,
    ShutdownCause,
)
from sealift.vmm.gdb.server import GdbService, listen_for_gdb
from sealift.vmm.guest import Guest
from sealift.vmm.machine import GuestEnd
from sealift.vmm.migration.status import MigrationStatus
from sealift.vmm.migration.transport import FileAddress, Listener, parse_uri
from sealift.vmm.qmp.commands.human import MONITOR
from sealift.vmm.qmp.endpoint import listen_for_monitor, listen_for_qmp
from sealift.vmm.qmp.human_server import HumanServer
from sealift.vmm.qmp.server import QmpServer
from sealift.vmm.runstate import RunState

DONE: Final = 0
FAILED: Final = 1

_HERE: Final = frozenset({RunState.PRELAUNCH, RunState.RUNNING, RunState.PAUSED})

Say: TypeAlias = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class _Signalled:
    """The user wants the guest to end."""


@dataclass(frozen=True, slots=True)
class _ClientsLeft:
    """The last QMP client has disconnected."""


@dataclass(frozen=True, slots=True)
class _PlatformGone:
    """The platform process has ended by itself."""

    pid: int


_News: TypeAlias = GuestEvent | _Signalled | _ClientsLeft | _PlatformGone


@dataclass(frozen=True, slots=True)
class Endpoints:
    """URIs where a guest is controlled besides its run directory: by QMP, in the human monitor, by gdb."""

    qmp: Sequence[str] = ()
    monitor: Sequence[str] = ()
    gdb: str | None = None


def run_in_foreground(
    host: Host,
    name: str,
    start: Callable[[], HostedGuest],
    say: Say,
    console: BinaryIO | None,
    endpoints: Endpoints,
) -> int:
    """Start a guest, serve its control sockets, and stay until it ends.

    Args:
        host: where its run directory goes.
        name: the guest's.
        start: starts it, or begins to wait for it.
        say: takes sentences for the user.
        console: where to print what the guest prints; None for nowhere.
        endpoints: where it is served besides.

    Returns:
        The exit status.
    """
    with ExitStack() as ending:
        _on_signals(_interrupt)
        directory = RunDirectory(host.run, name)
        ending.callback(directory.close)
        qmp_socket = ending.enter_context(directory.listen(QMP_SOCKET))
        console_socket = ending.enter_context(directory.listen(CONSOLE_SOCKET))
        monitor_socket = ending.enter_context(directory.listen(MONITOR_SOCKET))

        def listen(uri: str, what: str, by: Callable[[str], Listener]) -> Listener:
            listener = ending.enter_context(contextlib.closing(by(uri)))
            say(f"{what} is served at {listener.address}")
            return listener

        qmp = [listen(uri, "QMP", listen_for_qmp) for uri in endpoints.qmp]
        monitors = [listen(uri, "the monitor", listen_for_monitor) for uri in endpoints.monitor]
        debugging = None if endpoints.gdb is None else listen(endpoints.gdb, "gdb", listen_for_gdb)
        printer = None if console is None else Printer(console)
        if printer is not None:
            ending.callback(printer.close)
        control = ControlThread()
        ending.callback(control.close)
        hosted = start()
        ending.callback(hosted.close)
        guest = hosted.guest
        debugger = guest.debugging = GdbService(guest, MONITOR.execute)
        ending.callback(debugger.end)
        if debugging is not None:
            debugger.serve(debugging)
        guest.console.flush_by(control.later)
        if printer is not None:
            printer.put(guest.console.listen(printer.put))
        # It listens before anybody can ask for anything.
        foreground = _Foreground(guest, say if printer is None else _beside(printer, say), control)
        server = control.make(lambda: QmpServer(guest, foreground.clients_left))
        control.start(server.serve(qmp_socket, *(each.listening for each in qmp)))
        human = control.make(lambda: HumanServer(guest))
        control.start(human.serve(monitor_socket, *(each.listening for each in monitors)))
        control.start(control.make(lambda: ConsoleServer(guest)).serve(console_socket))
        _on_signals(foreground.signalled)
        status = foreground.watch(server)
    if foreground.ended:  # and everything that it printed is shown
        say(f"guest {name} ended")
    return status


def _beside(printer: Printer, say: Say) -> Say:
    """Say something on a line of its own, where the guest's console is shown."""

    def say_apart(sentence: str) -> None:
        with printer.apart():
            say(sentence)

    return say_apart


class _Foreground:
    """What the main thread waits for, and what it tells the user about it.

    Attributes:
        ended: the guest was here and came to its end because somebody wanted it.
    """

    def __init__(self, guest: Guest, say: Say, control: ControlThread) -> None:
        self.ended = False
        self._guest = guest
        self._say = say
        self._control = control
        self._moved = False
        self._watching_platform = False
        # Putting is safe even in a signal handler that interrupts a put.
        self._news: queue.SimpleQueue[_News] = queue.SimpleQueue()
        guest.events.listen(self._news.put)
        # What happened before anybody listened.
        self._news.put(RunStateChanged(RunState.INMIGRATE, guest.state))
        arrival = guest.migration()
        if arrival is not None and arrival.status is MigrationStatus.FAILED:
            self._news.put(MigrationChanged(Direction.INCOMING, MigrationStatus.FAILED))

    def signalled(self, _: int, __: FrameType | None) -> None:
        """Signal handler: the user wants the guest to end."""
        self._news.put(_Signalled())

    def clients_left(self) -> None:
        """For the QMP server: nobody is connected any more."""
        self._news.put(_ClientsLeft())

    def watch(self, server: QmpServer) -> int:
        """Tell what happens until the guest ends; the exit status."""
        while True:
            match self._news.get():
                case RunStateChanged(_, after):
                    status = self._run_state(after)
                case MigrationChanged(direction, migration):
                    status = self._migration(server, direction, migration)
                case Ending(cause):
                    self.ended = self._watching_platform and not self._moved
                    status = FAILED if cause is ShutdownCause.HOST_ERROR else DONE
                case PassBegun() | PowerButtonPressed():
                    status = None
                case _Signalled():
                    self._guest.end(ShutdownCause.HOST_SIGNAL)
                    status = None
                case _PlatformGone(pid):
                    self._say(f"the platform process {pid} of guest {self._guest.name} is gone, and the guest with it")
                    self._guest.end(ShutdownCause.HOST_ERROR)
                    return FAILED
                case _ClientsLeft():
                    status = DONE if self._moved else None
            if status is not None:
                return status

    def _run_state(self, state: RunState) -> int | None:
        guest = self._guest
        if state in _HERE and not self._watching_platform:
            self._watching_platform = True
            self._control.start(self._await_platform(guest.machine.platform.pid))
        match state:
            case RunState.PRELAUNCH:
                measure = base64.b64encode(guest.launched.measure).decode()
                measured = f"; its launch measurement is {measure}" if measure else ""
                self._say(f"guest {guest.name} waits to be started{measured}")
            case RunState.RUNNING:
                self._say(f"guest {guest.name} runs")
            case RunState.PAUSED:
                self._say(f"guest {guest.name} is paused")
            case RunState.GUEST_PANICKED | RunState.INTERNAL_ERROR:
                self._say(f"guest {guest.name} cannot go on: {guest.machine.report}")
                panicked = state is RunState.GUEST_PANICKED
                guest.end(ShutdownCause.GUEST_PANIC if panicked else ShutdownCause.HOST_ERROR)
                return FAILED
            case RunState.SHUTDOWN if guest.machine.ended_by is not None:
                self._say(f"guest {guest.name} has ended: {guest.machine.report}")
                reset = guest.machine.ended_by is GuestEnd.RESET
                guest.end(ShutdownCause.GUEST_RESET if reset else ShutdownCause.GUEST_SHUTDOWN)
                return DONE
        return None

    async def _await_platform(self, pid: int) -> None:
        """A guest whose vCPUs all halted would not notice by itself."""
        await process_end(pid)
        self._news.put(_PlatformGone(pid))

    def _arrival(self, status: MigrationStatus) -> int | None:
        guest = self._guest
        match status:
            case MigrationStatus.COMPLETED:
                self._say(f"guest {guest.name} has arrived")
            case MigrationStatus.FAILED:
                self._say(f"guest {guest.name} did not arrive: {_reason(guest)}")
                return FAILED
        return None

    def _migration(self, server: QmpServer, direction: Direction, status: MigrationStatus) -> int | None:
        match direction:
            case Direction.OUTGOING:
                return self._departure(server, status)
            case Direction.INCOMING:
                return self._arrival(status)
            case Direction.SNAPSHOT:
                return self._snapshot(status)

    def _snapshot(self, status: MigrationStatus) -> int | None:
        guest = self._guest
        info = guest.migration()
        path = info.x_sealift_snapshot if info else None
        match status:
            case MigrationStatus.ACTIVE:
                self._say(f"guest {guest.name} is being saved to {path}")
            case MigrationStatus.CANCELLED | MigrationStatus.FAILED:
                self._say(f"guest {guest.name} was not saved: {_reason(guest)}")
            case MigrationStatus.COMPLETED:
                self._say(f"guest {guest.name} is saved in {path}")
        return None

    def _departure(self, server: QmpServer, status: MigrationStatus) -> int | None:
        guest = self._guest
        match status:
            case MigrationStatus.ACTIVE:
                self._say(f"guest {guest.name} is being moved")
            case MigrationStatus.CANCELLED:
                self._say(f"guest {guest.name} was not moved: {_reason(guest)}")
            case MigrationStatus.FAILED:
                self._say(f"the migration of guest {guest.name} failed: {_reason(guest)}")
            case MigrationStatus.COMPLETED:
                self._say(f"guest {guest.name} {_gone_to(guest.destination or '')}")
                self._moved = True
                # Whoever watches the migration over QMP gets to see how it ended.
                return None if server.clients else DONE
        return None


def _gone_to(place: str) -> str:
    if isinstance(parse_uri(place), FileAddress):
        return f"is saved in {place}, and does not run here any more"
    return "has moved and runs on the other host"


def _reason(guest: Guest) -> str:
    info = guest.migration()
    return (info.error_desc if info else None) or "no reason is known"


def _on_signals(handler: Callable[[int, FrameType | None], None]) -> None:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, handler)


def _interrupt(_: int, __: FrameType | None) -> None:
    """While a guest is being started, a signal unwinds the start."""
    raise KeyboardInterrupt

"""A guest as those who control it see it: QMP, the command line, benchmarks.

It holds what is to be decided once for all of them: what may be asked when, one migration at a time, and how the
VMM process learns that the guest is to end. A guest that is awaited has no machine before it begins to arrive.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Final

from sealift.errors import LostError, UserError
from sealift.vmm.collaborators import Debugging, LateArrival
from sealift.vmm.console import Console
from sealift.vmm.debug.dump import Dump, DumpInfo, DumpWishes
from sealift.vmm.events import (
    Direction,
    DumpEnded,
    Ending,
    Events,
    MigrationChanged,
    PassBegun,
    PowerButtonPressed,
    ShutdownCause,
)
from sealift.vmm.launch import Launch, Launched
from sealift.vmm.machine import Machine
from sealift.vmm.migration.clock import Clock, SystemClock
from sealift.vmm.migration.dirtyrate import DirtyRateMeter
from sealift.vmm.migration.methods import blocked
from sealift.vmm.migration.parameters import Capability, Parameters
from sealift.vmm.migration.plan import Experience, Plan, Wishes, make_plan
from sealift.vmm.migration.preflight import Candidate, Findings, examine
from sealift.vmm.migration.serving import why_not_late
from sealift.vmm.migration.snapshot import Snapshot
from sealift.vmm.migration.socket_address import socket_addresses
from sealift.vmm.migration.source import NOT_INTERRUPTED, NOT_SERVING, Migration
from sealift.vmm.migration.stats import MigrationInfo
from sealift.vmm.migration.status import MigrationStatus
from sealift.vmm.migration.stream_file import Save
from sealift.vmm.migration.transport import Address, FileAddress, parse_uri
from sealift.vmm.runstate import RunState
from sealift.wire.handover import Method
from sealift.wire.obstacle import Code, Obstacle

_MOVABLE: Final = frozenset({RunState.RUNNING, RunState.PAUSED})
_LOST: Final = frozenset({RunState.GUEST_PANICKED, RunState.INTERNAL_ERROR, RunState.SHUTDOWN})

Change = Callable[[Parameters], Parameters]
"""Makes other parameters of some."""


def as_they_are(parameters: Parameters) -> Parameters:
    """No change."""
    return parameters


_DUMP_LIMIT_S: Final = 10.0
"""How long it waits for a dump that was cancelled: it looks after every few MiB."""

_HANDOVER_LIMIT_S: Final = 10.0
"""How long the end of a guest waits for its migration's: a handover takes milliseconds, unless the target is lost."""


class Guest:
    """One guest under control; methods may be called from any thread.

    Attributes:
        name: what its user calls it.
        events: what happens to it.
        console: what it prints.
        dirty_rate: measures what it writes.
        destination: where the last migration goes or went.
        experience: of earlier migrations from this host, by this method to that place; None: there is none.
        debugging: serves gdb; None: nobody does.
    """

    def __init__(self, name: str, parameters: Parameters, clock: Clock | None = None) -> None:
        self.name = name
        self.events = Events(RunState.INMIGRATE)
        self.console = Console()
        self._clock = clock or SystemClock()
        self._parameters = parameters
        self._machine: Machine | None = None
        self._launch: Launch | None = None
        self._launched: Launched | None = None
        self._migration: Migration | Snapshot | Save | None = None
        self._migrating: threading.Thread | None = None
        self._arrival: MigrationInfo | None = None
        self._late_arrival: LateArrival | None = None
        self._dump: Dump | None = None
        self._dumping: threading.Thread | None = None
        self.destination: str | None = None
        self.experience: Callable[[Method, str], Experience | None] = lambda _, __: None
        self.debugging: Debugging | None = None
        self._plan: Plan | None = None
        self._planned: Plan | None = None
        self.dirty_rate = DirtyRateMeter(self._clock)
        self._listen: Callable[[str], None] | None = None
        self._lock = threading.Lock()

    # --- what it is ----------------------------------------------------------------------------------------------

    def attach(self, machine: Machine, launched: Launched) -> None:
        """From now on this is the machine that runs the guest."""
        self._machine, self._launched = machine, launched
        if machine.spec.plain:
            self._parameters = replace(self._parameters, method=Method.PLAIN)

    def launching(self, machine: Machine, launch: Launch) -> None:
        """The same for a guest that has been measured; the first `resume` finishes its launch."""
        self.attach(machine, launch.launched)
        self._launch = launch

    @property
    def awaited(self) -> bool:
        """Whether the guest has not begun to arrive: there is no machine yet."""
        return self._machine is None

    @property
    def machine(self) -> Machine:
        """The machine.

        Raises:
            UserError: the guest has not begun to arrive.
        """
        if self._machine is None:
            raise self._awaited()
        return self._machine

    def _awaited(self) -> UserError:
        return UserError(f"guest {self.name} has not arrived yet")

    @property
    def launched(self) -> Launched:
        """What is known of its launch, on this host.

        Raises:
            UserError: the guest has not begun to arrive.
        """
        if self._launched is None:
            raise self._awaited()
        return self._launched

    @property
    def started(self) -> bool:
        """Whether its launch is finished, so that it runs or has run, here or on the host that it comes from."""
        return self._launch is None or self._launch.finished

    @property
    def state(self) -> RunState:
        """The run state."""
        return RunState.INMIGRATE if self._machine is None else self._machine.state

    def type_in(self, data: bytes) -> None:
        """Somebody typed on the console; before the guest arrives nobody reads it."""
        if self._machine is not None:
            self._machine.type_in(data)

    def inject_secret(self, header: bytes, payload: bytes, gpa: int | None = None) -> None:
        """Plant a launch secret in a guest that waits to be started; `gpa` None is its own place for it.

        Raises:
            UserError: it was not launched here, or has been started.
            FirmwareError: the platform's reason.
        """
        if self._launch is None:
            raise UserError(f"guest {self.name} was not launched on this host, so it takes no launch secret here")
        self._launch.inject(header, payload, gpa)

    # --- running and stopping ------------------------------------------------------------------------------------

    def stop(self) -> None:
        """Stop the guest, if it runs; returns when every vCPU is out of it.

        Raises:
            UserError: it is just being handed over to another host.
        """
        self._check_no_dump()
        self.machine.pause()
        if self.state is RunState.FINISH_MIGRATE:
            raise UserError("Migration is not finalized yet")

    def resume(self) -> None:
        """Let the guest run.

        Raises:
            UserError: it cannot run (any more); the message says why.
        """
        if self._machine is None:
            raise UserError(f"guest {self.name} has not arrived yet; it runs once it has")
        self._check_no_dump()
        if self._launch is not None and self.state is RunState.PRELAUNCH:
            self._launch.finish()
        if self._machine.resume():
            return
        match self.state:
            case RunState.FINISH_MIGRATE:
                raise UserError("Migration is not finalized yet")
            case RunState.POSTMIGRATE:
                raise UserError(f"guest {self.name} runs on the host it was migrated to, and can run nowhere else")
            case state if state in _LOST:
                # A confidential guest cannot be reset: that would be another launch.
                raise UserError(f"guest {self.name} is {state.value} and cannot run any more; launch it again")
            case _:
                return  # somebody stopped it again already

    def power_down(self) -> None:
        """Press the power button: the guest is asked to shut down.

        Raises:
            UserError: it has none.
        """
        power = self.machine.devices.power
        if power is None:
            raise UserError(f"the machine of guest {self.name} has no power button; only Linux guests have one")
        power.press_power_button()
        self.events.publish(PowerButtonPressed())

    def end(self, cause: ShutdownCause) -> None:
        """Ask the VMM process to end the guest; whoever called `wait_for_end` does it."""
        self.events.publish(Ending(cause))

    def close(self) -> None:
        """End the guest, its platform and whatever still goes on with it; a migration is given up first."""
        with contextlib.suppress(UserError):  # it is being handed over: that takes no time any more
            if self._migration is not None:
                if isinstance(self._migration, Migration):
                    self._migration.abandon()
                self._migration.cancel(self._ending())
        self.dirty_rate.close()
        self.cancel_dump()
        if self._dumping is not None:
            self._dumping.join(_DUMP_LIMIT_S)
        if self._migrating is not None:
            self._migrating.join(_HANDOVER_LIMIT_S)
        if self._machine is not None:
            self._machine.close()

    def _ending(self) -> str:
        report = None if self._machine is None else self._machine.report
        return f"the guest has ended: {report}" if report else "the guest was ended"

    # --- debugging -----------------------------------------------------------------------------------------------

    def dump(self, wishes: DumpWishes) -> Dump:
        """Begin to write memory and registers to a file, the guest standing still meanwhile; returns at once.

        Raises:
            UserError: it cannot be dumped now, or there is nothing to dump.
        """
        with self._lock:
            self._check_idle()
            self._check_no_dump()
            dump = Dump(self.machine, wishes, lambda info: self.events.publish(DumpEnded(info)))
            self._dump = dump
            self._dumping = threading.Thread(target=dump.run, name="dump", daemon=True)
            self._dumping.start()
            return dump

    def dump_info(self) -> DumpInfo:
        """How the last dump goes or went."""
        return DumpInfo() if self._dump is None else self._dump.info

    def cancel_dump(self) -> None:
        """Give up the dump that is underway, if any is."""
        if self._dump is not None:
            self._dump.cancel()

    def _check_no_dump(self) -> None:
        if self._dump is not None and self._dump.active:
            raise UserError("There is a dump in process, please wait")

    # --- migration -----------------------------------------------------------------------------------------------

    @property
    def parameters(self) -> Parameters:
        """For the next migration."""
        return self._parameters

    def migrate(self, uri: str, once: Change = as_they_are) -> None:
        """Begin to move the guest; returns at once, `migration` says how it goes.

        Args:
            uri: where to.
            once: changes the guest's parameters for this migration alone.

        Raises:
            UserError: `uri` is no address, or the guest cannot be moved now.
        """
        parameters = once(self._parameters)
        to_file = isinstance(parse_uri(uri), FileAddress) and parameters.method is Method.PLAIN
        self._begin(Save if to_file else Migration, uri, Direction.OUTGOING, parameters)

    def resume_migration(self, uri: str, once: Change = as_they_are) -> None:
        """Go on with a migration whose connections were lost, over others; returns at once, as `migrate`.

        Raises:
            UserError: there is none, `uri` is no address, or the guest cannot be moved now.
        """
        parse_uri(uri)
        if isinstance(self._migration, Migration) and self._migration.paused:
            self._migration.recover(uri)
            return
        self._begin(self._next_leg, uri, Direction.OUTGOING, once(self._parameters))

    def _next_leg(
        self,
        machine: Machine,
        launched: Launched,
        name: str,
        parameters: Parameters,
        listener: Callable[[MigrationStatus], None],
        clock: Clock,
    ) -> Migration:
        """The migration that goes on with what the last one left, as far as `parameters` can change that."""
        before = self._migration
        if not isinstance(before, Migration):
            raise UserError(NOT_INTERRUPTED)
        leg = before.interrupted()
        return Migration(machine, launched, name, before.parameters.going_on(parameters), listener, clock, leg)

    def snapshot(self, path: Path, *, without_disks: bool, once: Change = as_they_are) -> None:
        """Begin to save the guest to a file, `without_disks` as its user knows; returns at once, as `migrate`.

        Raises:
            UserError: the guest cannot be saved now, or has writable disks and its user did not consent.
        """
        if not path.is_absolute():
            raise UserError(f"{path} is no absolute path, and the VMM does not know what it is relative to")
        writable = [str(disk.path) for disk in self.machine.spec.disks if not disk.read_only]
        if writable and not without_disks:
            raise UserError(
                f"a snapshot does not hold what is on the disks of guest {self.name} ({', '.join(writable)}); pause "
                "it, snapshot it with --without-disks, copy the images, and let it run on"
            )
        self._begin(Snapshot, str(path), Direction.SNAPSHOT, once(self._parameters))

    def _begin(
        self,
        make: Callable[..., Migration | Snapshot | Save],
        place: str,
        direction: Direction,
        parameters: Parameters,
    ) -> None:
        """Begin one of them, which are never underway together; what another one left to go on with is given up."""
        with self._lock:
            self._check_idle()
            self._check_no_dump()
            if self._launched is None or self.state not in _MOVABLE:
                raise UserError(f"guest {self.name} is {self.state.value}; only one that runs or is paused can move")
            if reasons := self._blocked(parameters.method):
                done = "saved" if direction is Direction.SNAPSHOT else "migrated"
                raise UserError(f"guest {self.name} cannot be {done}: {'; and '.join(reasons)}")
            self._planned = self._plan if self._plan is not None and self._plan.uri == place else None
            self._plan, self.destination = None, place
            attempt = make(
                self.machine,
                self._launched,
                self.name,
                parameters,
                lambda status: self.events.publish(MigrationChanged(direction, status)),
                self._clock,
            )
            if self._migration is not None:
                self._migration.cancel()
            self._migration = attempt
            self._migration.pass_begun = lambda number: self.events.publish(PassBegun(number))
            self._migrating = threading.Thread(
                target=self._migration.run, args=(place,), name=attempt.what, daemon=True
            )
            self._migrating.start()

    def preflight(self, uri: str, once: Change = as_they_are) -> Findings:
        """Everything that is in the way of a migration there; the guest runs on, and the target can be asked again.

        Raises:
            UserError: `uri` is no address, or the guest is not here.
        """
        parameters = once(self._parameters)
        own = list(self._own_obstacles(parameters))
        if self._launched is None or self.state in _LOST:
            return Findings(tuple(own))
        found = examine(self._candidate(parameters), uri, self._clock)
        return Findings((*own, *found.obstacles), found.path)

    def plan(self, uri: str, wishes: Wishes, once: Change = as_they_are) -> Plan:
        """What a migration there would cost; remembered until one begins.

        Raises:
            UserError: `uri` is no address, or the guest is not here.
            RefusedError: the target cannot be reached.
        """
        candidate = self._candidate(once(self._parameters))
        experience = self.experience(candidate.parameters.method, uri)
        self._plan = make_plan(candidate, uri, wishes, self.dirty_rate, self._clock, experience)
        return self._plan

    @property
    def method(self) -> Method:
        """By which method the last migration goes or went; before any, by which one it would."""
        return (self if self._migration is None else self._migration).parameters.method

    def planned(self) -> Plan | None:
        """The plan that the last migration began with: the last one that was made for where it goes."""
        return self._planned

    def _candidate(self, parameters: Parameters) -> Candidate:
        return Candidate(self.machine, self.launched, self.name, parameters)

    def _own_obstacles(self, parameters: Parameters) -> Iterator[Obstacle]:
        if self._migrating is not None and self._migrating.is_alive():
            yield Obstacle(Code.UNDERWAY, f"guest {self.name} is being migrated already")
        if self._launched is None or self.state not in _MOVABLE:
            yield Obstacle(Code.GUEST_STATE, f"guest {self.name} is {self.state.value}, neither running nor paused")
        else:
            yield from blocked(parameters.method, self.machine.platform.status())
            if Capability.POSTCOPY_RAM in parameters.capabilities and (why := why_not_late(self.machine)):
                yield Obstacle(Code.ENGINE, why)

    def _check_idle(self) -> None:
        if self._migrating is not None and self._migrating.is_alive():
            raise UserError("There's a migration process in progress")

    def adjust(self, change: Change) -> None:
        """Change the parameters of the next migration, and of one underway those that are about its speed.

        Raises:
            UserError: a value is out of range; nothing has changed.
        """
        with self._lock:
            changed = change(self._parameters)
            if self._migration is not None and self._migrating is not None and self._migrating.is_alive():
                self._migration.adjust(change)
            self._parameters = changed

    def switch(self, capabilities: dict[Capability, bool]) -> None:
        """Switch capabilities of the next migration on or off.

        Raises:
            UserError: one is underway.
        """
        with self._lock:
            self._check_idle()
            self._parameters = _switched(self._parameters, capabilities)

    def ask_handler(self) -> None:
        """Return once the guest's migration handler has answered; one that is moving the guest is not disturbed.

        Raises:
            SealiftError: there is none, or it does not answer.
        """
        with self._lock:
            if self._migrating is not None and self._migrating.is_alive():
                return
            handler = self.machine.platform.open_handler()
        handler.status()  # not under the lock: it may hang, and everybody else with it

    def blocked_reasons(self) -> tuple[str, ...]:
        """Why no migration by the method chosen can begin, whatever the target; sentences; none if it is not here."""
        return self._blocked(self._parameters.method)

    def _blocked(self, method: Method) -> tuple[str, ...]:
        if self.state not in _MOVABLE:
            return ()
        with contextlib.suppress(LostError):  # that ends the guest, as somebody else is told
            found = blocked(method, self.machine.platform.status())
            return tuple(obstacle.sentence for obstacle in found)
        return ()

    def settle_migration(self, token: bytes) -> None:
        """Take the token of a target that was lost, or the owner's in its place, for a guest that is fenced since.

        Raises:
            UserError: no token is waited for.
            SealiftError: it is nobody's word on this migration; nothing has changed.
        """
        self._fenced_migration().settle(token)

    def resume_request(self) -> bytes:
        """What the owner of a guest that is fenced must see to let it run here, should the target be lost.

        Raises:
            UserError: it is not fenced, or no handler moved it.
        """
        return self._fenced_migration().resume_request()

    def _fenced_migration(self) -> Migration:
        if not isinstance(self._migration, Migration):
            raise UserError(f"guest {self.name} waits for no token")
        return self._migration

    def continue_migration(self, expected: MigrationStatus) -> None:
        """Let a migration go on that waits for its user in status `expected`.

        Raises:
            UserError: none does.
        """
        if not isinstance(self._migration, Migration):
            raise UserError("Migration not in expected state: none")
        self._migration.proceed(expected)

    def start_postcopy(self) -> None:
        """Have the migration underway switch now; the rest of the guest comes while it runs at the target.

        Raises:
            UserError: none is underway, or it was not begun for that.
        """
        if not isinstance(self._migration, Migration):
            raise UserError("Postcopy must be started after migration has been started")
        self._migration.switch_early()

    def pause_migration(self) -> None:
        """End the connections of a post-copy migration, at either side; it can be recovered.

        Raises:
            UserError: there is none.
        """
        if isinstance(self._migration, Migration):
            self._migration.pause()
        elif self._late_arrival is not None:
            self._late_arrival.pause()
        else:
            raise UserError(NOT_SERVING)

    def recover_migration(self, uri: str) -> None:
        """At the target of a post-copy migration that is paused: await its source at `uri`.

        Raises:
            UserError: it is not paused, or nobody can listen there.
        """
        if self._late_arrival is None:
            raise UserError("Migrate recover can only be run when postcopy is paused.")
        self._late_arrival.recover(uri)

    def fill_from(self, arrival: LateArrival) -> None:
        """For who brought the guest here: pages of it still come."""
        self._late_arrival = arrival

    def cancel_migration(self) -> None:
        """Give the current migration up, if there is one; `migration` says when it is."""
        if self._migration is not None:
            self._migration.cancel()

    def defer(self, listen: Callable[[str], None]) -> None:
        """For who waits for the guest here, but is still to be told where: `listen` is called with a URI, once."""
        self._listen = listen

    def receive(self, uri: str) -> None:
        """Say where the guest is to arrive.

        Raises:
            UserError: it is not awaited, or this was said before, or nobody can listen there.
        """
        with self._lock:
            if self._arrival is not None:
                raise UserError("The incoming migration has already been started")
            if self._listen is None:
                raise UserError("'--incoming defer' was not specified on the command line")
            self._listen(uri)

    def arriving(self, status: MigrationStatus, error: str | None = None, address: Address | None = None) -> None:
        """For who waits for the guest here: how its arrival goes, and while it is awaited, at which address."""
        where = () if address is None else socket_addresses(address)
        self._arrival = MigrationInfo(status, error_desc=error, socket_address=where)
        self.events.publish(MigrationChanged(Direction.INCOMING, status))

    def migration(self) -> MigrationInfo | None:
        """How the last migration goes or went: away from here or, before any such, the arrival."""
        return self._arrival if self._migration is None else self._migration.info()


def _switched(parameters: Parameters, capabilities: Mapping[Capability, bool]) -> Parameters:
    wanted = {**dict.fromkeys(parameters.capabilities, True), **capabilities}
    return replace(parameters, capabilities=frozenset(each for each, is_on in wanted.items() if is_on))

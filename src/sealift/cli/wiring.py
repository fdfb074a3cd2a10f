"""The one place where owner, platform and VMM of a guest are joined; ``run``, demonstrations and benchmarks use it.

::

    this process                        its children, which end with it
    Guest ── Machine ── Platform ─────► platform process (sealift.silicon.process)
                ▲
              launch ── LocalOwner ───► owner process (sealift.cli.owner_process), until the guest is launched
                   or ─ ServedOwner ─► an owner elsewhere, at a socket (sealift.cli.owner_server)
                   or ─ AbsentOwner ── files of an owner elsewhere (sealift.cli.absent_owner)

Nothing stays half-started: whatever fails ends what was started before it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Final, Protocol, Self, TypeAlias

from sealift.cli.absent_owner import AbsentOwner, SecretWatch, is_absent, starts_at_once
from sealift.cli.assignment import Assignment, assignment_of
from sealift.cli.guest_options import DEFAULT_CPU, DiskPath, GuestOptions, GuestType, check_plain
from sealift.cli.history import History, keep_history
from sealift.cli.owner_link import (
    LocalOwner,
    NoOwner,
    OwnerClient,
    ServedOwner,
    owner_address,
)
from sealift.cli.places import Host, Places
from sealift.cli.recipes import make_recipe
from sealift.cpu.library import library
from sealift.errors import SealiftError, UserError, sentence
from sealift.guest import programs
from sealift.launch.image import GuestRecipe
from sealift.launch.machine import MachineType
from sealift.sev.policy import parse_policy
from sealift.vmm.devices.disk import DiskImage
from sealift.vmm.guest import Guest
from sealift.vmm.launch import Launch, load_plain
from sealift.vmm.machine import Machine, MachineSpec
from sealift.vmm.memory import SharedMemory
from sealift.vmm.migration.filling import Filling
from sealift.vmm.migration.landing import TargetHost
from sealift.vmm.migration.parameters import Parameters
from sealift.vmm.migration.restore import restore
from sealift.vmm.migration.status import MigrationStatus
from sealift.vmm.migration.stream_file import FileIncoming
from sealift.vmm.migration.target import Incoming
from sealift.vmm.migration.transport import Address, FileAddress, parse_uri
from sealift.vmm.platform import ANY_CPU, CpuShape, Platform
from sealift.vmm.runstate import RunState

Notify: TypeAlias = Callable[[str], None]
"""Takes sentences for the user: what was set up on first use, what is being waited for."""


DEFER: Final = "defer"
"""In place of the URI that a guest arrives at, as with QEMU: QMP's migrate-incoming says it."""


def ignore(_: str) -> None:
    """A `Notify` for callers whom nobody watches."""


class HostedGuest:
    """A guest under control, with all that has to end with it; a context manager.

    Attributes:
        guest: stop, resume, migrate; console, events.
    """

    def __init__(self, guest: Guest, ending: ExitStack) -> None:
        self.guest = guest
        self._ending = ending

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def end_with(self, ends: Callable[[], None]) -> None:
        """Have something else end before the guest does."""
        self._ending.callback(ends)

    def close(self) -> None:
        """End the guest and its platform; returns when both are gone. Again does nothing."""
        self._ending.close()


class _LaunchOwner(Protocol):
    """A guest's owner as a launch needs it."""

    def prepare(self) -> tuple[str, ...]:
        """Wait until it is ready; its notes to the user."""

    def launch(self, platform: Platform, memory: SharedMemory, recipe: GuestRecipe) -> Launch:
        """Launch its guest, up to and with the secret that it has for it now."""

    def close(self) -> None:
        """It is not needed any more."""


def start_guest(options: GuestOptions, places: Places, notify: Notify = ignore) -> HostedGuest:
    """Launch a guest and let it run, unless it is to wait for somebody who asks for that.

    Raises:
        UserError: the options do not fit together, or a file cannot be read.
        RefusedError: the owner does not want its guest on this platform.
        FirmwareError: the platform does not take the session of an owner elsewhere.
    """
    recipe = make_recipe(
        options.memory, options.vcpus, options.kernel, options.payload, options.append, options.initrd
    ).under(parse_policy(options.policy))
    if options.type is GuestType.PLAIN:
        return _start_plain(recipe, options, places, notify)
    if version := recipe.kernel_version():
        notify(f"the kernel is Linux {version}")
    cpu = _cpu(options)
    guest = Guest(options.name, _parameters(options))
    keep_history(guest, History(places.host.history), notify)
    with ExitStack() as undo:
        disks = open_disks(options.disks)
        for disk in disks:
            undo.callback(disk.close)
            disk.lock()
        spec = MachineSpec(recipe.layout, options.vcpus, recipe.machine, disks, cpu, recipe.es)
        owner = _launch_owner(options, places)
        undo.callback(owner.close)
        platform = Platform.start(places.host.identity, places.manufacturer, engine=options.engine)
        undo.callback(platform.close)
        for note in owner.prepare():
            notify(note)
        _require_engine(platform, recipe)
        machine = Machine(platform, spec, guest.console, guest.events.run_state_changed)
        undo.callback(machine.close)
        if options.verbose:
            info = platform.info()
            notify(f"the engine is {info.engine}: {info.engine_reason}")
        guest.launching(machine, owner.launch(platform, machine.memory, recipe))
        undo.callback(guest.close)  # before the machine's end: a migration is given up first
        owner.close()
        if options.launch_secret is not None:
            undo.callback(SecretWatch(guest, options.launch_secret, notify, start=not options.paused).close)
        if starts_at_once(options):
            guest.resume()
        return HostedGuest(guest, undo.pop_all())


def _start_plain(recipe: GuestRecipe, options: GuestOptions, places: Places, notify: Notify) -> HostedGuest:
    """Load a guest that is not confidential; it has no owner. Raises as `start_guest`."""
    check_plain(options)
    if recipe.machine is not MachineType.BARE or options.disks:
        raise UserError("a plain guest runs on the engine unicorn, which runs the built-in programs and no Linux")
    guest = Guest(options.name, _parameters(options))
    keep_history(guest, History(places.host.history), notify)
    with ExitStack() as undo:
        platform = Platform.start(places.host.identity, places.manufacturer, engine=options.engine)
        undo.callback(platform.close)
        spec = MachineSpec(recipe.layout, options.vcpus, cpu=_cpu(options), plain=True)
        machine = Machine(platform, spec, guest.console, guest.events.run_state_changed)
        undo.callback(machine.close)
        guest.attach(machine, load_plain(platform, machine.memory, recipe))
        undo.callback(guest.close)
        if starts_at_once(options):
            guest.resume()
        return HostedGuest(guest, undo.pop_all())


def _launch_owner(options: GuestOptions, places: Places) -> _LaunchOwner:
    """The guest's owner: elsewhere and not asked, elsewhere and asked, or the local one.

    Raises:
        UserError: options that do not fit together.
    """
    if is_absent(options):
        return AbsentOwner(options)
    if isinstance(places.owner, Path):
        return LocalOwner.start(assignment_of(options, places.owner, places.manufacturer))
    if options.secret is not None or options.zero_pages:
        raise UserError(
            f"--secret and --zero-pages are the owner's to give; give them to the one that serves at {places.owner}"
        )
    return ServedOwner(owner_address(places.owner))


def _cpu(options: GuestOptions) -> CpuShape:
    """What the guest is to see.

    Raises:
        UserError: there is no such CPU.
    """
    return ANY_CPU if options.cpu == DEFAULT_CPU else CpuShape(limit=library().resolve(options.cpu))


def _parameters(options: GuestOptions) -> Parameters:
    """For the guest's migrations, to here and away."""
    return Parameters(
        downtime_limit_ms=options.downtime_limit_ms,
        tls_creds="" if options.tls_creds is None else str(options.tls_creds.absolute()),
    )


def _require_engine(platform: Platform, recipe: GuestRecipe) -> None:
    """Refuse an engine that cannot run Linux."""
    info = platform.info()
    if recipe.machine is MachineType.MICROVM and info.engine != "kvm":
        raise UserError(
            f"Linux needs the engine kvm, and this platform runs guests on {info.engine}: {info.engine_reason}"
        )


def open_disks(paths: tuple[DiskPath, ...]) -> tuple[DiskImage, ...]:
    """Open disk images; the caller closes them.

    Raises:
        UserError: one cannot be used; none is left open.
    """
    with ExitStack() as undo:
        disks = []
        for disk in paths:
            disks.append(DiskImage(disk.path, read_only=disk.read_only))
            undo.callback(disks[-1].close)
        undo.pop_all()
    return tuple(disks)


class AwaitedGuest(HostedGuest):
    """A guest that is to arrive here, where `Guest.receive` says."""

    def __init__(
        self, guest: Guest, host: TargetHost, owner: OwnerClient, states: _ArrivalStates, ending: ExitStack
    ) -> None:
        super().__init__(guest, ending)
        self._host = host
        self._owner = owner
        self._states = states
        self._error: SealiftError | None = None
        self._incoming: Incoming | FileIncoming | None = None
        self._thread: threading.Thread | None = None
        self._closed = False
        self._lock = threading.Lock()
        guest.defer(self._listen)

    def wait(self) -> None:
        """Wait until the guest is here; where it arrives was said before.

        Raises:
            SealiftError: why it did not come.
        """
        if self._thread is not None:
            self._thread.join()
        if self._error is not None:
            raise self._error

    def close(self) -> None:
        """End the guest, or stop waiting for it; nothing is left of either."""
        with self._lock:
            self._closed = True
        if self._incoming is not None:
            self._incoming.close()
        if self._thread is not None:
            self._thread.join()
        super().close()

    def _listen(self, uri: str) -> None:
        address = parse_uri(uri)
        with self._lock:
            if self._closed:
                raise UserError(f"guest {self.guest.name} is not awaited any more")
            incoming = self._incoming = self._incoming_at(address)
            self._host.notify(f"waiting for a guest at {incoming.address}")
            self.guest.arriving(MigrationStatus.SETUP, address=incoming.address)
            self._thread = threading.Thread(target=self._await, args=(incoming,), name="arrival", daemon=True)
            self._thread.start()

    def _incoming_at(self, address: Address) -> Incoming | FileIncoming:
        if isinstance(address, FileAddress):
            return FileIncoming(address, self._host)
        return Incoming(address, self._host, self.guest.parameters.tls_creds)

    def _await(self, incoming: Incoming | FileIncoming) -> None:
        try:
            arrived = incoming.serve()
        except SealiftError as error:
            self._error = error
            self.guest.arriving(MigrationStatus.FAILED, sentence(error))
            return
        finally:
            self._owner.close()
        self.guest.attach(arrived.machine, arrived.launched)
        self._ending.callback(self.guest.close)
        if arrived.filling is None:
            self.guest.arriving(MigrationStatus.COMPLETED)
        else:
            self.guest.fill_from(_LateArrival(arrived.filling, incoming))
            arrived.filling.start(self.guest.arriving)
        self._states.arrived()


class _LateArrival:
    """What a user can have done about missing pages (`sealift.vmm.collaborators.LateArrival`)."""

    def __init__(self, filling: Filling, incoming: Incoming | FileIncoming) -> None:
        self._filling = filling
        self._incoming = incoming

    def pause(self) -> None:
        """End the connections."""
        self._filling.pause()

    def recover(self, uri: str) -> None:
        """Await the source at `uri`."""
        if isinstance(self._incoming, Incoming):
            self._incoming.listen_anew(parse_uri(uri))


class _ArrivalStates:
    """Keeps a machine's run states back until the guest is in it: a receiver that starts up is nobody's news."""

    def __init__(self, publish: Callable[[RunState], None]) -> None:
        self._publish = publish
        self._last = RunState.INMIGRATE
        self._here = False
        self._lock = threading.RLock()

    def changed(self, state: RunState) -> None:
        """For the machine: it has another run state."""
        with self._lock:
            self._last = state
            if self._here:
                self._publish(state)

    def arrived(self) -> None:
        """From now on they are the guest's."""
        with self._lock:
            self._here = True
            self._publish(self._last)


def start_incoming(uri: str, options: GuestOptions, places: Places, notify: Notify = ignore) -> AwaitedGuest:
    """Wait for a guest to arrive at `uri`, or where `Guest.receive` will say (``defer``).

    Of `options` its name here and its next migration's limit count.

    Raises:
        UserError: `uri` is no address, or cannot be listened on.
    """
    guest = Guest(options.name, _parameters(options))
    keep_history(guest, History(places.host.history), notify)
    states = _ArrivalStates(guest.events.run_state_changed)
    with ExitStack() as undo:
        ownerless = options.type is GuestType.PLAIN or uri.startswith("file:")
        owner = NoOwner() if ownerless else _receiving_owner(places)
        undo.callback(owner.close)
        landing = _landing(options, places, guest, owner, states)
        host = replace(landing, token_path=_token_path(places.host, options.name), notify=notify)
        for note in owner.prepare():
            notify(note)
        awaited = AwaitedGuest(guest, host, owner, states, undo.pop_all())
        undo.callback(awaited.close)
        if uri == DEFER:
            notify("waiting to be told by QMP's migrate-incoming where a guest is to arrive")
        else:
            guest.receive(uri)
        undo.pop_all()
        return awaited


def start_restored(path: Path, options: GuestOptions, places: Places, notify: Notify = ignore) -> HostedGuest:
    """Restore the guest in a snapshot and let it go on; of `options` count the same as for `start_incoming`.

    Raises:
        UserError: there is no such snapshot, it was altered, or its owner does not release it.
    """
    guest = Guest(options.name, _parameters(options))
    keep_history(guest, History(places.host.history), notify)
    states = _ArrivalStates(guest.events.run_state_changed)
    with ExitStack() as undo:
        owner = _receiving_owner(places)
        undo.callback(owner.close)
        for note in owner.prepare():
            notify(note)
        restored = restore(path, _landing(options, places, guest, owner, states))
        undo.callback(restored.machine.close)
        guest.attach(restored.machine, restored.launched)
        undo.callback(guest.close)
        owner.close()
        notify(f"guest {options.name} is restored from {path}")
        states.arrived()
        return HostedGuest(guest, undo.pop_all())


def _receiving_owner(places: Places) -> OwnerClient:
    """An owner that is asked for guests that it knows alone."""
    if isinstance(places.owner, Path):
        return LocalOwner.start(Assignment(owner=str(places.owner), manufacturer=str(places.manufacturer)))
    return ServedOwner(owner_address(places.owner))


def _landing(
    options: GuestOptions, places: Places, guest: Guest, owner: OwnerClient, states: _ArrivalStates
) -> TargetHost:
    return TargetHost(
        platform=lambda: Platform.start(
            places.host.identity, places.manufacturer, engine=options.engine, prealloc=options.prealloc
        ),
        disks=lambda: open_disks(options.disks),
        owner=owner,
        startup=programs.startup_blob(),
        console=lambda: guest.console,
        run_state=states.changed,
        plain=options.type is GuestType.PLAIN,
    )


def _token_path(host: Host, name: str) -> Path:
    try:
        host.tokens.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"the directory {host.tokens} cannot be made") from error
    return host.tokens / f"{name}.token"

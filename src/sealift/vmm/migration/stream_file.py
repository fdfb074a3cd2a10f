"""A plain guest's stream in a file, in the layout that QEMU's analyser reads, and back.

Nothing follows the description, so what finds damage is a section of its own, `sealift/digest`, last before EOF: the
SHA-256 of the stream before it. It has no key, so it stops nobody who can write the file. It does not cover the
description, which only people and tools read.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import ExitStack, closing

from sealift.errors import PeerError, SealiftError, StreamError, UserError
from sealift.vmm.launch import PLAIN_LAUNCH, Launched
from sealift.vmm.machine import Machine
from sealift.vmm.migration.attempt import Attempt
from sealift.vmm.migration.clock import Clock
from sealift.vmm.migration.landing import TargetHost, make_machine, set_going
from sealift.vmm.migration.lanes import Lanes
from sealift.vmm.migration.livecopy import LiveCopy, Subject
from sealift.vmm.migration.machine_state import Restorer
from sealift.vmm.migration.parameters import Parameters
from sealift.vmm.migration.plain import PlainEntrance, PlainSource, PlainTarget
from sealift.vmm.migration.receiving import Sinks, StreamIn
from sealift.vmm.migration.shared_ram import RamLoader
from sealift.vmm.migration.snapshot_file import FileReader, SnapshotWriter
from sealift.vmm.migration.status import MigrationStatus
from sealift.vmm.migration.streamio import EndedError, bulk_work
from sealift.vmm.migration.streamout import StreamOut
from sealift.vmm.migration.target import Arrived
from sealift.vmm.migration.transport import FileAddress, parse_uri
from sealift.wire.handover import Method


class Save(Attempt):
    """One attempt to move a plain guest to the file that it is `run` with, ``file:PATH``, which must not exist.

    It does not run on here: as with QEMU, where it goes on is whoever loads the file's to say.
    """

    what = "migration"

    def __init__(
        self,
        machine: Machine,
        launched: Launched,  # noqa: ARG002  # as every attempt is made; nothing was launched
        guest_name: str,
        parameters: Parameters,
        listener: Callable[[MigrationStatus], None],
        clock: Clock,
    ) -> None:
        super().__init__(machine, parameters, listener, clock)
        self._name = guest_name
        self._writer: SnapshotWriter | None = None

    def _carry(self, place: str) -> None:
        self._check()
        address = parse_uri(place)
        if not isinstance(address, FileAddress) or not address.path.is_absolute():
            raise UserError(f"{place} names no file by its absolute path")
        method = PlainSource(self._machine, self.parameters.channels)
        writer = self._writer = SnapshotWriter(address.path, self._throttle.spend, "stream")
        writer.skip(address.offset)
        watch = self._watch(lambda: None)
        out = StreamOut(writer, writer.digest)
        copy = LiveCopy(Subject(self._machine, self._name), method, Lanes(out), self._now, self._stats, watch)
        copy.introduce(method.start())
        self._stats.migration = method.identity()
        watch.active()
        copy.rounds()
        self._throttle.lift()
        copy.stop()
        self._machine.devices.flush_disks()
        copy.finish()
        writer.sync()
        watch.settled()
        self._machine.devices.leave_disks()
        writer.publish()
        self._stats.downtime_part(None)

    def _done(self) -> None:
        self._machine.handed_over()

    def _recover(self, error: SealiftError) -> bool:  # noqa: ARG002  # whatever it was
        self._let_go()
        self._machine.take_back()
        return True

    def _let_go(self) -> None:
        if self._writer is not None:
            self._writer.discard()

    def _too_late(self) -> UserError:
        return UserError("the file is complete and just gets its name; it is too late to cancel")

    def _wake(self) -> None:
        pass  # whoever waits for the throttle is woken by the cancel itself


class FileIncoming:
    """Loads the guest from a file; in the place of a `target.Incoming`, which waits for one.

    Attributes:
        address: the file.
    """

    def __init__(self, address: FileAddress, host: TargetHost) -> None:
        self.address = address
        self._host = host

    def serve(self) -> Arrived:
        """Load it.

        Raises:
            UserError: it cannot be loaded; the cause says why, and nothing is left.
        """
        try:
            with closing(FileReader(self.address.path, self.address.offset)) as reader:
                try:
                    return _load(reader, self._host)
                except EndedError as error:
                    raise StreamError("it is truncated") from error
        except PeerError as error:
            raise UserError(f"no guest can be loaded from {self.address}") from error

    def close(self) -> None:
        """Nothing is waited for."""


def _load(reader: FileReader, host: TargetHost) -> Arrived:
    stream = StreamIn(reader)
    introduction = stream.introduction()
    hello = introduction.hello
    if Method(hello.method) is not Method.PLAIN:
        raise StreamError("it holds no plain guest; a snapshot comes back with `sealift run --restore`")
    PlainEntrance().admit(hello.offer)
    verified = False

    def verify(end: int, digest: bytes) -> None:
        nonlocal verified
        if reader.digest(end) != digest:
            raise StreamError("it was damaged: its digest is of other bytes")
        verified = True

    with ExitStack() as undo:
        platform = host.platform()
        undo.callback(platform.close)
        machine = make_machine(host, platform, introduction, es=False)
        undo.callback(machine.close)
        restorer = Restorer(machine)
        with bulk_work():
            stream.rest(Sinks(PlainTarget(), RamLoader(machine.memory), restorer, verify))
        if not verified:
            raise StreamError("it has no digest")
        if not reader.at_end():
            raise StreamError("something follows its stream")
        machine.devices.take_disks()
        set_going(machine, restorer)
        undo.pop_all()
    return Arrived(machine, PLAIN_LAUNCH, hello.guest, b"", None)


def check_place(address: FileAddress) -> None:
    """Could a guest be saved there?

    Raises:
        UserError: no; the message says why.
    """
    if os.path.lexists(address.path):
        raise UserError(f"{address.path} exists already; choose another name, or remove it first")
    if not address.path.parent.is_dir():
        raise UserError(f"there is no directory {address.path.parent}")

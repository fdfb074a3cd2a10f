"""A snapshot: the rounds of a migration, written to a file while the guest runs, which then runs on.

The guest stands still for the last round and its state alone: until the handler has made the snapshot's end. That all
of it lasts, and gets its name, it need not wait for. A failure or a cancel leaves no file.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import msgspec

from sealift.errors import SealiftError, UserError
from sealift.vmm.launch import Launched
from sealift.vmm.machine import Machine
from sealift.vmm.migration.attempt import Attempt
from sealift.vmm.migration.clock import Clock
from sealift.vmm.migration.lanes import Lanes
from sealift.vmm.migration.livecopy import LiveCopy, Subject, Watch
from sealift.vmm.migration.method import SnapshotMethod
from sealift.vmm.migration.methods import snapshot_method
from sealift.vmm.migration.parameters import Capability, Parameters
from sealift.vmm.migration.snapshot_file import SnapshotWriter
from sealift.vmm.migration.stats import MigrationInfo
from sealift.vmm.migration.status import MigrationStatus
from sealift.vmm.migration.streamout import StreamOut


class Snapshot(Attempt):
    """One attempt to save a guest to the file that it is `run` with, which must not exist."""

    what = "snapshot"

    def __init__(
        self,
        machine: Machine,
        launched: Launched,
        guest_name: str,
        parameters: Parameters,
        listener: Callable[[MigrationStatus], None],
        clock: Clock,
    ) -> None:
        single = replace(parameters, capabilities=parameters.capabilities - {Capability.MULTIFD})
        super().__init__(machine, single, listener, clock)
        self._name = guest_name
        self._launched = launched
        # A file has one channel.
        self._path: Path | None = None
        self._writer: SnapshotWriter | None = None
        self._method: SnapshotMethod | None = None

    def info(self) -> MigrationInfo:
        """How it stands, with the file it goes to."""
        path = None if self._path is None else str(self._path)
        return msgspec.structs.replace(super().info(), x_sealift_snapshot=path)

    def _carry(self, place: str) -> None:
        self._check()
        self._path = Path(place)
        writer = self._writer = SnapshotWriter(self._path, self._throttle.spend)
        method = snapshot_method(self._machine, self._launched, self.parameters)
        watch = self._watch(lambda: None)
        subject = Subject(self._machine, self._name)
        copy = LiveCopy(subject, method, Lanes(StreamOut(writer)), self._now, self._stats, watch)
        self._method = method
        copy.introduce(method.begin())
        self._stats.migration = method.identity()
        watch.active()
        copy.rounds()
        self._throttle.lift()
        copy.stop()
        self._machine.devices.flush_disks()
        copy.finish()
        end = method.end(writer.digest())
        self._machine.take_back()
        self._stats.downtime_part(None)
        self._keep(writer, end, watch)

    def _keep(self, writer: SnapshotWriter, end: bytes, watch: Watch) -> None:
        writer.finish(end)
        self._stats.sent = writer.sent
        watch.settled()
        writer.publish()

    def _done(self) -> None:
        pass  # the guest runs already

    def _recover(self, error: SealiftError) -> bool:  # noqa: ARG002  # whatever it was
        self._discard()
        try:
            if self._method is not None:
                self._method.cancel()
        finally:
            self._machine.take_back()
        return True

    def _let_go(self) -> None:
        self._discard()
        self._method = None

    def _discard(self) -> None:
        if self._writer is not None:
            self._writer.discard()

    def _too_late(self) -> UserError:
        return UserError(f"the snapshot is complete and just gets its name, {self._path}; it is too late to cancel")

    def _wake(self) -> None:
        pass  # whoever waits for the throttle is woken by the cancel itself

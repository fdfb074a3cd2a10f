"""A snapshot comes back: the guest runs here as it was, if its owner wants that, or nothing is left of the attempt.

Nothing of it runs before every byte was verified, those in clear included: the receiver's handler takes the snapshot's
end in the place of a source's FINAL, and refuses one that is about other bytes.
"""

from __future__ import annotations

from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path

from sealift.errors import PeerError, StreamError, UserError
from sealift.vmm.launch import Launched
from sealift.vmm.machine import Machine
from sealift.vmm.migration.landing import TargetHost, make_machine, set_going
from sealift.vmm.migration.machine_state import Restorer
from sealift.vmm.migration.methods import restore_entrance
from sealift.vmm.migration.receiving import Sinks, StreamIn
from sealift.vmm.migration.shared_ram import RamLoader
from sealift.vmm.migration.snapshot_file import SnapshotReader
from sealift.vmm.migration.streamio import EndedError, bulk_work
from sealift.wire.handover import Method


@dataclass(frozen=True, slots=True)
class Restored:
    """A guest that runs here now (or is paused, as it was when it was saved).

    Attributes:
        launched: the receiver's launch; the guest's next hop or snapshot starts from it.
        name: what the guest was called when it was saved.
    """

    machine: Machine
    launched: Launched
    name: str


def restore(path: Path, host: TargetHost) -> Restored:
    """Restore the snapshot in a file; `host.token_path` is not used.

    Raises:
        UserError: it cannot be restored here; the cause says why, and nothing is left.
    """
    try:
        with closing(SnapshotReader(path)) as reader:
            try:
                return _restore(reader, host)
            except EndedError as error:
                raise StreamError("it is truncated") from error
    except PeerError as error:
        raise UserError(f"the snapshot {path} cannot be restored") from error


def _restore(reader: SnapshotReader, host: TargetHost) -> Restored:
    stream = StreamIn(reader)
    introduction = stream.introduction()
    hello = introduction.hello
    with ExitStack() as undo:
        platform = host.platform()
        undo.callback(platform.close)
        entrance = restore_entrance(Method(hello.method), platform, host.owner, host.startup, hello.offer)
        machine = make_machine(host, platform, introduction, es=entrance.es)
        undo.callback(machine.close)
        launched, method = entrance.enter(machine)
        method.begin(hello.offer)
        restorer = Restorer(machine)
        with bulk_work():
            stream.rest(Sinks(method, RamLoader(machine.memory), restorer))
        machine.replace_shared_pages(platform.page_states())
        method.finish(*reader.end())
        machine.devices.take_disks()
        method.start()
        set_going(machine, restorer)
        undo.pop_all()
    return Restored(machine, launched, hello.guest)

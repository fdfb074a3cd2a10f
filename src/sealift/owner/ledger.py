"""The owner's records: one file a launch, from the session it was given to the key its next hop will need.

::

    begun/<launch id>.<CEK fingerprint>   a `Launch` that was begun on that host; secret
    launches/<launch id>                  a `Launch` whose secret was released; secret
    released/<measurement>                the launch id that belongs to a LAUNCH_MEASURE output
    disowned/<launch id>                  why the owner gives what runs there nothing more

A launch is marked released on disk before its secret leaves the owner: a crash in between costs the launch, never a
second release.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

import msgspec

from sealift.errors import UserError
from sealift.launch.image import GuestRecipe
from sealift.privatefiles import Access, PrivateDirectory
from sealift.sev import measurement
from sealift.sev.measurement import FirmwareVersion
from sealift.sev.secret import SecretEntry
from sealift.sev.session import TransportKeys
from sealift.wire.owner import LAUNCH_ID_LENGTH
from sealift.wire.packed import UNDECODABLE

_RECORD_LIMIT: Final = 16 << 20
"""Bytes of a record: start-up code and secrets, with room to spare."""

_REASON_LIMIT: Final = 1024
"""Bytes: a sentence of the owner's own."""

HOST_LIMIT: Final = 16
"""Launches begun and not yet released that an owner remembers of a host; a VMM takes seconds from one to the other."""

BEGUN_LIMIT: Final = 512
"""The same of all hosts together. So who would push another's out needs 32 hosts with genuine chips."""

_LAUNCH_ID: Final = re.compile(rf"[0-9a-f]{{{LAUNCH_ID_LENGTH}}}")


@dataclass(frozen=True, slots=True)
class Launch:
    """One launch; keys are never shown.

    Attributes:
        launch_id: its name.
        source: the launch this one receives its guest from; None for a launch of the guest itself.
        instance_id: names the guest through all its hops.
        host: fingerprint of the platform's CEK.
        root: fingerprint of the ARK that its certificates led to.
        version: the firmware's, which the measurement binds.
        policy: the guest's, 32 bits.
        launch_digest: what the measurement must be of.
        receiver: the image that a receiver of this guest launches.
        key: R, the launch's migration key.
        flags: `MigrationFlags` of the launch.
        entries: secrets for the guest; empty after release.
        transport: keys of the launch session; None after release.
        measure: the LAUNCH_MEASURE output it was released for; None before.
        snapshot: the header of the snapshot that the launch is to restore; None for every other.
    """

    launch_id: str
    source: str | None
    instance_id: bytes
    host: bytes
    root: bytes
    version: FirmwareVersion
    policy: int
    launch_digest: bytes
    receiver: GuestRecipe = field(repr=False)
    key: bytes = field(repr=False)
    flags: int
    entries: tuple[SecretEntry, ...]
    transport: TransportKeys | None
    measure: bytes | None = None
    snapshot: bytes | None = None

    def released(self, measure: bytes) -> Launch:
        """The launch after its secret was made; what the release consumed is gone."""
        return replace(self, measure=measure, transport=None, entries=())


def fresh_launch_id() -> str:
    """A name nobody can guess, so that no VMM asks for another's launch."""
    return secrets.token_hex(LAUNCH_ID_LENGTH // 2)


class Ledger:
    """The records in an owner's directory.

    Raises:
        UserError: a directory or record is damaged or open to others.
    """

    def __init__(self, path: Path) -> None:
        self._begun = PrivateDirectory(path / "begun", "launch records")
        self._launches = PrivateDirectory(path / "launches", "launch records")
        self._released = PrivateDirectory(path / "released", "launch records")
        self._disowned = PrivateDirectory(path / "disowned", "launch records")

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Keep other processes from releasing meanwhile."""
        with self._launches.locked(Access.CHANGE):
            yield

    def record(self, launch: Launch) -> None:
        """Write a launch, new or changed; a released one can be found by its measurement from then on.

        Of launches that are begun only the latest of each host are kept: any VMM can begin as many as it likes.
        """
        data = msgspec.msgpack.encode(launch)
        if launch.measure is None:
            with self.alone():
                self._begun.write(_begun_name(launch), data)
                begun = self._begun.by_age()
                of_host = [name for name in begun if name.endswith(_suffix(launch.host))]
                for name in {*begun[:-BEGUN_LIMIT], *of_host[:-HOST_LIMIT]}:
                    self._begun.remove(name)
        else:
            self._launches.write(launch.launch_id, data)
            self._released.write(launch.measure.hex(), launch.launch_id.encode())
            self._begun.remove(_begun_name(launch))

    def find(self, launch_id: str) -> Launch | None:
        """The launch of that name, if there is one."""
        if not _LAUNCH_ID.fullmatch(launch_id):
            return None
        place, name = self._launches, launch_id
        if not place.has(name):
            place = self._begun
            name = next((begun for begun in place.names() if begun.startswith(f"{launch_id}.")), "")
            if not name:
                return None
        try:
            return msgspec.msgpack.decode(place.read(name, _RECORD_LIMIT), type=Launch)
        except UNDECODABLE as error:
            raise UserError(f"the record of launch {launch_id} is damaged; restore it from a copy") from error

    def released(self) -> list[Launch]:
        """Every launch whose secret was released and whose record is still here."""
        found = (self.find_released(bytes.fromhex(name)) for name in self._released.names())
        return [launch for launch in found if launch is not None]

    def disown(self, launch: Launch, reason: str) -> None:
        """From now on what runs there is a copy that must not be: nothing follows from this launch any more."""
        self._disowned.write(launch.launch_id, reason.encode())

    def why_disowned(self, launch: Launch) -> str | None:
        """The reason, if it was."""
        if not self._disowned.has(launch.launch_id):
            return None
        return self._disowned.read(launch.launch_id, _REASON_LIMIT).decode(errors="replace")

    def find_released(self, measure: bytes) -> Launch | None:
        """The launch whose secret was released for that LAUNCH_MEASURE output, if there is one."""
        name = measure.hex()
        if len(measure) != measurement.SIZE or not self._released.has(name):
            return None
        return self.find(self._released.read(name, LAUNCH_ID_LENGTH).decode("ascii", "replace"))


def _begun_name(launch: Launch) -> str:
    return launch.launch_id + _suffix(launch.host)


def _suffix(host: bytes) -> str:
    return f".{host.hex()}"

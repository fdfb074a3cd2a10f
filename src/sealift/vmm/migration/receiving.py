"""The target's reading of the stream: introduction, confirmation, then everything to its end."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from sealift.address import Gpa, RamBlock, RamLayout
from sealift.errors import StreamError, UserError
from sealift.vmm.migration.machine_state import Restorer
from sealift.vmm.migration.method import RecordSink
from sealift.vmm.migration.shared_ram import RamLoader
from sealift.vmm.migration.streamio import ByteReader
from sealift.wire import handshake, psp
from sealift.wire.handover import HELLO_LIMIT, Hello, SealedKind
from sealift.wire.qemu_stream import (
    DIGEST,
    DIGEST_VERSION,
    RAM,
    RAM_VERSION,
    SEALED,
    SEALED_VERSION,
    Section,
    SectionType,
    read_block_list,
    read_description,
    read_footer,
    read_front,
    read_piece,
    read_section,
    read_state,
)
from sealift.wire.record import MAX_RECORD

SECTIONS_LIMIT = 1024
"""Sections one stream may start: one for each size of a record (a few hundred at most) and a handful of devices."""

_PIECE_LIMITS = {
    SealedKind.HELLO: HELLO_LIMIT,
    SealedKind.CONFIRM: max(handshake.MAX_MESSAGE, psp.CONFIRM_LIMIT),
    SealedKind.RECORD: MAX_RECORD,
}


@dataclass(frozen=True, slots=True)
class Introduction:
    """Who comes, and the machine it needs."""

    hello: Hello
    layout: RamLayout


@dataclass(frozen=True, slots=True)
class Sinks:
    """Where what comes is put; `verify` gets a digest (of a file) and how many bytes before it it is of."""

    method: RecordSink
    ram: RamLoader
    devices: Restorer
    verify: Callable[[int, bytes], None] | None = None


class StreamIn:
    """Reads one stream, in the order in which a source writes it."""

    def __init__(self, reader: ByteReader) -> None:
        self._reader = reader
        self._take = reader.take
        self._sections: dict[int, Section] = {}

    def introduction(self) -> Introduction:
        """Header, RAMBlock list and HELLO.

        Raises:
            StreamError: something else, or what it says makes no sense.
        """
        read_front(self._take)
        ram = self._section(RAM)
        blocks = read_block_list(self._take)
        read_footer(self._take, ram)
        hello = Hello.decode(self._message(SealedKind.HELLO))
        if tuple((block.name, block.size) for block in hello.blocks) != blocks:
            raise StreamError("the source's introduction and its RAMBlock list describe different machines")
        try:
            layout = RamLayout(tuple(RamBlock(block.name, Gpa(block.gpa), block.size) for block in hello.blocks))
        except UserError as error:
            raise StreamError("the source's RAMBlock table makes no sense") from error
        return Introduction(hello, layout)

    def confirmation(self) -> bytes:
        """The source's confirmation."""
        return self._message(SealedKind.CONFIRM)

    def rest(self, sinks: Sinks) -> None:
        """Everything up to the description's end; every record taken is opened when this returns.

        Raises:
            SealiftError: something does not parse, or is refused by whom it is for.
        """
        while (front := read_section(self._take)) is not None:
            section = self._known(front)
            match section.name:
                case name if name == RAM:
                    sinks.ram.load(self._reader)
                case name if name == SEALED:
                    self._record(sinks.method)
                case name if name == DIGEST and sinks.verify is not None:
                    before = self._reader.received - len(section.encode())
                    sinks.verify(before, read_state(self._take, name))
                case name:
                    sinks.devices.check(name, section.instance, section.version)
                    sinks.devices.restore(name, section.instance, read_state(self._take, name))
            read_footer(self._take, section)
        sinks.method.settle()
        sinks.devices.finish()
        read_description(self._take)

    def late_record(self, buffer: memoryview) -> memoryview:
        """The next record, which must come now and nothing else; in the front of `buffer`.

        Raises:
            StreamError: something else comes.
        """
        section = self._section(SEALED)
        record = buffer[: self._piece(SealedKind.RECORD)]
        self._reader.into(record)
        read_footer(self._take, section)
        return record

    def _record(self, method: RecordSink) -> None:
        length = self._piece(SealedKind.RECORD)
        self._reader.into(method.space(length))
        method.take(length)

    def _message(self, kind: SealedKind) -> bytes:
        section = self._section(SEALED)
        data = self._take(self._piece(kind))
        read_footer(self._take, section)
        return data

    def _piece(self, due: SealedKind) -> int:
        """The length of a piece that must be of kind `due`."""
        kind, length = read_piece(self._take)
        if kind != due:
            raise StreamError(f"a piece of kind {kind} came where {due.name} was due")
        if length > _PIECE_LIMITS[due]:
            raise StreamError(f"a {due.name} of {length} bytes is over the limit of {_PIECE_LIMITS[due]}")
        return length

    def _section(self, name: str) -> Section:
        """The next section, which must be of that name."""
        front = read_section(self._take)
        if front is None:
            raise StreamError(f"the stream ends where section {name!r} was due")
        section = self._known(front)
        if section.name != name:
            raise StreamError(f"section {section.name!r} came where {name!r} was due")
        return section

    def _known(self, front: Section) -> Section:
        """The section with its name: what a PART or END continues must have started."""
        match front.type:
            case SectionType.START | SectionType.FULL:
                self._started(front)
                return front
            case _:
                if front.id not in self._sections:
                    raise StreamError(f"the stream continues section {front.id}, which never started")
                begun = self._sections[front.id]
                return Section(front.type, front.id, begun.name, begun.instance, begun.version)

    def _started(self, front: Section) -> None:
        if front.id in self._sections:
            raise StreamError(f"section {front.id} starts twice")
        if len(self._sections) == SECTIONS_LIMIT:
            raise StreamError(f"the stream starts more than {SECTIONS_LIMIT} sections")
        reads = {RAM: RAM_VERSION, SEALED: SEALED_VERSION, DIGEST: DIGEST_VERSION}.get(front.name)
        if reads is not None and front.version != reads:
            raise StreamError(f"section {front.name!r} has version {front.version}; this target reads {reads}")
        self._sections[front.id] = front

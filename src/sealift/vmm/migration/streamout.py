"""The source's QEMU stream, section by section, through one writer."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from sealift.address import RamLayout
from sealift.vmm.memory import Buffer
from sealift.vmm.migration.machine_state import SavedState
from sealift.vmm.migration.shared_ram import Batch
from sealift.vmm.migration.streamio import Writer
from sealift.wire.handover import Frame, SealedKind
from sealift.wire.qemu_stream import (
    DIGEST,
    DIGEST_VERSION,
    END_OF_RAM_PART,
    RAM,
    RAM_VERSION,
    SEALED,
    SEALED_VERSION,
    Described,
    Section,
    SectionType,
    describe_piece,
    describe_state,
    encode_block_list,
    encode_description,
    encode_front,
    encode_piece,
    encode_state,
)

_RAM_ID = 0


class StreamOut:
    """Writes one stream; with `digest`, what that gives of all before it stands in a section before EOF."""

    def __init__(self, writer: Writer, digest: Callable[[], bytes] | None = None) -> None:
        self._writer = writer
        self._digest = digest
        self._sections = _RAM_ID + 1
        self._by_length: dict[int, int] = {}

    @property
    def sent(self) -> int:
        """Bytes so far."""
        return self._writer.sent

    def begin(self, layout: RamLayout) -> None:
        """Header, configuration and RAMBlock list."""
        ram = Section(SectionType.START, _RAM_ID, RAM, 0, RAM_VERSION)
        self._writer.write(encode_front(), ram.encode(), encode_block_list(layout), ram.footer())

    def piece(self, kind: SealedKind, *parts: Buffer) -> None:
        """A piece of `sealift/sealed`, in the instance for pieces of its length."""
        length = sum(map(len, parts))
        if length in self._by_length:
            section = Section(SectionType.PART, self._by_length[length])
        else:
            instance = len(self._by_length)
            section = Section(SectionType.START, self._new_id(), SEALED, instance, SEALED_VERSION)
            self._by_length[length] = section.id
        self._writer.write(section.encode() + encode_piece(kind, length), *parts, section.footer())

    def ram(self, batch: Batch) -> None:
        """A part of `ram`."""
        section = Section(SectionType.PART, _RAM_ID)
        self._writer.write(section.encode(), *batch.pieces, section.footer())

    def end(self, states: Iterable[SavedState]) -> None:
        """The end of `ram`, the devices, EOF and the description."""
        ram = Section(SectionType.END, _RAM_ID)
        parts = [ram.encode(), END_OF_RAM_PART, ram.footer()]
        described = [describe_piece(instance, length) for instance, length in enumerate(self._by_length)]
        for state in states:
            parts += self._full(state)
            described.append(_described(state))
        if self._digest is not None:
            self._writer.write(b"".join(parts))
            digest = SavedState(DIGEST, DIGEST_VERSION, self._digest())
            parts = self._full(digest)
            described.append(_described(digest))
        parts += [bytes([SectionType.EOF]), encode_description(described)]
        self._writer.write(b"".join(parts))

    def _full(self, state: SavedState) -> list[bytes]:
        section = Section(SectionType.FULL, self._new_id(), state.name, state.instance, state.version)
        return [section.encode(), encode_state(state.data), section.footer()]

    def frame(self, frame: Frame) -> None:
        """A frame behind the stream."""
        self._writer.write(frame.encode())

    def _new_id(self) -> int:
        self._sections += 1
        return self._sections - 1


def _described(state: SavedState) -> Described:
    return describe_state(state.name, state.version, len(state.data), state.instance)

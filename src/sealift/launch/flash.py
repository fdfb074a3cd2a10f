"""A firmware image for QEMU's flash, such as OVMF: what its GUIDed table says to who launches it.

QEMU maps the image so that it ends at 4 GiB and has the whole of it measured. Builds that are not made for it name
blocks at address 0, which means that they have none (EDK2 ``OvmfPkg/ResetVector/Ia16``).
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final
from uuid import UUID

from sealift.address import Gpa
from sealift.errors import StreamError, UserError
from sealift.launch import guided
from sealift.launch.areas import Area
from sealift.launch.kernelhashes import SIZE as HASHES_SIZE

RESET_BLOCK_GUID: Final = UUID("00f771de-1a7e-4fcb-890e-68c77e2fb44e")
"""Data: u32, where the vCPUs of an SEV-ES guest other than the first begin."""
HASHES_BLOCK_GUID: Final = UUID("7255371f-3a3b-4b04-927b-1da6efa8d454")
"""Data: u32 base, u32 size of the area for the kernel hashes table."""

END: Final = 1 << 32
"""Where an image ends."""
SIZE_LIMIT: Final = 64 << 20
"""Bytes of an image: QEMU's flash has at most 8 MiB by default, and no released image has more than 16."""
_BLOCK: Final = 16
"""LAUNCH_UPDATE_DATA takes whole blocks of AES."""

_ADDRESS: Final = struct.Struct("<I")
_AREA: Final = struct.Struct("<II")


@dataclass(frozen=True, slots=True)
class FlashImage:
    """One image.

    Attributes:
        data: all of it.
        entries: its GUIDed table; empty if it has none.
    """

    data: bytes = field(repr=False)
    entries: Mapping[UUID, bytes]

    @classmethod
    def decode(cls, data: bytes) -> FlashImage:
        """Read an image, with a table or without.

        Raises:
            StreamError: it has a size that no launch command takes, or a damaged table.
        """
        if not data or len(data) % _BLOCK or len(data) > SIZE_LIMIT:
            raise StreamError(f"{len(data)} bytes are no firmware image: 16 to {SIZE_LIMIT} by steps of 16 are")
        has_table = data[-guided.FOOTER_SPAN : -guided.TAIL_SIZE].endswith(guided.FOOTER_GUID.bytes_le)
        return cls(data, guided.parse(data) if has_table else {})

    @property
    def gpa(self) -> Gpa:
        """Where it begins."""
        return Gpa(END - len(self.data))

    @property
    def secret(self) -> Area | None:
        """Where LAUNCH_SECRET puts a secret table; None if the firmware has no place for it.

        Raises:
            StreamError: the entry has the wrong size.
        """
        return self._area(guided.SECRET_BLOCK_GUID)

    def hashes_area(self) -> Area:
        """Where the kernel hashes table goes.

        Raises:
            UserError: this firmware has no place for it.
            StreamError: the entry has the wrong size, or names an area that is too small.
        """
        area = self._area(HASHES_BLOCK_GUID)
        if area is None:
            raise UserError(
                "this firmware has no place for kernel hashes, so QEMU cannot have kernel, initrd and command line "
                "measured with it; use a build such as OvmfPkg/AmdSev"
            )
        if area.size < HASHES_SIZE:
            raise StreamError(f"the firmware's block for kernel hashes has {area.size} bytes of {HASHES_SIZE}")
        return area

    def reset_eip(self) -> int:
        """Linear address where all vCPUs of an SEV-ES guest but the first begin.

        Raises:
            UserError: this firmware does not say.
            StreamError: the entry has the wrong size.
        """
        found = self._entry(RESET_BLOCK_GUID, _ADDRESS)
        if found is None:
            raise UserError(
                "this firmware does not say where vCPUs other than the first begin (it has no SEV-ES reset block); "
                "give their VMSA as a file"
            )
        return int(found[0])

    def _area(self, guid: UUID) -> Area | None:
        found = self._entry(guid, _AREA)
        if found is None or not all(found):
            return None
        base, size = found
        return Area(Gpa(base), size)

    def _entry(self, guid: UUID, layout: struct.Struct) -> tuple[int, ...] | None:
        data = self.entries.get(guid)
        if data is None:
            return None
        if len(data) != layout.size:
            raise StreamError(f"entry {guid} of the firmware's table has {len(data)} bytes, not {layout.size}")
        return layout.unpack(data)

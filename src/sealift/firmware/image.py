"""What a firmware image supports, as the GUIDed table at its end says."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from uuid import UUID

from sealift.errors import StreamError, UserError
from sealift.launch.flash import HASHES_BLOCK_GUID, RESET_BLOCK_GUID, SIZE_LIMIT, FlashImage
from sealift.launch.guided import SECRET_BLOCK_GUID

_NAMES: Final = {
    RESET_BLOCK_GUID: "sev-es-reset-block",
    SECRET_BLOCK_GUID: "sev-secret-block",
    HASHES_BLOCK_GUID: "sev-hash-table",
    UUID("dc886566-984a-4798-a75e-5585a7bf67cc"): "sev-metadata",
    UUID("e47a6535-984a-4798-865e-4685a7bf8ec2"): "tdx-metadata",
}
"""Source: EDK2 ``OvmfPkg/ResetVector/Ia16/ResetVectorVtf0.asm``."""
_OFFSET: Final = struct.Struct("<I")
_AREA: Final = struct.Struct("<II")


@dataclass(frozen=True, slots=True)
class TableEntry:
    """One entry of the table, and what it says, in words."""

    guid: UUID
    name: str
    says: str


@dataclass(frozen=True, slots=True)
class Inspected:
    """An image.

    Attributes:
        size: bytes.
        entries: of its table, nearest to the image's end first.
        supports: features of the kind that descriptors have, and what else launches ask for.
    """

    size: int
    entries: tuple[TableEntry, ...]
    supports: dict[str, bool]


def inspect(path: Path) -> Inspected:
    """Read an image's table.

    Raises:
        UserError: the file cannot be read, or is no firmware image.
    """
    try:
        with path.open("rb") as file:
            data = file.read(SIZE_LIMIT + 1)
    except OSError as error:
        raise UserError(f"the firmware image {path} cannot be read") from error
    try:
        image = FlashImage.decode(data)
        entries = tuple(_entry(guid, value) for guid, value in image.entries.items())
        return Inspected(len(data), entries, _supports(image))
    except StreamError as error:
        raise UserError(f"{path} cannot be inspected") from error


def _entry(guid: UUID, data: bytes) -> TableEntry:
    name = _NAMES.get(guid, "unknown")
    match name, len(data):
        case "sev-es-reset-block", _OFFSET.size:
            says = f"vCPUs other than the first begin at {_OFFSET.unpack(data)[0]:#x}"
        case (("sev-secret-block" | "sev-hash-table"), _AREA.size):
            base, size = _AREA.unpack(data)
            says = f"{size:#x} bytes at {base:#x}" if base and size else "no area: the build is not made for it"
        case (("sev-metadata" | "tdx-metadata"), _OFFSET.size):
            says = f"begins {_OFFSET.unpack(data)[0]:#x} bytes before the end"
        case _:
            says = f"{len(data)} bytes"
    return TableEntry(guid, name, says)


def _supports(image: FlashImage) -> dict[str, bool]:
    present = {_NAMES[guid] for guid in image.entries if guid in _NAMES}
    hashes = image.entries.get(HASHES_BLOCK_GUID, b"")
    return {
        "amd-sev-es": "sev-es-reset-block" in present,
        "amd-sev-snp": "sev-metadata" in present,
        "intel-tdx": "tdx-metadata" in present,
        "launch-secret": image.secret is not None,
        "kernel-hashes": len(hashes) == _AREA.size and all(_AREA.unpack(hashes)),
    }

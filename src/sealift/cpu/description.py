"""What is known of a CPU, of a model's or a host's: who makes it and which features it has.

::

    EPYC-v1                       a model
    EPYC-v1,-svm,+x2apic          the same with other features, as QEMU's -cpu has it
    host.json, ./host             a file that `sealift cpu host --json` or `sealift cpu show --json` wrote
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Final

import msgspec

from sealift.errors import UserError

FEATURES_LIMIT: Final = 1024
"""Features of one CPU: QEMU knows of fewer than 400."""
_FILE_LIMIT: Final = 1 << 20
"""Bytes of a description: a few kilobytes."""

Feature = Annotated[str, msgspec.Meta(pattern=r"^[0-9A-Za-z][0-9A-Za-z._ :-]*$", max_length=64)]
VendorName = Annotated[str, msgspec.Meta(pattern=r"^[ -~]{0,12}$")]
_Byte = Annotated[int, msgspec.Meta(ge=0, le=0x1FF)]


class CpuDescription(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """A CPU.

    Attributes:
        name: of the model, or of whatever has this CPU.
        features: QEMU's property names.
        vendor: the twelve characters of CPUID's leaf 0; empty if any vendor will do.
        family, model, stepping: CPUID's signature.
    """

    name: str
    features: Annotated[frozenset[Feature], msgspec.Meta(max_length=FEATURES_LIMIT)]
    vendor: VendorName = ""
    family: _Byte = 0
    model: _Byte = 0
    stepping: _Byte = 0

    def to_json(self) -> bytes:
        """As `read_description` reads it, features in alphabetical order."""
        ordered = {**msgspec.structs.asdict(self), "features": sorted(self.features)}
        return msgspec.json.format(msgspec.json.encode(ordered))


def read_description(path: Path) -> CpuDescription:
    """What `CpuDescription.to_json` wrote.

    Raises:
        UserError: the file cannot be read, or holds no description.
    """
    try:
        with path.open("rb") as file:
            text = file.read(_FILE_LIMIT + 1)
    except OSError as error:
        raise UserError(f"the description of a CPU in {path} cannot be read") from error
    if len(text) > _FILE_LIMIT:
        raise UserError(f"{path} is too large for the description of a CPU")
    try:
        return msgspec.json.decode(text, type=CpuDescription)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise UserError(f"{path} holds no description of a CPU") from error

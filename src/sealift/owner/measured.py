"""What the owner expects a platform to measure, piece by piece; computed from its files, without any platform."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from sealift.launch.image import GuestRecipe


@dataclass(frozen=True, slots=True)
class MeasuredPiece:
    """One LAUNCH_UPDATE_DATA or LAUNCH_UPDATE_VMSA.

    Attributes:
        name: what it is.
        gpa: where it is loaded; None for a VMSA, which lies in no guest's memory.
        size: bytes, whole pages.
        sha256: of these bytes, hexadecimal.
    """

    name: str
    gpa: int | None
    size: int
    sha256: str


@dataclass(frozen=True, slots=True)
class MeasuredImage:
    """A launch image.

    Attributes:
        digest: SHA-256 over all pieces in order: the launch digest, hexadecimal.
        pieces: in the order in which they are measured.
    """

    digest: str
    pieces: tuple[MeasuredPiece, ...]


def measure(recipe: GuestRecipe) -> MeasuredImage:
    """Measure a recipe's image; its files are read once.

    Raises:
        UserError: a file can no longer be read.
    """
    whole = hashlib.sha256()
    pieces = []
    for piece in recipe.pieces():
        whole.update(piece.data)
        sha256 = hashlib.sha256(piece.data).hexdigest()
        pieces.append(MeasuredPiece(piece.name, piece.gpa, len(piece.data), sha256))
    for vcpu, vmsa in enumerate(recipe.vmsas()):
        whole.update(vmsa)
        pieces.append(MeasuredPiece(f"VMSA of vCPU {vcpu}", None, len(vmsa), hashlib.sha256(vmsa).hexdigest()))
    return MeasuredImage(whole.hexdigest(), tuple(pieces))

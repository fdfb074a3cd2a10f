"""What the owner expects a platform to measure, buffer by buffer; computed from its files, without any platform."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Buffer:
    """One LAUNCH_UPDATE_DATA, or a VMSA's LAUNCH_UPDATE_VMSA, which has no GPA of its own."""

    name: str
    gpa: int | None
    data: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class MeasuredPiece:
    """One measured buffer.

    Attributes:
        name: what it is.
        gpa: where it is loaded; None for a VMSA.
        size: bytes.
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
        digest: SHA-256 over all buffers in order: the launch digest, hexadecimal.
        pieces: in the order in which they are measured.
    """

    digest: str
    pieces: tuple[MeasuredPiece, ...]


def measure(buffers: Iterable[Buffer]) -> MeasuredImage:
    """Measure buffers in order; each is looked at once.

    Raises:
        UserError: a file can no longer be read.
    """
    whole = hashlib.sha256()
    pieces = []
    for buffer in buffers:
        whole.update(buffer.data)
        sha256 = hashlib.sha256(buffer.data).hexdigest()
        pieces.append(MeasuredPiece(buffer.name, buffer.gpa, len(buffer.data), sha256))
    return MeasuredImage(whole.hexdigest(), tuple(pieces))

"""What is looked for: the planted secret in every form a leak could take, and control markers."""

from __future__ import annotations

import base64
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final

_SECRET_BYTES: Final = 32
"""As an AES-256 key; its text is 64 digits long."""

_MARKER_BYTES: Final = 8
"""Enough that no marker appears by chance in gigabytes."""


@dataclass(frozen=True, slots=True)
class Needle:
    """Bytes to look for, and what to call them."""

    name: str
    data: bytes


@dataclass(frozen=True, slots=True)
class Found:
    """A needle lies in a place: `at` is its first address (or offset) there."""

    needle: Needle
    at: int

    def __str__(self) -> str:
        return f"{self.needle.name} at {self.at:#x}"


@dataclass(frozen=True, slots=True)
class Piece:
    """Consecutive bytes of a place, from address `at`."""

    at: int
    data: bytes


def plant_secret() -> bytes:
    """A fresh secret: 64 hexadecimal digits, as the owner gives it to the guest."""
    return os.urandom(_SECRET_BYTES).hex().encode()


def plant_marker() -> str:
    """A fresh control marker, which is no secret; fit for a guest's name and its command line."""
    return f"control-marker-{os.urandom(_MARKER_BYTES).hex()}"


def forms_of(secret: bytes) -> tuple[Needle, ...]:
    """The secret as given, in capitals, as the bytes its digits stand for, and those in Base64.

    Each is looked for by its halves, so that half a leak counts too.
    """
    raw = bytes.fromhex(secret.decode())
    forms = {
        "text": secret,
        "capitals": secret.upper(),
        "raw bytes": raw,
        "raw bytes reversed": raw[::-1],
        # Without the last digits, which depend on what follows.
        "base64": base64.b64encode(raw)[:-4],
    }
    return tuple(
        Needle(f"{half} half of the secret ({form})", part)
        for form, data in forms.items()
        for half, part in (("first", data[: len(data) // 2]), ("second", data[len(data) // 2 :]))
    )


def search(pieces: Iterable[Piece], needles: tuple[Needle, ...]) -> Iterator[Found]:
    """Look for needles in pieces; each is reported once, where it is seen first.

    A needle that spans two pieces is found where the second begins at the end of the first.
    """
    left = set(needles)
    overlap = max((len(needle.data) for needle in needles), default=1) - 1
    tail = Piece(0, b"")
    for piece in pieces:
        joined = _joined(tail, piece)
        for needle in [needle for needle in needles if needle in left]:
            place = joined.data.find(needle.data)
            if place >= 0:
                left.discard(needle)
                yield Found(needle, joined.at + place)
        tail = Piece(joined.at + max(len(joined.data) - overlap, 0), joined.data[-overlap:] if overlap else b"")


def _joined(before: Piece, piece: Piece) -> Piece:
    if before.data and before.at + len(before.data) == piece.at:
        return Piece(before.at, before.data + piece.data)
    return piece

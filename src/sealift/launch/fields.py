"""Single fields of large, sparse structures, as the tables of their specifications list them: offset and size."""

from __future__ import annotations

import struct
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Field:
    """An unsigned little-endian integer at `offset`; `size` is 1, 2, 4 or 8 bytes."""

    offset: int
    size: int

    def read(self, page: bytes | bytearray) -> int:
        """Its value in a structure that is long enough."""
        return int.from_bytes(page[self.offset : self.offset + self.size], "little")

    def write(self, page: bytearray, value: int) -> None:
        """Set it.

        Raises:
            struct.error: the value does not fit.
        """
        struct.pack_into("<" + {1: "B", 2: "H", 4: "I", 8: "Q"}[self.size], page, self.offset, value)

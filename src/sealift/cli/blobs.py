"""Files that tools for SEV exchange: some write raw bytes, some base64; both are read."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from sealift.cli.recipes import read_file
from sealift.errors import UserError
from sealift.sev.text import decode_base64

BLOB_LIMIT: Final = 64 * 1024
"""Bytes of such a file: the largest there is, a secret of 16 KiB, takes a third of it in base64."""


def read_blob(what: str, path: Path) -> bytes:
    """The bytes that a file holds, raw or as base64; `what` it is, messages say.

    How many bytes it must be is for the firmware to say. Raw bytes that happen to be base64 text are not among the
    formats that are read so: all of them hold numbers with leading zeros, or ciphertext.

    Raises:
        UserError: it cannot be read, is empty, or is larger than any such file.
    """
    data = read_file(what, path, BLOB_LIMIT)
    if not data:
        raise UserError(f"the {what} {path} is empty")
    return decode_base64(data) or data

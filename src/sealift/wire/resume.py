"""What a fenced source's handler states to its owner: which migration left it fenced, and which launch has the guest.

::

    source handler   while FENCED    resume request, MAC under a key derived from R of its launch ─► the guest's owner
    owner            if its user says that the target is lost and does not run the guest
                     RESUME token, MAC under another key derived from R ──────────────────────────► source handler

Between FINAL and STARTED nobody can know whether a lost target runs the guest, so no program decides it: the owner's
user does. What the request names, the owner gives no further secret, should it turn up again.

A request is little-endian, `REQUEST_SIZE` bytes::

    magic 4 │ version u16 │ zero u16 │ migration id 16 │ instance id 16 │ LAUNCH_MEASURE output of the source 48 │
    of the target 48 │ HMAC-SHA256 32
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Final

from sealift.errors import StreamError

MAGIC: Final = b"SLRQ"
VERSION: Final = 1

_BODY: Final = struct.Struct("<4sHH16s16s48s48s")
MAC_SIZE: Final = 32
REQUEST_SIZE: Final = _BODY.size + MAC_SIZE


@dataclass(frozen=True, slots=True)
class ResumeRequest:
    """A request's claims; `body` is what the HMAC covers.

    Attributes:
        migration: its id, 16 bytes.
        instance_id: the guest's, 16 bytes.
        source: LAUNCH_MEASURE output of the launch that is fenced, 48 bytes.
        target: that of the launch that may have the guest, 48 bytes.
    """

    migration: bytes
    instance_id: bytes
    source: bytes
    target: bytes

    def body(self) -> bytes:
        """The bytes before the HMAC."""
        return _BODY.pack(MAGIC, VERSION, 0, self.migration, self.instance_id, self.source, self.target)


def split_request(data: bytes) -> tuple[ResumeRequest, bytes]:
    """Parse a request to its claims and its HMAC, which is for the owner to check.

    Raises:
        StreamError: wrong length, magic or version, or something where zeros belong.
    """
    if len(data) != REQUEST_SIZE:
        raise StreamError(f"a resume request is {REQUEST_SIZE} bytes long, not {len(data)}")
    magic, version, zero, *claims = _BODY.unpack_from(data)
    if magic != MAGIC:
        raise StreamError("a resume request does not start with its magic")
    if version != VERSION or zero:
        raise StreamError(f"a resume request is none of version {VERSION}")
    return ResumeRequest(*claims), data[_BODY.size :]

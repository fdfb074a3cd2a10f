"""How a VMM asks an owner that is another process: messages, and their frames where it is another machine's.

::

    local owner    one socket for its life: Prepare, then Begin or BeginReceiver or BeginRestore, then Release
    owner served   for each of these a connection of its own: one request, one reply, closed

The first is a message socket (`sealift.wire.channel`). Elsewhere both messages go in a frame over a stream::

    magic 4 │ version u16 │ length u32 │ msgpack        (big-endian)

There is no login, and no encryption of the connection. Who asks is a platform, by evidence that only it can sign;
what it gets are a session and a secret that only it can unwrap, and it gets them for the measurement that it alone can
produce. A VMM that lies gets a refusal, or something it cannot read; one that is lied to about who the owner is
launches a guest without the true owner's secrets. Whoever listens learns which chip runs which handler, policies,
launch names, measurements and the size of a secret; whoever interferes keeps a guest from being launched.

Each request stands for itself, so neither side depends on a connection that lasts: an owner may be restarted between
Begin and Release.
"""

from __future__ import annotations

import socket
import struct
import time
from typing import Any, Final, TypeAlias

import msgspec

from sealift.errors import LostError, StreamError
from sealift.wire.channel import MESSAGE_LIMIT
from sealift.wire.obstacle import Obstacle
from sealift.wire.owner import PlatformEvidence, SecretGrant, SessionGrant
from sealift.wire.packed import unpack
from sealift.wire.platform import Failed, Message

MAGIC: Final = b"SLOW"
VERSION: Final = 1

_FRAME: Final = struct.Struct(">4sHI")


class Prepare(Message, frozen=True):
    """Get ready. Reply: Prepared."""


class Prepared(Message, frozen=True):
    """Ready; `notes` are sentences for the user about what was set up."""

    notes: tuple[str, ...]


class Begin(Message, frozen=True):
    """`OwnerService.begin`. Reply: Session."""

    evidence: PlatformEvidence


class BeginReceiver(Message, frozen=True):
    """`OwnerService.begin_receiver`. Reply: Session."""

    evidence: PlatformEvidence
    source_measure: bytes


class BeginRestore(Message, frozen=True):
    """`OwnerService.begin_restore`. Reply: Session."""

    evidence: PlatformEvidence
    header: bytes


class Release(Message, frozen=True):
    """`OwnerService.release`. Reply: Secret."""

    launch_id: str
    measure: bytes


class JudgeReceiver(Message, frozen=True):
    """`OwnerService.judge_receiver`. Reply: Opinion."""

    evidence: PlatformEvidence
    source_measure: bytes


class Opinion(Message, frozen=True):
    """What the owner has against it."""

    obstacles: tuple[Obstacle, ...]


class Session(Message, frozen=True):
    """A session was granted."""

    grant: SessionGrant


class Secret(Message, frozen=True):
    """A secret was released."""

    grant: SecretGrant


OwnerRequest: TypeAlias = Prepare | Begin | BeginReceiver | BeginRestore | JudgeReceiver | Release
OwnerReply: TypeAlias = Prepared | Opinion | Session | Secret | Failed


def send_frame(sock: socket.socket, message: msgspec.Struct, limit_s: float) -> None:
    """Send one message within so many seconds.

    Raises:
        LostError: the other side is gone, or does not take it in time.
    """
    data = msgspec.msgpack.encode(message)
    try:
        sock.settimeout(limit_s)
        sock.sendall(_FRAME.pack(MAGIC, VERSION, len(data)) + data)
    except OSError as error:
        raise LostError("the connection broke") from error


def receive_frame(sock: socket.socket, kind: Any, limit_s: float) -> Any:  # noqa: ANN401  # a union is no type[T]
    """The next message, of the (union) type `kind`; all of it must come within so many seconds.

    Raises:
        LostError: the other side is gone, or too slow.
        StreamError: it is no message of that type, of another version, or over the limit.
    """
    deadline = time.monotonic() + limit_s
    magic, version, length = _FRAME.unpack(_take(sock, _FRAME.size, deadline))
    if magic != MAGIC:
        raise StreamError("a message to or from an owner does not start with its magic")
    if version != VERSION:
        raise StreamError(f"an owner's message has version {version}; this side speaks {VERSION}")
    if length > MESSAGE_LIMIT:
        raise StreamError(f"an owner's message of {length} bytes is over the limit of {MESSAGE_LIMIT}")
    return unpack(_take(sock, length, deadline), kind, "a message to or from an owner")


def _take(sock: socket.socket, length: int, deadline: float) -> bytes:
    taken = bytearray()
    while len(taken) < length:
        try:
            sock.settimeout(max(deadline - time.monotonic(), 0.001))
            data = sock.recv(length - len(taken))
        except OSError as error:
            raise LostError("the connection broke, or nothing came in time") from error
        if not data:
            raise LostError("the connection ended within a message")
        taken += data
    return bytes(taken)

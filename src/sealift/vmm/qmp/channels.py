"""QEMU's MigrationChannel: the longer way to say where a migration goes or comes from (qapi/migration.json)."""

from __future__ import annotations

import enum
import shlex

import msgspec

from sealift.vmm.migration.socket_address import SocketAddress, SocketKind
from sealift.vmm.qmp.message import QmpError


class MigrationAddress(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="transport"):
    """QEMU's MigrationAddress."""


class SocketChannel(MigrationAddress, SocketAddress, frozen=True, tag="socket"):
    """A socket."""


class ExecChannel(MigrationAddress, frozen=True, tag="exec"):
    """A program that gets the stream, or gives it."""

    args: tuple[str, ...]


class FileChannel(MigrationAddress, frozen=True, tag="file"):
    """A file, from `offset` (bytes) on."""

    filename: str
    offset: int


class ChannelType(enum.Enum):
    """QEMU's MigrationChannelType, as far as it exists here."""

    MAIN = "main"


class MigrationChannel(msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename="kebab"):
    """One channel."""

    channel_type: ChannelType
    addr: SocketChannel | ExecChannel | FileChannel


def migration_uri(uri: str | None, channels: tuple[MigrationChannel, ...] | None) -> str:
    """The address that a command was given in one of two ways, as a URI.

    Raises:
        QmpError: it was given in none, in both, or more than one.
    """
    if uri is not None and channels is not None:
        raise QmpError(
            "'uri' and 'channels' arguments are mutually exclusive; exactly one of the two should be present"
        )
    if uri is not None:
        return uri
    if not channels:
        raise QmpError("need either 'uri' or 'channels' argument")
    if len(channels) > 1:
        raise QmpError("Channel list has more than one entries")
    match channels[0].addr:
        case ExecChannel(args):
            return f"exec:{shlex.join(args)}"
        case FileChannel(filename, offset) if offset >= 0:
            return f"file:{filename},offset={offset}" if offset else f"file:{filename}"
        case FileChannel():
            raise QmpError("Parameter 'offset' expects a value that is not negative")
        case SocketChannel() as socket:
            return _socket_uri(socket)


def _socket_uri(socket: SocketAddress) -> str:
    match socket.type:
        case SocketKind.INET:
            host = _given(socket.host, "host")
            return f"tcp:{f'[{host}]' if ':' in host else host}:{_given(socket.port, 'port')}"
        case SocketKind.UNIX:
            return f"unix:{_given(socket.path, 'path')}"
        case SocketKind.FD:
            return f"fd:{_given(socket.fd, 'str')}"


def _given(value: str | None, name: str) -> str:
    if value is None:
        raise QmpError(f"Parameter '{name}' is missing")
    return value

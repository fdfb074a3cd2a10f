"""QEMU's SocketAddress (qapi/sockets.json): where a migration is awaited, or is to go."""

from __future__ import annotations

import enum

import msgspec

from sealift.vmm.migration.transport import Address, TcpAddress, UnixAddress


class SocketKind(enum.Enum):
    """QEMU's SocketAddressType, as far as it exists here."""

    INET = "inet"
    UNIX = "unix"
    FD = "fd"


class SocketAddress(msgspec.Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    """Of what follows `type`, inet has `host` and `port`, unix `path`, fd `fd` (which QEMU calls str): a number."""

    type: SocketKind
    host: str | None = None
    port: str | None = None
    path: str | None = None
    fd: str | None = msgspec.field(default=None, name="str")


def socket_addresses(address: Address) -> tuple[SocketAddress, ...]:
    """In QEMU's words; none for what is no socket that others could connect to."""
    match address:
        case TcpAddress(host, port):
            return (SocketAddress(SocketKind.INET, host=host, port=str(port)),)
        case UnixAddress(path):
            return (SocketAddress(SocketKind.UNIX, path=str(path)),)
        case _:
            return ()

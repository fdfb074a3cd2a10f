"""Where QMP is served besides the control socket of ``sealift``: ``unix:PATH``, or ``tcp:HOST:PORT`` on loopback.

QMP asks nobody who he is. Whoever reaches the socket controls the guest, so a TCP port is for this machine alone; over
a network it is reached by what does ask, such as ``ssh -L``.
"""

from __future__ import annotations

import ipaddress
import socket
from typing import Final

from sealift.errors import UserError
from sealift.vmm.migration.transport import Listener, TcpAddress, UnixAddress, parse_uri

_KERNEL_BUFFER: Final = 64 * 1024
"""Bytes that the kernel keeps for a client that does not read; by itself TCP would grow that to megabytes."""


def listen_for_qmp(uri: str) -> Listener:
    """Listen at `uri`; the caller closes it; raises as `listen_here`."""
    return listen_here(uri, "QMP")


def listen_for_monitor(uri: str) -> Listener:
    """The same for the human monitor."""
    return listen_here(uri, "the monitor")


def listen_here(uri: str, what: str) -> Listener:
    """Listen at `uri`, which only users of this machine reach, for `what`; the caller closes it.

    Raises:
        UserError: it is no such address, or cannot be listened on.
    """
    try:
        address = parse_uri(uri)
    except UserError:
        raise _no_endpoint(uri, what) from None
    match address:
        case TcpAddress(host) if not _is_loopback(host):
            raise UserError(
                f"{what} on {address} would let anybody on the network control the guest; listen on 127.0.0.1, and "
                "reach it with `ssh -L`"
            )
        case TcpAddress() | UnixAddress():
            listener = Listener(address)
            listener.listening.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _KERNEL_BUFFER)
            return listener
        case _:
            raise _no_endpoint(uri, what)


def _no_endpoint(uri: str, what: str) -> UserError:
    return UserError(f"{uri!r} is no address for {what}; write tcp:127.0.0.1:PORT or unix:PATH")


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"

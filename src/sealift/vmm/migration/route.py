"""How a source reaches its target: an address, and TLS if that is wanted."""

from __future__ import annotations

import socket
import threading
from pathlib import Path
from typing import Protocol

from sealift.errors import LostError, RefusedError, UserError
from sealift.vmm.migration.handed import ExecAddress, FdAddress, OneConnection, take
from sealift.vmm.migration.streamio import shut_down
from sealift.vmm.migration.tls import Credentials
from sealift.vmm.migration.transport import (
    Address,
    FileAddress,
    Listener,
    TcpAddress,
    UnixAddress,
    connect,
    tune,
)

TO_A_FILE = (
    "a confidential guest cannot be moved to a file, since no handler is there to hand it over to; save it with "
    "`sealift snapshot` (method mh or psp), or move it to a host"
)


class Route:
    """One target; every connection of a migration is made here, and can be ended here. Close it."""

    def __init__(self, address: Address, tls_creds: str, tls_hostname: str) -> None:
        """`tls_creds` is a directory, or empty; `tls_hostname` replaces the address' host in the target's proof."""
        self._address = address
        self._lock = threading.Lock()
        self._watched: list[socket.socket] = []
        self._hung_up = False
        self._credentials = Credentials(Path(tls_creds)) if tls_creds else None
        self._hostname = tls_hostname

    def check(self, connections: int) -> None:
        """Can so many connections be made?

        Raises:
            UserError: not to an address of this kind, or TLS lacks a host name.
            RefusedError: nobody can take a guest there.
        """
        match self._address:
            case FileAddress():
                raise RefusedError(TO_A_FILE)
            case FdAddress() | ExecAddress() if connections > 1:
                raise UserError(
                    f"{self._address} is one connection; switch multifd and postcopy-ram off, or use tcp: or unix:"
                )
            case _:
                pass
        if self._credentials is not None and not self._host():
            raise UserError(f"{self._address} names no host for the target's certificate; set tls-hostname")

    def connect(self) -> socket.socket:
        """A connection to the target, through TLS if that is wanted.

        Raises:
            UserError: the address or the credentials cannot be used.
            RefusedError: one side does not trust the other.
            LostError: nobody listens there, or does not speak TLS; or `hang_up` was called.
        """
        match self._address:
            case TcpAddress() | UnixAddress():
                sock = connect(self._address)
            case FdAddress() | ExecAddress():
                sock = take(self._address)
                tune(sock)
            case FileAddress():
                raise RefusedError(TO_A_FILE)
        self._watch(sock)
        if self._credentials is None:
            return sock
        return self._credentials.connect(sock, self._host())

    def hang_up(self) -> None:
        """End every connection, one whose TLS is being negotiated too, and make no more; from any thread."""
        with self._lock:
            self._hung_up = True
            for sock in self._watched:
                shut_down(sock)

    def close(self) -> None:
        """Watch over the connections no more; they are whose they were given to."""
        with self._lock:
            for sock in self._watched:
                sock.close()
            self._watched.clear()

    def _watch(self, sock: socket.socket) -> None:
        """Keep a descriptor of our own: TLS takes the socket's for itself."""
        with self._lock:
            if self._hung_up:
                sock.close()
                raise LostError("no more connections are made to the target")
            self._watched.append(sock.dup())

    def _host(self) -> str:
        if self._hostname:
            return self._hostname
        return self._address.host if isinstance(self._address, TcpAddress) else ""


class Listening(Protocol):
    """Where a target meets sources.

    Attributes:
        address: where.
    """

    @property
    def address(self) -> Address:
        """Where it listens, with the port the system chose."""

    def accept(self) -> socket.socket:
        """The next connection.

        Raises:
            LostError: `wake` or `close` was called.
        """

    def wake(self) -> None:
        """End a waiting `accept`, from any thread."""

    def close(self) -> None:
        """Stop listening."""


def listen(address: Address) -> Listening:
    """Listen at an address.

    Raises:
        UserError: this cannot be.
    """
    match address:
        case TcpAddress() | UnixAddress():
            return Listener(address)
        case FdAddress() | ExecAddress():
            return OneConnection(address)
        case FileAddress():
            raise UserError(f"no guest comes from {address}; bring a snapshot back with `sealift run --restore`")

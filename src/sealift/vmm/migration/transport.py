"""Where a migration goes to or comes from, as QEMU writes it, and connections over TCP and Unix sockets.

``tcp:HOST:PORT``, ``unix:PATH``, ``fd:N``, ``exec:COMMAND`` (`sealift.vmm.migration.handed`) or ``file:PATH``.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import stat
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeAlias

from sealift.errors import LostError, UserError
from sealift.vmm.migration.handed import ExecAddress, FdAddress, HandedAddress

BUFFER_FLOOR: Final = 1024 * 1024
"""Socket buffer where there is no distance: room for a whole record, so that a sender need not wait for a turn of the
receiver in the middle of one, and little enough to stay in the last cache. (Measured with the processors for itself,
four processes on two of them: +25 to 35 % over 128 KiB, which two processes alone prefer; 64 KiB: as 128 KiB.)"""

_FASTEST_LINK = 1.25e9
"""Bytes a second of a 10 Gbit/s link: what round trips times this fill must fit into the socket's buffers."""

_CONNECT_LIMIT_S = 10.0
"""A host that does not answer for this long is not there; TCP itself would go on for two minutes."""

SILENCE_LIMIT_S: Final = 30
"""A peer that acknowledges nothing (TCP), or takes nothing of what is sent, for this long is lost; a pause of a busy
host or of a network that finds another way is shorter."""

_PROBES: Final = ((socket.TCP_KEEPIDLE, 10), (socket.TCP_KEEPINTVL, 5), (socket.TCP_KEEPCNT, 4))
"""A connection on which nothing happens is probed after 10 s, then every 5 s: a peer is lost after the same 30 s."""

_TIMEVAL: Final = struct.Struct("@ll")
"""struct timeval: seconds, microseconds."""

_BACKLOG: Final = 16
"""Connections that wait to be met; strangers among them must not keep a source out."""

_DIGITS = 9
"""Of a port or descriptor: more make no number that any system knows."""

_UNIX_PATH_LIMIT = 107
"""sun_path, unix(7)."""

_TCP_INFO_RTT: Final = struct.Struct("=68xI")
"""struct tcp_info, linux/tcp.h: tcpi_rtt in microseconds."""


@dataclass(frozen=True, slots=True)
class TcpAddress:
    """A host (name or address) and a port; listening on port 0 lets the system choose."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"tcp:[{self.host}]:{self.port}" if ":" in self.host else f"tcp:{self.host}:{self.port}"


@dataclass(frozen=True, slots=True)
class UnixAddress:
    """A socket in the file system."""

    path: Path

    def __str__(self) -> str:
        return f"unix:{self.path}"


@dataclass(frozen=True, slots=True)
class FileAddress:
    """A file that a stream is written to, from `offset` (bytes) on."""

    path: Path
    offset: int = 0

    def __str__(self) -> str:
        return f"file:{self.path}{f',offset={self.offset}' if self.offset else ''}"


NetworkAddress: TypeAlias = TcpAddress | UnixAddress
Address: TypeAlias = NetworkAddress | HandedAddress | FileAddress


def parse_uri(uri: str) -> Address:
    """The address that `uri` names.

    Raises:
        UserError: it is none; the message says how one looks.
    """
    scheme, _, rest = uri.partition(":")
    match scheme:
        case "unix" if rest:
            return _unix(rest)
        case "tcp":
            host, _, port = rest.rpartition(":")
            if _is_number(port) and int(port) <= 0xFFFF:
                return TcpAddress(host.removeprefix("[").removesuffix("]"), int(port))
        case "fd" if _is_number(rest):
            return FdAddress(int(rest))
        case "exec" if rest and "\0" not in rest:
            return ExecAddress(rest)
        case "file" if rest and "\0" not in rest:
            path, _, offset = rest.partition(",offset=")
            if path and (not offset or _is_number(offset)):
                return FileAddress(Path(path), int(offset or 0))
        case _:
            pass
    raise UserError(f"{uri!r} is no migration address; write tcp:HOST:PORT, unix:PATH, fd:N, exec:COMMAND or file:PATH")


def _unix(path: str) -> UnixAddress:
    if len(os.fsencode(path)) > _UNIX_PATH_LIMIT or "\0" in path:
        raise UserError(f"the socket path {path!r} is longer than {_UNIX_PATH_LIMIT} bytes; choose a shorter one")
    return UnixAddress(Path(path))


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) <= _DIGITS


def connect(address: NetworkAddress) -> socket.socket:
    """A stream to a target that listens.

    Raises:
        UserError: there is no such address.
        LostError: nobody listens there.
    """
    try:
        match address:
            case TcpAddress():
                sock = socket.create_connection((address.host, address.port), _CONNECT_LIMIT_S)
            case UnixAddress():
                sock = _connected_unix(address.path)
    except socket.gaierror:
        raise UserError(f"there is no host {address.host!r}" if isinstance(address, TcpAddress) else "") from None
    except TimeoutError:
        raise LostError(f"{address} does not answer") from None
    except (ConnectionRefusedError, FileNotFoundError):
        raise LostError(f"nobody listens on {address}; start the target first") from None
    except OSError as error:
        raise LostError(f"{address} cannot be reached") from error
    sock.settimeout(None)
    tune(sock)
    return sock


def _connected_unix(path: Path) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX)
    try:
        sock.connect(str(path))
    except OSError:
        sock.close()
        raise
    return sock


def buffer_size(round_trip_s: float) -> int | None:
    """Bytes of socket buffer for a link of this round trip; None where the system chooses better itself.

    A buffer must hold what is underway. Where that is little, the floor keeps it in the cache; where it is more,
    the system's own tuning follows the link, and a fixed size would only stop it.
    """
    return BUFFER_FLOOR if round_trip_s * _FASTEST_LINK <= BUFFER_FLOOR else None


def tune(sock: socket.socket) -> None:
    """Choose buffers by the measured round trip, send at once what is written at once, notice a peer that is lost."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, _TIMEVAL.pack(SILENCE_LIMIT_S, 0))
    if sock.family != socket.AF_UNIX:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, SILENCE_LIMIT_S * 1000)
        for option, value in _PROBES:
            sock.setsockopt(socket.IPPROTO_TCP, option, value)
    size = buffer_size(round_trip(sock))
    if size is not None:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, size)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, size)


def round_trip(sock: socket.socket) -> float:
    """Seconds there and back, as the kernel measured while connecting; 0 within one machine's sockets."""
    if sock.family == socket.AF_UNIX:
        return 0.0
    info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO_RTT.size)
    (microseconds,) = _TCP_INFO_RTT.unpack(info)
    return float(microseconds) / 1e6


class Listener:
    """Waits for whoever comes; `unix_mode` is the mode of a socket in the file system, by default what umask leaves.

    Attributes:
        address: where it listens, with the port the system chose.

    Raises:
        UserError: it cannot listen there.
    """

    def __init__(self, address: NetworkAddress, unix_mode: int | None = None) -> None:
        self._path: Path | None = None
        try:
            match address:
                case TcpAddress():
                    self._sock = _listening_tcp(address)
                    self.address: NetworkAddress = TcpAddress(*self._sock.getsockname()[:2])
                case UnixAddress():
                    self._sock = _listening_unix(address.path, unix_mode)
                    self.address, self._path = address, address.path
        except socket.gaierror as error:
            raise UserError(f"this machine has no address to listen on {address}") from error
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                in_use = f"{address} is in use already; choose another one, or end who listens there"
                raise UserError(in_use) from None
            raise UserError(f"this machine cannot listen on {address}") from error

    @property
    def listening(self) -> socket.socket:
        """What it listens on, for a server that accepts by itself."""
        return self._sock

    def accept(self) -> socket.socket:
        """The next connection.

        Raises:
            LostError: `wake` or `close` was called.
        """
        while True:
            try:
                sock, _ = self._sock.accept()
            except OSError as error:
                raise LostError(f"listening on {self.address} ended") from error
            try:
                tune(sock)
            except OSError:
                sock.close()  # gone again already
            else:
                return sock

    def wake(self) -> None:
        """End a waiting `accept`, from any thread."""
        with contextlib.suppress(OSError):  # closed already: nobody waits
            self._sock.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Stop listening and remove the socket's file; does nothing the second time."""
        self.wake()
        self._sock.close()
        if self._path is not None:
            self._path.unlink(missing_ok=True)
            self._path = None


def _listening_tcp(address: TcpAddress) -> socket.socket:
    found = socket.getaddrinfo(address.host or None, address.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    family, kind, protocol, _, place = found[0]
    sock = socket.socket(family, kind, protocol)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(place)
        sock.listen(_BACKLOG)
    except OSError:
        sock.close()
        raise
    return sock


def _listening_unix(path: Path, mode: int | None) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX)
    try:
        if _abandoned(path):
            path.unlink()
        sock.bind(str(path))
        if mode is not None:
            path.chmod(mode)  # nobody connects before it listens
        sock.listen(_BACKLOG)
    except OSError:
        sock.close()
        raise
    return sock


def _abandoned(path: Path) -> bool:
    """Whether a socket lies there that a process which is gone left behind."""
    try:
        if not stat.S_ISSOCK(path.stat().st_mode):
            return False
        _connected_unix(path).close()
    except FileNotFoundError:
        return False
    except ConnectionRefusedError:
        return True
    return False

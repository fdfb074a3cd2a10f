"""TLS around a migration's connections: who may connect, and what the network sees of shared pages and devices.

A guest's private memory is sealed without it. Credentials lie in a directory, in the files that QEMU's objects
tls-creds-x509 and tls-creds-psk have there (docs/system/tls.rst)::

    ca-cert.pem                          signs both sides' certificates; both are always verified
    server-cert.pem, server-key.pem      on the target
    client-cert.pem, client-key.pem      on the source
    keys.psk                             instead of all these: lines USER:HEX of keys that both sides share

Python hands OpenSSL whole buffers: one call encrypts a record of 1 MiB, and nothing is done for a page.
"""

from __future__ import annotations

import errno
import socket
import ssl
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

from sealift.errors import LostError, RefusedError, SealiftError, UserError

CA: Final = "ca-cert.pem"
PSK: Final = "keys.psk"
PSK_USER: Final = "qemu"
"""Whose key a source uses; QEMU's default."""

_HANDSHAKE_LIMIT_S: Final = 10.0
"""For a source: a target that has not answered a handshake by then does not speak TLS, or hangs."""

_TLS_HANDSHAKE: Final = 0x16
"""First byte of a TLS connection (RFC 8446, 5.1: ContentType handshake)."""

_SILENCE_LIMIT_S: Final = 30.0
"""As of a plain connection (`sealift.vmm.migration.transport`)."""

_PSK_CIPHERS: Final = "ECDHE-PSK-CHACHA20-POLY1305:DHE-PSK-AES256-GCM-SHA384"
"""Forward secret, so that a key that leaks later opens no stream that was recorded."""

_PSK_LIMIT: Final = 1 << 16
"""Bytes of a file with keys; a line has some seventy."""

TLS_WANTED: Final = "this target takes guests over TLS only; give the source credentials too (--tls-creds)"
TLS_UNWANTED: Final = "the source speaks TLS, and this target was started without credentials (--tls-creds)"


class TlsSocket(ssl.SSLSocket):
    """A TLS connection that is read and written as a plain socket is; by one thread at a time."""

    def sendmsg(  # type: ignore[override]  # the base class has none
        self,
        buffers: Iterable[Any],
        ancdata: Iterable[Any] = (),  # noqa: ARG002  # of sockets alone
        flags: int = 0,  # noqa: ARG002
        address: Any = None,  # noqa: ANN401, ARG002
    ) -> int:
        """Send from the front of the first buffer that is not empty; how much."""
        for buffer in buffers:
            if len(buffer):
                return self._sent(buffer)
        return 0

    def _sent(self, buffer: memoryview) -> int:
        self.settimeout(_SILENCE_LIMIT_S)
        try:
            return self.send(buffer)
        except TimeoutError as error:
            raise BlockingIOError(errno.EAGAIN, "nothing is taken") from error
        except ssl.SSLError as error:
            raise _broken(error) from error
        finally:
            if self.fileno() >= 0:
                self.settimeout(None)

    def recv_into(self, buffer: Any, nbytes: int | None = None, flags: int = 0) -> int:  # noqa: ANN401, ARG002
        """Receive to the front of `buffer`: one TLS record at most, 16 KiB; `flags` mean nothing here."""
        try:
            return super().recv_into(buffer, nbytes or None)
        except ssl.SSLError as error:
            raise _broken(error) from error

    def shutdown(self, how: int) -> None:
        """Shut the connection below down: frames say where the stream ends, so TLS need not."""
        socket.socket.shutdown(self, how)


def _broken(error: ssl.SSLError) -> OSError:
    return ConnectionAbortedError(errno.ECONNABORTED, f"TLS: {_words(error)}")


def _words(error: ssl.SSLError) -> str:
    """OpenSSL's reason, as words: "tlsv1 alert unknown ca"."""
    return (error.reason or type(error).__name__).replace("_", " ").lower()


class Credentials:
    """The content of a directory; read anew for every connection, so that renewed certificates are used."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def connect(self, sock: socket.socket, hostname: str) -> TlsSocket:
        """Make a source's connection one of TLS; takes over `sock`.

        Args:
            sock: connected.
            hostname: what the target's certificate must be for.

        Raises:
            UserError: something in the directory cannot be used.
            RefusedError: the target is not to be trusted.
            LostError: it does not speak TLS.
        """
        with _closing_on_failure(sock) as guard:
            made = self._wrapped(self._context(server=False), guard.sock, hostname or None)
            guard.sock = made
            made.settimeout(_HANDSHAKE_LIMIT_S)
            try:
                made.do_handshake()
            except (OSError, ValueError) as error:
                raise _why_no_target(error) from error
            made.settimeout(None)
        return made

    def check(self) -> None:
        """Whether a target can use what is there.

        Raises:
            UserError: it cannot; the message names the file.
        """
        self._context(server=True)

    def accept(self, sock: socket.socket) -> TlsSocket:
        """Make a target's connection one of TLS, with the handshake still to come; takes over `sock`.

        Raises:
            UserError: something in the directory cannot be used any more.
        """
        with _closing_on_failure(sock):
            return self._wrapped(self._context(server=True), sock, None)

    @staticmethod
    def _wrapped(context: ssl.SSLContext, sock: socket.socket, hostname: str | None) -> TlsSocket:
        context.sslsocket_class = TlsSocket
        server = hostname is None and not context.check_hostname and context.protocol is ssl.PROTOCOL_TLS_SERVER
        made = context.wrap_socket(
            sock, server_side=server, server_hostname=hostname, do_handshake_on_connect=False, suppress_ragged_eofs=True
        )
        if not isinstance(made, TlsSocket):
            raise TypeError("the ssl module made a socket of another class")
        return made

    def _context(self, *, server: bool) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER if server else ssl.PROTOCOL_TLS_CLIENT)
        if server:
            # A source only looks whether something came, and takes everything that does for the target's word.
            context.num_tickets = 0
        if (self._directory / PSK).exists() and not (self._directory / CA).exists():
            _use_psk(context, read_psk(self._directory / PSK), server=server)
        else:
            self._use_certificates(context, "server" if server else "client")
        return context

    def _use_certificates(self, context: ssl.SSLContext, side: str) -> None:
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.verify_mode = ssl.CERT_REQUIRED
        ca, cert, key = (self._directory / name for name in (CA, f"{side}-cert.pem", f"{side}-key.pem"))
        for path in (ca, cert, key):
            if not path.is_file():
                raise UserError(f"the TLS credentials in {self._directory} lack {path.name}")
        try:
            context.load_verify_locations(ca)
        except OSError as error:
            raise UserError(f"the TLS certificate {ca} cannot be used") from error
        try:
            context.load_cert_chain(cert, key, _no_password)
        except OSError as error:
            raise UserError(f"the TLS certificate {cert} cannot be used with the key {key.name}") from error


class _closing_on_failure:  # noqa: N801  # a context manager
    """Closes a socket when what is done with it fails.

    Attributes:
        sock: what would be closed.
    """

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock

    def __enter__(self) -> _closing_on_failure:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None:
            self.sock.close()


def _no_password() -> str:
    raise UserError("the TLS key is encrypted; give one that is not, in a directory that is private to you")


def _why_no_target(error: Exception) -> SealiftError:
    """Why there is no TLS with a target."""
    match error:
        case ssl.SSLCertVerificationError():
            return RefusedError(f"the target's certificate is not to be trusted: {error.verify_message.rstrip('.')}")
        case ssl.SSLError() if "ALERT" in (error.reason or ""):
            return RefusedError(f"the target refuses this source ({_words(error)})")
        case TimeoutError():
            return LostError("the target does not answer in TLS; was it started with --tls-creds?")
        case ssl.SSLError():
            return LostError("the target does not speak TLS; start it with --tls-creds, or migrate without")
        case ValueError():
            return UserError(f"the TLS host name cannot be used ({error})")
        case _:
            return LostError("the target is gone")


def begins_tls(first: int) -> bool:
    """Whether a connection's first byte is that of TLS."""
    return first == _TLS_HANDSHAKE


def handshake(sock: TlsSocket, limit_s: float) -> None:
    """A target's handshake, which verifies who comes.

    Raises:
        RefusedError: this one is not to be trusted, or speaks no TLS that is wanted here.
    """
    sock.settimeout(limit_s)
    try:
        sock.do_handshake()
    except ssl.SSLCertVerificationError as error:
        raise RefusedError(f"the source's certificate is not to be trusted: {error.verify_message}") from error
    except ssl.SSLError as error:
        raise RefusedError(f"there is no TLS with the source ({_words(error)})") from error
    except OSError as error:
        raise RefusedError("the source left, or fell silent, while TLS was set up") from error
    sock.settimeout(None)


# --- keys that both sides share ------------------------------------------------------------------------------------


def read_psk(path: Path) -> dict[str, bytes]:
    """The keys of a file, by user.

    Raises:
        UserError: it cannot be read, or is no such file.
    """
    try:
        with path.open("rb") as file:
            text = file.read(_PSK_LIMIT).decode()
        pairs = (line.split(":") for line in text.splitlines() if line and not line.startswith("#"))
        keys = {user: bytes.fromhex(key) for user, key in pairs}
    except OSError as error:
        raise UserError(f"the TLS keys {path} cannot be read") from error
    except ValueError:
        raise UserError(f"the TLS keys {path} are not lines USER:HEX, as psktool writes them") from None
    if not keys:
        raise UserError(f"the TLS keys {path} are none")
    return keys


def _use_psk(context: ssl.SSLContext, keys: dict[str, bytes], *, server: bool) -> None:
    """Let a connection rest on a shared key; Python's callbacks are for TLS 1.2."""
    if sys.version_info < (3, 13):
        raise UserError(
            f"TLS with shared keys ({PSK}) needs Python 3.13 or later, and this is "
            f"{sys.version_info.major}.{sys.version_info.minor}; use certificates"
        )
    else:  # noqa: RET506  # what mypy leaves out for older Pythons
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        context.maximum_version = ssl.TLSVersion.TLSv1_2
        context.set_ciphers(_PSK_CIPHERS)
        if server:
            context.set_psk_server_callback(lambda user: keys.get(user or "", b""))
        elif PSK_USER not in keys:
            raise UserError(f"the TLS keys hold none of the user {PSK_USER!r}, whose key a source uses")
        else:
            context.set_psk_client_callback(lambda _: (PSK_USER, keys[PSK_USER]))

"""Run directories: how commands find the VMM of a running guest.

``HOST/run/NAME/`` holds ``vmm.json`` (which process; locked by flock for as long as that lives), ``qmp.sock``,
``console.sock`` and ``monitor.sock``. The kernel drops the lock with its process, however that dies; so a directory
without a lock is left over, and the next guest of that name takes it.

Addresses of Unix sockets are limited to 107 bytes, paths are not: sockets are reached through a descriptor of
their directory (``/proc/self/fd/N/qmp.sock``).
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import select
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import msgspec

from sealift.cli.places import Host
from sealift.errors import LostError, UserError

QMP_SOCKET: Final = "qmp.sock"
CONSOLE_SOCKET: Final = "console.sock"
MONITOR_SOCKET: Final = "monitor.sock"
_RECORD: Final = "vmm.json"
_RECORD_LIMIT: Final = 4096
_DIRECTORY_MODE: Final = 0o700
_FILE_MODE: Final = 0o600
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}\Z")
_BACKLOG: Final = 64

END_PATIENCE_S: Final = 30.0
"""A VMM ends within a second; it gives its platform five before it kills it."""


class VmmRecord(msgspec.Struct, frozen=True):
    """Who serves a run directory."""

    name: str
    pid: int


class RunDirectory:
    """A guest's run directory, held until `close`, which removes it.

    Raises:
        UserError: the name is not one, is in use, or the directory cannot be made.
    """

    def __init__(self, run: Path, name: str) -> None:
        self.path = run / check_name(name)
        try:
            self.path.mkdir(mode=_DIRECTORY_MODE, parents=True, exist_ok=True)
            self._lock = self._claim(name)
        except OSError as error:
            raise UserError(f"the run directory {self.path} cannot be made") from error
        self._sweep()
        os.truncate(self._lock, 0)
        os.write(self._lock, msgspec.json.encode(VmmRecord(name, os.getpid())) + b"\n")

    def listen(self, name: str) -> socket.socket:
        """A listening Unix socket in the directory."""
        sock = socket.socket(socket.AF_UNIX)
        try:
            with _short_address(self.path, name) as address:
                sock.bind(address)
            sock.listen(_BACKLOG)
        except OSError as error:
            sock.close()
            raise UserError(f"no socket can be made in {self.path}") from error
        return sock

    def close(self) -> None:
        """Remove the directory, then let the name go; what a successor already made in it stays."""
        self._sweep()
        (self.path / _RECORD).unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            self.path.rmdir()
        os.close(self._lock)

    def _claim(self, name: str) -> int:
        """Lock the record, which a predecessor may be about to remove: what is locked must be what is there."""
        path = self.path / _RECORD
        while True:
            self.path.mkdir(mode=_DIRECTORY_MODE, exist_ok=True)
            flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
            try:
                descriptor = os.open(path, flags, _FILE_MODE)
            except FileNotFoundError:
                continue
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if path.exists() and os.path.samestat(os.fstat(descriptor), path.stat()):
                    return descriptor
            except FileNotFoundError:
                pass  # removed between the two looks: try again
            except BlockingIOError:
                os.close(descriptor)
                message = f"a guest named {name} is running on this host; stop it, or choose another --name"
                raise UserError(message) from None
            os.close(descriptor)

    def _sweep(self) -> None:
        """Remove all but the record: ours, or what a VMM that was killed left behind."""
        for entry in self.path.iterdir():
            if entry.name != _RECORD:
                entry.unlink(missing_ok=True)


def check_name(name: str) -> str:
    """A guest's name, which is also a file name.

    Raises:
        UserError: it is not one.
    """
    if not _NAME.match(name):
        raise UserError(
            f"{name!r} is no guest name: use up to 64 letters, digits, dots, dashes and underscores, "
            "and begin with a letter or digit"
        )
    return name


def read_record(directory: Path) -> VmmRecord | None:
    """Who serves (or served) a run directory; None while that is not known."""
    try:
        with (directory / _RECORD).open("rb") as file:
            return msgspec.json.decode(file.read(_RECORD_LIMIT), type=VmmRecord)
    except (OSError, msgspec.DecodeError):
        return None


class VmmProcess:
    """A VMM's process, held by a descriptor, so that its number can go to nobody else meanwhile."""

    def __init__(self, pid: int, guest: str) -> None:
        self._guest = guest
        try:
            self._descriptor = os.pidfd_open(pid)
        except OSError as error:
            raise LostError(f"the VMM of {guest} has ended") from error

    def __enter__(self) -> VmmProcess:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._descriptor)

    def wait_for_end(self, patience_s: float = END_PATIENCE_S) -> None:
        """Wait until the process is gone.

        Raises:
            LostError: it takes too long.
        """
        end = select.poll()
        end.register(self._descriptor, select.POLLIN)
        if not end.poll(patience_s * 1e3):
            raise LostError(f"the VMM of {self._guest} has not ended for {patience_s:g} s")


def process_of(run: Path, guest: str) -> VmmProcess:
    """The VMM of a running guest.

    Raises:
        LostError: it has just ended.
    """
    record = read_record(run / check_name(guest))
    if record is None:
        raise LostError(f"the VMM of {guest} has ended")
    return VmmProcess(record.pid, guest)


def guest_directories(run: Path) -> list[Path]:
    """All run directories of a host, by name."""
    try:
        return sorted(entry for entry in run.iterdir() if entry.is_dir())
    except FileNotFoundError:
        return []


def connect(run: Path, guest: str, name: str) -> socket.socket:
    """Connect to a socket of a running guest.

    Raises:
        UserError: no guest of that name runs.
    """
    directory = run / check_name(guest)
    sock = socket.socket(socket.AF_UNIX)
    try:
        with _short_address(directory, name) as address:
            sock.connect(address)
    except (FileNotFoundError, ConnectionRefusedError):
        sock.close()
        listing = f"sealift ps{Host(run.parent).option}"
        raise UserError(f"no guest named {guest} runs on this host; `{listing}` lists those that do") from None
    except OSError as error:
        sock.close()
        raise UserError(f"{directory / name} cannot be reached") from error
    return sock


@contextlib.contextmanager
def _short_address(directory: Path, name: str) -> Iterator[str]:
    descriptor = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{descriptor}/{name}"
    finally:
        os.close(descriptor)

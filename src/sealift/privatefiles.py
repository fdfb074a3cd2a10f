"""Directories of private files: keys on disk, as every trusted side of the project keeps them.

Directories are 0700 and files 0600, both owned by the user who runs; anything laxer is refused with a sentence,
never repaired in silence. A file appears whole or not at all (written aside, synced, renamed). Processes that share
a directory coordinate by a lock on one file in it, which the kernel drops with the last holder.
"""

from __future__ import annotations

import enum
import fcntl
import os
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from sealift.errors import InternalError, UserError

_DIRECTORY_MODE: Final = 0o700
_FILE_MODE: Final = 0o600
_OTHERS: Final = 0o077
_LOCK_FILE: Final = ".lock"
_TURN_FILE: Final = ".turn"
"""Held for the moment in which somebody asks for the lock for a change."""


class Access(enum.Enum):
    """What a holder of the lock is going to do."""

    USE = fcntl.LOCK_SH
    """Read; others may too."""
    CHANGE = fcntl.LOCK_EX
    """Write; nobody else may do either."""


class Lock:
    """A held lock; `release` (or the end of the process) gives it up."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor: int | None = descriptor

    def release(self) -> None:
        """Give the lock up; again does nothing."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def convert(self, access: Access) -> bool:
        """Turn it into a lock for `access`; False, and a lock for use, if somebody stands in the way."""
        if self._descriptor is None:
            raise InternalError("a lock that was released cannot be converted")
        try:
            fcntl.flock(self._descriptor, access.value | fcntl.LOCK_NB)
        except BlockingIOError:
            # The kernel drops the old lock before it finds that it cannot give the new one (flock(2)).
            fcntl.flock(self._descriptor, Access.USE.value)
            return False
        return True


class PrivateDirectory:
    """One directory of private files.

    Args:
        path: made, with its parents, if it does not exist.
        purpose: what it is to a person, such as ``platform identity``; messages use it.

    Raises:
        UserError: it cannot be made, belongs to another user or is open to others.
    """

    def __init__(self, path: Path, purpose: str) -> None:
        self.path = path
        self._name = f"{purpose} directory {path}"
        try:
            path.mkdir(mode=_DIRECTORY_MODE, parents=True, exist_ok=True)
            status = path.stat()
        except OSError as error:
            raise UserError(f"the {self._name} cannot be used") from error
        _check(status, f"the {self._name}", path, _DIRECTORY_MODE)

    def has(self, name: str) -> bool:
        """Whether the file exists."""
        return (self.path / name).exists()

    def read(self, name: str, limit: int) -> bytes:
        """The content of a file.

        Raises:
            UserError: it is missing, too large, unreadable, or open to others.
        """
        path = self.path / name
        try:
            with os.fdopen(_open(path, os.O_RDONLY), "rb") as file:
                _check(os.fstat(file.fileno()), str(path), path, _FILE_MODE)
                data = file.read(limit + 1)
        except FileNotFoundError:
            raise UserError(f"the {self._name} has no file {name}") from None
        except OSError as error:
            raise UserError(f"{path} cannot be read") from error
        if len(data) > limit:
            raise UserError(f"{path} is larger than the {limit} bytes such a file can have")
        return data

    def write(self, name: str, data: bytes) -> None:
        """Make or replace a file, all of it or nothing, and only return when it is on disk.

        Raises:
            UserError: it cannot be written.
        """
        try:
            # mkstemp makes its file with mode 0600.
            descriptor, aside = tempfile.mkstemp(prefix=f".{name}.", dir=self.path)
            try:
                with os.fdopen(descriptor, "wb") as file:
                    file.write(data)
                    file.flush()
                    os.fsync(file.fileno())
                Path(aside).rename(self.path / name)
            except BaseException:
                Path(aside).unlink(missing_ok=True)
                raise
            self._sync()
        except OSError as error:
            raise UserError(f"{self.path / name} cannot be written") from error

    def append(self, name: str, line: str) -> None:
        """Add a line to a text file, in one write.

        Raises:
            UserError: it cannot be written, or is open to others.
        """
        path = self.path / name
        try:
            with os.fdopen(_open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT), "ab", buffering=0) as file:
                _check(os.fstat(file.fileno()), str(path), path, _FILE_MODE)
                file.write(line.encode() + b"\n")
        except OSError as error:
            raise UserError(f"{path} cannot be written") from error

    def size(self, name: str) -> int:
        """Bytes of a file; 0 if it is not there."""
        return (self.path / name).stat().st_size if self.has(name) else 0

    def rename(self, name: str, new: str) -> None:
        """Give a file another name, in the place of what had it.

        Raises:
            UserError: it cannot be renamed.
        """
        try:
            (self.path / name).replace(self.path / new)
        except OSError as error:
            raise UserError(f"{self.path / name} cannot be renamed") from error

    def remove(self, name: str) -> None:
        """Delete a file; one that is not there is none too many."""
        (self.path / name).unlink(missing_ok=True)

    def by_age(self) -> list[str]:
        """The files, without hidden ones, the oldest first."""
        return sorted(self.names(), key=lambda name: (self.path / name).stat().st_mtime_ns)

    def names(self) -> list[str]:
        """The files, sorted, without hidden ones."""
        return sorted(entry.name for entry in self.path.iterdir() if not entry.name.startswith("."))

    @contextmanager
    def locked(self, access: Access) -> Iterator[None]:
        """Hold the lock for a while; wait for it if need be."""
        lock = self.hold(access)
        try:
            yield
        finally:
            lock.release()

    def hold(self, access: Access) -> Lock:
        """Take the lock, waiting for it, until it is released."""
        return self._take(access.value)

    def try_change(self, held: Lock | None = None) -> Lock | None:
        """Take the lock for a change, or turn `held` into it, unless somebody else uses the directory.

        Those who change it at this moment are waited for: they are done in no time. One at a time asks, so that nobody
        is refused because somebody else is asking.
        """
        turn = self._take(fcntl.LOCK_EX, _TURN_FILE)
        try:
            lock = self.hold(Access.USE) if held is None else held
            if lock.convert(Access.CHANGE):
                return lock
            if lock is not held:
                lock.release()
            return None
        finally:
            turn.release()

    def in_use(self) -> bool:
        """Whether somebody holds the lock for use."""
        lock = self.try_change()
        if lock is not None:
            lock.release()
        return lock is None

    def _take(self, operation: int, name: str = _LOCK_FILE) -> Lock:
        try:
            descriptor = _open(self.path / name, os.O_RDWR | os.O_CREAT)
        except OSError as error:
            raise UserError(f"the {self._name} cannot be locked") from error
        try:
            fcntl.flock(descriptor, operation)
        except BaseException:
            os.close(descriptor)
            raise
        return Lock(descriptor)

    def _sync(self) -> None:
        descriptor = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _open(path: Path, flags: int) -> int:
    return os.open(path, flags | os.O_NOFOLLOW | os.O_CLOEXEC, _FILE_MODE)


def _check(status: os.stat_result, what: str, path: Path, mode: int) -> None:
    """Demand that a file or directory is the user's own and nobody else's to read or write."""
    if status.st_uid != os.geteuid():
        raise UserError(f"{what} belongs to user {status.st_uid}, not to the one who runs this")
    found = stat.S_IMODE(status.st_mode)
    if found & _OTHERS:
        raise UserError(
            f"{what} is open to other users (mode {found:04o}); if nobody can have read or changed its keys, "
            f"run: chmod {mode:o} {path}"
        )

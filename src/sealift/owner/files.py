"""An owner's files: keys, certificates and blobs that its tools read and write.

They lie where the user says, beside files of other tools, so nothing is replaced unless it is asked for, and secrets
get mode 0600. A file appears whole or not at all, and so do files that belong together.
"""

from __future__ import annotations

import base64
import contextlib
import os
import signal
import stat
import tempfile
import threading
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, TypeVar

import msgspec

from sealift.errors import StreamError, UserError
from sealift.sev import kdf
from sealift.sev.session import TransportKeys
from sealift.sev.text import raw_or_base64
from sealift.wire.packed import UNDECODABLE

_PUBLIC: Final = 0o644
_SECRET: Final = 0o600
_HINT: Final = 32
"""Characters of a file's name in that of its hidden companion, whose own must not become too long."""
_ENDING: Final = (signal.SIGHUP, signal.SIGINT, signal.SIGTERM)
"""Signals by which people and systems end a process."""
_TEXT_LIMIT: Final = 4096
"""Bytes of a file that holds a key, a measurement or a report, raw or as text: the longest has 280."""

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class OutputFile:
    """A file to be written."""

    path: Path
    data: bytes = field(repr=False)
    secret: bool = False

    @classmethod
    def base64(cls, path: Path, data: bytes, *, secret: bool = False) -> OutputFile:
        """The file that holds `data` as base64 text, in one line without an end, as QEMU and libvirt have it."""
        return cls(path, base64.b64encode(data), secret)


def read(what: str, path: Path, limit: int) -> bytes:
    """A whole file; `what` it is, messages say.

    Raises:
        UserError: it cannot be read, is no regular file, or has more than `limit` bytes.
    """
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise UserError(f"the {what} {path} is no regular file")
        with path.open("rb") as file:
            data = file.read(limit + 1)
    except OSError as error:
        raise UserError(f"the {what} {path} cannot be read") from error
    if len(data) > limit:
        raise UserError(f"the {what} {path} has more than the {limit} bytes that such a file can have")
    return data


def parsed(what: str, path: Path, limit: int, decode: Callable[[bytes], T]) -> T:
    """What a file holds.

    Raises:
        UserError: as `read`, or `decode` finds it damaged; the cause says where.
    """
    try:
        return decode(read(what, path, limit))
    except StreamError as error:
        raise UserError(f"the {what} {path} does not parse") from error


def read_blob(what: str, path: Path, sizes: Collection[int]) -> bytes:
    """A file that has one of these sizes, raw, as base64 text, or as QMP's answer with that text in it.

    Raises:
        UserError: it cannot be read or holds something else.
    """
    return parsed(what, path, _TEXT_LIMIT, lambda data: raw_or_base64(_data_of(data, sizes), sizes))


class _Answer(msgspec.Struct):
    """QMP's answer to query-sev-launch-measure and query-sev-attestation-report."""

    data: str


class _Reply(msgspec.Struct):
    """The same as it comes over the socket, and from ``virsh qemu-monitor-command``."""

    answer: _Answer = msgspec.field(name="return")


def _data_of(content: bytes, sizes: Collection[int]) -> bytes:
    """What is to be read: `content`, or if that is a QMP answer, the data in it."""
    if len(content) in sizes or not content.lstrip().startswith(b"{"):
        return content
    with contextlib.suppress(*UNDECODABLE):
        return msgspec.json.decode(content, type=_Reply).answer.data.encode()
    with contextlib.suppress(*UNDECODABLE):
        return msgspec.json.decode(content, type=_Answer).data.encode()
    raise StreamError("it looks like QMP's answer, but has no data")


def read_transport(tek: Path, tik: Path) -> TransportKeys:
    """The keys of a session from sevctl's two files.

    Raises:
        UserError: one cannot be read or holds something else.
    """
    return TransportKeys(read_blob("TEK", tek, {kdf.KEY_SIZE}), read_blob("TIK", tik, {kdf.KEY_SIZE}))


def read_joint_transport(path: Path) -> TransportKeys:
    """The keys of a session from sev-tool's one file, TEK||TIK.

    Raises:
        UserError: it cannot be read or holds something else.
    """
    both = read_blob("TK", path, {2 * kdf.KEY_SIZE})
    return TransportKeys(both[: kdf.KEY_SIZE], both[kdf.KEY_SIZE :])


def write(files: Iterable[OutputFile], *, replace: bool) -> None:
    """Write all of them or none; unless `replace`, none that exists.

    Whatever goes wrong, or interrupts, the files are afterwards as they were before, or all new. Only a machine or a
    process that dies within the few renamings leaves a part, of the old files or of the new, never of both; of the new
    ones secrets first, so that there is never a session without its keys.

    Raises:
        UserError: one exists already, is no regular file, or cannot be written.
    """
    wanted = list(files)
    for file in wanted:
        _check_name(file.path, replace=replace)
    with ExitStack() as undo:
        staged = [(file, _stage(file, undo)) for file in wanted]
        asides = [(file.path, aside) for file, aside in sorted(staged, key=lambda pair: not pair[0].secret)]
        with _signals_held():
            _give_names(asides, replace=replace)
            for directory in {path.parent for path, _ in asides}:
                _sync(directory)


def _check_name(path: Path, *, replace: bool) -> None:
    if os.path.lexists(path):
        if not replace:
            raise UserError(f"{path} exists already; --force replaces it")
        if not stat.S_ISREG(path.lstat().st_mode) and not path.is_symlink():
            raise UserError(f"{path} is no regular file, and is not replaced")


def _stage(file: OutputFile, undo: ExitStack) -> Path:
    """The file's content on disk, under a hidden name that `undo` takes away."""
    try:
        # mkstemp makes its file with mode 0600.
        descriptor, aside = tempfile.mkstemp(prefix=f".{file.path.name[:_HINT]}.", dir=file.path.parent)
        undo.callback(_discard, Path(aside))
        with os.fdopen(descriptor, "wb") as stream:
            stream.write(file.data)
            stream.flush()
            os.fchmod(descriptor, _SECRET if file.secret else _PUBLIC & ~_umask())
            os.fsync(descriptor)
    except OSError as error:
        raise UserError(f"{file.path} cannot be written") from error
    return Path(aside)


def _give_names(asides: list[tuple[Path, Path]], *, replace: bool) -> None:
    """Give all files their names, after all old ones have lost theirs; on failure everything is as it was."""
    with ExitStack() as undo:
        old = [_put_aside(path, undo) for path, _ in asides if replace and os.path.lexists(path)]
        for path, aside in asides:
            try:
                if replace:
                    aside.rename(path)
                else:
                    path.hardlink_to(aside)  # which, other than a renaming, fails if somebody made the file meanwhile
            except FileExistsError:
                raise UserError(f"{path} exists already; --force replaces it") from None
            except OSError as error:
                raise UserError(f"{path} cannot be written") from error
            undo.callback(_discard, path)
        undo.pop_all()
    for path in old:
        _discard(path)


def _discard(path: Path) -> None:
    """Take a name away that is of no use any more, if the medium lets us."""
    with contextlib.suppress(OSError):
        path.unlink()


def _put_aside(path: Path, undo: ExitStack) -> Path:
    """Rename a file that is to be replaced; `undo` renames it back."""
    aside = path.with_name(f".{path.name[:_HINT]}.{os.urandom(4).hex()}.old")
    try:
        path.rename(aside)
    except OSError as error:
        raise UserError(f"{path} cannot be replaced") from error
    undo.callback(aside.rename, path)
    return aside


@contextlib.contextmanager
def _signals_held() -> Iterator[None]:
    """Let nobody end this process in between, if this thread has a say in it; who tried is heard afterwards."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    heard: list[int] = []
    before = {each: signal.signal(each, lambda number, _: heard.append(number)) for each in _ENDING}
    try:
        yield
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)
        for number in heard:
            signal.raise_signal(number)


def _sync(directory: Path) -> None:
    """Make names last; a medium that cannot has them all the same."""
    with contextlib.suppress(OSError):
        descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _umask() -> int:
    """The process's file mode creation mask, which can only be read by setting it."""
    mask = os.umask(_SECRET ^ 0o777)
    os.umask(mask)
    return mask

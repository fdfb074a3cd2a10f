"""An owner's files: keys, certificates and blobs that its tools read and write.

They lie where the user says, beside files of other tools, so nothing is replaced unless it is asked for, and secrets
get mode 0600. A file appears whole or not at all.
"""

from __future__ import annotations

import base64
import contextlib
import os
import stat
import tempfile
from collections.abc import Callable, Collection, Iterable
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

    Raises:
        UserError: one exists already, or cannot be written.
    """
    wanted = list(files)
    if not replace:
        for file in wanted:
            if file.path.exists() or file.path.is_symlink():
                raise UserError(f"{file.path} exists already; --force replaces it")
    written: list[Path] = []
    try:
        for file in wanted:
            _write(file, replace=replace)
            written.append(file.path)
    except BaseException:
        for path in () if replace else written:
            path.unlink(missing_ok=True)
        raise


def _write(file: OutputFile, *, replace: bool) -> None:
    path = file.path
    try:
        # mkstemp makes its file with mode 0600.
        descriptor, aside = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        try:
            with os.fdopen(descriptor, "wb") as stream:
                stream.write(file.data)
                stream.flush()
                os.fchmod(descriptor, _SECRET if file.secret else _PUBLIC & ~_umask())
                os.fsync(descriptor)
            if replace:
                Path(aside).rename(path)
            else:
                path.hardlink_to(aside)  # which, other than a renaming, fails if somebody made the file meanwhile
        finally:
            Path(aside).unlink(missing_ok=True)
    except FileExistsError:
        raise UserError(f"{path} exists already; --force replaces it") from None
    except OSError as error:
        raise UserError(f"{path} cannot be written") from error


def _umask() -> int:
    """The process's file mode creation mask, which can only be read by setting it."""
    mask = os.umask(_SECRET ^ 0o777)
    os.umask(mask)
    return mask

"""What takes a download to make, kept under the user's cache directory."""

from __future__ import annotations

import fcntl
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from sealift.cli.places import cache_directory
from sealift.errors import UserError


def cached(name: str, fill: Callable[[Path], None]) -> Path:
    """The cache's directory `name`; `fill` makes its content if nobody has yet.

    Several processes may ask at once: one fills, the others wait. A filled directory is never changed.

    Raises:
        UserError: the cache cannot be written.
    """
    finished = cache_directory() / name
    if finished.is_dir():
        return finished  # without a lock, since the cache may be read-only
    try:
        finished.parent.mkdir(parents=True, exist_ok=True)
        with _locked(finished.with_name(f"{finished.name}.lock")):
            if not finished.is_dir():
                _fill(finished, fill)
    except OSError as error:
        raise UserError(f"the cache {finished} cannot be filled") from error
    return finished


def _fill(finished: Path, fill: Callable[[Path], None]) -> None:
    with tempfile.TemporaryDirectory(dir=finished.parent, prefix=f"{finished.name}.") as partial:
        made = Path(partial) / "made"
        made.mkdir()
        fill(made)
        shutil.move(made, finished)


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield

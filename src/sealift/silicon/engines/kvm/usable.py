"""Whether KVM can run guests here: the self-test's verdict, which is remembered.

It holds until the machine boots, its KVM is loaded anew (which makes another device node) or Sealift changes. A bad
verdict holds for a few minutes: it may have been the machine's load.
"""

from __future__ import annotations

import functools
import hashlib
import os
import select
import subprocess
import sys
import time
from pathlib import Path
from typing import Final

import msgspec

from sealift import silicon
from sealift.errors import UserError
from sealift.silicon.engines.kvm.kernel import DEVICE

_LIMIT_S: Final = 60.0
"""The self-test ends by itself; this is for one whose process cannot even be ended from within."""

_KILL_LIMIT_S: Final = 1.0

_LAST_WORDS_S: Final = 2.0
"""From the first line of a reason to the end."""

_DOUBT_S: Final = 300.0
"""How long a bad verdict holds."""

_SELF_TEST: Final = (sys.executable, "-m", "sealift.silicon.engines.kvm.selftest")

_BOOT_ID: Final = Path("/proc/sys/kernel/random/boot_id")
_TESTED: Final = Path(silicon.__file__).parent
_FILE_LIMIT: Final = 4096


class _Verdict(msgspec.Struct, frozen=True):
    """`reason` is empty if KVM can be used; it holds for one boot, device node, user and the code that was tested.

    `at` is the boot's time in seconds.
    """

    boot: str
    device: str
    code: str
    reason: str
    at: float

    def holds(self) -> bool:
        """Whether it says something about here and now."""
        here = (self.boot, self.device, self.code) == (_boot(), _device(), _code())
        return here and (not self.reason or 0 <= _now() - self.at < _DOUBT_S)


def check(*, anew: bool = False) -> None:
    """Whether KVM can be used here; with `anew` whatever is remembered does not count.

    Raises:
        UserError: it cannot; the message says why.
    """
    if not os.access(DEVICE, os.R_OK | os.W_OK):
        raise UserError(f"{DEVICE} {'may not be used by this user' if Path(DEVICE).exists() else 'does not exist'}")
    verdict = None if anew else _remembered()
    if verdict is None:
        verdict = _Verdict(_boot(), _device(), _code(), _test(), _now())
        _remember(verdict)
    if verdict.reason:
        raise UserError(f"KVM failed its self-test: {verdict.reason}")


def _test() -> str:
    """Why KVM is unfit; empty if it is not."""
    ours, theirs = os.pipe()
    with os.fdopen(ours, "rb"), os.fdopen(theirs, "wb") as output:
        process = subprocess.Popen(_SELF_TEST, stdin=subprocess.DEVNULL, stdout=output, stderr=output)
        output.close()
        said, ended = _listen(ours)
    if not ended:
        process.kill()
    try:
        status = process.wait(_KILL_LIMIT_S)
    except subprocess.TimeoutExpired:  # a vCPU may hang where no signal reaches it
        status = None
    if status == 0:
        return ""
    if lines := said.decode(errors="replace").strip().splitlines():
        return lines[-1]
    return f"it ended with status {status}" if ended else f"it has not ended after {_LIMIT_S:g} s"


def _listen(fd: int) -> tuple[bytes, bool]:
    """What the self-test says, and whether it closed its output in time; behind a reason it has little left."""
    said = b""
    deadline = time.monotonic() + _LIMIT_S
    while select.select([fd], [], [], max(deadline - time.monotonic(), 0))[0]:
        if not (piece := os.read(fd, _FILE_LIMIT)):
            return said, True
        said = (said + piece)[-_FILE_LIMIT:]
        if b"\n" in said:
            deadline = min(deadline, time.monotonic() + _LAST_WORDS_S)
    return said, False


def _boot() -> str:
    return _BOOT_ID.read_text().strip()


def _device() -> str:
    status = Path(DEVICE).stat()
    return f"{status.st_ino}.{status.st_mtime_ns}"


def _now() -> float:
    return time.clock_gettime(time.CLOCK_BOOTTIME)


@functools.cache
def _code() -> str:
    """A digest of what the self-test tests."""
    digest = hashlib.sha256()
    for file in sorted(_TESTED.rglob("*.py")):
        digest.update(hashlib.sha256(file.read_bytes()).digest())
    return digest.hexdigest()


def _path() -> Path:
    base = os.environ.get("XDG_CACHE_HOME", "")
    root = Path(base) if Path(base).is_absolute() else Path.home() / ".cache"
    return root / "sealift" / "kvm-selftest.json"


def _remembered() -> _Verdict | None:
    try:
        with _path().open("rb") as file:
            verdict = msgspec.json.decode(file.read(_FILE_LIMIT), type=_Verdict)
    except (OSError, RuntimeError, msgspec.DecodeError):
        return None
    return verdict if verdict.holds() else None


def _remember(verdict: _Verdict) -> None:
    try:
        path = _path()
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        new = path.with_suffix(f".{os.getpid()}")
        new.write_bytes(msgspec.json.encode(verdict))
        new.replace(path)
    except (OSError, RuntimeError):
        return  # without a place to remember it, it is found out again

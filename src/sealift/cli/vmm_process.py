"""A ``sealift run`` in a child process, with the QMP connection that drives it."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import msgspec

from sealift.cli.places import Host
from sealift.cli.qmp_client import QmpClient
from sealift.errors import LostError, PeerError, RefusedError, SealiftError, UserError
from sealift.vmm.migration.stats import MigrationInfo

LAUNCH_PATIENCE_S: Final = 300.0
"""A launch reads, measures and encrypts the payload and may make keys; longer than this and it hangs."""

_STEP_S: Final = 0.02
"""Between looks at something that cannot be waited for."""

_EXIT_PATIENCE_S: Final = 10.0
"""A VMM told to quit ends its platform, which takes 5 s at most, and itself."""

_WAITING: Final = re.compile(r"waiting for a guest at (\S+)")

_REASON_LIMIT: Final = 8192
"""Bytes of a VMM's last words that are looked at."""


class _Processes(msgspec.Struct, frozen=True, rename="kebab"):
    platform_pid: int


ENDED: Final = frozenset({"completed", "failed", "cancelled"})


class VmmProcess:
    """One VMM.

    Args:
        host: the host it runs on.
        name: the guest's.
        options: further options of ``sealift run``.
        log: file for its standard error.

    Attributes:
        title: what messages call it.
        pid: of the VMM process.
    """

    def __init__(self, host: Host, name: str, options: Sequence[str], log: Path) -> None:
        self.title = f"the VMM of {name} on {host.path.name}"
        self._host = host
        self._name = name
        self._log = log
        self._qmp: QmpClient | None = None
        command = [sys.executable, "-m", "sealift.cli.tethered", str(os.getpid()), "run"]
        command += ["--name", name, "--host", str(host.path), "--quiet", *options]
        with log.open("wb") as errors:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=errors,
                start_new_session=True,  # Ctrl-C is for the command, which ends its guests itself
            )
        self.pid = self._process.pid

    @property
    def qmp(self) -> QmpClient:
        """The connection; made at the first use, once the guest is launched or awaited.

        Raises:
            RefusedError: the VMM could not start its guest; the message is its reason.
        """
        if self._qmp is None:
            try:
                self._qmp = self._connect()
            except LostError:
                raise self._gone() from None
        return self._qmp

    def _connect(self) -> QmpClient:
        deadline = time.monotonic() + LAUNCH_PATIENCE_S
        while True:
            try:
                return QmpClient(self._host.run, self._name, LAUNCH_PATIENCE_S)
            except UserError:
                # Nobody listens yet; or no more.
                if self._process.poll() is not None or time.monotonic() > deadline:
                    raise self._gone() from None
            time.sleep(_STEP_S)

    def _gone(self) -> PeerError:
        """Why it ended, by its own last words."""
        try:
            self._process.wait(_EXIT_PATIENCE_S)
        except subprocess.TimeoutExpired:
            return LostError(f"{self.title} does not answer")
        lines = self._log.read_bytes()[-_REASON_LIMIT:].decode(errors="replace").splitlines()
        reason = lines[-1].removeprefix("sealift: ") if lines else "it gave no reason"
        return RefusedError(f"{self.title} ended: {reason}")

    def platform_pid(self) -> int:
        """Process id of the guest's platform."""
        return self.qmp.query("x-sealift-query-processes", _Processes).platform_pid

    def arrival_uri(self) -> str:
        """Where a VMM that waits for a guest listens, with the port the system chose.

        Raises:
            RefusedError: it does not wait for any.
        """
        _ = self.qmp  # it says where before it answers there
        match = _WAITING.search(self._log.read_text())
        if match is None:
            raise RefusedError(f"{self.title} waits for no guest")
        return match[1]

    # --- migration -----------------------------------------------------------------------------------------------

    def migration(self) -> MigrationInfo:
        """How its migration goes."""
        return self.qmp.query("query-migrate", MigrationInfo)

    def migrations_end(self, patience_s: float) -> Iterator[MigrationInfo]:
        """How the migration goes, again and again until it has ended; the last one says how.

        Raises:
            LostError: it takes longer than `patience_s`.
        """
        deadline = time.monotonic() + patience_s
        while True:
            state = self.migration()
            yield state
            if state.status in ENDED:
                return
            if time.monotonic() > deadline:
                raise LostError(f"the migration is still {state.status} after {patience_s:.0f} s")
            self.qmp.next_event(_STEP_S)

    def wait_for_migration(self, patience_s: float, statuses: Collection[str] = ENDED) -> MigrationInfo:
        """Wait until the migration that was begun has one of these statuses, by default until it has ended.

        Unlike `migrations_end`, without looking meanwhile: a status that passes quickly may be missed.

        Raises:
            LostError: it takes longer than `patience_s`.
        """
        deadline = time.monotonic() + patience_s
        while (left := deadline - time.monotonic()) > 0:
            name, data = self.qmp.next_event(left) or ("", {})
            # The event may be an old one: of the guest's arrival here.
            if name == "MIGRATION" and data.get("status") in statuses:
                state = self.migration()
                if state.status in statuses:
                    return state
        raise LostError(f"the migration is not {' or '.join(sorted(statuses))} after {patience_s:.0f} s")

    # --- the process -----------------------------------------------------------------------------------------------

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """Keep the process from running, so that its memory can be looked at."""
        os.kill(self.pid, signal.SIGSTOP)
        try:
            yield
        finally:
            os.kill(self.pid, signal.SIGCONT)

    def close(self) -> None:
        """End the guest, its platform and the VMM; returns when they are gone. Again does nothing."""
        if self._process.poll() is None:
            try:
                if self._qmp is None:
                    self._process.terminate()
                else:
                    self._qmp.execute("quit")
            except (OSError, SealiftError):
                pass  # it ends already
        if self._qmp is not None:
            self._qmp.close()
            self._qmp = None
        try:
            self._process.wait(_EXIT_PATIENCE_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

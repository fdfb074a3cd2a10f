"""A QMP client for commands: blocking, one request at a time."""

from __future__ import annotations

from collections import deque
from pathlib import Path
from typing import Any, Final, TypeVar

import msgspec

from sealift.cli import rundir
from sealift.errors import LostError, PeerError, RefusedError, StreamError
from sealift.wire.packed import UNDECODABLE

PATIENCE_S: Final = 30.0
"""A VMM answers queries at once and stops its vCPUs within milliseconds; longer than this means it hangs."""

_READ_SIZE: Final = 64 * 1024
T = TypeVar("T")


class _Reply(msgspec.Struct, rename={"result": "return"}):
    """One message of a server: exactly one of the first three is set."""

    event: str | None = None
    error: dict[str, str] | None = None
    result: Any = msgspec.UNSET
    data: dict[str, Any] = {}


class QmpClient:
    """A negotiated connection to the VMM of a guest; use it as a context manager.

    Raises:
        UserError: no guest of that name runs.
        LostError: the VMM does not answer.
    """

    def __init__(self, run: Path, guest: str, patience_s: float = PATIENCE_S) -> None:
        self.guest = guest
        self._sock = rundir.connect(run, guest, rundir.QMP_SOCKET)
        self._sock.settimeout(patience_s)
        self._buffer = bytearray()
        self._events: deque[tuple[str, dict[str, Any]]] = deque()
        try:
            self._line()
            self.execute("qmp_capabilities")
        except BaseException:
            self._sock.close()
            raise

    def __enter__(self) -> QmpClient:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Disconnect."""
        self._sock.close()

    def execute(self, command: str, **arguments: object) -> Any:  # noqa: ANN401  # each command has its own type
        """Run a command; underscores in argument names stand for dashes.

        Raises:
            RefusedError: the VMM's reason why not.
            LostError: the VMM is gone or hangs.
        """
        request: dict[str, object] = {"execute": command}
        if arguments:
            request["arguments"] = {name.replace("_", "-"): value for name, value in arguments.items()}
        try:
            self._sock.sendall(msgspec.json.encode(request) + b"\n")
        except OSError as error:
            raise self._lost() from error
        while True:
            reply = self._message()
            if reply.event is not None:
                self._events.append((reply.event, reply.data))
            elif reply.error is not None:
                raise RefusedError(reply.error.get("desc", "the VMM gave no reason"))
            else:
                return reply.result

    def query(self, command: str, kind: type[T]) -> T:
        """Run a command and read its result as `kind`.

        Raises:
            StreamError: it is not of that kind.
        """
        try:
            return msgspec.convert(self.execute(command), kind)
        except msgspec.ValidationError as error:
            raise StreamError(f"the VMM of {self.guest} answered {command} with something else") from error

    def ask_for_migration_events(self) -> None:
        """Have the VMM tell every client of its migrations' steps, as long as it lives.

        Raises:
            RefusedError: a migration is underway.
        """
        self.execute("migrate-set-capabilities", capabilities=[{"capability": "events", "state": True}])

    def next_event(self, timeout_s: float) -> tuple[str, dict[str, Any]] | None:
        """The next event, or None when there is none for that long.

        Raises:
            LostError: the VMM is gone.
        """
        if self._events:
            return self._events.popleft()
        patience = self._sock.gettimeout()
        self._sock.settimeout(timeout_s)
        try:
            reply = self._message()
        except _SlowError:
            return None
        finally:
            self._sock.settimeout(patience)
        return (reply.event or "", reply.data)

    def _message(self) -> _Reply:
        try:
            return msgspec.json.decode(self._line(), type=_Reply)
        except UNDECODABLE as error:
            raise StreamError(f"the VMM of {self.guest} does not speak QMP") from error

    def _line(self) -> bytes:
        while (end := self._buffer.find(b"\n")) < 0:
            try:
                data = self._sock.recv(_READ_SIZE)
            except TimeoutError as error:
                raise _SlowError(f"the VMM of {self.guest} does not answer") from error
            except OSError as error:
                raise self._lost() from error
            if not data:
                raise self._lost()
            self._buffer += data
        line = bytes(self._buffer[:end])
        del self._buffer[: end + 1]
        return line

    def _lost(self) -> PeerError:
        return LostError(f"the VMM of {self.guest} has ended")


class _SlowError(LostError):
    """It may be well, but it takes too long."""

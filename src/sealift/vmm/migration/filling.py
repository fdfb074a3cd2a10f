"""Post-copy at the target: the guest runs here, and what it misses comes, leg after leg.

Three threads serve a leg, each with a connection: the stream brings what nobody has demanded, the first beside it what
was demanded, and over the second goes what the bell says is to be demanded. Whatever a record is that the handler
refuses, the guest runs on, and the leg ends: its source comes back and is asked for the rest.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

from sealift.errors import LostError, PeerError, RefusedError, SealiftError, StreamError, UserError, sentence
from sealift.vmm.migration.joining import Side
from sealift.vmm.migration.method import LateTarget
from sealift.vmm.migration.patience import Patience
from sealift.vmm.migration.reception import Caller, Reception
from sealift.vmm.migration.serving import CONNECTIONS
from sealift.vmm.migration.status import MigrationStatus
from sealift.vmm.migration.streamio import shut_down
from sealift.wire.handover import Frame, FrameKind, demand, read_frame
from sealift.wire.record import MAX_RECORD
from sealift.wire.side_connection import LENGTH_SIZE, decode_length

_PUSHED, _DEMANDED = 0, 1

_ONLY_NOW = "migrate-pause is currently only supported during postcopy-active or postcopy-recover state"
"""QEMU's words."""


class Filling:
    """Receives the missing pages of one guest that runs; `listener` hears of every new status, and why."""

    def __init__(
        self,
        late: LateTarget,
        reception: Reception,
        patience: Patience,
        keep: Callable[[bytes], Path | None],
        notify: Callable[[str], None],
    ) -> None:
        """Take over the reception; `keep` keeps a token that the source did not take."""
        self.listener: Callable[[MigrationStatus, str | None], None] = lambda _, __: None
        self._late = late
        self._reception = reception
        self._patience = patience
        self._keep = keep
        self._notify = notify
        self._lock = threading.Lock()
        self._socks: tuple[socket.socket, ...] = ()
        self._status = MigrationStatus.POSTCOPY_ACTIVE
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="filling", daemon=True)

    def start(self, listener: Callable[[MigrationStatus, str | None], None]) -> None:
        """Begin, in a thread of its own."""
        self.listener = listener
        listener(self._status, None)
        self._thread.start()

    def join(self, timeout_s: float | None = None) -> bool:
        """Wait until nothing is missing, or nobody is to come any more; whether it is so."""
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def pause(self) -> None:
        """End the connections; the source may come back.

        Raises:
            UserError: there are none.
        """
        with self._lock:
            if self._status is not MigrationStatus.POSTCOPY_ACTIVE or not self._socks:
                raise UserError(_ONLY_NOW)
            for sock in self._socks:
                shut_down(sock)

    def recover(self, reception: Reception) -> None:
        """Await the source there from now on, which was lost.

        Raises:
            UserError: it is not lost.
        """
        with self._lock:
            if self._status is not MigrationStatus.POSTCOPY_PAUSED:
                raise UserError("Migrate recover can only be run when postcopy is paused.")
            before, self._reception = self._reception, reception
        before.close()

    def close(self) -> None:
        """Give up: the guest is to end."""
        with self._lock:
            self._closed = True
            for sock in self._socks:
                shut_down(sock)
            reception = self._reception
        reception.close()
        if self._thread.is_alive():
            self._thread.join()

    # --- legs --------------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        while True:
            reception = self._reception
            try:
                caller = reception.next()
            except LostError as error:
                with self._lock:
                    if self._reception is not reception and not self._closed:
                        continue  # it was replaced
                self._enter(MigrationStatus.FAILED, sentence(error))
                return
            try:
                if self._serve(caller, reception):
                    reception.close()
                    self._enter(MigrationStatus.COMPLETED)
                    return
            except (RefusedError, StreamError) as error:
                self._notify(f"a source was sent away: {sentence(error)}")
                reception.turn_away(caller, error)
            except SealiftError as error:
                self._notify(f"{sentence(error)}; the guest runs on, and its source is waited for")
                self._enter(MigrationStatus.POSTCOPY_PAUSED, sentence(error))

    def _enter(self, status: MigrationStatus, error: str | None = None) -> None:
        with self._lock:
            if self._status is status is MigrationStatus.POSTCOPY_ACTIVE:
                return
            self._status = status
        self.listener(status, error)

    def _serve(self, caller: Caller, reception: Reception) -> bool:
        """Serve one leg, if the caller is the source; whether nothing is missing now.

        Raises:
            LostError: the source was lost.
            RefusedError, StreamError, SealError: it is not the source, or wants something else; nothing has changed.
        """
        hello = caller.introduction.hello
        if not hello.resumes or hello.connections != CONNECTIONS:
            raise RefusedError("the rest of a guest is awaited here, and no other guest")
        try:
            answer = self._late.answer_leg(hello.offer)
        except PeerError as error:
            raise RefusedError(f"this is not the guest's source: {sentence(error)}") from error
        reception.expect(hello.ticket, hello.connections)
        with contextlib.closing(caller.sock), self._known(caller.sock):
            _send(caller.sock, Frame(FrameKind.ANSWER, answer))
            sides = sorted(reception.sides(self._patience.reply_s), key=lambda side: side.channel)
            with ExitStack() as undo:
                for side in sides:
                    undo.callback(side.sock.close)
                undo.enter_context(self._known(caller.sock, *(side.sock for side in sides)))
                self._enter(MigrationStatus.POSTCOPY_ACTIVE)
                Leg(self._late, caller, *sides).run()
                self._finish(sides[-1])
        return True

    @contextlib.contextmanager
    def _known(self, *socks: socket.socket) -> Iterator[None]:
        with self._lock:
            before, self._socks = self._socks, socks
            if self._closed:
                raise LostError("the guest is to end")
        try:
            yield
        finally:
            with self._lock:
                self._socks = before

    def _finish(self, back: Side) -> None:
        """Nothing is missing: the source may go, or is told so by a file."""
        token = self._late.filled()
        try:
            _send(back.sock, Frame(FrameKind.FILLED, token))
            with back.reader.within(self._patience.last_word_s):
                if read_frame(back.reader.take).kind is FrameKind.TAKEN:
                    return
        except PeerError:
            pass  # it is gone, and may not know
        self._keep(token)


class Leg:
    """One set of connections."""

    def __init__(self, late: LateTarget, caller: Caller, side: Side, back: Side) -> None:
        """`side` brings what was demanded, and demands go over `back`."""
        self._late = late
        self._caller = caller
        self._side = side
        self._back = back
        self._ended = os.eventfd(0, os.EFD_CLOEXEC)
        self._lock = threading.Lock()
        self._error: SealiftError | None = None
        self._filled = False

    def run(self) -> None:
        """Take everything that is missing.

        Raises:
            LostError: the source was lost before, or sent what is not to be had.
        """
        threads = [
            threading.Thread(target=self._guarded, args=(work,), name=name, daemon=True)
            for name, work in (("demanded", self._take_demanded), ("demands", self._demand))
        ]
        for thread in threads:
            thread.start()
        self._guarded(self._take_pushed)
        for thread in threads:
            thread.join()
        os.close(self._ended)
        if not self._filled:
            raise LostError("the source is lost") from self._error

    def _guarded(self, work: Callable[[], None]) -> None:
        try:
            work()
        except SealiftError as error:
            self._end(error)

    def _end(self, error: SealiftError | None = None) -> None:
        """Everything is here, or something went wrong: whoever serves the leg stops, and the first reason stays."""
        with self._lock:
            if self._error is None and not self._filled:
                self._error = error
        os.eventfd_write(self._ended, 1)
        shut_down(self._side.sock)
        if error is not None and not self._filled:
            shut_down(self._caller.sock)
            shut_down(self._back.sock)

    def _take_pushed(self) -> None:
        buffer = memoryview(bytearray(MAX_RECORD))
        while not self._filled and self._caller.reader.comes_before(self._ended):
            self._install(_PUSHED, self._caller.stream.late_record(buffer))

    def _take_demanded(self) -> None:
        buffer = memoryview(bytearray(MAX_RECORD))
        while not self._filled and (length := decode_length(self._side.reader.take(LENGTH_SIZE))):
            self._side.reader.into(buffer[:length])
            self._install(_DEMANDED, buffer[:length])

    def _install(self, channel: int, record: memoryview) -> None:
        if not self._late.install(channel, record):
            self._filled = True
            self._end()

    def _demand(self) -> None:
        poll = select.poll()
        for fd in (self._late.bell, self._ended):
            poll.register(fd, select.POLLIN)
        while not any(fd == self._ended for fd, _ in poll.poll()):
            if pages := self._late.demands():
                _send(self._back.sock, demand(pages))


def _send(sock: socket.socket, frame: Frame) -> None:
    try:
        sock.sendall(frame.encode())
    except OSError as error:
        raise LostError(f"the source is gone ({error.strerror})") from error

"""A migration to here: listens until a source comes, and either runs its guest or leaves nothing behind.

Nothing is made for a source before it has introduced itself and its guest may come here, as its method decides. Once
the target has said that it is prepared the source may be fenced: then the last token goes to a file if the source did
not take it.
"""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from sealift.errors import (
    InternalError,
    LostError,
    PeerError,
    RefusedError,
    SealiftError,
    StreamError,
    UserError,
    sentence,
)
from sealift.vmm.launch import Launched
from sealift.vmm.machine import Machine
from sealift.vmm.migration.alarm import Alarm
from sealift.vmm.migration.examining import Examiner, Premises, compare_types
from sealift.vmm.migration.filling import Filling
from sealift.vmm.migration.joining import JoinedChannels, Side
from sealift.vmm.migration.landing import TargetHost, make_machine, set_going
from sealift.vmm.migration.machine_state import Restorer
from sealift.vmm.migration.method import Entrance, RecordSink, TargetMethod
from sealift.vmm.migration.methods import entrance_for
from sealift.vmm.migration.patience import Patience
from sealift.vmm.migration.receiving import Introduction, Sinks
from sealift.vmm.migration.reception import Caller, Reception, say_farewell
from sealift.vmm.migration.route import listen
from sealift.vmm.migration.shared_ram import RamLoader
from sealift.vmm.migration.streamio import EndedError, StreamReader, bulk_work, shut_down
from sealift.vmm.migration.tls import Credentials
from sealift.vmm.migration.token_file import keep_token
from sealift.vmm.migration.transport import Address
from sealift.vmm.platform import Platform
from sealift.wire.handover import Frame, FrameKind, Hello, Method, Refusal, read_frame


@dataclass(frozen=True, slots=True)
class Arrived:
    """A guest that runs here now (or is paused, as it was there).

    Attributes:
        launched: the launch that the guest's next hop starts from.
        started: the STARTED token.
        token_path: where it lies for a source that the connection did not bring it to; None if it did.
        filling: brings the pages that the guest misses (post-copy), once it is started; None if it misses none.
    """

    machine: Machine
    launched: Launched
    name: str
    started: bytes
    token_path: Path | None
    filling: Filling | None = None


@dataclass(slots=True)
class _Guest:
    """What has been made so far."""

    machine: Machine
    launched: Launched
    method: TargetMethod


class Incoming:
    """Listens at an address and serves exactly one migration; who is no source of a guest for here is sent away.

    Attributes:
        address: where it listens.
        patience: how long the source may take.
        aborted: the ABORTED token of a target that gave up, for a source that is left fenced; else empty.

    Raises:
        UserError: it cannot listen there, or the credentials cannot be used.
    """

    def __init__(self, address: Address, host: TargetHost, tls_creds: str = "") -> None:
        """Listen; who comes must speak TLS if there is a directory `tls_creds` (`sealift.vmm.migration.tls`)."""
        self._credentials = Credentials(Path(tls_creds)) if tls_creds else None
        if self._credentials is not None:
            self._credentials.check()
        self._listener = listen(address)
        self.address = self._listener.address
        self.aborted = b""
        self.patience = Patience()
        self._host = host
        self._lock = threading.Lock()
        self._cancelled = False
        self._sock: socket.socket | None = None
        self._connections = ExitStack()
        self._platform: Platform | None = None
        self._platform_lock = threading.Lock()
        self._machine: Machine | None = None
        self._prepared = False
        self._filling: Filling | None = None
        self._method: TargetMethod | None = None

    def serve(self) -> Arrived:
        """Wait for a source and take its guest; blocks, so give it a thread of its own.

        Raises:
            SealiftError: why no guest came; the source was told, and nothing is left of it here.
        """
        reception = Reception(self._listener, self.patience, self._examiner(), self._credentials, self._host.notify)
        try:
            caller, entrance = self._first_wanted(reception)
        except BaseException:
            reception.close()
            self._leave_nothing()
            raise
        with ExitStack() as self._connections:
            self._connections.callback(self._close_reception, reception)
            try:
                self._adopt(caller.sock)
                return self._receive(caller, entrance, reception)
            except SealiftError as error:
                self._refuse(error)
                raise
            except BaseException as error:
                self._refuse(InternalError(f"a bug ended the migration ({type(error).__name__})"))
                raise

    def _close_reception(self, reception: Reception) -> None:
        if self._filling is None:  # which goes on with it
            reception.close()

    def listen_anew(self, address: Address) -> Address:
        """Await a source that was lost at another address, while pages are missing (migrate-recover); where.

        Raises:
            UserError: none is awaited, or nobody can listen there.
        """
        if self._filling is None:
            raise UserError("Migrate recover can only be run when postcopy is paused.")
        listener = listen(address)
        reception = Reception(listener, self.patience, self._examiner(), self._credentials, self._host.notify)
        try:
            self._filling.recover(reception)
        except UserError:
            reception.close()
            raise
        return listener.address

    def cancel(self) -> None:
        """Give it up, from any thread; a guest that has started stays."""
        with self._lock:
            self._cancelled = True
            if self._sock is not None:
                shut_down(self._sock)
        self._listener.wake()

    def close(self) -> None:
        """Stop listening, and give up what is underway."""
        self.cancel()
        if self._filling is not None:
            self._filling.close()
        self._listener.close()

    # --- who comes ---------------------------------------------------------------------------------------------------

    def _first_wanted(self, reception: Reception) -> tuple[Caller, Entrance]:
        """The first source whose guest may come here."""
        while True:
            caller = reception.next()
            try:
                return caller, self._admitted(caller.introduction.hello)
            except (RefusedError, StreamError) as error:
                self._host.notify(f"a source was sent away: {sentence(error)}")
                reception.turn_away(caller, error)
            except SealiftError as error:
                reception.turn_away(caller, error)
                raise

    def _admitted(self, hello: Hello) -> Entrance:
        """Let it in, or not; a platform that was not used for one guest is kept for the next."""
        if hello.resumes:
            raise RefusedError("nothing is kept here that could go on; begin anew")
        for obstacle in compare_types(hello.method, plain=self._host.plain):
            raise RefusedError(obstacle.sentence)
        platform = self._platform_here()
        entrance = entrance_for(Method(hello.method), platform, self._host.owner, self._host.startup)
        entrance.admit(hello.offer)
        return entrance

    def _platform_here(self) -> Platform:
        """The one platform of this target, for who asks and for who comes."""
        with self._platform_lock:
            if self._platform is None:
                self._platform = self._host.platform()
            return self._platform

    # --- the guest's way in ----------------------------------------------------------------------------------------

    def _examiner(self) -> Examiner:
        """For who only asks."""
        host = self._host
        return Examiner(Premises(self._platform_here, host.owner, host.disks, host.memory_available, plain=host.plain))

    def _adopt(self, sock: socket.socket) -> None:
        """From now on this is the connection to the source."""
        self._connections.callback(sock.close)
        with self._lock:
            self._sock = sock
            if self._cancelled:
                raise LostError("the target was told to give up")

    def _receive(self, caller: Caller, entrance: Entrance, reception: Reception) -> Arrived:
        hello = caller.introduction.hello
        if hello.connections == 1 and not _comes_back(hello):
            reception.close()
        try:
            guest = self._make(caller.introduction, entrance)
            sides = self._agree(caller, guest.method, reception)
            restorer = Restorer(guest.machine)
            caller = self._take_all(guest, restorer, caller, sides, reception)
            guest.machine.replace_shared_pages(guest.machine.platform.page_states())
        except EndedError as error:
            raise StreamError("the stream is truncated") from error
        prepared = guest.method.prepared()
        self._prepared = True
        _send(caller.sock, Frame(FrameKind.PREPARED, prepared))
        with caller.reader.within(self.patience.reply_s):
            final = _expect_final(caller.reader)
        guest.method.ready(final)
        started = self._start(guest, restorer)
        if (late := guest.method.late()) is not None:
            self._filling = Filling(late, reception, self.patience, self._keep, self._host.notify)
        kept = None if self._delivered(caller, guest.method, started) else self._keep(started)
        return Arrived(guest.machine, guest.launched, hello.guest, started, kept, self._filling)

    def _take_all(
        self, guest: _Guest, restorer: Restorer, caller: Caller, sides: tuple[Side, ...], reception: Reception
    ) -> Caller:
        """Take the stream to its end, over as many connections as that needs; who was there at last."""
        hello = caller.introduction.hello
        while True:
            try:
                with bulk_work(), self._joined(caller.reader, guest.method, sides) as sink:
                    caller.stream.rest(Sinks(sink, RamLoader(guest.machine.memory), restorer))
            except EndedError as error:
                if not hello.keep_s:
                    raise
                caller.sock.close()
                guest.method.settle()
                self._host.notify(f"{sentence(error)}; the source is waited for {hello.keep_s} s")
                caller, sides = self._returned(guest, hello.keep_s, reception)
            else:
                return caller

    def _returned(self, guest: _Guest, limit_s: float, reception: Reception) -> tuple[Caller, tuple[Side, ...]]:
        """The source, which comes back and offers a new leg, and its connections beside the stream.

        Whoever else comes meanwhile is sent away. A source that is lost again before all is agreed may come once more.

        Raises:
            LostError: it did not within `limit_s`; or the guest's platform is gone.
        """
        until = time.monotonic() + limit_s
        while True:
            caller = reception.next(max(0.0, until - time.monotonic()))
            hello = caller.introduction.hello
            try:
                if not hello.resumes:
                    raise RefusedError("a guest is awaited here whose source was lost, and no other")
                answer = guest.method.answer_leg(hello.offer)
            except LostError:
                raise
            except SealiftError as error:
                self._host.notify(f"a source was sent away: {sentence(error)}")
                reception.turn_away(caller, error)
                continue
            self._adopt(caller.sock)
            reception.expect(hello.ticket, hello.connections)
            try:
                _send(caller.sock, Frame(FrameKind.ANSWER, answer))
                return caller, self._beside(caller, reception)
            except LostError as error:
                caller.sock.close()
                self._host.notify(f"{sentence(error)}; the source is still waited for")

    def _agree(self, caller: Caller, method: TargetMethod, reception: Reception) -> tuple[Side, ...]:
        """Exchange keys, and let the connections in that come beside the stream."""
        hello = caller.introduction.hello
        answer = method.answer(hello.offer)
        reception.expect(hello.ticket, hello.connections)
        _send(caller.sock, Frame(FrameKind.ANSWER, answer))
        with ExitStack() as undo:
            sides = self._beside(caller, reception)
            for side in sides:
                undo.callback(side.sock.close)
            with caller.reader.within(self.patience.reply_s):
                confirmation = caller.stream.confirmation()
            method.agreed(confirmation)
            undo.pop_all()
        return sides

    def _beside(self, caller: Caller, reception: Reception) -> tuple[Side, ...]:
        """The connections beside the stream; nobody else is expected, unless the source may come back."""
        sides = reception.sides(self.patience.reply_s)
        if not _comes_back(caller.introduction.hello):
            reception.close()
        return sides

    @contextmanager
    def _joined(self, reader: StreamReader, sink: RecordSink, sides: tuple[Side, ...]) -> Iterator[RecordSink]:
        """Where records go: to the method, from all connections."""
        if not sides:
            yield sink
            return
        with contextlib.closing(Alarm()) as alarm, contextlib.closing(JoinedChannels(sink, sides, alarm)) as joined:
            reader.heed(alarm)
            try:
                yield joined
            finally:
                reader.heed(None)

    def _make(self, introduction: Introduction, entrance: Entrance) -> _Guest:
        """The machine, waiting for its guest."""
        if self._platform is None:
            raise InternalError("a machine is to be made before any guest was admitted")
        machine = self._machine = make_machine(self._host, self._platform, introduction, es=entrance.es)
        entered = entrance.enter(machine)
        self._method = entered.method
        return _Guest(machine, entered.launched, entered.method)

    def _start(self, guest: _Guest, restorer: Restorer) -> bytes:
        """The guest is ours: run it. From here on nothing is given up any more."""
        with self._lock:
            if self._cancelled:
                raise LostError("the target was told to give up")
            guest.machine.devices.take_disks()
            started = guest.method.started()
        set_going(guest.machine, restorer)
        return started

    def _delivered(self, caller: Caller, method: TargetMethod, started: bytes) -> bool:
        """Whether the source took the token: what was sent may still be lost. The receipt follows it."""
        try:
            _send(caller.sock, Frame(FrameKind.STARTED, started))
            _send(caller.sock, Frame(FrameKind.RECEIPT, method.receipt()))
            with caller.reader.within(self.patience.last_word_s):
                return read_frame(caller.reader.take).kind is FrameKind.TAKEN
        except PeerError:
            return False

    def _keep(self, token: bytes) -> Path | None:
        """Keep a token that did not reach the source, and tell the user; where it lies."""
        path = self._host.token_path
        if path is None:
            return None
        try:
            keep_token(path, token)
        except UserError as error:
            self._host.notify(sentence(error))
            return None
        self._host.notify(f"the source may not know how the migration ended; bring it the token in {path}")
        return path

    # --- the way out -------------------------------------------------------------------------------------------------

    def _refuse(self, error: SealiftError) -> None:
        """Tell the source why, and leave nothing behind but a token that it may wait for.

        Raises:
            LostError: the token had to be kept in a file; it says where.
        """
        try:
            if self._method is not None:
                self.aborted = self._method.abort()
        finally:
            self._leave_nothing()
            taken = self._sock is not None and say_farewell(self._sock, Refusal.of(error, self.aborted))
        if self._prepared and self.aborted and not taken and (kept := self._keep(self.aborted)) is not None:
            raise LostError(f"the guest may wait for this target's token on its source; bring it {kept}") from error

    def _leave_nothing(self) -> None:
        if self._machine is not None:
            self._machine.close()
        elif self._platform is not None:
            self._platform.close()


def _comes_back(hello: Hello) -> bool:
    """Whether this source may connect again."""
    return bool(hello.keep_s) or hello.late


def _expect_final(reader: StreamReader) -> bytes:
    try:
        frame = read_frame(reader.take)
    except EndedError as error:
        raise LostError("the source closed the connection instead of handing the guest over") from error
    if frame.kind is not FrameKind.FINAL:
        raise StreamError(f"the source sent {frame.kind.name} where FINAL was due")
    return frame.payload


def _send(sock: socket.socket, frame: Frame) -> None:
    try:
        sock.sendall(frame.encode())
    except OSError as error:
        raise LostError(f"the source is gone ({error.strerror})") from error

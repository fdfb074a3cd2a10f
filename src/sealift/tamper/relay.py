"""The tamperer itself: takes every connection for the target, makes one there, and carries messages both ways.

A thread for each side of each connection holds one message at a time, does to it what the rules say, and sends it on.
"""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from sealift.errors import LostError, SealiftError, sentence
from sealift.tamper.events import Entry, Event, Summary
from sealift.tamper.messages import BYTES, Message, Side, Splitter
from sealift.tamper.rulebook import Due, Rulebook, place_of
from sealift.tamper.rules import Rule, Verb


class Entrance(Protocol):
    """Where sources come."""

    def accept(self) -> socket.socket:
        """The next connection.

        Raises:
            LostError: there will be no more.
        """

    def wake(self) -> None:
        """End a waiting `accept`, from any thread."""


@dataclass(frozen=True, slots=True)
class Road:
    """The way from source to target: where sources come, and how the target is reached."""

    entrance: Entrance
    connect: Callable[[], socket.socket]


@dataclass(frozen=True, slots=True)
class Label:
    """What a log says of a message; `number` is its place among those of its name on its connection."""

    side: Side | None = None
    name: str = ""
    channel: int = 0
    number: int = 0
    length: int = 0


NOTHING = Label()
"""For what concerns no message."""


class CutError(Exception):
    """The link was cut, by a rule or the end."""


class Tamperer:
    """Carries everything between sources and one target, until it is closed.

    Attributes:
        first_over: set once a migration came by and all connections have ended.
    """

    def __init__(
        self,
        road: Road,
        book: Rulebook,
        log: Callable[[Entry], None],
        wait: Callable[[threading.Event, float], object] = threading.Event.wait,
    ) -> None:
        """`log` gets every entry, one at a time, from any thread; `wait` waits for an event or so many seconds."""
        self.first_over = threading.Event()
        self.book = book
        self._road = road
        self._log = log
        self._wait = wait
        self._began = time.monotonic()
        self._ending = threading.Event()
        self._lock = threading.RLock()
        self._open: dict[int, _Connection] = {}
        self._came = self._messages = self._bytes = self._migrations = 0

    def serve(self) -> None:
        """Carry; returns once `close` was called and nothing is underway any more."""
        while not self._ending.is_set():
            try:
                source = self._road.entrance.accept()
            except LostError:
                break
            self._carry(source)
        self._ending.set()
        self.cut()
        while connection := self._any():
            connection.join()

    def close(self) -> None:
        """End it, from any thread."""
        self._ending.set()
        self._road.entrance.wake()
        self.cut()

    def summary(self) -> Summary:
        """What was done so far."""
        with self._lock:
            return Summary(self.book.seed, self._came, self._messages, self._bytes, self.book.outcomes())

    # --- for the ways -------------------------------------------------------------------------------------------------

    def cut(self) -> None:
        """End all connections that are open now."""
        with self._lock:
            for connection in self._open.values():
                connection.shut_down()

    def pause(self, seconds: float) -> None:
        """Wait.

        Raises:
            CutError: the end came meanwhile.
        """
        self._wait(self._ending, seconds)
        if self._ending.is_set():
            raise CutError

    def tell(self, event: Event, connection: int, label: Label | None = None, words: str = "", rule: str = "") -> None:
        """Put an entry into the log."""
        about = NOTHING if label is None else label
        with self._lock:
            when = round(time.monotonic() - self._began, 6)
            side = about.side.value if about.side else ""
            self._log(
                Entry(event, when, connection, side, about.name, about.channel, about.number, about.length, rule, words)
            )

    def met(self, name: str) -> None:
        """A message came by."""
        with self._lock:
            self._messages += name != BYTES
            self._migrations += name in {"front", BYTES}  # what cannot be read may be one

    def passed(self, length: int) -> None:
        """So many bytes were sent on."""
        with self._lock:
            self._bytes += length

    # --- connections come and go --------------------------------------------------------------------------------------

    def _carry(self, source: socket.socket) -> None:
        with self._lock:
            self._came += 1
            number = self._came
        try:
            target = self._road.connect()
        except SealiftError as error:
            source.close()
            self.tell(Event.ENDED, number, words=f"it leads nowhere: {sentence(error)}")
            return
        self.tell(Event.CONNECTED, number, words="a source connected")
        connection = _Connection(self, number, source, target)
        with self._lock:
            self._open[number] = connection
        connection.start()
        if self._ending.is_set():
            connection.shut_down()

    def over(self, number: int) -> None:
        """A connection has ended."""
        self.tell(Event.ENDED, number, words="it ended")
        with self._lock:
            del self._open[number]
            if self._migrations and not self._open:
                self.first_over.set()

    def _any(self) -> _Connection | None:
        with self._lock:
            return next(iter(self._open.values()), None)


class _Connection:
    """Two sockets, and a thread for each way."""

    def __init__(self, tamperer: Tamperer, number: int, source: socket.socket, target: socket.socket) -> None:
        self._tamperer = tamperer
        self._number = number
        self._sockets = (source, target)
        self._forth = _Way(tamperer, number, Side.SOURCE, source, target)
        self._back = _Way(tamperer, number, Side.TARGET, target, source)
        self._thread = threading.Thread(target=self._run, name=f"connection-{number}", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def join(self) -> None:
        self._thread.join()

    def shut_down(self) -> None:
        for sock in self._sockets:
            with contextlib.suppress(OSError):  # gone already
                sock.shutdown(socket.SHUT_RDWR)

    def _run(self) -> None:
        back = threading.Thread(target=self._back.run, name=f"back-{self._number}", daemon=True)
        back.start()
        try:
            self._forth.run()
            back.join()
        finally:
            self._tamperer.over(self._number)  # before the descriptors can be another connection's
            for sock in self._sockets:
                sock.close()


@dataclass(frozen=True, slots=True)
class _Held:
    """A message that waits for another one, which is to go first."""

    rule: Rule
    behind: tuple[str, int]
    label: Label
    data: bytes


class _Way:
    """One side of a connection; `run` is for a thread of its own."""

    def __init__(
        self, tamperer: Tamperer, connection: int, side: Side, start: socket.socket, end: socket.socket
    ) -> None:
        self._tamperer = tamperer
        self._connection = connection
        self._side = side
        self._start = start
        self._end = end
        self._numbers: Counter[str] = Counter()
        self._sent = 0
        self._held: list[_Held] = []

    def run(self) -> None:
        """Carry messages until one end leaves, and let the other know."""
        splitter = Splitter(self._side, self._start.recv_into)
        with contextlib.suppress(OSError, CutError):  # either end may leave at any time
            for message in splitter.messages():
                self._pass(message)
            for held in self._held:
                self._tell(Event.TAMPERED, held.label, "nothing came that could go before it", held.rule)
                self._send(held.data)
        with contextlib.suppress(OSError):
            self._end.shutdown(socket.SHUT_WR)
        with contextlib.suppress(OSError):
            self._start.shutdown(socket.SHUT_RD)

    def _pass(self, message: Message) -> None:
        self._numbers[message.name] += 1
        number = self._numbers[message.name]
        label = Label(self._side, message.name, message.channel, number, len(message.data))
        self._tamperer.met(message.name)
        if message.name == BYTES:
            if number == 1:
                self._tell(Event.NOT_UNDERSTOOD, label, "from here on it passes as it comes")
            self._send(message.data)
            return
        self._tell(Event.MESSAGE, label)
        due = self._tamperer.book.due(message.name, self._side, message.channel, number)
        for _ in range(self._tampered(message, label, due)):
            self._send(message.data)
        self._release((message.name, number))

    def _tampered(self, message: Message, label: Label, due: tuple[Due, ...]) -> int:
        """Do to the message what is due; how often it is to be sent now."""
        times = 1
        for each in due:
            rule = each.rule
            match rule.verb:
                case Verb.FLIP:
                    self._flip(message, label, rule)
                case Verb.DELAY:
                    self._done(label, f"waits {rule.pause_s:g} s", rule)
                    self._tamperer.pause(rule.pause_s)
                case Verb.REPEAT:
                    self._done(label, "repeated", rule)
                    times *= 2
                case Verb.DROP:
                    self._done(label, "dropped", rule)
                    times = 0
                case Verb.REORDER:
                    self._held.append(_Held(rule, each.behind, label, bytes(message.data)))
                    times = 0
                case Verb.CUT:
                    if rule.byte is not None:
                        self._send(message.data[: min(message.start + rule.byte, message.end)])
                    self._cut(label, rule)
        return times

    def _release(self, name_and_number: tuple[str, int]) -> None:
        """Send what waited for this message."""
        for held in [held for held in self._held if held.behind == name_and_number]:
            self._held.remove(held)
            self._done(held.label, f"goes behind {held.behind[0]}#{held.behind[1]}", held.rule)
            self._send(held.data)

    def _flip(self, message: Message, label: Label, rule: Rule) -> None:
        content = message.data[message.start : message.end]
        if place_of(rule) >= len(content):
            self._tell(Event.TAMPERED, label, f"has no such bit: its content has {len(content)} bytes", rule)
            return
        self._flip_in(content, 0, label, rule)

    def _flip_in(self, data: memoryview, begin: int, label: Label, rule: Rule) -> None:
        """Change the bit that a rule is about; `data` begins at `begin`. What the rule leaves open the seed decides."""
        if rule.bit is not None:
            bit = rule.bit
        elif rule.byte is not None:
            bit = 8 * rule.byte + self._tamperer.book.chance(rule, 8)
        else:
            bit = self._tamperer.book.chance(rule, 8 * len(data))
        data[(bit >> 3) - begin] ^= 1 << (bit & 7)
        self._done(label, f"bit {bit} flipped", rule)

    def _send(self, data: memoryview | bytes) -> None:
        """Send on, with what is due by its place in the connection."""
        begin = self._sent
        rules = self._tamperer.book.within(self._side, begin, begin + len(data))
        if rules:
            data = memoryview(bytearray(data))
        for rule in rules:
            self._tamper_with_bytes(memoryview(data), begin, rule)
        self._send_all(data)

    def _tamper_with_bytes(self, data: memoryview, begin: int, rule: Rule) -> None:
        label = Label(self._side, BYTES, length=len(data))
        match rule.verb:
            case Verb.FLIP:
                self._flip_in(data, begin, label, rule)
            case Verb.DELAY:
                self._done(label, f"wait {rule.pause_s:g} s", rule)
                self._tamperer.pause(rule.pause_s)
            case _:
                self._send_all(data[: place_of(rule) - begin])
                self._cut(label, rule)

    def _send_all(self, data: memoryview | bytes) -> None:
        self._end.sendall(data)
        self._sent += len(data)
        self._tamperer.passed(len(data))

    def _cut(self, label: Label, rule: Rule) -> None:
        self._done(label, "the link is cut", rule)
        self._tamperer.cut()
        raise CutError

    def _done(self, label: Label, words: str, rule: Rule) -> None:
        self._tamperer.book.done(rule)
        self._tell(Event.TAMPERED, label, words, rule)

    def _tell(self, event: Event, label: Label, words: str = "", rule: Rule | None = None) -> None:
        self._tamperer.tell(event, self._connection, label, words, rule.text if rule else "")

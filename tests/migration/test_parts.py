"""Rates, times, states, addresses, transfers: each part by itself, with time and peers that tests control."""

from __future__ import annotations

import socket
import threading
from collections import deque
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from sealift.address import Gpa, RamBlock, RamLayout
from sealift.errors import InternalError, LostError, RefusedError, SealError, UserError
from sealift.vmm.migration.handed import ExecAddress, FdAddress
from sealift.vmm.migration.mailbox import LIVENESS_S, Mailbox, MailboxSource
from sealift.vmm.migration.mh import HandlerDoorbell
from sealift.vmm.migration.parameters import Capability, Parameters
from sealift.vmm.migration.ring import RingSource, RingTarget
from sealift.vmm.migration.stats import Bandwidth, DowntimePart, Statistics
from sealift.vmm.migration.status import TRANSITIONS, MigrationStatus, StatusMachine
from sealift.vmm.migration.streamio import EndedError, StreamReader, StreamWriter
from sealift.vmm.migration.throttle import Throttle
from sealift.vmm.migration.transport import (
    BUFFER_FLOOR,
    Address,
    FileAddress,
    Listener,
    TcpAddress,
    UnixAddress,
    buffer_size,
    connect,
    parse_uri,
)
from sealift.wire import handler as wire
from sealift.wire.handover import Transfer
from sealift.wire.mailbox import AREA_SIZE, Params, Result, answer, end_watch, put_record, watch
from sealift.wire.record import page_record_size, pages_fitting


class FakeClock:
    """Time that passes when somebody waits."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        """Seconds."""
        return self.now

    def wait(self, wake: threading.Event, seconds: float) -> bool:
        """Let them pass."""
        self.now += seconds
        return wake.is_set()


# --- rates and times ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("piece", [1000, 50_000, 3_000_000])
def test_a_throttled_stream_keeps_its_rate_whatever_is_written_at_once(piece: int) -> None:
    clock = FakeClock()
    throttle = Throttle(1, clock, threading.Event())
    throttle.limit(1_000_000)
    total = 0
    while total < 6_000_000:
        throttle.spend(piece)
        total += piece
    assert total / clock.now == pytest.approx(1_000_000, rel=0.05)


def test_a_lifted_throttle_and_one_of_rate_0_never_wait() -> None:
    clock = FakeClock()
    throttle = Throttle(1, clock, threading.Event())
    throttle.lift()
    throttle.spend(1 << 40)
    Throttle(0, clock, threading.Event()).spend(1 << 40)
    changed = Throttle(1, clock, threading.Event())
    changed.limit(0)
    changed.spend(1 << 40)
    assert clock.now == 0


def test_bandwidth_is_of_the_last_rounds_that_were_long_enough_to_tell() -> None:
    bandwidth = Bandwidth()
    assert bandwidth.seconds_for(0) == 0
    assert bandwidth.seconds_for(1) == float("inf")
    bandwidth.add(4 << 20, 2.0)
    assert bandwidth.seconds_for(2 << 20) == 1.0
    bandwidth.add(4096, 0.004096)
    assert bandwidth.seconds_for(1_000_000) == pytest.approx(1.0)
    bandwidth.add(8 << 20, 1.0)
    assert bandwidth.seconds_for(8 << 20) == pytest.approx(1.0, rel=0.01)


def test_downtime_is_the_sum_of_its_parts_and_ends_with_the_migration() -> None:
    clock = FakeClock()
    stats = Statistics(1 << 20, clock)
    assert stats.info(MigrationStatus.NONE).total_time == 0
    stats.begin()
    clock.now = 1.0
    stats.active()
    assert stats.info(MigrationStatus.ACTIVE).downtime is None
    for part, seconds in ((DowntimePart.PAUSE, 0.001), (DowntimePart.LAST_ROUND, 0.020), (DowntimePart.START, 0.004)):
        stats.downtime_part(part)
        clock.now += seconds
    stats.end()
    clock.now += 100
    info = stats.info(MigrationStatus.COMPLETED)
    assert (info.setup_time, info.total_time, info.downtime) == (1000, 1025, 25)
    assert info.x_sealift_downtime_parts == pytest.approx({"stop": 1, "last-pages": 20, "start": 4})


def test_bytes_are_told_apart_by_whether_the_guest_ran_and_its_writes_are_a_rate() -> None:
    clock = FakeClock()
    stats = Statistics(1 << 20, clock)
    stats.begin()
    stats.active()
    with stats.round():
        stats.sent = 1 << 20
        clock.now += 0.5
    stats.dirtied(40)
    stats.downtime_part(DowntimePart.LAST_ROUND)
    with stats.round():
        stats.sent += 1 << 10
    stats.downtime_part(DowntimePart.STATE)
    ram = stats.info(MigrationStatus.DEVICE).ram
    assert ram is not None
    assert (ram.precopy_bytes, ram.downtime_bytes, ram.dirty_pages_rate) == (1 << 20, 1 << 10, 80)


def test_what_a_source_still_does_once_the_guest_has_arrived_is_no_time_of_the_guests() -> None:
    clock = FakeClock()
    stats = Statistics(1 << 20, clock)
    stats.begin()
    stats.downtime_part(DowntimePart.START)
    clock.now = 0.004
    stats.arrived()
    clock.now = 0.5
    stats.end()
    info = stats.info(MigrationStatus.COMPLETED)
    assert (info.total_time, info.downtime) == (4, 4)


# --- states ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("start", MigrationStatus)
@pytest.mark.parametrize("to", MigrationStatus)
def test_a_status_follows_the_table_and_nothing_else(start: MigrationStatus, to: MigrationStatus) -> None:
    seen: list[MigrationStatus] = []
    machine = StatusMachine(seen.append)
    machine._status = start
    if to in TRANSITIONS[start]:
        machine.move(to)
        assert (machine.status, seen) == (to, [to])
    else:
        with pytest.raises(InternalError, match=f"that is {start.value} cannot become {to.value}"):
            machine.move(to)
        assert (machine.status, seen) == (start, [])


@pytest.mark.parametrize(
    "wrong",
    [
        {"downtime_limit_ms": -1},
        {"max_bandwidth": -1},
        {"multifd_channels": 0},
        {"multifd_channels": 17},
        {"transfer": Transfer.MAILBOX, "multifd_channels": 2, "capabilities": frozenset({Capability.MULTIFD})},
    ],
)
def test_impossible_parameters_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(UserError, match="choose"):
        Parameters(**wrong)  # type: ignore[arg-type]  # on purpose


# --- addresses ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("uri", "address"),
    [
        ("tcp:host.example:4444", TcpAddress("host.example", 4444)),
        ("tcp:[::1]:0", TcpAddress("::1", 0)),
        ("unix:/run/a:b", UnixAddress(Path("/run/a:b"))),
        ("fd:7", FdAddress(7)),
        ("exec:socat - TCP:b.example:4444", ExecAddress("socat - TCP:b.example:4444")),
        ("file:/srv/a,offset=4096", FileAddress(Path("/srv/a"), 4096)),
        ("file:/srv/a", FileAddress(Path("/srv/a"))),
    ],
)
def test_addresses_are_read_and_written_as_qemu_writes_them(uri: str, address: Address) -> None:
    assert parse_uri(uri) == address
    assert str(address) == uri


@pytest.mark.parametrize(
    "uri",
    [
        "",
        "tcp:",
        "tcp:host",
        "tcp:host:port",
        "tcp:h:65536",
        "udp:h:1",
        "unix:",
        "tcp:h:-1",
        "fd:x",
        "fd:",
        "exec:",
        "file:",
        "file:a,offset=x",
    ],
)
def test_what_is_no_address_is_refused_with_how_one_looks(uri: str) -> None:
    with pytest.raises(UserError, match="write tcp:HOST:PORT, unix:PATH, fd:N, exec:COMMAND or file:PATH"):
        parse_uri(uri)


def test_a_port_in_use_says_so() -> None:
    first = Listener(TcpAddress("127.0.0.1", 0))
    try:
        with pytest.raises(UserError, match="is in use already"):
            Listener(first.address)
    finally:
        first.close()


def test_a_socket_file_goes_with_its_listener_and_one_left_behind_is_replaced(tmp_path: Path) -> None:
    address = UnixAddress(tmp_path / "in")
    with socket.socket(socket.AF_UNIX) as left_behind:
        left_behind.bind(str(address.path))
    listener = Listener(address)
    with pytest.raises(UserError, match="is in use already"):
        Listener(address)
    listener.accept().close()  # the second one looked whether somebody listens
    with connect(address) as source, listener.accept() as target:
        source.sendall(b"x")
        assert target.recv(1) == b"x"
    listener.close()
    assert not address.path.exists()
    with pytest.raises(LostError, match="nobody listens"):
        connect(address)


def test_no_other_file_is_ever_removed(tmp_path: Path) -> None:
    file = tmp_path / "precious"
    file.write_text("x")
    with pytest.raises(UserError):
        Listener(UnixAddress(file))
    assert file.read_text() == "x"


def test_waiting_for_a_source_ends_when_it_is_told_to() -> None:
    listener = Listener(TcpAddress("127.0.0.1", 0))
    threading.Timer(0.05, listener.wake).start()
    with pytest.raises(LostError, match=r"listening on .* ended"):
        listener.accept()
    listener.close()


def test_buffers_are_small_on_one_machine_and_the_systems_own_over_distance() -> None:
    assert buffer_size(0.0) == buffer_size(50e-6) == BUFFER_FLOOR
    assert buffer_size(0.01) is None


# --- the byte stream ------------------------------------------------------------------------------------------------


def test_what_is_written_in_pieces_is_read_in_others() -> None:
    ours, theirs = socket.socketpair()
    data = bytes(range(256)) * 8192
    with ours, theirs:
        writer = StreamWriter(theirs, lambda _: None)
        thread = threading.Thread(target=lambda: writer.write(data[:3], data[3:70_000], memoryview(data)[70_000:]))
        thread.start()
        reader = StreamReader(ours)
        found = reader.take(5) + bytes(reader.peek(10, 1000)[:10])
        reader.skip(10)
        bulk = bytearray(1_500_000)
        reader.into(memoryview(bulk))
        found += bulk + reader.take(len(data) - len(found) - len(bulk))
        thread.join()
        assert found == data
        assert reader.received == writer.sent == len(data)
        theirs.close()
        with pytest.raises(EndedError, match="connection was closed"):
            reader.take(1)


# --- transfers ------------------------------------------------------------------------------------------------------

SLOTS, SLOT_SIZE = 4, 1 << 16
LIMIT = pages_fitting(SLOT_SIZE)


class FakeHandler:
    """Seals as many pages as it was told it has; remembers which slots it may write."""

    def __init__(self, pages: int) -> None:
        self.shape = SimpleNamespace(slots=SLOTS, slot_size=SLOT_SIZE)
        self.left = pages
        self.in_use: set[int] = set()
        self.most = 0
        self.asked: list[wire.Pull] = []
        self.answers: deque[wire.Sealed | wire.Opened] = deque()
        self.opening: deque[int] = deque()

    def send(self, message: wire.Pull | wire.Open) -> None:
        """Take a request."""
        assert message.slot not in self.in_use, "a slot is used again before it is free"
        self.in_use.add(message.slot)
        self.most = max(self.most, len(self.in_use))
        if isinstance(message, wire.Open):
            self.answers.append(wire.Opened(1, 1))
            self.opening.append(message.slot)
            return
        self.asked.append(message)
        pages = min(message.pages, self.left)
        self.left -= pages
        self.answers.append(wire.Sealed(pages * 10, pages, self.left))

    def receive(self, _: type) -> wire.Sealed | wire.Opened:
        """Answer the oldest one."""
        reply = self.answers.popleft()
        if isinstance(reply, wire.Opened):
            self.in_use.discard(self.opening.popleft())
        return reply

    def slot_out(self, slot: int, length: int) -> memoryview:
        """A record."""
        return memoryview(bytes([slot]) * length)

    def slot_in(self, _: int) -> memoryview:
        """A slot."""
        return memoryview(bytearray(SLOT_SIZE))


@pytest.mark.parametrize("pages", [0, 1, LIMIT, LIMIT + 1, 10 * LIMIT + 3])
@pytest.mark.parametrize("channels", [1, 3])
def test_the_ring_moves_every_page_once_with_all_slots_busy(pages: int, channels: int) -> None:
    handler = FakeHandler(pages)
    ring = RingSource(handler, channels)  # type: ignore[arg-type]  # all it needs of a handler
    moved = 0
    for record in ring.records(pages):
        moved += record.pages
        handler.in_use.discard(record.parts[0][0])
    assert moved == pages
    assert handler.left == 0
    assert handler.most == min(SLOTS, -(-pages // LIMIT))
    for channel in range(channels):
        numbers = [pull.number for pull in handler.asked if pull.channel == channel]
        assert numbers == list(range(1, len(numbers) + 1))


def test_a_slot_is_received_into_only_after_its_last_record_was_opened() -> None:
    handler = FakeHandler(0)
    ring = RingTarget(handler)  # type: ignore[arg-type]  # as above
    for _ in range(11):
        ring.space(100)
        ring.take(100)
    assert handler.most == SLOTS
    ring.settle()
    assert not handler.answers


class Doorbell:
    """A handler that answers a mailbox as told."""

    def __init__(self, area: memoryview, *results: Result | None) -> None:
        self.area, self.results = area, deque(results)
        self.requests: list[int] = []
        self.waits: list[float] = []

    def ring(self) -> None:
        """It is noticed by `wait`."""

    def wait(self, timeout_s: float) -> bool:
        """Answer; without a result, hang."""
        self.waits.append(timeout_s)
        params = Params.copy(self.area)
        self.requests.append(params.request)
        result = self.results.popleft() if self.results else Result.OK
        if result is None:
            return False
        put_record(self.area, bytes([params.request]) * page_record_size(1))
        answer(self.area, result, params.request)
        return True


def mailbox(*results: Result | None) -> tuple[Mailbox, Doorbell]:
    area = memoryview(bytearray(AREA_SIZE))
    bell = Doorbell(area, *results)
    numbers = iter(range(1, 1000))
    return Mailbox(area, bell, lambda: next(numbers)), bell


def test_the_mailbox_asks_for_each_page_under_a_number_of_its_own() -> None:
    layout = RamLayout((RamBlock("pc.ram", Gpa(0), 1 << 20),))
    box, bell = mailbox()
    pages = np.array([3, 9, 200], np.uint64)

    def listed(first: int, limit: int) -> np.ndarray[tuple[int], np.dtype[np.uint64]]:
        return pages[pages >= first][:limit]

    source = MailboxSource(box, layout, listed)
    records = [b"".join(record.parts) for record in source.records(3)]
    assert [len(record) for record in records] == [page_record_size(1)] * 3
    assert [record[0] for record in records] == [2, 3, 4]  # INIT was 1
    assert bell.requests == [1, 2, 3, 4]


def test_a_handler_that_is_late_is_asked_the_same_again_and_the_migration_goes_on() -> None:
    box, bell = mailbox(None, None, None)
    box.encrypt(Gpa(0))
    assert box.record()
    assert bell.requests == [1] * 4
    assert bell.waits == [0.1] * 4


def test_a_handler_that_does_not_answer_for_5_s_ends_the_migration() -> None:
    box, bell = mailbox(*[None] * 50)
    box.encrypt(Gpa(0))
    with pytest.raises(LostError, match="did not answer ENCRYPT within 5 s"):
        box.settle()
    assert sum(bell.waits) == pytest.approx(LIVENESS_S)


def test_a_doorbell_that_still_rings_is_not_rung_again() -> None:
    """Else a late reply to one ring would be taken for the reply to a later one."""
    sent: list[object] = []
    late = iter((True, True, False, False))

    def receive(_: type, __: float) -> None:
        if next(late):
            raise TimeoutError

    bell = HandlerDoorbell(SimpleNamespace(send=sent.append, receive=receive))  # type: ignore[arg-type]  # a double

    def ring_and_wait() -> bool:
        bell.ring()
        return bell.wait(0.1)

    assert [ring_and_wait() for _ in range(3)] == [False, False, True]
    assert len(sent) == 1
    assert ring_and_wait()
    assert len(sent) == 2


def test_a_late_answer_is_never_taken_for_the_one_that_is_due() -> None:
    box, bell = mailbox()
    box.encrypt(Gpa(0))
    assert box.record()
    bell.wait = lambda _: True  # type: ignore[method-assign, assignment]  # done, but what lies there answers request 1
    box.encrypt(Gpa(4096))
    with pytest.raises(LostError, match="unanswered"):
        box.settle()


@pytest.mark.parametrize(
    ("result", "error"),
    [(Result.AUTHENTICATION, SealError), (Result.EXCLUDED, RefusedError), (Result.STALE, RefusedError)],
)
def test_a_refusal_in_the_mailbox_is_an_error_with_the_page(result: Result, error: type[Exception]) -> None:
    box, _ = mailbox(result)
    box.encrypt(Gpa(0x5000))
    with pytest.raises(error, match="GPA 0x5000"):
        box.record()


def test_a_handler_that_looks_at_the_mailbox_is_not_rung_for() -> None:
    area = memoryview(bytearray(AREA_SIZE))
    bell = Doorbell(area)
    rings: list[None] = []
    bell.ring = lambda: rings.append(None)  # type: ignore[method-assign]  # counts
    box = Mailbox(area, bell, iter(range(1, 1000)).__next__)
    watch(area)
    box.encrypt(Gpa(0))
    assert not rings
    put_record(area, b"\1" * page_record_size(1))
    answer(area, Result.OK, 1)
    assert box.record()
    end_watch(area)
    box.encrypt(Gpa(0))
    assert len(rings) == 1


def test_a_handler_that_looked_away_before_it_saw_the_request_is_rung_for_after_all() -> None:
    box, bell = mailbox()
    watch(bell.area)
    box.encrypt(Gpa(0))
    assert box.record(), "only the doorbell answers in here"
    assert bell.requests == [1]

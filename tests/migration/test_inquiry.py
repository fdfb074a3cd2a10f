"""A target that waits can be asked as often as one likes, says everything that is in the way, and stays as it was."""

from __future__ import annotations

import dataclasses
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path
from typing import Any

import msgspec
import pytest

from harness import PATIENCE_S
from sealift.errors import SealiftError, StreamError
from sealift.owner.decisions import Outcome
from sealift.owner.receivers import ANYWHERE, ReceiverRule, Scope
from sealift.vmm.devices.disk import DiskImage
from sealift.vmm.migration.clock import SystemClock
from sealift.vmm.migration.examining import Examiner, compare_disks, serve
from sealift.vmm.migration.landing import TargetHost
from sealift.vmm.migration.parameters import Capability, Parameters
from sealift.vmm.migration.preflight import Candidate, Findings, Inquiry, examine, measure_path, question_about
from sealift.vmm.migration.streamio import SilentError, StreamReader
from sealift.vmm.migration.transport import TcpAddress, UnixAddress, connect
from sealift.wire.handover import Disk, Method
from sealift.wire.inquiry import (
    Answer,
    InquiryFrame,
    InquiryKind,
    Question,
    encode_front,
    read_frame_front,
    read_question,
)
from sealift.wire.obstacle import WARNINGS, Code, Obstacle
from sealift.wire.platform import Block, Judged, JudgeGuest

from . import rig
from .test_orders import controlled


def candidate(guest: rig.Guest, parameters: Parameters | None = None) -> Candidate:
    return Candidate(guest.machine, guest.launched, guest.name, parameters or Parameters())


@contextmanager
def waiting(world: rig.World, guest: rig.Guest) -> Iterator[rig.Attempt]:
    """A migration whose target waits already."""
    attempt = rig.attempt(world, guest)
    served = threading.Thread(target=lambda: serve_quietly(attempt))
    served.start()
    yield attempt
    attempt.incoming.cancel()
    served.join(rig.PATIENCE_S)
    assert not served.is_alive()


def serve_quietly(attempt: rig.Attempt) -> None:
    with suppress(SealiftError):
        attempt.incoming.serve()


def asked(attempt: rig.Attempt, subject: Candidate, ahead_s: float = 0.0) -> Findings:
    return examine(subject, str(attempt.incoming.address), SystemClock(), lambda: time.time() - ahead_s)


def launches_begun(world: rig.World) -> int:
    """As the owner's log has it."""
    return sum(decision.outcome is Outcome.BEGAN for decision in world.owner.log.read())


def codes(found: Findings) -> set[Code]:
    return {obstacle.code for obstacle in found.obstacles} - {Code.RAM_TIGHT}


def test_a_target_that_was_asked_twice_still_takes_the_guest(world: rig.World) -> None:
    guest = world.start()
    guest.work(4)
    attempt = rig.attempt(world, guest)
    target = threading.Thread(target=lambda: setattr(attempt, "arrived", attempt.incoming.serve()))
    target.start()
    for _ in range(2):
        found = asked(attempt, candidate(guest))
        assert found.possible, found.obstacles
        assert found.path is not None
        assert found.path.bytes_per_s > 1e6
        assert 0 < found.path.round_trip_s < 1
    launches = launches_begun(world)
    assert attempt.migration.run(str(attempt.incoming.address)).status == "completed"
    target.join(rig.PATIENCE_S)
    assert launches_begun(world) == launches + 1, "asking began a launch"
    attempt.guest().work(4)


def test_a_way_is_measured_on_as_many_connections_as_there_will_be_and_the_owner_asked_once(
    world: rig.World, monkeypatch: pytest.MonkeyPatch
) -> None:
    guest = world.start()
    channels = Parameters(multifd_channels=3, capabilities=frozenset({Capability.MULTIFD}))
    met: list[str] = []
    begin, judge = Inquiry.begin, Examiner.judge

    def begun(inquiry: Inquiry) -> None:
        met.append("connection")
        begin(inquiry)

    def judged(examiner: Examiner, question: Question) -> Answer:
        met.append("question")
        return judge(examiner, question)

    monkeypatch.setattr(Inquiry, "begin", begun)
    monkeypatch.setattr(Examiner, "judge", judged)
    with waiting(world, guest) as attempt:
        found = asked(attempt, candidate(guest, channels))
        assert found.path is not None
        assert sorted(met) == ["connection"] * 3 + ["question"]
        again = measure_path(candidate(guest), str(attempt.incoming.address), 2, SystemClock())
    assert met.count("connection") == 5
    assert again.bytes_per_s > 1e6


def test_everything_is_said_at_once(world: rig.World) -> None:
    guest = world.start()
    subject = candidate(guest, Parameters(method=Method.PSP))
    question = msgspec.structs.replace(
        question_about(subject),
        method="carrier-pigeon",
        transfer="loft",
        machine="dovecote",
        cbit=51,
        cpu=b"another",
        blocks=(Block("pc.ram", 0, 8 << 40),),
        policy=99 << 16,
    )
    with waiting(world, guest) as attempt, connection(attempt) as sock:
        answer = Inquiry(sock, SystemClock()).ask(question)
    assert {obstacle.code for obstacle in answer.obstacles} == {
        *(Code.METHOD, Code.TRANSFER, Code.MACHINE, Code.CBIT, Code.CPU, Code.SHAPE, Code.RAM_SHORT, Code.FIRMWARE)
    }
    assert all(obstacle.blocks and obstacle.sentence for obstacle in answer.obstacles)


@contextmanager
def connection(attempt: rig.Attempt) -> Iterator[socket.socket]:
    address = attempt.incoming.address
    assert isinstance(address, UnixAddress | TcpAddress)
    with connect(address) as sock:
        yield sock


def test_an_owner_is_asked_and_begins_nothing(world: rig.World) -> None:
    guest = world.start()
    world.owner.set_receivers(ReceiverRule(Scope.ANY, approved=False))
    try:
        with waiting(world, guest) as attempt:
            before = launches_begun(world)
            found = asked(attempt, candidate(guest))
            assert launches_begun(world) == before
    finally:
        world.owner.set_receivers(ANYWHERE)
    assert codes(found) == {Code.OWNER}
    assert "the owner has revoked any host" in found.obstacles[-1].sentence
    assert not found.possible


def test_clocks_that_differ_are_a_warning(world: rig.World) -> None:
    guest = world.start()
    with waiting(world, guest) as attempt:
        found = asked(attempt, candidate(guest), ahead_s=3600.0)
    assert codes(found) == {Code.CLOCK_SKEW}
    assert "3600 s ahead of" in next(said.sentence for said in found.obstacles if said.code is Code.CLOCK_SKEW)
    assert found.possible


def test_a_target_that_is_not_there_is_an_obstacle_and_no_error(world: rig.World) -> None:
    found = examine(candidate(world.start()), "unix:/nobody/is/here", SystemClock())
    assert codes(found) == {Code.UNREACHABLE}
    assert not found.possible


@pytest.mark.parametrize(
    ("change", "code"),
    [({"engine": "kvm"}, Code.ENGINE), ({"vcpus": 300}, Code.SHAPE), ({"cpu": b"brought"}, Code.CPU)],
)
def test_a_platform_judges_a_guest_without_making_anything(
    world: rig.World, change: dict[str, object], code: Code
) -> None:
    platform = world.platform("b")
    try:
        fits = JudgeGuest(platform.info().engine, 16 << 20, 2, irqchip=False, es=False, cbit=0, cpu=b"")
        assert platform.request(fits, Judged).obstacles == ()
        (found,) = platform.request(msgspec.structs.replace(fits, **change), Judged).obstacles
        assert found.code is code
    finally:
        platform.close()


def test_warnings_do_not_forbid_and_everything_else_does() -> None:
    for code in Code:
        assert Findings((Obstacle(code, "so"),)).possible is (code in WARNINGS)


# --- bytes that are no inquiry --------------------------------------------------------------------------------------


class Content(Examiner):
    """Has nothing against anybody."""

    def __init__(self) -> None:
        """Without premises."""

    def judge(self, question: Question) -> Answer:  # noqa: ARG002
        """Nothing is in the way."""
        return Answer((), 0.0)


class Bytes:
    """Gives bytes out in order."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    def __call__(self, length: int) -> bytes:
        """As a reader's `take`."""
        taken, self._data = self._data[:length], self._data[length:]
        return taken


@pytest.mark.parametrize("front", [b"\x00", b"\x07", b"\xff"])
def test_frames_of_unknown_kinds_are_refused(front: bytes) -> None:
    with pytest.raises(StreamError, match="unknown kind"):
        read_frame_front(Bytes(front + bytes(4)))


def test_no_frame_is_longer_than_its_limit() -> None:
    for kind in InquiryKind:
        with pytest.raises(StreamError, match="over the limit"):
            read_frame_front(Bytes(bytes([kind]) + b"\x7f\xff\xff\xff"))


def test_a_question_about_a_guest_that_makes_no_sense_is_refused(world: rig.World) -> None:
    question = question_about(candidate(world.start()))
    for change in ({"vcpus": 0}, {"cbit": 64}, {"blocks": ()}, {"blocks": (Block("ram", 0, -1),)}):
        data = msgspec.msgpack.encode(msgspec.structs.replace(question, **change))
        frame = bytes([InquiryKind.QUESTION]) + len(data).to_bytes(4, "big") + data
        with pytest.raises(StreamError):
            read_question(Bytes(frame))


def test_who_asks_in_another_version_is_told() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.sendall(encode_front()[:-1] + b"\x09")
        with pytest.raises(StreamError, match="version 9"):
            serve(StreamReader(theirs), theirs.sendall, rig.NOBODY, 1.0)


def test_who_probes_slowly_without_end_gives_its_place_back(world: rig.World) -> None:
    """Each probe comes well within any limit of its own."""
    question = msgspec.msgpack.encode(question_about(candidate(world.start())))
    asked = InquiryFrame(InquiryKind.QUESTION, question).encode()
    probe = InquiryFrame(InquiryKind.PROBE, b"").encode()
    ours, theirs = socket.socketpair()
    ended: list[SealiftError] = []

    def target() -> None:
        try:
            serve(StreamReader(theirs), theirs.sendall, Content(), PATIENCE_S, 0.5)
        except SealiftError as error:
            ended.append(error)

    with ours, theirs:
        ours.sendall(encode_front() + asked)
        thread = threading.Thread(target=target)
        thread.start()
        until = time.monotonic() + PATIENCE_S
        while thread.is_alive() and time.monotonic() < until:
            ours.sendall(probe)
            time.sleep(0.05)
        thread.join(0)
        assert not thread.is_alive()
    assert isinstance(ended[0], SilentError)


# --- codes, each where it comes from -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("images", "found"),
    [
        ([], [Code.DISKS_MISSING]),
        ([(8, False)], []),
        ([(8, True)], [Code.DISK_DIFFERS]),
        ([(9, False)], [Code.DISK_DIFFERS]),
        ([(8, False), (8, False)], [Code.DISKS_MISSING]),
    ],
)
def test_disks_must_look_the_same_to_the_guest(
    tmp_path: Path, images: list[tuple[int, bool]], found: list[Code]
) -> None:
    with ExitStack() as undo:
        here = []
        for number, (sectors, read_only) in enumerate(images):
            path = tmp_path / str(number)
            path.write_bytes(bytes(sectors * 512))
            here.append(undo.enter_context(closing(DiskImage(path, read_only=read_only))))
        assert [each.code for each in compare_disks(tuple(here), (Disk(8, read_only=False),))] == found


def test_a_guest_that_has_gone_is_in_the_way_itself(world: rig.World) -> None:
    guest = world.start()
    guest.work(4)
    user = controlled(guest)
    attempt = rig.attempt(world, guest)
    attempt.begin()
    assert attempt.end().status == "completed"
    attempt.guest()
    assert Code.GUEST_STATE in {each.code for each in user.preflight("tcp:127.0.0.1:1").obstacles}


def test_one_that_is_being_moved_cannot_be_moved_too(world: rig.World) -> None:
    guest = world.start()
    guest.work(4)
    user = controlled(guest)
    user._migrating = threading.current_thread()
    found = [each.code for each in user.preflight("tcp:127.0.0.1:1").obstacles]
    assert found == [Code.UNDERWAY, Code.UNREACHABLE]


def test_a_connection_on_which_nobody_can_be_asked_is_said(world: rig.World) -> None:
    guest = world.start()
    found = examine(candidate(guest), "exec:cat", SystemClock())
    assert [each.code for each in found.obstacles] == [Code.NOT_ASKED]
    assert found.possible


def test_memory_that_would_be_nearly_full_is_a_warning(world: rig.World, monkeypatch: pytest.MonkeyPatch) -> None:
    guest = world.start()
    make = rig.World.host
    nearly = guest.machine.layout.size + 1

    def host(world: rig.World, *parts: Any) -> TargetHost:
        return dataclasses.replace(make(world, *parts), memory_available=lambda: nearly)

    monkeypatch.setattr(rig.World, "host", host)
    with waiting(world, guest) as attempt:
        found = asked(attempt, candidate(guest))
    assert Code.RAM_TIGHT in {each.code for each in found.obstacles}
    assert found.possible


def test_another_version_of_the_handler_is_said_even_if_it_is_accepted(world: rig.World) -> None:
    guest = world.start()
    question = msgspec.structs.replace(question_about(candidate(guest)), handler=bytes(32))
    with waiting(world, guest) as attempt, connection(attempt) as sock:
        answer = Inquiry(sock, SystemClock()).ask(question)
    assert Code.HANDLER_DIFFERS in {each.code for each in answer.obstacles}

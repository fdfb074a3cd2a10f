"""A hostile VMM with real platform processes: what it does to one guest, or puts from one into another."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable

import pytest

from sealift.address import PAGE_SIZE
from sealift.errors import SealError, SealiftError
from sealift.sev.policy import DEFAULT_POLICY, Policy
from sealift.sev.report import AttestationReport
from sealift.silicon.process.ring import SLOT_SIZE, SLOTS
from sealift.wire import handler
from sealift.wire import platform as wire
from sealift.wire.platform import Phase
from sealift.wire.token import TokenKind

from . import board
from .code import HLT, VMMCALL, forever, inc, load, store_value
from .hosts import (
    SMALL,
    Host,
    Hosts,
    exchange_keys,
    hand_token,
    migrating,
    migrating_to,
    receive_start,
    send_end,
    send_start,
    sendable,
)

NUMBER = 0x1122334455667788
EXTREMES = (-(1 << 63), -1, 1 << 31, 1 << 32, 1 << 47, (1 << 63) - 1, (1 << 64) - 1)


def dram(host: Host) -> bytes:
    """SHA-256 of what DRAM shows the host of all memory: any change of any page changes it."""
    assert host.memory is not None
    layout = host.memory.layout
    host.platform.do(wire.ReadHostView(0, layout.pages))
    return hashlib.sha256(host.memory.read(0, layout.size)).digest()


def refused(host: Host, request: wire.Message) -> None:
    with pytest.raises(SealiftError):
        host.platform.request(request, wire.Message)


def may_run(host: Host) -> bool:
    """Whether the vCPU takes a Run; the kick ends it at once."""
    host.platform.do(wire.Kick(0))
    return not isinstance(host.run(), wire.Failed)


# --- hosts against each other ----------------------------------------------------------------------------------------


@pytest.mark.attack(
    "two targets", "races two targets on real hosts, and asks all three vCPUs to run at every step", gains="nothing"
)
def test_of_two_targets_that_are_both_complete_one_can_run(hosts: Hosts) -> None:
    source, first, second = migrating_to(hosts, "b", "c")
    assert source.handler is not None
    assert first.handler is not None
    everybody = (source, first, second)
    exchange_keys(source, first)
    send_end(source, first)
    early = first.handler.fetch(TokenKind.PREPARED)
    exchange_keys(source, second)
    source.pulls = 0
    assert [may_run(host) for host in everybody] == [True, False, False]
    send_end(source, second)
    assert [may_run(host) for host in everybody] == [False, False, False]
    with pytest.raises(SealError, match="another migration"):
        source.handler.deliver(early)
    hand_token(second, source, TokenKind.PREPARED)
    with pytest.raises(SealError, match="another migration"):
        hand_token(source, first, TokenKind.FINAL)
    hand_token(source, second, TokenKind.FINAL)
    assert [may_run(host) for host in everybody] == [False, False, False]
    hand_token(second, source, TokenKind.STARTED)
    assert [may_run(host) for host in everybody] == [False, False, True]
    assert source.platform.status().phase is Phase.GONE


# --- memory ----------------------------------------------------------------------------------------------------------


def reader(hosts: Hosts, policy: Policy = DEFAULT_POLICY) -> Host:
    """A guest that writes a number to its private memory, and reads it again and again."""
    host = hosts.start()
    code = store_value(board.DATA, NUMBER) + forever(load("rax", "rbx") + HLT)
    host.launch_code(code, policy, rbx=board.DATA)
    return host


def read_by(host: Host) -> int:
    """What the guest reads now."""
    assert host.run() == wire.Halt()
    return host.platform.registers(0).general[0]


@pytest.mark.attack(
    "guest memory",
    "writes anything into the shared plane where a page is private, as often as it likes",
    gains="nothing",
)
def test_what_lies_on_the_shared_plane_of_a_private_page_reaches_no_guest(hosts: Hosts) -> None:
    host = reader(hosts)
    assert host.memory is not None
    assert read_by(host) == NUMBER
    for content in (bytes(SMALL.size), os.urandom(SMALL.size)):
        host.memory.view(0, SMALL.size)[:] = content
        assert read_by(host) == NUMBER
    assert host.platform.status().phase is Phase.RUNNING


@pytest.mark.attack(
    "guest memory",
    "plays a page's ciphertext of an earlier launch into the next launch of the same guest",
    gains="nothing: garbage, as any ciphertext that a host writes",
)
def test_ciphertext_of_another_launch_is_garbage(hosts: Hosts) -> None:
    first, second = reader(hosts), reader(hosts)
    assert first.memory is not None
    assert second.memory is not None
    page = board.DATA // PAGE_SIZE
    assert [read_by(first), read_by(second)] == [NUMBER, NUMBER]
    first.platform.do(wire.ReadHostView(page, 1))
    second.memory.view(board.DATA, PAGE_SIZE)[:] = first.memory.read(board.DATA, PAGE_SIZE)
    second.platform.do(wire.WriteHostView(page, 1))
    assert read_by(second) != NUMBER
    first.memory.view(board.DATA, PAGE_SIZE)[:] = first.memory.read(board.DATA, PAGE_SIZE)
    first.platform.do(wire.WriteHostView(page, 1))
    assert read_by(first) == NUMBER, "in its own launch it is the page's content"


@pytest.mark.attack("page states", "answers the guest's page-state hypercall with a result of its own", gains="nothing")
@pytest.mark.parametrize("answer", EXTREMES[3:])
def test_the_guest_hears_what_became_of_its_pages_from_the_platform_alone(hosts: Hosts, answer: int) -> None:
    host = hosts.start()
    host.launch_code(VMMCALL + HLT + forever(HLT), rax=12, rbx=board.DATA, rcx=1, rdx=0)
    assert host.run() == wire.PageStateChange(board.DATA, 1, encrypted=False)
    assert host.vcpu is not None
    host.vcpu.send(wire.Run(data=answer & (1 << 64) - 1))
    assert host.vcpu.receive() == wire.Halt()
    assert host.platform.registers(0).general[0] == 0
    assert host.platform.page_states().numbers().tolist() == [board.DATA // PAGE_SIZE]


@pytest.mark.attack(
    "method psp",
    "collects all packets, has them received elsewhere, and cancels instead of finishing",
    gains="as AMD's protocol gives: two copies; NOSEND forbids it",
)
def test_send_cancel_after_all_packets_leaves_two_copies(hosts: Hosts) -> None:
    """What the page on promises says of method psp is so: nobody should rely on more."""
    source, target = reader(hosts, Policy(0)), hosts.start("b")
    assert read_by(source) == NUMBER
    target.create()
    receive_start(source, target, send_start(source, target))
    rings = source.platform.open_packets(), target.platform.open_packets()
    for page in source.platform.private_dirty().numbers().tolist():
        sent = source.platform.request(wire.SendUpdateData(page * PAGE_SIZE, PAGE_SIZE, 0), wire.PacketSent)
        rings[1].slot_in(0)[: sent.length] = rings[0].slot_out(0, sent.length)
        target.platform.do(wire.ReceiveUpdateData(page * PAGE_SIZE, PAGE_SIZE, 0, 0))
    machine = source.platform.request(wire.GetVmState(), wire.VmState)
    vcpu = source.platform.request(wire.GetVcpuState(0), wire.VcpuState)
    target.platform.set_page_states(source.platform.page_states())
    target.platform.do(wire.SetVmState(machine.engine, machine.state))
    target.platform.do(wire.SetVcpuState(0, vcpu.state))
    target.platform.do(wire.ReceiveFinish())
    source.platform.do(wire.SendCancel())
    assert [read_by(source), read_by(target)] == [NUMBER, NUMBER]


# --- lengths and addresses -------------------------------------------------------------------------------------------


def ranges(size: int) -> list[tuple[int, int]]:
    """Address and length in bytes of what is not wholly in RAM, or is no range of pages."""
    beyond = [(size - PAGE_SIZE, 2 * PAGE_SIZE), (size, PAGE_SIZE), (0, size + PAGE_SIZE), (0, -PAGE_SIZE)]
    return beyond + [(extreme, PAGE_SIZE) for extreme in EXTREMES] + [(0, extreme) for extreme in EXTREMES]


def in_pages(kind: Callable[[int, int], wire.Message]) -> Callable[[int, int], wire.Message]:
    """A request that counts in pages."""
    return lambda gpa, length: kind(gpa >> 12, length >> 12)


@pytest.mark.attack(
    "lengths and addresses",
    "asks a running guest's platform to read or write beyond RAM, backwards or around the end",
    gains="nothing",
)
def test_no_range_outside_ram_is_read_or_written(hosts: Hosts) -> None:
    host = hosts.start()
    host.launch_code(forever(inc("rax") + HLT))
    before = dram(host)
    for gpa, length in ranges(SMALL.size):
        for request in (in_pages(wire.ReadHostView), in_pages(wire.WriteHostView)):
            refused(host, request(gpa, length))
    assert dram(host) == before
    assert host.run() == wire.Halt()


@pytest.mark.attack(
    "lengths and addresses", "has launch data measured that overlaps the end of RAM, or has no length", gains="nothing"
)
def test_a_launch_measures_nothing_that_is_not_in_ram(hosts: Hosts) -> None:
    def measured(*, attacked: bool) -> bytes:
        host = hosts.start()
        host.create()
        host.start_launch()
        host.load(0x5000, b"this is measured")
        for gpa, length in ranges(SMALL.size) if attacked else []:
            refused(host, wire.LaunchUpdateData(gpa, length))
        host.finish_launch()
        report = host.platform.request(wire.GetAttestation(bytes(16)), wire.AttestationReport).report
        return AttestationReport.decode(report).launch_digest

    assert measured(attacked=True) == measured(attacked=False)


@pytest.mark.attack(
    "lengths and addresses",
    "has packets of method psp sealed from, or opened to, where no RAM or no slot is",
    gains="nothing",
)
def test_no_packet_comes_from_or_goes_to_outside_ram(sending_and_receiving: tuple[Host, Host]) -> None:
    source, target = sending_and_receiving
    before = dram(source), dram(target)
    for gpa, length in ranges(SMALL.size):
        refused(source, wire.SendUpdateData(gpa, length, 0))
        refused(target, wire.ReceiveUpdateData(gpa, 0, 100, 200))
        refused(target, wire.ReceiveUpdateData(0, length if length % PAGE_SIZE else -1, 100, 200))
    for slot in (*EXTREMES, SLOTS):
        refused(source, wire.SendUpdateData(0, PAGE_SIZE, slot))
    assert (dram(source), dram(target)) == before
    assert source.platform.status().phase is Phase.SENDING


@pytest.fixture
def sending_and_receiving(hosts: Hosts) -> tuple[Host, Host]:
    """A guest between two secure processors."""
    source, target = sendable(hosts)
    receive_start(source, target, send_start(source, target))
    return source, target


@pytest.mark.attack(
    "lengths and addresses",
    "asks a handler for slots, channels, pages and numbers that do not exist, while it seals",
    gains="nothing: the migration goes on",
)
def test_a_handler_that_is_asked_for_what_is_not_there_goes_on_with_its_migration(hosts: Hosts) -> None:
    source, target = migrating(hosts)
    exchange_keys(source, target)
    assert source.handler is not None
    source.handler.request(handler.BeginEpoch(), handler.EpochBegun)
    nonsense = [
        *(handler.Pull(channel, 1, 0, 256) for channel in (*EXTREMES, 1)),
        *(handler.Pull(0, number, 0, 256) for number in (*EXTREMES, 0, 2)),
        *(handler.Pull(0, 1, slot, 256) for slot in (*EXTREMES, SLOTS)),
        *(handler.Pull(0, 1, 0, pages) for pages in (-1, 0, -(1 << 63))),
        *(handler.EndEpoch(channel, 0) for channel in (*EXTREMES, 0, 1)),
        *(handler.SealState(slot) for slot in (0, -1, SLOTS)),
        *(handler.Close(slot) for slot in (0, -1, SLOTS)),
        *(handler.RoundPages(first, -1) for first in EXTREMES),
        handler.Open(0, SLOT_SIZE),
        handler.Restore(b""),
    ]
    for request in nonsense:
        with pytest.raises(SealiftError):
            source.handler.request(request, wire.Message)
    source.pulls = 0
    while True:
        source.pulls += 1
        sealed = source.handler.request(handler.Pull(0, source.pulls, 0, 256), handler.Sealed)
        if not sealed.length:
            break
        target_takes(source, target, sealed.length)
    sealed = source.handler.request(handler.EndEpoch(0, 0), handler.Sealed)
    target_takes(source, target, sealed.length)
    send_end(source, target)
    hand_token(target, source, TokenKind.PREPARED)
    hand_token(source, target, TokenKind.FINAL)
    hand_token(target, source, TokenKind.STARTED)
    assert may_run(target)


def target_takes(source: Host, target: Host, length: int) -> None:
    """Carry slot 0 across, and have it opened."""
    assert source.handler is not None
    assert target.handler is not None
    target.handler.slot_in(0)[:length] = source.handler.slot_out(0, length)
    target.handler.request(handler.Open(0, length), handler.Opened)


@pytest.mark.attack(
    "lengths and addresses",
    "tells a receiver that a record lies where there is no slot, or is longer or shorter than it is",
    gains="denial of service",
)
def test_a_record_is_opened_where_it_lies_and_as_long_as_it_is(hosts: Hosts) -> None:
    """A slot that is not there changes nothing; a record that is not one ends the target, as any bad record does."""
    source, target = migrating(hosts)
    exchange_keys(source, target)
    assert source.handler is not None
    assert target.handler is not None
    source.handler.request(handler.BeginEpoch(), handler.EpochBegun)
    sealed = source.handler.request(handler.Pull(0, 1, 0, 8), handler.Sealed)
    target.handler.slot_in(0)[: sealed.length] = source.handler.slot_out(0, sealed.length)
    for slot in (*EXTREMES, SLOTS):
        with pytest.raises(SealiftError, match=r"ring slot|does not parse"):
            target.handler.request(handler.Open(slot, sealed.length), wire.Message)
    assert target.handler.status().state == "RECEIVING"
    with pytest.raises(SealiftError, match="truncated or too long"):
        target.handler.request(handler.Open(0, sealed.length + 1), wire.Message)
    for length in (sealed.length, *EXTREMES):
        with pytest.raises(SealiftError):
            target.handler.request(handler.Open(0, length), wire.Message)
    assert target.handler.status().state == "ABORTED"
    assert not may_run(target)
    assert may_run(source)

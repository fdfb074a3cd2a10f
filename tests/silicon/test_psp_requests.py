"""SEND_* and RECEIVE_* at the platform's interface: who has the dirty log, what stops a guest, where packets lie."""

from __future__ import annotations

import os

import pytest

from sealift.address import PAGE_SIZE
from sealift.errors import FirmwareError, RefusedError, SealiftError, StreamError, UserError
from sealift.launch.secrets import MigrationSecret
from sealift.sev.policy import Policy
from sealift.sev.status import Status
from sealift.sev.vmsa import CPU_SIGNATURES, RESET_EIP, FpuProfile, reset_vmsa
from sealift.silicon.process.ring import SLOT_SIZE
from sealift.silicon.processor.send import PACKET_LIMIT
from sealift.wire import handler
from sealift.wire import platform as wire
from sealift.wire.platform import Phase
from sealift.wire.psp import MAX_PACKET_PAGES, PACKET_FRONT, RECORD_FRONT
from sealift.wire.record import MAX_RECORD

from . import board
from .hosts import RECIPE, SMALL, Host, Hosts, migrating, receive_start, send_start, sendable

CODE_PAGE = board.CODE // PAGE_SIZE


def receiving(hosts: Hosts) -> tuple[Host, Host]:
    """A source that sends, and the target that receives."""
    source, target = sendable(hosts)
    receive_start(source, target, send_start(source, target))
    return source, target


def with_handler(hosts: Hosts) -> tuple[Host, Host]:
    """A guest that either its handler or its secure processor may move, and a host with an empty VM."""
    source, target = hosts.start("a"), hosts.start("b")
    source.launch(RECIPE, MigrationSecret(os.urandom(16), os.urandom(32)), Policy.NODBG)
    source.connect()
    target.create(RECIPE.layout)
    return source, target


# --- the dirty log ---------------------------------------------------------------------------------------------------


def test_the_log_begins_with_every_page_that_is_no_hole_and_has_none_twice(hosts: Hosts) -> None:
    source, target = sendable(hosts)
    send_start(source, target)
    assert CODE_PAGE in source.platform.private_dirty()
    assert not source.platform.private_dirty()


def test_what_is_written_while_the_guest_is_sent_is_in_the_log(hosts: Hosts) -> None:
    source, target = sendable(hosts)
    send_start(source, target)
    source.platform.private_dirty()
    source.platform.do(wire.WriteHostView(CODE_PAGE + 1, 1))
    assert source.platform.private_dirty().numbers().tolist() == [CODE_PAGE + 1]


def test_a_second_session_begins_with_everything_again(hosts: Hosts) -> None:
    source, target = sendable(hosts)
    send_start(source, target)
    first = source.platform.private_dirty()
    source.platform.do(wire.SendCancel())
    send_start(source, target)
    assert source.platform.private_dirty() == first


def test_the_handler_cannot_move_a_guest_that_its_secure_processor_sends(hosts: Hosts) -> None:
    """There is one log, and it has one reader."""
    source, target = with_handler(hosts)
    assert source.handler is not None
    send_start(source, target)
    with pytest.raises(UserError, match="in state YIELDED: cancel what the secure processor sends"):
        source.handler.blob(handler.Offer(1))
    source.platform.do(wire.SendCancel())
    source.handler.blob(handler.Offer(1))


def test_a_guest_that_its_handler_moves_cannot_be_sent(hosts: Hosts) -> None:
    source, target = with_handler(hosts)
    assert source.handler is not None
    source.handler.blob(handler.Offer(1))
    with pytest.raises(UserError, match="cannot leave the guest to its secure processor in state OFFERED"):
        send_start(source, target)
    assert source.platform.status().phase is Phase.RUNNING
    source.handler.do(handler.Cancel())
    send_start(source, target)


def test_a_send_start_that_failed_leaves_the_guest_to_its_handler(hosts: Hosts) -> None:
    source, target = migrating(hosts)  # under the default policy, which has NOSEND
    assert source.handler is not None
    with pytest.raises(SealiftError, match="NOSEND"):
        send_start(source, target)
    source.handler.blob(handler.Offer(1))


# --- what goes beside packets --------------------------------------------------------------------------------------


def test_a_streams_mac_is_of_its_session_and_checked_by_the_receiver_alone(hosts: Hosts) -> None:
    source, target = sendable(hosts)
    digest, other = os.urandom(32), os.urandom(32)
    receive_start(source, target, send_start(source, target))
    mac = source.platform.request(wire.SealStream(digest), wire.StreamSealed).mac
    target.platform.do(wire.CheckStream(digest, mac))
    for asked in ((other, mac), (digest, other), (mac, digest)):
        with pytest.raises(FirmwareError, match="the MAC over what came beside the packets fails") as refused:
            target.platform.do(wire.CheckStream(*asked))
        assert refused.value.status == Status.BAD_MEASUREMENT
    source.platform.do(wire.SendCancel())
    send_start(source, target)
    assert source.platform.request(wire.SealStream(digest), wire.StreamSealed).mac != mac


@pytest.mark.attack(
    "files",
    "saves a guest by method psp with registers and packets of its own choice, on the guest's host",
    gains="as AMD's protocol gives: without SEV-ES registers are the VMM's, and packets have no order",
)
def test_the_hosts_own_vmm_has_whatever_it_likes_vouched_for(hosts: Hosts) -> None:
    """Test that a session's MAC binds what the VMM of the sender says, not what the guest was: AMD's packets cannot."""
    source, target = sendable(hosts)
    receive_start(source, target, send_start(source, target))
    for made_up in (b"\1" * 32, b"\2" * 32):
        mac = source.platform.request(wire.SealStream(made_up), wire.StreamSealed).mac
        target.platform.do(wire.CheckStream(made_up, mac))


# --- SEND_FINISH -----------------------------------------------------------------------------------------------------


def test_send_finish_is_refused_while_a_vcpu_is_in_guest_mode(hosts: Hosts) -> None:
    """It waits in a port access, which counts."""
    source, target = sendable(hosts)
    assert source.vcpu is not None
    send_start(source, target)
    assert isinstance(source.run(), wire.PortOut)
    with pytest.raises(RefusedError, match="in guest mode"):
        source.platform.do(wire.SendFinish())
    assert source.platform.status().phase is Phase.SENDING
    source.vcpu.send(wire.Run(immediate_exit=True))
    assert source.vcpu.receive() == wire.Interrupted()
    source.platform.do(wire.SendFinish())
    refused = source.run()
    assert isinstance(refused, wire.Failed)
    assert "cannot be run" in refused.reason


def test_nothing_of_a_guest_that_was_sent_stays(hosts: Hosts) -> None:
    """What DRAM shows of its code is what it shows of a page of zeros."""
    source, target = sendable(hosts)
    send_start(source, target)
    assert source.memory is not None
    before = shown(source, CODE_PAGE)
    assert shown(source, CODE_PAGE) == before
    source.platform.do(wire.SendFinish())
    assert shown(source, CODE_PAGE) != before


def shown(host: Host, page: int) -> bytes:
    """What DRAM shows the host of a page."""
    assert host.memory is not None
    host.platform.do(wire.ReadHostView(page, 1))
    return bytes(host.memory.mapping.view[page * PAGE_SIZE : (page + 1) * PAGE_SIZE])


# --- packets ---------------------------------------------------------------------------------------------------------


def test_a_packet_carries_pages_to_where_the_target_is_told(hosts: Hosts) -> None:
    """The guest's memory has other keys there; what it holds is seen when it is sent on."""
    source, target = receiving(hosts)
    sent = source.platform.request(wire.SendUpdateData(board.CODE, 2 * PAGE_SIZE, 3), wire.PacketSent)
    assert sent.length == PACKET_FRONT + 2 * PAGE_SIZE
    slot = target.platform.open_packets().slot_in(1)
    slot[7 : 7 + sent.length] = source.platform.open_packets().slot_out(3, sent.length)
    before = shown(target, CODE_PAGE)
    target.platform.do(wire.ReceiveUpdateData(board.CODE, 2 * PAGE_SIZE, 1, 7))
    assert shown(target, CODE_PAGE) != before


def test_the_largest_packet_of_a_migration_is_the_largest_of_the_firmware_and_fits_a_slot() -> None:
    assert MAX_PACKET_PAGES * PAGE_SIZE == PACKET_LIMIT
    assert min(SLOT_SIZE, MAX_RECORD) >= RECORD_FRONT + PACKET_FRONT + PACKET_LIMIT


@pytest.mark.parametrize(
    ("length", "slot", "offset"),
    [(PAGE_SIZE, 4, 0), (PAGE_SIZE, -1, 0), (PAGE_SIZE, 0, -1), (PAGE_SIZE, 0, 1 << 40), (0, 0, 0), (1 << 40, 0, 0)],
)
def test_a_packet_that_lies_in_no_slot_is_refused(hosts: Hosts, length: int, slot: int, offset: int) -> None:
    _, target = receiving(hosts)
    with pytest.raises(RefusedError, match="slot"):
        target.platform.do(wire.ReceiveUpdateData(0, length, slot, offset))


def test_memory_is_not_received_as_registers_nor_registers_as_memory(hosts: Hosts) -> None:
    """A VMM could have the guest's own devices fill a page with registers of its choice."""
    source, target = hosts.start("a"), hosts.start("b")
    for host in (source, target):
        host.memory = host.platform.create_vm(SMALL, 1, es=True)
        host.vcpu = host.platform.create_vcpu(0)
    source.start_launch(Policy.ES)
    vmsa = reset_vmsa(RESET_EIP, CPU_SIGNATURES["EPYC"], FpuProfile.INIT2)
    source.platform.do(wire.LaunchUpdateVmsa(0, vmsa))
    source.load(board.CODE, vmsa)
    source.finish_launch()
    receive_start(source, target, send_start(source, target))
    memory, registers = wire.SendUpdateData(board.CODE, PAGE_SIZE, 0), wire.SendUpdateVmsa(0, 0)
    as_memory, as_registers = wire.ReceiveUpdateData(0, PAGE_SIZE, 0, 0), wire.ReceiveUpdateVmsa(0, PAGE_SIZE, 0, 0)
    for sent, taken in ((memory, as_registers), (registers, as_memory)):
        length = source.platform.request(sent, wire.PacketSent).length
        target.platform.open_packets().slot_in(0)[:length] = source.platform.open_packets().slot_out(0, length)
        with pytest.raises(FirmwareError) as refused:
            target.platform.do(taken)
        assert refused.value.status == Status.BAD_MEASUREMENT
    target.platform.do(as_registers)


def test_a_packet_of_no_session_of_this_guest_is_refused(hosts: Hosts) -> None:
    _, target = receiving(hosts)
    target.platform.open_packets()
    with pytest.raises(StreamError, match="another session"):
        target.platform.do(wire.ReceiveUpdateData(0, PAGE_SIZE, 0, 0))


def test_the_vmm_cannot_write_where_packets_are_laid_out(hosts: Hosts) -> None:
    source, _ = sendable(hosts)
    with pytest.raises(TypeError):
        source.platform.open_packets().slot_out(0, 1)[0] = 1


# --- what travels beside them ----------------------------------------------------------------------------------------


def test_registers_of_a_plain_guest_are_the_hosts_to_move(hosts: Hosts) -> None:
    source, target = receiving(hosts)
    state = source.platform.request(wire.GetVcpuState(0), wire.VcpuState).state
    target.platform.do(wire.SetVcpuState(0, state))
    target.platform.do(wire.ReceiveFinish())
    assert target.platform.registers(0) == source.platform.registers(0)


def test_the_state_of_another_engine_is_refused(hosts: Hosts) -> None:
    _, target = receiving(hosts)
    with pytest.raises(StreamError, match="the guest ran on engine whatever"):
        target.platform.do(wire.SetVmState("whatever", b""))

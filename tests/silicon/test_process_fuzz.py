"""A hostile VMM at the platform's sockets: whatever it sends is answered with Failed, and the platform goes on.

After every attempt the platform must still answer properly, which a thread that died or a lost reply would prevent.
"""

from __future__ import annotations

import array
import os
import random
import socket
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, get_args

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sealift.cpu.description import CpuDescription
from sealift.errors import FirmwareError, RefusedError, SealError, SealiftError, StreamError, UserError
from sealift.wire import handler as handler_wire
from sealift.wire import platform as wire
from sealift.wire.channel import MESSAGE_LIMIT, Channel
from sealift.wire.exits import VmmEnd
from sealift.wire.packed import UNDECODABLE
from sealift.wire.platform import Phase

from .code import HLT, forever, inc, port_in
from .hosts import RECIPE, SMALL, Host, Hosts, exchange_keys, hosts_in, migrating

PATIENCE_S = 20.0

DECLARED = (UserError, RefusedError, FirmwareError, StreamError, SealError)
"""How a request may end: not by a fault of the platform's own, and not by its end."""

integers = st.one_of(
    st.integers(-3, 20),
    st.integers(-(1 << 63), (1 << 64) - 1),
    st.sampled_from([-(1 << 63), -1, (1 << 31), (1 << 32) - 1, 1 << 47, (1 << 63) - 1, 1 << 63, (1 << 64) - 1]),
)
"""Everything that msgpack calls an integer, small ones more often."""


def requests_of(kinds: tuple[type[wire.Message], ...]) -> st.SearchStrategy[wire.Message]:
    """Well-formed requests full of nonsense."""
    st.register_type_strategy(int, integers)
    return st.one_of([st.builds(kind) for kind in kinds])


@pytest.fixture(scope="module")
def fuzz_hosts(host_path: Path) -> Iterator[Hosts]:
    with hosts_in(host_path) as made:
        yield made


@pytest.fixture(scope="module")
def running(fuzz_hosts: Hosts) -> Host:
    """A guest that counts and halts."""
    host = fuzz_hosts.start()
    host.launch_code(forever(inc("rax") + HLT))
    return host


def raw(channel: Channel[Any, Any]) -> socket.socket:
    channel.settimeout(PATIENCE_S)
    return channel._sock


def control(host: Host) -> Channel[wire.Reply, wire.Message]:
    return host.platform._channel


def vcpu_of(host: Host) -> VmmEnd:
    assert host.vcpu is not None
    return host.vcpu


def assert_alive(host: Host) -> None:
    assert host.platform._process.poll() is None
    assert isinstance(host.platform.status(), wire.GuestStatus)


def descriptors(host: Host) -> int:
    return len(list(Path(f"/proc/{host.platform.pid}/fd").iterdir()))


# --- bytes that are no message ------------------------------------------------------------------------------------

OTHER_MESSAGES = [
    msgspec.msgpack.encode(message)
    for message in (
        {"type": "Nonsense"},
        {"type": "Done"},
        {"type": "Kick"},
        {"type": "Kick", "index": "0"},
        {"type": "Kick", "index": 0, "more": 1},
        {"type": "Kick", "index": 1.5},
        {"index": 0},
        ["Kick", 0],
        [],
        None,
    )
]
DEEP = b"\x91" * 5000
"""Arrays within arrays: decoders that recurse run out of stack."""

rubbish = st.one_of(st.binary(min_size=1, max_size=200), st.sampled_from([*OTHER_MESSAGES, DEEP]))


def is_message(data: bytes, kinds: Any) -> bool:
    try:
        msgspec.msgpack.decode(data, type=kinds)
    except UNDECODABLE:
        return False
    return True


@pytest.mark.attack("requests", "sends rubbish to the platform", gains="nothing")
@settings(max_examples=150, deadline=None)
@given(data=rubbish.filter(lambda data: not is_message(data, wire.Request)))
def test_rubbish_on_the_control_socket_is_answered_and_changes_nothing(running: Host, data: bytes) -> None:
    raw(control(running)).send(data)
    reply, fds = control(running).receive()
    assert isinstance(reply, wire.Failed)
    assert not fds
    assert running.platform.status().phase is Phase.RUNNING


@pytest.mark.parametrize("size", [MESSAGE_LIMIT + 1, 2 * MESSAGE_LIMIT])
def test_a_message_over_the_limit_is_refused(running: Host, size: int) -> None:
    raw(control(running)).send(b"\xc4" * size)
    reply = control(running).receive()[0]
    assert isinstance(reply, wire.Failed)
    assert "over the limit" in reply.reason
    assert_alive(running)


@pytest.mark.parametrize("count", [1, 8, 9, 200])
def test_descriptors_sent_along_are_refused_and_closed(running: Host, count: int) -> None:
    before = descriptors(running)
    kick = msgspec.msgpack.encode(wire.Kick(0))
    with open(os.devnull, "rb") as file:  # noqa: PTH123  # a descriptor is what is wanted
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [file.fileno()] * count))]
        raw(control(running)).sendmsg([kick], rights)
    reply = control(running).receive()[0]
    assert isinstance(reply, wire.Failed)
    assert "descriptors" in reply.reason
    assert_alive(running)
    assert descriptors(running) == before


# --- rubbish in the memory that a vCPU's messages lie in ------------------------------------------------------------

RUN = 1
"""The one kind of message that a VMM has for a vCPU."""
NUMBER, MESSAGE = 0, 128

no_runs = st.one_of(
    st.binary(min_size=1, max_size=200),
    st.sampled_from([b"\0" + (1 << 63).to_bytes(8, "little"), b"\0" * 200, b"\xff" * 200]),
    st.sampled_from([b"\0" + len(packed).to_bytes(8, "little") + packed for packed in OTHER_MESSAGES]),
).filter(lambda data: data[0] != RUN)


def say(link: VmmEnd, data: bytes) -> wire.Exit:
    """Say something else than Run to a vCPU; its answer."""
    link._ours[MESSAGE : MESSAGE + len(data)] = data
    link._sent += 1
    link._our_words[NUMBER] = link._sent
    link._wake()
    return link.receive()


@settings(max_examples=100, deadline=None)
@given(data=no_runs)
def test_rubbish_instead_of_run_is_answered_and_runs_nothing(running: Host, data: bytes) -> None:
    before = running.platform.registers(0)
    assert isinstance(say(vcpu_of(running), data), wire.Failed)
    assert running.platform.registers(0) == before
    assert running.run() == wire.Halt()


@pytest.mark.parametrize("data", [b"\xff" * 9, b"\0" * 9, b"\0" * 8 + b"\x80" + DEEP[:3000]])
def test_rubbish_in_the_middle_of_a_port_access_does_not_complete_it(hosts: Hosts, data: bytes) -> None:
    host = hosts.start()
    host.launch_code(port_in(1) + inc("rbx") + HLT, rdx=0x80)
    assert host.run() == wire.PortIn(0x80, 1)
    assert isinstance(say(vcpu_of(host), data), wire.Failed)
    vcpu_of(host).send(wire.Run(data=0x42))
    assert vcpu_of(host).receive() == wire.Halt()
    registers = host.platform.registers(0)
    assert registers.general[:2] == (0x42, 1)


@pytest.mark.parametrize("bells", [1, 63, 64, 65, 4096])
def test_bells_without_a_message_run_nothing(running: Host, bells: int) -> None:
    before = running.platform.registers(0)
    vcpu_of(running)._sock.sendall(b"?" * bells)
    assert running.platform.registers(0) == before
    assert running.run() == wire.Halt()


@pytest.mark.parametrize("count", [1, 200])
def test_descriptors_sent_along_with_a_bell_are_closed(running: Host, count: int) -> None:
    before = descriptors(running)
    with open(os.devnull, "rb") as file:  # noqa: PTH123  # a descriptor is what is wanted
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [file.fileno()] * count))]
        vcpu_of(running)._sock.sendmsg([b"?"], rights)
    for _ in range(3):
        assert running.run() == wire.Halt()
    assert_alive(running)
    assert descriptors(running) == before


def test_the_memory_of_a_vcpus_messages_cannot_be_taken_away(fuzz_hosts: Hosts) -> None:
    """Nothing that a platform has mapped shrinks under it."""
    host = fuzz_hosts.start()
    host.memory = host.platform.create_vm(SMALL, 1)
    _, fds = host.platform._exchange(wire.CreateVcpu(0), wire.Done)
    for size in (0, 4096, 1 << 20):
        with pytest.raises(PermissionError):
            os.ftruncate(fds[1], size)
    for fd in fds:
        os.close(fd)
    assert_alive(host)


@pytest.mark.attack(
    "memory under way", "changes a vCPU's message pages all the time", gains="denial of service: its own vCPU's"
)
@pytest.mark.parametrize("seed", range(4))
def test_memory_that_changes_all_the_time_costs_a_vmm_its_own_vcpu_and_no_more(fuzz_hosts: Hosts, seed: int) -> None:
    """Both pages, numbers and flags included, are written while the guest makes port accesses."""
    host = fuzz_hosts.start()
    host.launch_code(forever(port_in(4)), rdx=0x80)
    link, chance = vcpu_of(host), random.Random(seed)  # repeatable, not secret
    pages = link._ours, link._theirs
    host.run()
    for number in range(2, 20_000):
        page, at = pages[chance.randrange(2)], chance.choice([0, 8, 64, 128, 129, 137, 145])
        page[at : at + 8] = chance.randbytes(8) if chance.random() < 0.5 else number.to_bytes(8, "little")
        link._our_words[NUMBER] = min(number, link._our_words[NUMBER] + 1)
        if number % 8 == 0:
            with suppress(BlockingIOError):
                link._sock.send(b"?", socket.MSG_DONTWAIT)
    assert_alive(host)
    link.shutdown()
    assert_alive(host)


# --- messages full of nonsense ------------------------------------------------------------------------------------

HARMLESS = tuple(kind for kind in get_args(wire.Request) if kind is not wire.CreateVm)


@pytest.mark.attack(
    "requests", "sends well-formed requests full of nonsense", gains="denial of service: its own guest's"
)
@settings(max_examples=300, deadline=None)
@given(request=requests_of(HARMLESS))
def test_no_request_breaks_a_running_guest(running: Host, request: wire.Message) -> None:
    """What nonsense in registers does to the guest is the guest's end, not the platform's."""
    with suppress(*DECLARED):
        running.platform.request(request, wire.Message)
    assert_alive(running)
    assert not isinstance(running.run(), wire.Failed)


@settings(max_examples=150, deadline=None)
@given(request=requests_of(HARMLESS))
def test_no_request_breaks_a_launch(launching: Host, request: wire.Message) -> None:
    with suppress(*DECLARED):
        launching.platform.request(request, wire.Message)
    assert_alive(launching)


@pytest.fixture(scope="module")
def launching(fuzz_hosts: Hosts) -> Host:
    host = fuzz_hosts.start()
    host.create()
    host.start_launch()
    return host


@settings(max_examples=100, deadline=None)
@given(data=st.integers(0, (1 << 64) - 1), immediate_exit=st.booleans())
def test_no_answer_to_a_port_access_breaks_a_vcpu(reading: Host, data: int, *, immediate_exit: bool) -> None:
    vcpu_of(reading).send(wire.Run(data=data, immediate_exit=immediate_exit))
    answer = vcpu_of(reading).receive()
    while answer == wire.Interrupted():
        answer = reading.run()
    assert answer == wire.PortIn(0x80, 4)


@pytest.fixture(scope="module")
def reading(fuzz_hosts: Hosts) -> Host:
    """A guest that reads a port for ever, and waits in the first access."""
    host = fuzz_hosts.start()
    host.launch_code(forever(port_in(4)), rdx=0x80)
    assert host.run() == wire.PortIn(0x80, 4)
    return host


# --- sizes of a VM ------------------------------------------------------------------------------------------------


def block(gpa: int, size: int, name: str = "ram") -> wire.Block:
    return wire.Block(name, gpa, size)


@pytest.mark.attack(
    "lengths and addresses", "creates a VM of overlapping, negative, empty or endless RAMBlocks", gains="nothing"
)
@pytest.mark.parametrize(
    "request_",
    [
        wire.CreateVm((), 1),
        wire.CreateVm((block(0, 4096),), 0),
        wire.CreateVm((block(0, 4096),), -1),
        wire.CreateVm((block(0, 4096),), 256),
        wire.CreateVm((block(0, 4096),), (1 << 64) - 1),
        wire.CreateVm((block(0, 0),), 1),
        wire.CreateVm((block(0, -4096),), 1),
        wire.CreateVm((block(-4096, 4096),), 1),
        wire.CreateVm((block(0, 4095),), 1),
        wire.CreateVm((block(1, 4096),), 1),
        wire.CreateVm((block(0, 8192), block(4096, 4096)), 1),
        wire.CreateVm((block(8192, 4096), block(0, 4096)), 1),
        wire.CreateVm((block(0, 4096, ""),), 1),
        wire.CreateVm((block(0, 4096, "x" * 256),), 1),
        wire.CreateVm((block(0, (512 << 30) + 4096),), 1),
        wire.CreateVm((block(0, 1 << 62),), 1),
        wire.CreateVm((block((1 << 47) - 4096, 8192),), 1),
        wire.CreateVm((block(1 << 63, 4096),), 1),
        wire.CreateVm(tuple(block(number << 12, 4096) for number in range(17)), 1),
        wire.CreateVm((block(0, 4096),), 1, cpu=b"brought", limit=CpuDescription("chosen", frozenset())),
    ],
)
def test_an_impossible_vm_is_refused_and_leaves_nothing(empty: Host, request_: wire.CreateVm) -> None:
    before = descriptors(empty)
    with pytest.raises(SealiftError):
        empty.platform.request(request_, wire.VmCreated)
    assert empty.platform.status().phase is Phase.EMPTY
    assert descriptors(empty) == before


@pytest.fixture(scope="module")
def empty(fuzz_hosts: Hosts) -> Host:
    host = fuzz_hosts.start()
    host.platform.status()  # it has started up, and closed what that took
    return host


@pytest.mark.parametrize("index", [-1, 1, 255, 1 << 40, (1 << 64) - 1])
def test_only_the_vcpus_of_the_vm_can_be_made_and_each_once(hosts: Hosts, index: int) -> None:
    host = hosts.start()
    host.create()
    host.platform.status()  # an answer later, the platform has let go of what it handed over
    before = descriptors(host)
    for wrong in (index, 0):
        with pytest.raises(RefusedError):
            host.platform.create_vcpu(wrong)
    assert descriptors(host) == before


def test_the_largest_vm_is_made_at_once_and_costs_nothing_until_it_is_used(hosts: Hosts) -> None:
    """512 GiB of RAM; tables by the page would take gigabytes."""
    host = hosts.start()
    host.platform.request(wire.CreateVm((block(0, 512 << 30),), 1), wire.VmCreated)
    status = Path(f"/proc/{host.platform.pid}/status").read_text()
    (resident,) = (int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS"))
    assert resident < 1 << 20, f"{resident} KiB"


# --- the handler --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=["idle source", "sending source", "idle receiver", "receiving receiver"])
def handling(request: pytest.FixtureRequest, host_path: Path) -> Iterator[Host]:
    with hosts_in(host_path) as made:
        source, target = migrating(made)
        if "ing " in request.param:
            exchange_keys(source, target)
        yield source if "source" in request.param else target


def handler_channel(host: Host) -> Channel[Any, Any]:
    assert host.handler is not None
    return host.handler._channel


@settings(max_examples=60, deadline=None)
@given(data=rubbish.filter(lambda data: not is_message(data, handler_wire.HandlerRequest)))
def test_rubbish_on_the_handlers_socket_is_answered_and_changes_nothing(handling: Host, data: bytes) -> None:
    assert handling.handler is not None
    before = handling.handler.status()
    raw(handler_channel(handling)).send(data)
    assert isinstance(handler_channel(handling).receive()[0], wire.Failed)
    assert handling.handler.status() == before


@pytest.mark.attack(
    "requests", "sends the handler well-formed requests full of nonsense", gains="denial of service: its own guest's"
)
@settings(max_examples=150, deadline=None)
@given(request=requests_of(get_args(handler_wire.HandlerRequest)))
def test_no_request_breaks_a_handler(handling: Host, request: wire.Message) -> None:
    """It may cancel or abort what was under way; it still answers, and so does the platform."""
    assert handling.handler is not None
    raw(handler_channel(handling))
    with suppress(*DECLARED):
        handling.handler.request(request, wire.Message)
    assert handling.handler.status().state
    assert_alive(handling)


def test_a_handler_without_a_key_says_so(hosts: Hosts) -> None:
    """Without the owner's secret there is no migration."""
    host = hosts.start()
    host.launch(RECIPE, None)
    client = host.connect()
    assert not client.status().ready
    with pytest.raises(SealiftError, match="key"):
        client.blob(handler_wire.Offer(1))


def test_a_guest_without_start_up_code_has_no_handler(running: Host) -> None:
    with pytest.raises(RefusedError, match="no migration handler"):
        running.platform.open_handler()

"""The platform process's life and walls: it ends with its VMM, sleeps when idle, and shows its plaintext to nobody."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from harness import PATIENCE_S, readable
from sealift.wire import platform as wire

from .board import DATA
from .code import HLT, INC_AT_RBX, forever, inc
from .hosts import Host, Hosts, migrating

TIGHT_LOOP = forever(inc("rax") + INC_AT_RBX)
TICK_S = 1 / os.sysconf("SC_CLK_TCK")


def cpu_ticks(pid: int) -> int:
    """User and system time of all threads, in clock ticks."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return int(fields[11]) + int(fields[12])


def run_in_a_loop(host: Host, eventually: Callable[[Callable[[], bool]], None]) -> None:
    """Have the vCPU run for ever; it does when this returns."""
    host.launch_code(TIGHT_LOOP, rbx=DATA)
    assert host.vcpu is not None
    before = cpu_ticks(host.platform.pid)
    host.vcpu.send(wire.Run())
    eventually(lambda: cpu_ticks(host.platform.pid) > before + 2)


# --- its end ------------------------------------------------------------------------------------------------------


def test_it_ends_with_its_connection_though_a_vcpu_never_leaves_the_guest(
    hosts: Hosts, eventually: Callable[[Callable[[], bool]], None]
) -> None:
    host = hosts.start()
    run_in_a_loop(host, eventually)
    host.platform._channel.close()
    assert host.platform._process.wait(10) == 0


_VMM = """
import sys, time
from pathlib import Path
from silicon.hosts import Hosts
from silicon.test_process_life import TIGHT_LOOP, run_in_a_loop

def eventually(condition):
    while not condition():
        time.sleep(0)

host = Hosts(Path(sys.argv[1])).start()
run_in_a_loop(host, eventually)
print(host.platform.pid, flush=True)
sys.stdin.read()
"""


def test_it_ends_when_its_vmm_is_killed(host_path: Path) -> None:
    """Not even SIGKILL, in the middle of a running guest, leaves a platform process behind."""
    places = [str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(places)}
    command = [sys.executable, "-c", _VMM, str(host_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment) as vmm:
        assert vmm.stdout is not None
        pid = int(vmm.stdout.readline())
        watched = os.pidfd_open(pid)
        try:
            assert not readable(watched, 0), "it runs as long as its VMM does"
            vmm.send_signal(signal.SIGKILL)
            assert readable(watched, PATIENCE_S)
        finally:
            os.close(watched)


def test_a_lost_vcpu_socket_ends_that_vcpu_alone(hosts: Hosts) -> None:
    host = hosts.start()
    host.launch_code(forever(inc("rax") + HLT))
    assert host.vcpu is not None
    host.vcpu.shutdown()
    assert host.platform.status().phase is wire.Phase.RUNNING
    host.platform.do(wire.Kick(0))
    assert len(host.platform.registers(0).general) == 16


def test_a_terminals_interrupt_does_not_end_it(hosts: Hosts) -> None:
    host = hosts.start()
    host.launch_code(HLT)
    os.kill(host.platform.pid, signal.SIGINT)
    assert host.run() == wire.Halt()


# --- its walls ----------------------------------------------------------------------------------------------------


@pytest.mark.attack(
    "guest memory", "looks for the private plane among its own descriptors and mappings", gains="nothing"
)
def test_the_private_plane_is_in_no_hand_but_its_own(hosts: Hosts) -> None:
    """Neither a descriptor nor a mapping of it is in this process, which plays the VMM.

    That the search finds what is there shows in the shared plane, which it finds here too.
    """

    def held(name: str, pid: int | str = "self") -> tuple[int, int]:
        links = [str(entry.readlink()) for entry in Path(f"/proc/{pid}/fd").iterdir() if entry.is_symlink()]
        maps = Path(f"/proc/{pid}/maps").read_text().splitlines()
        return sum(name in link for link in links), sum(name in line for line in maps)

    gc.collect()  # other tests play the platform in this process, and their planes go with their objects
    private, shared = held("memfd:sealift-private"), held("memfd:sealift-shared")
    host = hosts.start()
    host.create()
    assert held("memfd:sealift-private") == private
    descriptors, mappings = held("memfd:sealift-shared")
    assert (descriptors > shared[0], mappings > shared[1]) == (True, True)
    assert min(held("memfd:sealift-private", host.platform.pid)) > 0


@pytest.mark.attack("memory under way", "writes to the ring while records are sealed into it", gains="nothing")
def test_the_outgoing_ring_cannot_be_written_by_its_vmm(hosts: Hosts) -> None:
    source, _ = migrating(hosts)
    assert source.handler is not None
    with pytest.raises(PermissionError):
        os.pwrite(source.handler.outgoing.fd, b"forged", 0)


def test_it_leaves_no_core_and_gains_no_privileges(hosts: Hosts) -> None:
    host = hosts.start()
    host.platform.status()
    process = Path(f"/proc/{host.platform.pid}")
    assert "NoNewPrivs:\t1" in process.joinpath("status").read_text()
    (limit,) = (line for line in process.joinpath("limits").read_text().splitlines() if line.startswith("Max core"))
    assert limit.split()[4:6] == ["0", "0"]


_HARDEN = """
import ctypes, os
from sealift.silicon.process.__main__ import harden
if os.geteuid() == 0:
    os.setgroups([]); os.setgid(65534); os.setuid(65534)
    ctypes.CDLL(None).prctl(4, 1, 0, 0, 0)  # PR_SET_DUMPABLE: setuid cleared it
owner = lambda: os.stat("/proc/self/mem").st_uid
before = owner()
harden()
try:
    descriptor = os.open("/proc/self/mem", os.O_RDONLY)
    opened = "opened"
except PermissionError:
    opened = "refused"
print(before == os.geteuid(), owner(), opened)
"""


def test_its_memory_belongs_to_nobody_who_could_be_its_user() -> None:
    """A process that is not dumpable has its /proc files owned by root: no other process of its user can open them.

    Before it was hardened they belonged to its user.
    """
    done = subprocess.run(
        [sys.executable, "-c", _HARDEN], capture_output=True, text=True, timeout=30, check=True, cwd="/"
    )
    assert done.stdout.split() == ["True", "0", "refused"], done.stderr


# --- its idleness -------------------------------------------------------------------------------------------------


def burn(seconds: float) -> None:
    """Compute until that took so much CPU time, however little of it there is."""
    until = time.process_time() + seconds
    while time.process_time() < until:
        sum(range(1000))


@pytest.mark.parametrize("state", ["nothing asked", "guest halted", "handler open"])
def test_an_idle_platform_uses_no_cpu(hosts: Hosts, state: str) -> None:
    """While this process computes for a while, the platform's clocks stand still, to a tick."""
    match state:
        case "handler open":
            host, _ = migrating(hosts)
        case "guest halted":
            host = hosts.start()
            host.launch_code(HLT)
            assert host.run() == wire.Halt()
        case _:
            host = hosts.start()
            host.platform.status()
    before = cpu_ticks(host.platform.pid)
    burn(20 * TICK_S)
    assert (cpu_ticks(host.platform.pid) - before) * TICK_S <= TICK_S


def test_a_vcpu_waiting_for_its_port_uses_no_cpu(hosts: Hosts) -> None:
    host = hosts.start()
    host.launch_code(forever(b"\xec"), rdx=0x80)
    assert host.run() == wire.PortIn(0x80, 1)
    before = cpu_ticks(host.platform.pid)
    burn(20 * TICK_S)
    assert (cpu_ticks(host.platform.pid) - before) * TICK_S <= TICK_S

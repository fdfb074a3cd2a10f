"""The real gdb at a guest: what it sees and changes, lets run and stops, and what the policy keeps from it."""

from __future__ import annotations

import re
import socket
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.resources import as_file, files
from pathlib import Path

import pytest

import judges
from migration import rig
from sealift.sev.policy import Policy
from sealift.vmm.debug.cpu import read_cpu
from sealift.vmm.gdb.packet import Parser, framed
from sealift.vmm.gdb.server import GdbServer, GdbService, listen_for_gdb
from sealift.vmm.guest import Guest
from sealift.vmm.migration.parameters import Parameters
from sealift.vmm.qmp.commands.human import MONITOR
from sealift.vmm.qmp.human import Viewpoint
from sealift.vmm.runstate import RunState

FREE = 0xE0_0000
"""RAM that the guest does not use."""
PATIENCE_S = 60


@contextmanager
def served(running: rig.Guest, path: Path) -> Iterator[tuple[Guest, str]]:
    """A guest with a server for gdb, and where."""
    guest = Guest(running.name, Parameters())
    guest.attach(running.machine, running.launched)
    listener = listen_for_gdb(f"unix:{path / 'gdb'}")
    server = GdbServer(guest, listener.listening, MONITOR.execute)
    try:
        yield guest, str(path / "gdb")
    finally:
        server.close()
        listener.close()


def gdb(where: str, *commands: str) -> str:
    """What gdb says when it carries out `commands`, with the ledger's symbols."""
    program = judges.program("gdb", "gdb")
    with as_file(files("sealift.guest.programs") / "ledger.elf") as symbols:
        lines = [word for command in (f"target remote {where}", *commands) for word in ("-ex", command)]
        done = subprocess.run(
            [program, "-nx", "-batch", *lines, str(symbols)],
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
            check=False,
            stdin=subprocess.DEVNULL,
        )
    return done.stdout + done.stderr


def _execute(guest: Guest, line: str) -> str:
    return MONITOR.execute(guest, line, Viewpoint())


def test_the_monitor_starts_moves_and_ends_the_server(any_guest: rig.Guest, tmp_path: Path) -> None:
    any_guest.machine.resume()
    guest = Guest(any_guest.name, Parameters())
    guest.attach(any_guest.machine, any_guest.launched)
    first, second = (f"unix:{tmp_path / name}" for name in ("first", "second"))
    assert _execute(guest, f"gdbserver {first}") == "Error: gdb is not served for this guest\r\n"
    service = guest.debugging = GdbService(guest, MONITOR.execute)
    assert _execute(guest, f"gdbserver {first}") == f"Waiting for gdb connection on device '{first}'\r\n"
    own = gdb(str(tmp_path / "first"), "monitor gdbserver none", f"monitor gdbserver {second}", "detach")
    assert own.count("gdb cannot end the server that it uses") == 2
    assert guest.state is RunState.RUNNING
    assert _execute(guest, f"gdbserver {second}") == f"Waiting for gdb connection on device '{second}'\r\n"
    assert not (tmp_path / "first").exists()
    assert "rip" in gdb(str(tmp_path / "second"), "info registers rip", "detach")
    assert "Error: " in _execute(guest, "gdbserver tcp:0.0.0.0:1234")
    assert "rip" in gdb(str(tmp_path / "second"), "info registers rip", "detach")
    assert _execute(guest, "gdbserver none") == "Disabled gdbserver\r\n"
    assert not (tmp_path / "second").exists()
    service.end()


def test_gdb_sees_and_changes_registers_and_memory_and_detaches(any_guest: rig.Guest, tmp_path: Path) -> None:
    any_guest.machine.resume()
    with served(any_guest, tmp_path) as (guest, where):
        said = gdb(
            where,
            "info threads",
            "p $cr0 & 1",
            "bt 1",
            f"set var *(long *){FREE:#x} = 0x1122334455667788",
            f"x/gx {FREE:#x}",
            "set $old = $r15",
            "set $r15 = 77",
            "flushregs",
            "p $r15",
            "set $r15 = $old",
            "monitor info status",
            "maintenance packet Qqemu.PhyMemMode:1",
            f"maintenance packet m{FREE:x},8",
            "detach",
        )
        assert re.search(r"Thread 1\b.*CPU#0", said), said
        assert "$1 = 1" in said, said
        assert f"{FREE:#x}:\t0x1122334455667788" in said, said
        assert "= 77" in said, said
        assert "VM status: paused" in said, said
        assert 'received: "8877665544332211"' in said, said
        assert guest.state is RunState.RUNNING
    any_guest.work(1)


def test_an_encrypted_register_is_refused_by_naming_the_policy_bit(hosts: Path, tmp_path: Path) -> None:
    with rig.world(hosts, rig.recipe(), Policy.NODBG | Policy.ES) as world:
        running = world.start()
        with served(running, tmp_path) as (guest, where):
            assert "bit 0, NODBG, is set" in gdb(where)
            while guest.state is not RunState.RUNNING:
                assert running.screen.stirred.wait(PATIENCE_S)
                running.screen.stirred.clear()
        running.work(1)


def test_memory_of_a_closed_guest_is_refused(closed: rig.World, tmp_path: Path) -> None:
    running = closed.start()
    with served(running, tmp_path) as (_, where):
        said = gdb(where, "x/gx 0xa00000", "p $rip != 0", "detach")
        assert "Cannot access memory at address 0xa00000" in said
        assert "$1 = 1" in said
        with _connected(where) as say:
            say(b"qSupported:swbreak+;error-message+")
            assert b"bit 0, NODBG, is set" in say(b"ma00000,8")
            assert say(b"D") == b"OK"
    running.work(1)


@pytest.mark.parametrize("policy", [Policy.ES, Policy.NODBG | Policy.ES])
def test_the_monitor_shows_encrypted_registers_as_far_as_the_policy_allows(hosts: Path, policy: Policy) -> None:
    with rig.world(hosts, rig.recipe(), policy) as world:
        running = world.start()
        guest = Guest(running.name, Parameters())
        guest.attach(running.machine, running.launched)
        shown = _execute(guest, "info registers")
        if policy & Policy.NODBG:
            assert "bit 0, NODBG, is set" in shown
        else:
            guest.stop()
            assert f"RIP={read_cpu(running.machine, 0).registers.rip:016x}" in _execute(guest, "info registers")
            guest.resume()
        running.work(1)


@pytest.mark.parametrize("command", ["break line_send", "hbreak line_send", f"watch *(long *){FREE:#x}"])
def test_a_breakpoint_is_refused_and_the_guest_is_as_it_was(any_guest: rig.Guest, tmp_path: Path, command: str) -> None:
    """Gdb would write it into the guest's code by itself if it heard that there are none here."""
    any_guest.machine.resume()
    with served(any_guest, tmp_path) as (guest, where):
        code = "*(long *)line_send"
        said = gdb(where, f"set $code = {code}", command, "continue", f"p $code == {code}", "detach")
        assert "Command aborted" in said, said
        assert "$1 = 1" in said, said
        assert guest.state is RunState.RUNNING, said
    any_guest.work(1)


def test_a_step_is_refused_and_gdb_goes_on(any_guest: rig.Guest, tmp_path: Path) -> None:
    any_guest.machine.resume()
    with served(any_guest, tmp_path) as (_, where):
        said = gdb(where, "stepi", "p $rip != 0", "x/gx 0x7fff00000000", "detach")
    assert "cannot be stepped through" in said
    assert "$1 = 1" in said
    assert "Cannot access memory at address 0x7fff00000000" in said
    any_guest.work(1)


def test_ctrl_c_stops_a_guest_that_runs(any_guest: rig.Guest, tmp_path: Path) -> None:
    with served(any_guest, tmp_path) as (guest, where), _connected(where) as say:
        any_guest.machine.resume()
        assert say(b"?").startswith(b"T05")
        assert say(b"c", b"\x03") == b"T02thread:1;"
        assert guest.state is RunState.PAUSED
        assert say(b"p99") == b"E22"
        assert say(b"mzz,1") == b"E22"
        assert say(b"m0,fffffff") == b"E22"
        assert say(b"Hg7") == b"E22"
        assert say(b"vUnknown") == b""
        assert say(b"mffffffffffff0000,8") == b"E14"
        assert say(b"D") == b"OK"
    any_guest.work(1)


@contextmanager
def _connected(where: str) -> Iterator[Callable[..., bytes]]:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(PATIENCE_S)
        sock.connect(where)
        parser = Parser()

        def say(packet: bytes, then: bytes = b"") -> bytes:
            sock.sendall(framed(packet) + then)
            found: list[object] = []
            while not found:
                found = list(parser.feed(sock.recv(4096)))
            (reply,) = found
            assert isinstance(reply, bytes)
            return reply

        yield say

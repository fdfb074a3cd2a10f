"""Memory in the human monitor. What is shown, QEMU 7.2 showed of the same bytes at the same place."""

from __future__ import annotations

import re

import pytest

from qmp.conftest import Served
from qmp.test_human import monitor
from qmp.test_server import ask
from sealift.vmm.debug.memory import debug_memory
from sealift.vmm.guest import Guest
from sealift.vmm.qmp.commands.human import MONITOR
from sealift.vmm.qmp.commands.human_look import _item
from sealift.vmm.qmp.human import Viewpoint

RAM = 16 << 20
END = RAM - 16
"""The last 16 bytes of RAM get those at the end of QEMU's BIOS, behind which there is nothing either."""
BIOS = bytes.fromhex("ea5be000f030362f32332f393900fc00")


@pytest.fixture(scope="module", autouse=True)
def _qemus_bytes(open_guest: Served) -> None:
    debug_memory(open_guest.guest.machine).write(END, BIOS)


class User:
    """Who stays at the monitor."""

    def __init__(self, guest: Guest) -> None:
        self._guest = guest
        self._view = Viewpoint()

    def __call__(self, line: str) -> list[str]:
        """The lines of the answer."""
        return MONITOR.execute(self._guest, line, self._view).split("\r\n")[:-1]


@pytest.fixture
def user(open_guest: Served) -> User:
    """One."""
    return User(open_guest.guest)


@pytest.mark.parametrize("command", ["x", "xp"])
@pytest.mark.parametrize(
    ("shape", "shown"),
    [
        ("", [": 0x00e05bea"]),
        ("/5dw", [":   14703594  792080624  959394610   16515129", ": Cannot access memory"]),
        ("/5xb", [": 0xea 0x5b 0xe0 0x00 0xf0"]),
        ("/5c", [r": '\xea' '[' '\xe0' '\x00' '\xf0'"]),
        ("/1dg", [":  3401960375889976298"]),
        ("/2oh", [": 055752   0340"]),
        ("/2ub", [": 234  91"]),
    ],
)
def test_memory_is_shown_as_qemu_shows_it(user: User, command: str, shape: str, shown: list[str]) -> None:
    """The idle guest's memory is mapped one to one."""
    assert user(f"{command} {shape} {END:#x}") == [f"{END + 16 * line:016x}{text}" for line, text in enumerate(shown)]


def test_a_number_below_zero_is_one_of_eight_bytes() -> None:
    assert _item((1 << 64) - 3996549945531078927, 8, "d") == "-3996549945531078927"
    assert _item(0xFFFF_FFFF, 4, "d") == "4294967295"


def test_a_format_is_remembered_and_each_users_own(open_guest: Served, user: User) -> None:
    assert user(f"xp /2ub {END}") == [f"{END:016x}: 234  91"]
    assert user(f"xp {END}") == [f"{END:016x}: 234"]
    assert User(open_guest.guest)(f"xp {END}") == [f"{END:016x}: 0x00e05bea"]


def test_values_are_registers_and_numbers_added_up(open_guest: Served, user: User) -> None:
    ask(open_guest, "stop")
    try:
        rip = open_guest.guest.machine.platform.registers(0).rip
        assert user("print /x $rip") == user("p $pc") == [f"0x{rip:x}"]
        assert user("print /d $rip+0x10-6") == [str(rip + 10)]
        assert user("print 0-1") == ["-1"]
        assert user("print /c 65") == ["'A'"]
        assert user("x /4xb $rip")[0].startswith(f"{rip:016x}: 0x")
    finally:
        ask(open_guest, "cont")


@pytest.mark.parametrize(
    ("line", "answer"),
    [
        ("x /4zz 0", "Error: invalid char in format: 'z'"),
        ("xp /x", "Error: xp: addr expected"),
        ("xp /70000xb 0", "a count is at least 1 and at most 65536"),
        ("xp /0xb 0", "a count is at least 1"),
        ("x /2i 0", "instructions are not disassembled here"),
        ("xp $nothing", "unknown register"),
        ("xp 0x", "is no address"),
        ("xp 1++2", "is no address"),
        ("xp 1 2", "extraneous characters"),
        ("print", "expr expected"),
        ("sum 0 0x10000000", "at most 16 MiB"),
        ("gpa2hva 0x1000", "GPA 0x1000 has no address in this process"),
        ("system_reset", "guest open cannot be reset"),
    ],
)
def test_what_is_wrong_is_said(user: User, line: str, answer: str) -> None:
    (shown,) = user(line)
    assert answer in shown


def test_addresses_are_translated(user: User) -> None:
    assert user(f"gva2gpa {END:#x}") == [f"gpa: {END:#x}"]
    assert user("gva2gpa 0x7f0000000000") == ["Unmapped"]
    assert user("x 0x7f0000000000") == ["00007f0000000000: Cannot access memory"]


def test_a_checksum_is_bsds(user: User) -> None:
    checksum = 0
    for byte in BIOS:
        checksum = (checksum >> 1) | (checksum & 1) << 15
        checksum = (checksum + byte) & 0xFFFF
    assert user(f"sum {END} 16") == [f"{checksum:05d}"]


def test_mappings_are_listed_short_and_long(user: User) -> None:
    short, long = user("info mem"), user("info tlb")
    assert all(re.fullmatch(r"[0-9a-f]{16}-[0-9a-f]{16} [0-9a-f]{16} [u-]r[w-]", line) for line in short)
    assert all(re.fullmatch(r"[0-9a-f]{16}: [0-9a-f]{16} [XGPDACTUW-]{9}[E-]", line) for line in long)
    assert short
    assert any(line.endswith("E") for line in long)


def test_the_machine_is_described(open_guest: Served, user: User) -> None:
    assert user("info mtree") == ["address-space: memory", f"  {0:016x}-{RAM - 1:016x} (prio 0, ram): pc.ram"]
    header, row = user("info ramblock")
    assert header == "              Block Name    PSize              Offset               Used              Total"
    assert row == "                  pc.ram    4 KiB  0x0000000000000000 0x0000000001000000 0x0000000001000000"
    sev = ask(open_guest, "query-sev")
    assert user("info sev") == [
        f"handle: {sev['handle']}",
        "state: running",
        f"build: {sev['build-id']}",
        f"api version: {sev['api-major']}.{sev['api-minor']}",
        "debug: on",
        "key-sharing: on",
    ]
    shown = user("info encryption")
    private, shared = (int(line.split()[1]) for line in shown if "pages" in line)
    assert private + shared == RAM >> 12
    assert shown[-1] == "debugging: allowed by the guest's policy"


def test_registers_are_shown_of_a_guest_that_runs_and_runs_on(open_guest: Served, user: User) -> None:
    assert user("info registers")[0] == "CPU#0"
    assert ask(open_guest, "query-status")["running"]


def test_where_the_policy_says_no_memory_is_not_shown(served: Served) -> None:
    for line in ("xp 0xa00000", "info mem", "gva2gpa 0", "sum 0xa00000 16"):
        (shown,) = monitor(served, line)
        assert "the guest's policy forbids its host to debug it (bit 0, NODBG, is set)" in shown
    assert monitor(served, "info encryption")[-1] == "debugging: forbidden by the guest's policy"
    assert "debug: off" in monitor(served, "info sev")

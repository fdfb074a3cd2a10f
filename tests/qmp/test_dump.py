"""Dumps and saved memory, over QMP and in the human monitor."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from qemu.qmp import ExecuteError

from qmp.conftest import Served
from qmp.test_human import monitor
from qmp.test_server import ask
from sealift.errors import UserError
from sealift.vmm.debug.dump import Dump, DumpWishes
from sealift.vmm.debug.memory import debug_memory
from sealift.vmm.events import DumpEnded, GuestEvent

KERNEL = 0xA0_0000
RAM = 16 << 20


def test_a_dump_is_waited_for_and_told_of(open_guest: Served, tmp_path: Path) -> None:
    events: list[GuestEvent] = []
    open_guest.guest.events.listen(events.append)
    core = tmp_path / "guest.core"
    assert ask(open_guest, "query-dump-guest-memory-capability") == {"formats": ["elf"]}
    assert ask(open_guest, "dump-guest-memory", paging=False, protocol=f"file:{core}") == {}
    open_guest.guest.events.unlisten(events.append)
    assert core.read_bytes()[:4] == b"\x7fELF"
    assert ask(open_guest, "query-dump") == {"status": "completed", "completed": RAM, "total": RAM}
    assert [event.info.completed for event in events if isinstance(event, DumpEnded)] == [RAM]
    assert monitor(open_guest, "info dump") == ["Status: completed"]


def test_while_a_dump_is_underway_the_guest_is_left_alone(
    open_guest: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And it can be cancelled."""
    guest = open_guest.guest
    write = Dump._write_memory

    def interrupted(dump: Dump, *arguments: Any) -> None:
        for command in ("stop", "cont"):
            with pytest.raises(ExecuteError, match="There is a dump in process, please wait"):
                ask(open_guest, command)
        with pytest.raises(UserError, match="There is a dump in process"):
            guest.dump(DumpWishes(tmp_path / "another.core"))
        with pytest.raises(UserError, match="There is a dump in process"):
            guest.migrate("tcp:127.0.0.1:1")
        assert monitor(open_guest, "info dump") == ["Status: active", "Finished: 0.00%"]
        ask(open_guest, "x-sealift-cancel-dump")
        write(dump, *arguments)

    monkeypatch.setattr(Dump, "_write_memory", interrupted)
    ask(open_guest, "dump-guest-memory", paging=False, protocol=f"file:{tmp_path / 'guest.core'}", detach=True)
    assert guest._dump is not None
    assert guest._dump.wait().error == "the dump was cancelled"
    assert list(tmp_path.iterdir()) == []
    assert ask(open_guest, "query-dump")["status"] == "failed"
    assert ask(open_guest, "query-status")["running"]


def test_memory_is_saved_by_either_kind_of_address(open_guest: Served, tmp_path: Path) -> None:
    """The guest's kernel is mapped one to one."""
    expected = debug_memory(open_guest.guest.machine).read(KERNEL + 3, 5000)
    ask(open_guest, "pmemsave", val=KERNEL + 3, size=5000, filename=str(tmp_path / "physical"))
    ask(open_guest, "memsave", val=KERNEL + 3, size=5000, filename=str(tmp_path / "virtual"), cpu_index=1)
    assert monitor(open_guest, f"pmemsave {KERNEL + 3:#x} 5000 {tmp_path / 'p'}") == []
    assert monitor(open_guest, f"memsave {KERNEL + 3} 0x1388 {tmp_path / 'v'}", cpu_index=1) == []
    assert [(tmp_path / name).read_bytes() for name in ("physical", "virtual", "p", "v")] == [expected] * 4


def test_the_monitor_dumps_too(open_guest: Served, tmp_path: Path) -> None:
    assert monitor(open_guest, f"dump-guest-memory -p {tmp_path / 'virtual'}") == []
    assert monitor(open_guest, f"dump-guest-memory -c {tmp_path / 'raw'} 0xa00000 8192") == []
    assert (tmp_path / "virtual").read_bytes()[:4] == b"\x7fELF"
    raw = (tmp_path / "raw").read_bytes()[-8192:]
    assert len(raw) == 8192
    assert raw != debug_memory(open_guest.guest.machine).read(0xA0_0000, 8192)


@pytest.mark.parametrize(
    ("command", "arguments", "reason"),
    [
        ("dump-guest-memory", {"paging": False, "protocol": "tcp:1"}, "starts with 'file:'"),
        ("dump-guest-memory", {"paging": False, "protocol": "file:here"}, "no absolute path"),
        ("dump-guest-memory", {"paging": False, "protocol": "file:/nowhere/x"}, "no dump can be written in /nowhere"),
        ("dump-guest-memory", {"paging": False, "protocol": "file:/x", "begin": 5}, "'begin' and 'length' go together"),
        ("dump-guest-memory", {"paging": False, "protocol": "file:/x", "begin": 1 << 40, "length": 1}, "no guest RAM"),
        ("dump-guest-memory", {"paging": False, "protocol": "file:/x", "format": "kdump-zlib"}, "format"),
        ("pmemsave", {"val": RAM - 1, "size": 2, "filename": "/x"}, "GPA 0x1000000 is no RAM"),
        ("memsave", {"val": 1 << 60, "size": 2, "filename": "/x"}, "is not canonical"),
        ("memsave", {"val": 0, "size": 2, "filename": "/x", "cpu-index": 2}, "expects a CPU number"),
        ("pmemsave", {"val": 0, "size": 2, "filename": "x"}, "no absolute path"),
    ],
)
def test_what_cannot_be_done_is_told(open_guest: Served, command: str, arguments: dict[str, Any], reason: str) -> None:
    with pytest.raises(ExecuteError, match=re.escape(reason)):
        ask(open_guest, command, **arguments)
    assert not Path("/x").exists()


def test_words_that_are_no_numbers_are_told(open_guest: Served) -> None:
    assert monitor(open_guest, "pmemsave here 1 /x") == [
        "Error: Parameter 'addr' expects a number such as 4096 or 0x1000, not 'here'"
    ]


def test_nodbg_refuses_in_one_sentence(served: Served, tmp_path: Path) -> None:
    sentence = (
        "the guest's policy forbids its host to debug it (bit 0, NODBG, is set); launch a guest that is to be debugged "
        "with a policy that has this bit clear"
    )
    for command, arguments in (
        ("dump-guest-memory", {"paging": False, "protocol": f"file:{tmp_path / 'no'}"}),
        ("pmemsave", {"val": KERNEL, "size": 16, "filename": str(tmp_path / "no")}),
        ("memsave", {"val": KERNEL, "size": 16, "filename": str(tmp_path / "no")}),
    ):
        with pytest.raises(ExecuteError) as caught:
            ask(served, command, **arguments)
        assert str(caught.value) == sentence
    assert list(tmp_path.iterdir()) == []

"""The human monitor, over QMP and with QEMU's own shell for it."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
from qemu.qmp import ExecuteError

from harness import PATIENCE_S
from qmp.conftest import Served
from qmp.test_server import ask
from sealift.errors import RefusedError
from sealift.vmm.guest import Guest
from sealift.vmm.qmp.human import Call, HumanCommand, HumanMonitor, Viewpoint


def monitor(served: Served, line: str, **arguments: Any) -> list[str]:
    """The lines that one line is answered with."""
    text = ask(served, "human-monitor-command", command_line=line, **arguments)
    assert not text or text.endswith("\r\n")
    return str(text).split("\r\n")[:-1]


@pytest.fixture
def stopped(served: Served) -> Any:
    """The guest stands still during a test."""
    ask(served, "stop")
    yield served
    ask(served, "cont")


def test_what_it_says_is_what_qmp_says(served: Served) -> None:
    assert monitor(served, "info status") == ["VM status: running"]
    assert monitor(served, "info name") == ["served"]
    assert monitor(served, "info memory_size_summary") == ["base memory: 16777216", "plugged memory: 0"]
    threads = [cpu["thread-id"] for cpu in ask(served, "query-cpus-fast")]
    assert monitor(served, "info cpus", cpu_index=1) == [
        f"  CPU #0: thread_id={threads[0]}",
        f"* CPU #1: thread_id={threads[1]}",
    ]
    assert "downtime-limit: 300" in monitor(served, "info migrate_parameters")
    assert "events: off" in monitor(served, "info migrate_capabilities")
    assert ask(served, "query-version")["package"] in monitor(served, "info version")[0]


def test_a_guest_is_stopped_and_goes_on(served: Served) -> None:
    assert monitor(served, "stop") == []
    assert monitor(served, "info status") == ["VM status: paused"]
    assert monitor(served, "c") == []
    assert ask(served, "query-status")["running"]


def test_registers_are_shown_of_a_vcpu_that_stands_still(stopped: Served) -> None:
    expected = stopped.guest.machine.platform.registers(1)
    shown = monitor(stopped, "info registers", cpu_index=1)
    assert shown[0] == "CPU#1"
    assert f"RSP={expected.general[7]:016x}" in shown[2]
    assert f"RIP={expected.rip:016x}" in shown[5]
    assert f"CR3={expected.cr3:016x}" in shown[6]


def test_registers_that_the_platform_hides_are_refused_with_its_reason(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    def hidden(_: int) -> None:
        raise RefusedError("the registers of an SEV-ES guest are encrypted")

    monkeypatch.setattr(served.guest.machine.platform, "registers", hidden)
    assert monitor(served, "info registers") == ["Error: the registers of an SEV-ES guest are encrypted"]


def test_parameters_and_capabilities_are_set(served: Served) -> None:
    before = ask(served, "query-migrate-parameters")
    assert monitor(served, "migrate_set_parameter max-bandwidth 3") == []
    assert monitor(served, "migrate_set_parameter downtime-limit 120") == []
    assert monitor(served, "migrate_set_capability events on") == []
    after = ask(served, "query-migrate-parameters")
    assert (after["max-bandwidth"], after["downtime-limit"]) == (3 << 20, 120)
    assert "events: on" in monitor(served, "info migrate_capabilities")
    assert monitor(served, "migrate_set_parameter max-bandwidth 5k") == []
    assert ask(served, "query-migrate-parameters")["max-bandwidth"] == 5 << 10
    ask(served, "migrate-set-parameters", **before)
    monitor(served, "migrate_set_capability events off")


def test_a_migration_is_begun_and_told_of(served: Served) -> None:
    assert monitor(served, "migrate -d unix:/nobody/is/there") == []
    while monitor(served, "info migrate")[0] == "Migration status: setup":
        pass
    status, *rest = monitor(served, "info migrate")
    assert status.startswith("Migration status: failed (nobody listens on unix:/nobody/is/there")
    assert any(line.startswith("total ram: ") for line in rest)
    assert monitor(served, "migrate_cancel") == []


@pytest.mark.parametrize(
    ("line", "answer"),
    [
        ("dance", "unknown command: 'dance'"),
        ("info weather", "unknown command: 'weather'"),
        ("help dance", "unknown command: 'dance'"),
        ("migrate", "Error: migrate: uri expected"),
        ("migrate -x unix:/x", "Error: migrate: unsupported option -x"),
        ("stop now", "Error: stop: extraneous characters at the end of line"),
        ("migrate carrier-pigeon", "Error: 'carrier-pigeon' is no migration address"),
        ("migrate_incoming unix:/x", "Error: '--incoming defer' was not specified on the command line"),
        ("migrate_continue soon", "Error: Parameter 'state' does not accept value 'soon'"),
        ("migrate_continue pre-switchover", "Error: Migration not in expected state"),
        ("migrate_set_parameter speed 3", "Error: Parameter 'speed' is unexpected"),
        ("migrate_set_parameter max-bandwidth much", "Error: 'much' is no rate"),
        ("migrate_set_capability x-colo on", "Error: Parameter 'capability' does not accept value 'x-colo'"),
        ("migrate_set_capability events maybe", "Error: Parameter 'state' expects 'on' or 'off'"),
        ("system_powerdown", "Error: the machine of guest served has no power button"),
        ("info 'name", "unparsable line: No closing quotation"),
    ],
)
def test_a_mistake_is_answered_with_a_line(served: Served, line: str, answer: str) -> None:
    (shown,) = monitor(served, line)
    assert shown.startswith(answer)


def test_an_empty_line_is_answered_with_nothing(served: Served) -> None:
    assert monitor(served, "  ") == []


def test_a_vcpu_that_is_not_there_cannot_be_looked_at(served: Served) -> None:
    with pytest.raises(ExecuteError, match="Parameter 'cpu-index' expects a CPU number"):
        monitor(served, "info cpus", cpu_index=7)


def test_help_names_every_command_once() -> None:
    def run(_: Call) -> list[str]:
        return []

    dance = HumanCommand(("dance", "d"), ("[-f]", "tune", "[partner]"), "to music", run)
    weather = HumanCommand(("weather",), (), "outside", run)
    made = HumanMonitor([dance], {"info": [weather]})
    answer: dict[str, list[str]] = {}
    for line in ("help", "? d", "help info", "info"):
        answer[line] = made.execute(cast_guest(), line, Viewpoint()).split("\r\n")[:-1]
    usage = "dance|d [-f] tune [partner] -- to music"
    assert answer["help"] == [usage, "help|? [cmd] -- show the help", "info [subcommand] -- show various things"]
    assert answer["? d"] == [usage]
    assert answer["help info"] == answer["info"] == ["info weather -- outside"]


def cast_guest() -> Guest:
    """A guest that no command of these asks for."""
    return None  # type: ignore[return-value]


@pytest.mark.parametrize("kind", ["unix", "tcp"])
def test_qemus_shell_for_people_works_with_it(served: Served, kind: str) -> None:
    address = served.address(kind)
    where = address if isinstance(address, str) else f"{address[0]}:{address[1]}"
    command = [sys.executable, "-c", "from qemu.qmp.qmp_shell import main; main()", "-H", where]
    shell = subprocess.run(
        command, input="info status\ninfo cpus\n", capture_output=True, text=True, timeout=PATIENCE_S, check=False
    )
    assert shell.returncode == 0, shell.stderr
    assert "VM status: running" in shell.stdout
    assert "* CPU #0: thread_id=" in shell.stdout

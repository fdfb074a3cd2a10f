"""Guests in the foreground, and the commands that find them."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from harness import Sealift, processes_naming, wait_for_end_of
from sealift.cli.places import Host, Places
from sealift.cli.printer import LineKeeper, Printer
from sealift.cli.rundir import CONSOLE_SOCKET, QMP_SOCKET, RunDirectory
from sealift.errors import UserError

SMALL = ("--kernel", "idle", "--memory", "16M")


def running(sealift: Callable[..., Sealift], name: str, *options: str | Path) -> Sealift:
    """A guest whose control sockets answer."""
    process = sealift("run", "--name", name, *options)
    process.stderr.wait_for(f"guest {name} runs")
    return process


def answer(sealift: Callable[..., Sealift], *arguments: str | Path, status: int = 0) -> str:
    """Standard output of a command that ends by itself."""
    process = sealift(*arguments)
    assert process.wait() == status, process.report()
    return process.stdout.text


def test_a_guest_prints_is_listed_and_stops(sealift: Callable[..., Sealift], state_dir: Path) -> None:
    process = running(sealift, "a", *SMALL)
    process.stdout.wait_for("idle ready\n")
    (listed,) = json.loads(answer(sealift, "ps", "--json"))
    assert (listed["name"], listed["state"], listed["pid"]) == ("a", "running", process.process.pid)
    assert (listed["memory"], listed["vcpus"], listed["migration"]) == (16 << 20, 2, "none")
    assert listed["platform-pid"] in processes_naming(state_dir)
    heading, row = answer(sealift, "ps").splitlines()
    assert (heading.split()[:2], row.split()[:2]) == (["NAME", "STATE"], ["a", "running"])

    assert answer(sealift, "stop", "a") == ""
    assert process.wait() == 0
    assert processes_naming(state_dir) == {}
    assert json.loads(answer(sealift, "ps", "--json")) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_guest_cleanly(sealift: Callable[..., Sealift], state_dir: Path, number: int) -> None:
    process = running(sealift, "a", *SMALL)
    process.signal(number)
    assert process.wait() == 0
    assert processes_naming(state_dir) == {}
    assert list(state_dir.glob("hosts/default/run/*")) == []


def test_a_signal_while_the_guest_starts_leaves_nothing_behind(
    sealift: Callable[..., Sealift], state_dir: Path
) -> None:
    process = sealift("run", *SMALL)
    process.stderr.wait_for("the owner trusts")
    process.signal(signal.SIGINT)
    # The guest may have won the race; then this is the ordinary end.
    assert process.wait() in {0, 130}
    assert "Traceback" not in process.stderr.text
    wait_for_end_of(list(processes_naming(state_dir)))
    assert list(state_dir.glob("hosts/default/run/*")) == []


def test_the_owner_says_once_whom_it_trusts(sealift: Callable[..., Sealift]) -> None:
    first = running(sealift, "a", *SMALL)
    second = running(sealift, "b", *SMALL, "--policy", "nodbg")
    assert "the owner trusts the root" in first.stderr.text
    assert "the owner accepts the installed migration handler" in first.stderr.text
    assert "warning" not in first.stderr.text
    assert "the owner" not in second.stderr.text
    assert second.stderr.text.count("warning: with none of nosend, domain and sev the policy lets") == 1


def test_a_name_in_use_is_refused_and_the_guest_that_has_it_is_not_disturbed(
    sealift: Callable[..., Sealift], state_dir: Path
) -> None:
    running(sealift, "a", *SMALL)
    before = processes_naming(state_dir)
    process = sealift("run", "--name", "a", *SMALL)
    assert process.wait() == 1
    assert "a guest named a is running on this host" in process.stderr.text
    assert processes_naming(state_dir) == before
    assert json.loads(answer(sealift, "ps", "--json"))[0]["state"] == "running"


def test_a_killed_vmm_takes_its_platform_along_and_its_name_can_be_used_again(
    sealift: Callable[..., Sealift], state_dir: Path
) -> None:
    process = running(sealift, "a", *SMALL)
    children = list(processes_naming(state_dir))
    assert len(children) == 1  # the platform; the owner left when its work was done
    process.signal(signal.SIGKILL)
    process.wait()
    wait_for_end_of(children)
    assert (state_dir / "hosts/default/run/a/qmp.sock").exists()
    assert json.loads(answer(sealift, "ps", "--json")) == []
    running(sealift, "a", *SMALL)
    assert json.loads(answer(sealift, "ps", "--json"))[0]["state"] == "running"


def test_a_platform_that_dies_ends_its_guest_even_one_that_only_sleeps(
    sealift: Callable[..., Sealift], state_dir: Path
) -> None:
    process = running(sealift, "a", *SMALL)
    process.stdout.wait_for("idle ready\n")
    (platform,) = processes_naming(state_dir)
    os.kill(platform, signal.SIGKILL)
    assert process.wait() == 1
    assert "is gone" in process.stderr.text or "cannot go on" in process.stderr.text
    assert list(state_dir.glob("hosts/default/run/*")) == []


def test_a_host_directory_may_have_a_path_longer_than_a_sockets_address(
    sealift: Callable[..., Sealift], tmp_path: Path
) -> None:
    host = tmp_path / ("deep" * 30) / ("er" * 60)
    process = running(sealift, "a", *SMALL, "--host", host)
    assert json.loads(answer(sealift, "ps", "--json", "--host", host))[0]["name"] == "a"
    answer(sealift, "stop", "a", "--host", host)
    assert process.wait() == 0


def test_a_configuration_file_sets_what_options_do_not(sealift: Callable[..., Sealift], tmp_path: Path) -> None:
    (tmp_path / "disk.key").write_text("secret")
    config = tmp_path / "guest.toml"
    config.write_text('name = "c"\nmemory = "24M"\nvcpus = 1\nkernel = "idle"\nsecret = "disk.key"\npolicy = 1\n')
    process = sealift("run", config, "--vcpus", "2")
    process.stderr.wait_for("guest c runs")
    (listed,) = json.loads(answer(sealift, "ps", "--json"))
    assert (listed["memory"], listed["vcpus"]) == (24 << 20, 2)


def test_a_quiet_guest_shows_no_console_but_keeps_it(sealift: Callable[..., Sealift]) -> None:
    process = running(sealift, "a", *SMALL, "--quiet")
    console = sealift("console", "a")
    console.stdout.wait_for("idle ready\n")
    answer(sealift, "stop", "a")
    assert console.wait() == 0
    assert process.wait() == 0
    assert process.stdout.text == ""


def test_a_console_shows_history_then_what_comes_and_lets_go_of_the_terminal(sealift: Callable[..., Sealift]) -> None:
    guest = running(sealift, "a", "--memory", "16M", "--append", "ws=4 flip=0 every=8 burst=1 pause=20000")
    early = guest.stdout.wait_for("ledger 0 8 ").splitlines()[0]
    keyboard, terminal = pty.openpty()
    try:
        console = sealift("console", "a", stdin=terminal)
        assert "Ctrl-] detaches" in console.stderr.wait_for("attached to a")
        shown = console.stdout.wait_for(early)
        console.stdout.wait_for("ledger", after=len(shown))
        os.write(keyboard, b"\x1d")
        assert console.wait() == 0
        assert "detached from a, which runs on" in console.stderr.text
    finally:
        os.close(keyboard)
        os.close(terminal)
    guest.stdout.wait_for("ledger", after=len(guest.stdout.text))


def test_a_console_types_what_is_in_a_file(sealift: Callable[..., Sealift], places: Places, tmp_path: Path) -> None:
    typed = tmp_path / "typed"
    typed.write_bytes(b"a line\n" * 1000)
    directory = RunDirectory(places.host.run, "a")
    with directory.listen(CONSOLE_SOCKET) as listening, typed.open() as file:
        console = sealift("console", "a", stdin=file.fileno())
        guest, _ = listening.accept()
        with guest, guest.makefile("rb") as received:
            assert received.read(7000) == typed.read_bytes()
            guest.sendall(b"understood")
    directory.close()
    assert console.wait() == 0
    assert console.stdout.text == "understood"


def test_a_vmm_that_answers_nonsense_does_not_hide_the_other_guests(
    sealift: Callable[..., Sealift], places: Places
) -> None:
    running(sealift, "b", *SMALL)
    directory = RunDirectory(places.host.run, "a")
    with directory.listen(QMP_SOCKET) as listening:
        listing = sealift("ps", "--json")
        odd, _ = listening.accept()
        with odd:
            odd.sendall(b"hello\nworld\n")
            assert listing.wait() == 0
    directory.close()
    assert [(guest["name"], guest["state"]) for guest in json.loads(listing.stdout.text)] == [
        ("a", "odd answer"),
        ("b", "running"),
    ]


UNFINISHED = ("--memory", "16M", "--append", "ws=4 flip=0 every=1 burst=1 pause=100")


def test_the_end_of_a_guest_is_said_on_a_line_of_its_own_where_its_console_is_shown(
    sealift: Callable[..., Sealift],
) -> None:
    process = sealift("run", "--name", "a", *UNFINISHED, stderr=subprocess.STDOUT)
    process.stdout.wait_for("ledger 1 ")
    process.signal(signal.SIGINT)
    assert process.wait() == 0
    *_, last = process.stdout.text.splitlines()
    assert last == "sealift: guest a ended"


def test_output_that_goes_elsewhere_than_our_sentences_is_the_guests_to_the_byte(tmp_path: Path) -> None:
    for shared, expected in ((False, b"unfinished"), (True, b"unfinished\n")):
        path = tmp_path / str(shared)
        with path.open("wb") as output:
            printer = Printer(output)
            printer._output._shared = shared
            printer.put(b"unfinished")
            printer.close()
        assert path.read_bytes() == expected


def test_a_sentence_beside_a_console_begins_a_line_and_none_is_ended_twice(tmp_path: Path) -> None:
    path = tmp_path / "console"
    with path.open("wb", buffering=0) as output:
        screen = LineKeeper(output)
        screen._shared = True
        for data in (b"a line\n", b"half", b""):
            screen.write(data)
        screen.end_line()
        screen.end_line()
    assert path.read_bytes() == b"a line\nhalf\n"


def test_what_cannot_be_a_run_directory_is_refused_with_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot be made"):
        RunDirectory(Host(tmp_path / "file").run, "a")


def test_a_run_directory_is_let_go_whole_and_can_be_taken_at_once(tmp_path: Path) -> None:
    first = RunDirectory(tmp_path, "a")
    with first.listen("x.sock"), pytest.raises(UserError, match="is running"):
        RunDirectory(tmp_path, "a")
    first.close()
    assert list(tmp_path.iterdir()) == []
    RunDirectory(tmp_path, "a").close()

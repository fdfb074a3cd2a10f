"""What a user gets wrong is answered with one sentence, and leaves nothing behind."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from harness import Sealift, processes_naming
from sealift.cli.main import main
from sealift.cli.places import Host
from sealift.errors import UserError, sentence

OWNER_TOOLS = [["owner", tool] for tool in ("chain", "session", "measure", "validate", "secret", "report")]


def assert_nothing_is_left(state_dir: Path) -> None:
    """No process, no run directory."""
    assert processes_naming(state_dir) == {}
    assert list(state_dir.glob("hosts/*/run/*")) == []


@pytest.mark.parametrize(
    ("arguments", "status", "reason"),
    [
        (["run", "--memory", "12 parsecs"], 2, "is no size"),
        (["run", "--memory", "1000001"], 1, "pages of 4 KiB"),
        (["run", "--memory", "64K"], 1, "too small"),
        (["run", "--vcpus", "0"], 2, "--vcpus"),
        (["run", "--vcpus", "100000"], 1, "vCPUs"),
        (["run", "--kernel", "linux"], 1, "no kernel 'linux'"),
        (["run", "--kernel", "./missing.elf"], 1, "cannot be read"),
        (["run", "--kernel", "/proc/self/status"], 1, "ELF"),
        (["run", "--payload", "/nonexistent"], 1, "cannot be read"),
        (["run", "--secret", "/nonexistent"], 1, "the secret"),
        (["run", "--append", "x" * 2000], 1, "command line"),
        (["run", "--policy", "nodebug"], 1, "no guest policy"),
        (["run", "--name", "../b"], 1, "no guest name"),
        (["run", "--incoming", "carrier-pigeon"], 1, "no migration address"),
        (["run", "--incoming", "tcp:192.0.2.1:4444"], 1, "cannot listen"),
        (["run", "--incoming", "tcp:127.0.0.1:0", "--memory", "1G"], 2, "has no use with --incoming"),
        (["run", "missing.toml"], 1, "cannot be read"),
        (["run", "--speed", "9"], 2, "--speed"),
        (["stop", "nobody"], 1, "no guest named nobody"),
        (["console", "nobody"], 1, "no guest named nobody"),
        (["run", "--qmp", "tcp:192.0.2.1:4444"], 1, "anybody on the network"),
        (["run", "--qmp", "carrier-pigeon"], 1, "is no address for QMP"),
        (["migrate", "nobody", "tcp:a:1"], 1, "no guest named nobody"),
        (["migrate", "nobody"], 1, "no guest named nobody"),
        (["migrate", "nobody", "tcp:a:1", "--continue"], 2, "either"),
        (["token", "import", "nobody", __file__], 1, "no guest named nobody"),
        (["token", "export", "nobody"], 1, "no guest named nobody"),
        (["owner", "resume", __file__], 1, "has more than the 168 bytes"),
        (["run", "--payload", "/dev/zero"], 1, "is no regular file"),
        (["demo", "--series", "6.1"], 2, "--linux"),
        (["demo", "--linux", "--series", "2.4"], 1, "there is no Linux guest of series '2.4'; there are 6.1, 6.12"),
        (["dance"], 2, "dance"),
    ],
    ids=lambda value: " ".join(value)[:40] if isinstance(value, list) else "",
)
def test_a_mistake_is_one_sentence_an_exit_status_and_nothing_else(
    state_dir: Path, sealift: Callable[..., Sealift], arguments: list[str], status: int, reason: str
) -> None:
    process = sealift(*arguments)
    assert process.wait() == status
    last = process.stderr.text.splitlines()[-1]
    assert last.startswith("sealift: ")
    assert reason in last
    assert "Traceback" not in process.stderr.text
    assert "[Errno" not in process.stderr.text
    assert process.stdout.text == ""
    assert_nothing_is_left(state_dir)


@pytest.mark.parametrize("command", [["stop"], ["console"], ["migrate", "--transfer", "ring"]])
def test_a_name_that_nobody_has_is_answered_with_the_command_that_lists_that_host(
    sealift: Callable[..., Sealift], other_host: Host, command: list[str]
) -> None:
    arguments = ["nobody", "tcp:a:1"] if command[0] == "migrate" else ["nobody"]
    elsewhere = sealift(*command, *arguments, "--host", other_host.path)
    here = sealift(*command, *arguments)
    assert (elsewhere.wait(), here.wait()) == (1, 1)
    assert f"`sealift ps --host {other_host.path}`" in elsewhere.stderr.text
    assert "`sealift ps`" in here.stderr.text


@pytest.mark.parametrize("command", [[], ["bench"], ["owner"]])
def test_without_arguments_a_group_of_commands_explains_itself(
    sealift: Callable[..., Sealift], command: list[str]
) -> None:
    process = sealift(*command)
    assert process.wait() == 2
    assert process.stderr.text.startswith("Usage: sealift")
    assert "Commands:" in process.stderr.text


def test_a_sentence_says_a_cause_once_and_without_its_number() -> None:
    def because(outer: str) -> UserError:
        error = UserError(outer)
        error.__cause__ = FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), "/nonexistent/file")
        return error

    assert sentence(because("it cannot be read.")) == "it cannot be read: No such file or directory"
    repeated = "it cannot be read (No such file or directory)"
    assert sentence(because(repeated)) == repeated


def test_a_payload_that_does_not_fit_is_refused_with_both_sizes(
    state_dir: Path, sealift: Callable[..., Sealift], tmp_path: Path
) -> None:
    payload = tmp_path / "payload"
    with payload.open("wb") as file:
        file.truncate(64 << 20)
    process = sealift("run", "--memory", "32M", "--payload", payload)
    assert process.wait() == 1
    assert "67,108,864" in process.stderr.text
    assert "32 MiB" in process.stderr.text
    assert_nothing_is_left(state_dir)


def test_a_port_in_use_is_named(state_dir: Path, sealift: Callable[..., Sealift]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        uri = f"tcp:127.0.0.1:{taken.getsockname()[1]}"
        process = sealift("run", "--incoming", uri)
        assert process.wait() == 1
    assert f"{uri} is in use" in process.stderr.text
    assert "[Errno" not in process.stderr.text
    assert "Address already" not in process.stderr.text
    assert_nothing_is_left(state_dir)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("speed = 9", "speed"),
        ("memory = true", "memory"),
        ("memory = '9 miles'", "is no size"),
        ("vcpus = 'two'", "vcpus"),
        ("name = ", "no TOML"),
    ],
)
def test_a_configuration_that_means_nothing_is_refused(
    state_dir: Path, sealift: Callable[..., Sealift], tmp_path: Path, text: str, reason: str
) -> None:
    config = tmp_path / "guest.toml"
    config.write_text(text)
    process = sealift("run", config)
    assert process.wait() == 1
    assert reason in process.stderr.text
    assert_nothing_is_left(state_dir)


@pytest.mark.parametrize("command", [[], ["run"], ["ps"], ["console"], ["stop"], ["migrate"], *OWNER_TOOLS])
def test_every_help_ends_with_an_example(
    command: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", ["sealift", *command, "--help"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 0
    _, examples = capsys.readouterr().out.split("Examples:\n")
    assert all(line.strip().split()[0] in {"sealift", "echo"} for line in examples.strip().splitlines())

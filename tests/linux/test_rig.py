"""The rig runs a command as if it were here, with a /dev/kvm, and leaves nothing behind. It takes its time to boot."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from harness import processes_naming, wait_for_end_of
from sealift.cli.linux.kernels import kernel
from sealift.cli.linux.packages import tool
from sealift.cli.linux.rig import FAILED, KERNEL, TIMED_OUT
from sealift.errors import UserError, sentence

pytestmark = pytest.mark.timeout(300)

SCRIPT = """
test -c /dev/kvm && touch /tmp/mine /run/mine /dev/shm/mine ~/mine here && echo "$GIVEN with $1"
echo complaint >&2
exit 7
"""


@pytest.fixture(scope="module", autouse=True)
def _needs() -> None:
    try:
        tool("qemu-system-x86_64", "qemu-system-x86")
        tool("busybox", "busybox-static")
        kernel(KERNEL)
    except UserError as error:
        pytest.skip(f"NOT TESTED, there is no rig here: {sentence(error)}")


@pytest.fixture
def rig(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The command, whose temporary files are in the test's directory."""
    (tmp_path / "scratch").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "scratch"))
    return [sys.executable, "-m", "sealift.cli.linux.rig", "-C", str(tmp_path)]


def test_a_command_runs_as_if_it_were_here_and_changes_nothing(rig: list[str], tmp_path: Path) -> None:
    before = sorted(tmp_path.iterdir())
    command = [*rig, "--env", "GIVEN=a variable", "sh", "-c", SCRIPT, "sh", "an 'argument' of $words"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("a variable with an 'argument' of $words\n", "complaint\n")
    assert done.returncode == 7
    assert sorted(tmp_path.iterdir()) == before
    assert not list((tmp_path / "scratch").iterdir())


def test_a_command_that_takes_too_long_is_ended(rig: list[str]) -> None:
    done = subprocess.run([*rig, "--limit", "1", "sleep", "600"], capture_output=True, text=True, check=False)
    assert done.returncode == TIMED_OUT
    assert "more than 1 s" in done.stderr


def test_a_rig_that_stands_still_is_given_up(rig: list[str], tmp_path: Path) -> None:
    command = [*rig, "--silence", "60", "sh", "-c", "echo up; sleep 600"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "up\n"
        (emulator,) = [pid for pid, words in processes_naming(tmp_path).items() if "qemu" in words[0]]
        os.kill(emulator, signal.SIGSTOP)
        _, complaint = process.communicate()
    assert process.returncode == FAILED
    assert "has stood still for 60 s" in complaint
    wait_for_end_of([emulator])


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_qemu_ends_with_the_rig(number: signal.Signals, rig: list[str], tmp_path: Path) -> None:
    with subprocess.Popen([*rig, "sleep", "600"], stderr=subprocess.PIPE) as process:
        while not (emulators := [pid for pid, words in processes_naming(tmp_path).items() if "qemu" in words[0]]):
            assert process.poll() is None
        os.kill(process.pid, number)
    wait_for_end_of(emulators)

"""A guest's console: what it prints is seen at once, and a terminal that is attached to it comes back as it was."""

from __future__ import annotations

import contextlib
import os
import pty
import signal
import socket
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from harness import PATIENCE_S, readable
from sealift.cli.rundir import CONSOLE_SOCKET, RunDirectory
from sealift.vmm.console import HISTORY_LIMIT, HOLD_S, PROMPT_S, Console, Port

# --- what listeners get ---------------------------------------------------------------------------------------------


class Timer:
    """Time that tests let pass."""

    def __init__(self) -> None:
        self.calls: list[tuple[float, Callable[[], None]]] = []

    def later(self, seconds: float, call: Callable[[], None]) -> None:
        """See `sealift.vmm.console.Later`."""
        self.calls.append((seconds, call))

    def expire(self) -> None:
        """Its time has come."""
        (_, call) = self.calls.pop()
        call()


@pytest.fixture
def timer() -> Timer:
    return Timer()


@pytest.fixture
def console(timer: Timer) -> Console:
    made = Console()
    made.flush_by(timer.later)
    return made


@pytest.fixture
def heard(console: Console) -> list[bytes]:
    pieces: list[bytes] = []
    console.listen(pieces.append)
    return pieces


@pytest.fixture
def serial(console: Console) -> Port:
    return console.port()


@pytest.fixture
def virtio(console: Console) -> Port:
    return console.port()


def write(port: Port, data: bytes) -> None:
    for byte in data:
        port.transmit(byte)


def test_a_prompt_is_shown_after_a_moment(serial: Port, timer: Timer, heard: list[bytes]) -> None:
    write(serial, b"login: ")
    assert heard == []
    assert [seconds for seconds, _ in timer.calls] == [PROMPT_S]
    timer.expire()
    assert heard == [b"login: "]


def test_a_line_is_shown_at_once_and_whole(serial: Port, heard: list[bytes]) -> None:
    write(serial, b"one\ntwo\n")
    assert heard == [b"one\n", b"two\n"]


def test_a_busy_console_has_one_timer_at_a_time_and_a_silent_one_none(
    serial: Port, timer: Timer, heard: list[bytes]
) -> None:
    assert not timer.calls
    write(serial, b"line\n" * 1000)
    assert len(timer.calls) == 1
    timer.expire()
    assert heard == [b"line\n"] * 1000
    assert not timer.calls


def test_the_start_of_a_line_at_a_stop_is_shown_here_and_the_rest_where_it_is_printed(
    console: Console, serial: Port, timer: Timer, heard: list[bytes]
) -> None:
    write(serial, b"half a ")
    console.flush()
    assert heard == [b"half a "]
    timer.expire()
    assert heard == [b"half a "]


def test_a_line_that_was_begun_before_there_was_a_timer_is_shown(timer: Timer) -> None:
    console, pieces = Console(), list[bytes]()
    console.listen(pieces.append)
    write(console.port(), b"# ")
    console.flush_by(timer.later)
    timer.expire()
    assert pieces == [b"# "]


# --- two devices on it ----------------------------------------------------------------------------------------------


def test_lines_of_two_devices_are_shown_whole_however_their_bytes_mix(
    serial: Port, virtio: Port, heard: list[bytes]
) -> None:
    write(serial, b"counter 220352 f")
    virtio.write(b"hello-marker\n")
    write(serial, b"aults 0\n")
    assert heard == [b"hello-marker\n", b"counter 220352 faults 0\n"]


def test_what_another_device_prints_waits_for_the_line_on_the_screen(
    serial: Port, virtio: Port, timer: Timer, heard: list[bytes]
) -> None:
    write(serial, b"counter 220352 f")
    timer.expire()
    virtio.write(b"one\ntwo\nthr")
    assert heard == [b"counter 220352 f"]
    write(serial, b"aults 0\n")
    assert heard == [b"counter 220352 f", b"aults 0\n", b"one\ntwo\n"]
    virtio.write(b"ee\n")
    assert heard[3:] == [b"three\n"]


def test_a_line_that_nobody_finishes_is_ended_for_what_waits_for_it(
    serial: Port, virtio: Port, timer: Timer, heard: list[bytes]
) -> None:
    virtio.write(b"# ")
    timer.expire()
    write(serial, b"oops: ")
    timer.expire()
    write(serial, b"disk\n")
    assert heard == [b"# "]
    assert [seconds for seconds, _ in timer.calls] == [HOLD_S]
    timer.expire()
    assert heard == [b"# ", b"\r\n", b"oops: disk\n"]
    virtio.write(b"ls\n")
    assert heard[3:] == [b"ls\n"]


def test_a_prompt_waits_like_a_line_and_leaves_the_screen_to_nobody(
    serial: Port, virtio: Port, timer: Timer, heard: list[bytes]
) -> None:
    for port in (serial, virtio):
        port.write(b"> ")
        timer.expire()
    assert heard == [b"> "]
    timer.expire()
    assert heard == [b"> ", b"\r\n", b"> "]


def test_more_than_is_kept_does_not_wait(serial: Port, virtio: Port, timer: Timer, heard: list[bytes]) -> None:
    serial.write(b"# ")
    timer.expire()
    virtio.write(b"y\n" * (HISTORY_LIMIT // 2))
    assert heard[1:] == [b"\r\n", b"y\n" * (HISTORY_LIMIT // 2)]


def test_at_a_stop_everything_is_shown_and_nothing_mixes(
    console: Console, serial: Port, virtio: Port, timer: Timer, heard: list[bytes]
) -> None:
    serial.write(b"half")
    timer.expire()
    virtio.write(b"whole\nother ")
    serial.write(b" a ")
    assert console.tail(3) == ["half a ", "whole", "other "]
    console.flush()
    assert b"".join(heard) == b"half a \r\nwhole\nother "


# --- a terminal on it -----------------------------------------------------------------------------------------------

_READ_SIZE = 4096
_SEALIFT = "from sealift.cli.main import main; main()"
IN_ITS_TERMINAL = f"import fcntl, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0); {_SEALIFT}"


class Guest:
    """The console socket of a guest that tests play."""

    def __init__(self, host: Path) -> None:
        self.host = host
        self._ending = contextlib.ExitStack()
        directory = RunDirectory(host / "run", "g")
        self._ending.callback(directory.close)
        self._listening = self._ending.enter_context(directory.listen(CONSOLE_SOCKET))
        self.sock: socket.socket | None = None

    def accept(self) -> None:
        """Somebody attaches."""
        self._listening.settimeout(PATIENCE_S)
        self.sock, _ = self._listening.accept()
        self._ending.enter_context(self.sock)
        self.sock.settimeout(PATIENCE_S)

    def prints(self, data: bytes) -> None:
        """It prints."""
        assert self.sock is not None
        self.sock.sendall(data)

    def hears(self, expected: bytes) -> None:
        """Somebody types exactly this."""
        assert self.sock is not None
        typed = b""
        while len(typed) < len(expected):
            data = self.sock.recv(_READ_SIZE)
            assert data, f"only {typed!r} was typed"
            typed += data
        assert typed == expected

    def end(self) -> None:
        """It ends; does nothing the second time."""
        self._ending.close()


class Terminal:
    """``sealift console g`` on a pseudo-terminal of its own."""

    def __init__(self, guest: Guest) -> None:
        self.keys, self._tty = pty.openpty()
        self.before = self.modes()
        self.process = subprocess.Popen(
            [sys.executable, "-c", IN_ITS_TERMINAL, "console", "g", "--host", str(guest.host)],
            stdin=self._tty,
            stdout=self._tty,
            stderr=self._tty,
            start_new_session=True,
        )
        self.text = b""

    def modes(self) -> list[object]:
        """The terminal's modes."""
        return list(termios.tcgetattr(self._tty))

    def sees(self, part: bytes) -> None:
        """Wait until this was shown."""
        deadline = time.monotonic() + PATIENCE_S
        while part not in self.text:
            ready = readable(self.keys, deadline - time.monotonic())
            assert ready, f"{part!r} was not shown; this was: {self.text!r}"
            self.text += os.read(self.keys, _READ_SIZE)

    def types(self, data: bytes) -> None:
        """Keys are pressed."""
        os.write(self.keys, data)

    def close(self) -> None:
        """End it, if a test did not get to it."""
        self.process.kill()
        self.process.wait()
        for descriptor in (self.keys, self._tty):
            with contextlib.suppress(OSError):
                os.close(descriptor)


@pytest.fixture
def guest(tmp_path: Path) -> Iterator[Guest]:
    made = Guest(tmp_path)
    yield made
    made.end()


@pytest.fixture
def terminal(guest: Guest) -> Iterator[Terminal]:
    """A terminal that is attached."""
    made = Terminal(guest)
    guest.accept()
    guest.prints(b"# ")
    made.sees(b"# ")
    yield made
    made.close()


def test_how_to_leave_is_said_first(terminal: Terminal) -> None:
    assert terminal.text.startswith(b"sealift: attached to g; Ctrl-] detaches\r\n")


def test_every_key_goes_to_the_guest_as_it_is_typed(guest: Guest, terminal: Terminal) -> None:
    keys = b"a\x03\x1a\x1c\x04\x11\x13\r\x7f\xff"
    terminal.types(keys)
    guest.hears(keys)
    guest.prints(b"echo")
    terminal.sees(b"echo")


def test_a_window_that_changes_its_size_disturbs_nothing(guest: Guest, terminal: Terminal) -> None:
    terminal.process.send_signal(signal.SIGWINCH)
    terminal.types(b"x")
    guest.hears(b"x")
    guest.prints(b"shown")
    terminal.sees(b"shown")


def test_leaving_restores_the_terminal_and_lets_the_guest_run(guest: Guest, terminal: Terminal) -> None:
    assert terminal.modes() != terminal.before
    terminal.types(b"bye\x1dnot for the guest")
    terminal.sees(b"detached from g, which runs on")
    assert terminal.process.wait(PATIENCE_S) == 0
    assert terminal.modes() == terminal.before
    guest.hears(b"bye")


def test_a_guest_that_ends_while_a_terminal_is_attached_says_so_and_restores_it(
    guest: Guest, terminal: Terminal
) -> None:
    guest.end()
    terminal.sees(b"guest g ended")
    assert terminal.process.wait(PATIENCE_S) == 0
    assert terminal.modes() == terminal.before


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT, signal.SIGQUIT])
def test_a_signal_restores_the_terminal(terminal: Terminal, number: signal.Signals) -> None:
    terminal.process.send_signal(number)
    assert terminal.process.wait(PATIENCE_S) == 128 + number
    assert terminal.modes() == terminal.before


def test_a_terminal_that_hangs_up_leaves_no_process_behind(terminal: Terminal) -> None:
    os.close(terminal.keys)
    terminal.process.wait(PATIENCE_S)


def test_what_is_piped_in_is_typed_and_output_goes_on_until_the_guest_ends(guest: Guest) -> None:
    command = [sys.executable, "-c", _SEALIFT, "console", "g"]
    with subprocess.Popen(
        [*command, "--host", str(guest.host)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdin is not None
        process.stdin.write(b"cmd\n")
        process.stdin.close()
        guest.accept()
        guest.hears(b"cmd\n")
        guest.prints(b"answer\n# ")
        guest.end()
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.read() == b"answer\n# "
        assert process.stderr.read() == b""
        assert process.wait(PATIENCE_S) == 0

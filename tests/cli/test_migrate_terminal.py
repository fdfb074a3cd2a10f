"""``sealift migrate`` on a terminal: a bar that moves, and Ctrl-C, which asks what it means."""

from __future__ import annotations

import os
import pty
import re
import signal
import termios
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from harness import PATIENCE_S, Sealift, readable
from sealift.cli.places import Host
from sealift.cli.qmp_client import QmpClient

from .test_migrate import LEDGER, source, target, updates

PAGE = Path(__file__).parents[2] / "docs" / "migration.md"
SLOW = 64 * 1024
_LOCAL_MODES = 3
"""Place of c_lflag in what tcgetattr gives."""
_COLUMNS = 100
_FIGURE = re.compile(r"\d+(\.\d+)?")
_BAR = re.compile("[━╸╺]+ *")
_STYLE = re.compile(rb"\x1b\[[0-9;?]*[A-Za-z]")


class Terminal:
    """A pseudo-terminal as wide as the page, and what it was made to show."""

    def __init__(self) -> None:
        self.keys, self.tty = pty.openpty()
        termios.tcsetwinsize(self.tty, (24, _COLUMNS))
        self.text = self.shown = b""

    def sees(self, part: str) -> None:
        """Wait until this is shown, from here on."""
        deadline = time.monotonic() + PATIENCE_S
        while part.encode() not in _STYLE.sub(b"", self.text):
            assert readable(self.keys, deadline - time.monotonic()), f"{part!r} was not shown: {self.text!r}"
            data = os.read(self.keys, 65536)
            self.text += data
            self.shown += data
        self.text = b""

    def types(self, key: str) -> None:
        """A key is pressed, once keys are looked at: what was typed before is thrown away."""
        deadline = time.monotonic() + PATIENCE_S
        while termios.tcgetattr(self.tty)[_LOCAL_MODES] & termios.ICANON:
            assert time.monotonic() < deadline, "nobody looks at keys"
            time.sleep(0.01)
        os.write(self.keys, key.encode())

    def close(self) -> None:
        """Both ends."""
        os.close(self.keys)
        os.close(self.tty)


@pytest.fixture
def terminals() -> Iterator[tuple[Terminal, Terminal]]:
    made = Terminal(), Terminal()
    yield made
    for terminal in made:
        terminal.close()


def leveled(line: str) -> str:
    """The line without what differs from run to run."""
    return _FIGURE.sub("N", _BAR.sub("BAR ", line.replace("demo", "a"))).strip()


def check_page(shown: str) -> None:
    """What docs/migration.md shows of a terminal was shown, in this order."""
    (screen,) = re.findall(r"^```screen\n\$ .*\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    lines = iter([leveled(line) for line in re.split(r"[\r\n]+", shown)])
    for line in screen.splitlines():
        assert line == "^C" or leveled(line) in lines, (line, shown)


def test_ctrl_c_asks_and_each_answer_is_done(
    sealift: Callable[..., Sealift],
    state_dir: Path,
    other_host: Host,
    tmp_path: Path,
    terminals: tuple[Terminal, Terminal],
) -> None:
    payload = tmp_path / "payload"
    payload.write_bytes(os.urandom(4 << 20))
    guest = source(sealift, *LEDGER, "--payload", payload)
    _, address = target(sealift, other_host, "tcp:127.0.0.1:0")
    with QmpClient(state_dir / "hosts" / "default" / "run", "a") as qmp:
        qmp.execute("migrate-set-parameters", max_bandwidth=SLOW)

    terminal, another = terminals
    watching = sealift("migrate", "a", address, stdin=terminal.tty, stderr=terminal.tty)
    terminal.sees("active, round 1")
    watching.signal(signal.SIGINT)
    terminal.sees("press c to cancel the migration, d to detach from it, another key to go on watching")
    terminal.types("x")
    terminal.sees("active, round 1")
    watching.signal(signal.SIGINT)
    terminal.sees("press c")
    terminal.types("d")
    assert watching.wait() == 0
    check_page(_STYLE.sub(b"", terminal.shown).decode() + "\n" + watching.stdout.text)

    again = sealift("migrate", "a", stdin=another.tty, stderr=another.tty)
    another.sees("active, round 1")
    again.signal(signal.SIGINT)
    another.sees("press c")
    printed = len(guest.stdout.text)
    another.types("c")
    another.sees("guest a was not moved: the migration was cancelled")
    assert again.wait() == 1
    guest.stdout.wait_until(lambda text: len(updates(text[printed:])) > 3, "progress after the cancellation")

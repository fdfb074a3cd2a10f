"""Shows steps as they happen: a spinner and colours on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final, TextIO

from rich.console import Console
from rich.status import Status
from rich.text import Text

_WIDTH: Final = 110
"""Columns at most: longer lines are hard to read."""

_TITLE_WIDTH: Final = 10
_INDENT: Final = 4 + _TITLE_WIDTH + 1
_GAP: Final = 3


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a step came to.

    Attributes:
        ok: whether it is as promised.
        headline: the fact, in one line.
        meaning: what that says, in a sentence or two.
    """

    ok: bool
    headline: str
    meaning: str


class Step:
    """A step that is being made; `outcome` is shown when it ends."""

    def __init__(self, status: Status | None) -> None:
        self._status = status
        self.outcome: Outcome | None = None

    def progress(self, text: str) -> None:
        """Say how far it is, where somebody watches."""
        if self._status is not None:
            self._status.update(_spinning(text))


class Screen:
    """Writes to a file, which may be a terminal."""

    def __init__(self, file: TextIO) -> None:
        terminal = Console(file=file)
        self._width = min(terminal.width, _WIDTH) if terminal.is_terminal else _WIDTH
        self._console = Console(file=file, width=self._width, highlight=False)
        self._begun = time.monotonic()

    @property
    def elapsed_s(self) -> float:
        """Since this screen was made."""
        return time.monotonic() - self._begun

    def heading(self, text: str) -> None:
        """A line above everything."""
        self._print(Text(f"\n{text}\n", style="bold"))

    @contextmanager
    def step(self, title: str, doing: str) -> Iterator[Step]:
        """Make a step: shows `doing` meanwhile, and its outcome afterwards."""
        begun = time.monotonic()
        status = self._console.status(_spinning(doing)) if self._console.is_terminal else None
        step = Step(status)
        try:
            if status is not None:
                status.start()
            yield step
        except BaseException:
            self._stop(status)
            self._line(title, Outcome(ok=False, headline=doing.rstrip("… "), meaning=""), begun)
            raise
        self._stop(status)
        if step.outcome is not None:
            self._line(title, step.outcome, begun)

    def table(self, headings: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """Rows below the outcome of a step."""
        shown = [[Text(heading, style="dim") for heading in headings]]
        shown += [[Text(cell) for cell in row] for row in rows]
        self._columns(shown, _INDENT)

    def verdict(self, text: str, *, ok: bool) -> None:
        """The last word."""
        self._print(Text(f"\n  {text}  ({self.elapsed_s:.1f} s)", style="bold green" if ok else "bold red"))

    def hints(self, title: str, hints: Sequence[tuple[str, str]]) -> None:
        """Commands, and what they are for."""
        self._print(Text(f"\n  {title}", style="bold"))
        rows = [[Text(command, style="cyan"), Text(purpose, style="dim")] for command, purpose in hints]
        self._columns(rows, 4)
        self._print(Text())

    def _line(self, title: str, outcome: Outcome, begun: float) -> None:
        mark, style = ("✓", "green") if outcome.ok else ("✗", "red")
        seconds = f"{time.monotonic() - begun:.1f} s"
        line = Text.assemble(
            ("  "), (mark, f"bold {style}"), (f" {title:<{_TITLE_WIDTH}} ", "bold"), (outcome.headline, "")
        )
        line.append(seconds.rjust(max(self._width - line.cell_len, len(seconds) + 2)), style="dim")
        self._print(line)
        if outcome.meaning:
            for text in Text(outcome.meaning, style="dim").wrap(self._console, self._width - _INDENT):
                text.rstrip()
                self._print(Text(" " * _INDENT).append_text(text))

    def _print(self, what: Text) -> None:
        self._console.print(what, soft_wrap=True)

    def _columns(self, rows: Sequence[Sequence[Text]], indent: int) -> None:
        widths = [max(cell.cell_len for cell in column) for column in zip(*rows, strict=True)]
        for row in rows:
            line = Text(" " * indent)
            for cell, width in zip(row, widths, strict=True):
                line.append_text(cell).append(" " * (width - cell.cell_len + _GAP))
            line.rstrip()
            self._print(line)

    def _stop(self, status: Status | None) -> None:
        if status is not None:
            status.stop()


def _spinning(text: str) -> Text:
    return Text(text, style="cyan")

"""How far a migration is: a bar for people, a line now and then for logs. Both go to standard error."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING, Final, Protocol

import click

from sealift.vmm.migration.stats import MigrationInfo
from sealift.vmm.migration.status import MigrationStatus

if TYPE_CHECKING:
    from rich.progress import Progress


_LINE_EVERY_S: Final = 10.0
"""Often enough to see that something goes on, and a migration of an hour has no more than a few hundred."""


class ProgressDisplay(Protocol):
    """Shows a migration."""

    def show(self, info: MigrationInfo) -> None:
        """One state after the other."""

    def aside(self) -> AbstractContextManager[None]:
        """Leave the terminal to somebody who asks something meanwhile."""


@contextmanager
def progress_display(name: str) -> Iterator[ProgressDisplay]:
    """Shows the migration of guest `name`."""
    if not sys.stderr.isatty():
        yield Lines(name)
        return
    with Bar.shown(name) as bar:
        yield bar


class Advance:
    """How much is done, from 0 to 1.

    A guest that writes makes what remains grow again. What is shown is work done of work known up to the cut-over,
    where the guest is stopped, and never less than it was; all of it only when the guest runs on the other side.
    """

    _ALMOST = 0.99

    def __init__(self) -> None:
        self._shown = 0.0

    def of(self, info: MigrationInfo) -> float:
        """The share to show now."""
        if info.status is MigrationStatus.COMPLETED:
            self._shown = 1.0
        elif info.ram is not None and (known := info.ram.transferred + _ahead(info, info.ram.remaining)):
            self._shown = max(self._shown, min(info.ram.transferred / known, self._ALMOST))
        return self._shown


def _ahead(info: MigrationInfo, remaining: int) -> int:
    """Bytes to send before the guest is stopped; after that, all of the rest counts."""
    if info.status is not MigrationStatus.ACTIVE:
        return remaining
    return max(0, remaining - (info.x_sealift_cutover or 0))


class Lines:
    """One line for every new status, and one every ten seconds."""

    def __init__(self, name: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._name = name
        self._clock = clock
        self._status: MigrationStatus | None = None
        self._due = 0.0

    def show(self, info: MigrationInfo) -> None:
        """Say it, if it is news or nothing was said for long."""
        now = self._clock()
        if info.status is not self._status or now >= self._due:
            self._status, self._due = info.status, now + _LINE_EVERY_S
            click.echo(f"sealift: {self._name}: {summary(info)}", err=True)

    def aside(self) -> AbstractContextManager[None]:
        """Nothing is in anybody's way."""
        return nullcontext()


def summary(info: MigrationInfo) -> str:
    """Status, round, remaining and throughput."""
    if info.ram is None or not info.ram.dirty_sync_count:
        return info.status
    remaining = info.ram.remaining / (1 << 20)
    megabytes = info.ram.mbps / 8
    speed = f"{megabytes:.0f}" if megabytes >= 10 else f"{megabytes:.1f}"
    cutover = "" if info.x_sealift_cutover is None else f" (cut-over at {info.x_sealift_cutover / (1 << 20):.1f})"
    return f"{info.status}, round {info.ram.dirty_sync_count}, {remaining:.1f} MiB remaining{cutover}, {speed} MB/s"


class Bar:
    """A bar that moves, for a terminal."""

    def __init__(self, progress: Progress, name: str) -> None:
        self._progress = progress
        self._advance = Advance()
        self._task = progress.add_task(name, total=1.0, summary="")

    @classmethod
    @contextmanager
    def shown(cls, name: str) -> Iterator[Bar]:
        """On standard error, until the end."""
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

        columns = (
            TextColumn("[bold]{task.description}"),
            BarColumn(),
            TextColumn("{task.percentage:>3.0f} %"),
            TextColumn("{task.fields[summary]}"),
            TimeElapsedColumn(),
        )
        with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
            yield cls(progress, name)

    def show(self, info: MigrationInfo) -> None:
        """One state after the other."""
        self._progress.update(self._task, completed=self._advance.of(info), summary=summary(info))

    @contextmanager
    def aside(self) -> Iterator[None]:
        """The bar is gone meanwhile."""
        self._progress.stop()
        try:
            yield
        finally:
            self._progress.start()

"""How far a migration is: a bar for people, a line a round for logs. Both go to standard error."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeAlias

import click

from sealift.vmm.migration.stats import MigrationInfo
from sealift.vmm.migration.status import MigrationStatus

Show: TypeAlias = Callable[[MigrationInfo], None]


@contextmanager
def progress_display(name: str) -> Iterator[Show]:
    """Shows the migration of guest `name` as it is called with one state after the other."""
    if not sys.stderr.isatty():
        yield Lines(name).show
        return
    with _bar(name) as show:
        yield show


class Advance:
    """How much is done, from 0 to 1.

    A guest that writes makes what remains grow again. What is shown is work done of work known, and never less than
    it was; all of it only when the guest runs on the other side.
    """

    _ALMOST = 0.99

    def __init__(self) -> None:
        self._shown = 0.0

    def of(self, info: MigrationInfo) -> float:
        """The share to show now."""
        if info.status == MigrationStatus.COMPLETED.value:
            self._shown = 1.0
        elif info.ram is not None and (known := info.ram.transferred + info.ram.remaining):
            self._shown = max(self._shown, min(info.ram.transferred / known, self._ALMOST))
        return self._shown


class Lines:
    """One line for every new status and every new round."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._last: tuple[str, int] | None = None

    def show(self, info: MigrationInfo) -> None:
        """Say it, if there is something new to say."""
        news = (info.status, info.ram.dirty_sync_count if info.ram else 0)
        if news != self._last:
            self._last = news
            click.echo(f"sealift: {self._name}: {summary(info)}", err=True)


def summary(info: MigrationInfo) -> str:
    """Status, round, remaining and throughput."""
    if info.ram is None or not info.ram.dirty_sync_count:
        return info.status
    remaining = info.ram.remaining / (1 << 20)
    megabytes = info.ram.mbps / 8
    speed = f"{megabytes:.0f}" if megabytes >= 10 else f"{megabytes:.1f}"
    return f"{info.status}, round {info.ram.dirty_sync_count}, {remaining:.1f} MiB remaining, {speed} MB/s"


@contextmanager
def _bar(name: str) -> Iterator[Show]:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (
        TextColumn("[bold]{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f} %"),
        TextColumn("{task.fields[summary]}"),
        TimeElapsedColumn(),
    )
    advance = Advance()
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(name, total=1.0, summary="")

        def show(info: MigrationInfo) -> None:
            progress.update(task, completed=advance.of(info), summary=summary(info))

        yield show

"""Having a guest dumped, and showing how far that is."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import msgspec

from sealift.cli.qmp_client import QmpClient
from sealift.vmm.qmp.events import DumpCompletedData, DumpQueryResult

_LOOK_S: Final = 0.2
"""How often it is looked how far a dump is."""

Show = Callable[[DumpQueryResult], None]


def dump(qmp: QmpClient, path: Path, **wanted: Any) -> tuple[DumpQueryResult, float, str | None]:  # noqa: ANN401  # options
    """Dump the guest to a file (an absolute path): how it ended, the seconds it took, and why it failed if it did.

    Raises:
        RefusedError: it cannot be dumped.
        LostError: the VMM is gone.
    """
    arguments = {
        "paging": wanted["paging"],
        "protocol": f"file:{path}",
        "detach": True,
        "x_sealift_raw": wanted["raw"],
        **{name: wanted[name] for name in ("begin", "length") if wanted[name] is not None},
    }
    with _shown(qmp.guest) as show:
        started = time.monotonic()
        qmp.execute("dump-guest-memory", **arguments)
        try:
            ended = _follow(qmp, show)
        except KeyboardInterrupt:
            qmp.execute("x-sealift-cancel-dump")
            raise
    return ended.result, time.monotonic() - started, ended.error


def _follow(qmp: QmpClient, show: Show) -> DumpCompletedData:
    while True:
        event = qmp.next_event(_LOOK_S)
        if event is not None and event[0] == "DUMP_COMPLETED":
            return msgspec.convert(event[1], DumpCompletedData)
        show(qmp.query("query-dump", DumpQueryResult))


@contextmanager
def _shown(name: str) -> Iterator[Show]:
    """A bar on a terminal, and nothing elsewhere."""
    if not sys.stderr.isatty():
        yield lambda _: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

    columns = (
        TextColumn("[bold]{task.description}"),
        BarColumn(),
        DownloadColumn(binary_units=True),
        TransferSpeedColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(name)
        yield lambda result: progress.update(task, completed=result.completed, total=result.total)

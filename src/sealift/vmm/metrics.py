"""Metrics of one VMM, for Prometheus: read when somebody asks, from what is counted anyway; no page costs anything.

Names follow the field's habits: base units, ``_bytes``, ``_seconds``, ``_total`` for what only grows. What belongs to
one migration is a gauge, since the next one begins at nothing. Every series has the guest's name as label ``guest``.
The registry is the VMM's own, and nothing is registered globally.
"""

from __future__ import annotations

import contextlib
import re
import socketserver
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any, Final

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import MetricsHandler

from sealift.errors import UserError
from sealift.vmm.events import Direction, GuestEvent, MigrationChanged
from sealift.vmm.guest import Guest
from sealift.vmm.migration.dirtyrate import DirtyRateStatus
from sealift.vmm.migration.stats import MigrationInfo
from sealift.vmm.migration.status import ENDED, MigrationStatus
from sealift.vmm.migration.transport import TcpAddress, UnixAddress, parse_uri

_WORD: Final = re.compile(r"(?<!^)(?=[A-Z])")

_CLIENT_LIMIT_S: Final = 10.0
"""For a request to come, and for an answer to be taken: Prometheus itself gives up after ten seconds."""

CLIENTS_LIMIT: Final = 16
"""Connections at a time, each with a thread of the VMM's; others are let go."""

_UNDERWAY: Final = set(MigrationStatus) - ENDED - {MigrationStatus.NONE}


class GuestCollector:
    """Looks at a guest whenever Prometheus does (prometheus_client's Collector)."""

    def __init__(self, guest: Guest) -> None:
        self._guest = guest
        self._ended: Counter[str] = Counter({status.value: 0 for status in ENDED})
        guest.events.listen(self._note)

    def _note(self, event: GuestEvent) -> None:
        match event:
            case MigrationChanged(Direction.OUTGOING, status) if status in ENDED:
                self._ended[status.value] += 1

    def collect(self) -> Iterable[Metric]:
        """Everything, now."""
        yield self._gauge(
            "guest_state", "The run state the guest is in, as label state.", 1, state=self._guest.state.value
        )
        yield self._ended_migrations()
        yield from self._dirty_rate()
        if not self._guest.awaited:
            yield from self._machine()
        if (info := self._guest.migration()) is not None:
            yield from self._migration(info)

    def _machine(self) -> Iterator[Metric]:
        machine = self._guest.machine
        yield self._gauge("guest_memory_bytes", "Guest RAM.", machine.layout.size)
        yield self._gauge("guest_vcpus", "vCPUs.", machine.vcpu_count)
        exits = self._counter("vcpu_exits", "Exits to the VMM, by kind.", "kind")
        for kind, count in machine.vcpus.exits.items():
            exits.add_metric([self._guest.name, _WORD.sub("_", kind.__name__).lower()], count)
        yield exits
        counts = machine.platform.handler_counts()
        if counts is None:
            return
        records = self._counter("handler_records", "Records that the migration handler sealed or opened.", "direction")
        lengths = self._counter("handler_bytes", "Bytes of those records.", "direction")
        for direction, count, length in (
            ("sealed", counts.sealed_records, counts.sealed_bytes),
            ("opened", counts.opened_records, counts.opened_bytes),
        ):
            records.add_metric([self._guest.name, direction], count)
            lengths.add_metric([self._guest.name, direction], length)
        yield records
        yield lengths
        yield self._gauge(
            "handler_unsent_pages", "Private pages to send, as the handler said last.", counts.unsent_pages
        )

    def _dirty_rate(self) -> Iterator[Metric]:
        last = self._guest.dirty_rate.last
        measuring = last.status is DirtyRateStatus.MEASURING
        yield self._gauge("dirty_rate_measuring", "Whether the dirty rate is being measured.", int(measuring))
        if (rate := last.bytes_per_s) is not None:
            yield self._gauge("dirty_rate_bytes_per_second", "What the guest wrote, when it was last measured.", rate)
            when = "When the last measurement began."
            yield self._gauge("dirty_rate_measured_timestamp_seconds", when, last.began)

    def _ended_migrations(self) -> Metric:
        ended = self._counter("migrations", "Migrations away from here that have ended, by outcome.", "status")
        for status, count in self._ended.items():
            ended.add_metric([self._guest.name, status], count)
        return ended

    def _migration(self, info: MigrationInfo) -> Iterator[Metric]:
        """The last migration, whether it goes on or has ended."""
        yield self._gauge("migration_active", "Whether a migration is underway.", int(info.status in _UNDERWAY))
        yield self._gauge("migration_duration_seconds", "Time since it began, or that it took.", info.total_time / 1e3)
        if info.downtime is not None:
            yield self._gauge("migration_downtime_seconds", "How long the guest was stopped.", info.downtime / 1e3)
        parts = GaugeMetricFamily(
            "sealift_migration_downtime_part_seconds",
            "Downtime by what the guest waited for.",
            labels=["guest", "part"],
        )
        for part, milliseconds in (info.x_sealift_downtime_parts or {}).items():
            parts.add_metric([self._guest.name, part], milliseconds / 1e3)
        yield parts
        if info.ram is None or info.x_sealift_pages is None:
            return
        yield self._gauge("migration_transferred_bytes", "Bytes of the stream.", info.ram.transferred)
        yield self._gauge("migration_remaining_bytes", "Bytes known to be unsent.", info.ram.remaining)
        yield self._gauge("migration_rounds", "Rounds begun.", info.ram.dirty_sync_count)
        pages = GaugeMetricFamily("sealift_migration_pages", "Pages by their way.", labels=["guest", "kind"])
        for kind, count in (
            ("private", info.x_sealift_pages.private_pages),
            ("shared", info.x_sealift_pages.shared_pages),
            ("zero", info.ram.duplicate),
            ("hole", info.x_sealift_pages.hole_pages),
        ):
            pages.add_metric([self._guest.name, kind], count)
        yield pages

    def _gauge(self, name: str, text: str, value: float, **labels: str) -> Metric:
        family = GaugeMetricFamily(f"sealift_{name}", text, labels=["guest", *labels])
        family.add_metric([self._guest.name, *labels.values()], value)
        return family

    def _counter(self, name: str, text: str, *labels: str) -> CounterMetricFamily:
        return CounterMetricFamily(f"sealift_{name}", text, labels=["guest", *labels])


class MetricsEndpoint:
    """Serves ``/metrics`` at an address, once it is told of which guest; until then Prometheus finds nothing there.

    Attributes:
        shown: where it is, for people; with the port that the system chose.

    Raises:
        UserError: `address` is none, or cannot be listened on.
    """

    def __init__(self, address: str) -> None:
        self._registry = CollectorRegistry(auto_describe=False)
        handler = type("Answer", (_Limited, MetricsHandler.factory(self._registry)), {})
        try:
            place = parse_uri(address if address.startswith("unix:") else f"tcp:{address}")
        except UserError:
            raise UserError(f"{address!r} is no address for metrics; write HOST:PORT or unix:PATH") from None
        self._path: Path | None = None
        try:
            match place:
                case UnixAddress(path):
                    self._server: socketserver.BaseServer = _UnixServer(str(path), handler)
                    self._path, self.shown = path, str(place)
                case TcpAddress(host, port):
                    self._server = _TcpServer((host or "127.0.0.1", port), handler)
                    self.shown = "http://{}:{}/metrics".format(*self._server.server_address[:2])
        except OSError as error:
            raise UserError(f"metrics cannot be served at {address}") from error
        self._thread = threading.Thread(target=self._server.serve_forever, name="metrics", daemon=True)
        self._thread.start()

    def serve(self, guest: Guest) -> None:
        """From now on these are the guest's."""
        self._registry.register(GuestCollector(guest))

    def close(self) -> None:
        """Stop serving."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
        if self._path is not None:
            with contextlib.suppress(OSError):
                self._path.unlink()


class _Limited(BaseHTTPRequestHandler):
    """One request a connection, and no more than so many seconds of silence in it."""

    timeout = _CLIENT_LIMIT_S


class _Places(socketserver.ThreadingMixIn):
    """A thread a connection, and no more of them than there are places: whoever connects is nobody we know."""

    daemon_threads = True

    def __init__(self, *arguments: Any, **named: Any) -> None:  # noqa: ANN401  # the servers' own
        self._places = threading.BoundedSemaphore(CLIENTS_LIMIT)
        super().__init__(*arguments, **named)

    def process_request(self, request: Any, client_address: Any) -> None:  # noqa: ANN401
        """Take a place for it, or let it go."""
        if self._places.acquire(blocking=False):
            super().process_request(request, client_address)
        else:
            self.shutdown_request(request)  # type: ignore[attr-defined]  # of the server that this is mixed into

    def process_request_thread(self, request: Any, client_address: Any) -> None:  # noqa: ANN401
        """Serve it, and give its place back."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._places.release()

    def handle_error(self, request: Any, client_address: Any) -> None:  # noqa: ANN401
        """A client that is gone is none of the user's business."""


class _TcpServer(_Places, HTTPServer):
    pass


class _UnixServer(_Places, socketserver.UnixStreamServer):
    RequestHandlerClass: Callable[..., Any]

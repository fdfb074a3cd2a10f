"""Metrics of a running guest, read as Prometheus reads them: with the parser of its own client library."""

from __future__ import annotations

import http.client
import socket
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from prometheus_client import REGISTRY
from prometheus_client.parser import text_string_to_metric_families

from harness import PATIENCE_S
from sealift.errors import UserError
from sealift.vmm.events import Direction, MigrationChanged
from sealift.vmm.handler import HandlerCounts
from sealift.vmm.metrics import CLIENTS_LIMIT, MetricsEndpoint
from sealift.vmm.migration.status import MigrationStatus
from sealift.wire import handler as wire

from .conftest import Served

Series = dict[tuple[str, frozenset[tuple[str, str]]], float]


@pytest.fixture
def endpoint(served: Served) -> Iterator[MetricsEndpoint]:
    endpoint = MetricsEndpoint("127.0.0.1:0")
    endpoint.serve(served.guest)
    yield endpoint
    endpoint.close()


def series(text: str) -> Series:
    """Values by name and labels other than the guest, which must be there."""
    found: Series = {}
    for family in text_string_to_metric_families(text):
        assert family.documentation, family.name
        for sample in family.samples:
            labels = dict(sample.labels)
            assert labels.pop("guest") == "served", sample
            found[sample.name, frozenset(labels.items())] = sample.value
    return found


def scrape(endpoint: MetricsEndpoint) -> Series:
    with urllib.request.urlopen(endpoint.shown, timeout=30) as response:  # noqa: S310  # our own address
        assert response.headers["Content-Type"].startswith("text/plain")
        return series(response.read().decode())


def test_a_guest_is_described_in_base_units(endpoint: MetricsEndpoint, served: Served) -> None:
    exits = ("sealift_vcpu_exits_total", frozenset({("kind", "port_out")}))
    until = time.monotonic() + PATIENCE_S
    while exits not in (found := scrape(endpoint)):  # the guest has only just been started
        assert time.monotonic() < until, found
        time.sleep(0.05)
    assert found["sealift_guest_state", frozenset({("state", "running")})] == 1
    assert found["sealift_guest_memory_bytes", frozenset()] == 16 << 20
    assert found["sealift_guest_vcpus", frozenset()] == served.guest.machine.vcpu_count
    assert found[exits] > 0
    assert found["sealift_dirty_rate_measuring", frozenset()] == 0


def test_names_follow_the_fields_habits(endpoint: MetricsEndpoint) -> None:
    with urllib.request.urlopen(endpoint.shown, timeout=30) as response:  # noqa: S310  # our own address
        families = list(text_string_to_metric_families(response.read().decode()))
    for family in families:
        assert family.name.startswith("sealift_")
        for sample in family.samples:
            assert (family.type == "counter") is sample.name.endswith("_total"), sample.name


def test_migrations_are_counted_by_how_they_ended(endpoint: MetricsEndpoint, served: Served) -> None:
    failed = ("sealift_migrations_total", frozenset({("status", "failed")}))
    before = scrape(endpoint)[failed]
    for status in (MigrationStatus.SETUP, MigrationStatus.ACTIVE, MigrationStatus.FAILED):
        served.guest.events.publish(MigrationChanged(Direction.OUTGOING, status))
    served.guest.events.publish(MigrationChanged(Direction.INCOMING, MigrationStatus.FAILED))
    assert scrape(endpoint)[failed] == before + 1


def test_a_handlers_records_are_counted_from_its_own_messages() -> None:
    counts = HandlerCounts()
    counts.came(wire.EpochBegun(epoch=1, pages=7))
    for _ in range(2):
        counts.came(wire.Sealed(100, 1, 0))
    counts.sent(wire.Open(0, 50))
    assert (counts.sealed_records, counts.sealed_bytes) == (2, 200)
    assert (counts.opened_records, counts.opened_bytes) == (1, 50)
    assert counts.unsent_pages == 7


def test_nothing_is_registered_globally(endpoint: MetricsEndpoint) -> None:
    assert scrape(endpoint)
    assert not [family for family in REGISTRY.collect() if family.name.startswith("sealift")]


def test_a_unix_socket_serves_them_too_and_is_gone_with_its_endpoint(served: Served, tmp_path: Path) -> None:
    path = tmp_path / "metrics"
    endpoint = MetricsEndpoint(f"unix:{path}")
    endpoint.serve(served.guest)
    try:
        connection = http.client.HTTPConnection("localhost", timeout=30)
        connection.sock = socket.socket(socket.AF_UNIX)
        connection.sock.connect(str(path))
        connection.request("GET", "/metrics")
        assert series(connection.getresponse().read().decode())
        connection.close()
    finally:
        endpoint.close()
    assert not path.exists()


def test_connections_that_say_nothing_take_no_more_than_their_places(
    endpoint: MetricsEndpoint, capfd: pytest.CaptureFixture[str]
) -> None:
    host, _, port = endpoint.shown.removeprefix("http://").removesuffix("/metrics").rpartition(":")
    before = threading.active_count()
    with ExitStack() as opened:
        for _ in range(3 * CLIENTS_LIMIT):
            opened.enter_context(socket.create_connection((host, int(port)), PATIENCE_S))
        late = opened.enter_context(socket.create_connection((host, int(port)), PATIENCE_S))
        assert late.recv(1) == b"", "a connection over the limit is held"
        assert threading.active_count() <= before + CLIENTS_LIMIT
    until = time.monotonic() + PATIENCE_S
    while threading.active_count() > before:
        assert time.monotonic() < until
        time.sleep(0.05)
    assert scrape(endpoint)
    assert capfd.readouterr().err == ""


def test_an_address_that_is_taken_or_is_none_is_refused_in_a_sentence(endpoint: MetricsEndpoint) -> None:
    taken = endpoint.shown.removeprefix("http://").removesuffix("/metrics")
    with pytest.raises(UserError, match="cannot be served"):
        MetricsEndpoint(taken)
    with pytest.raises(UserError, match="write HOST:PORT or unix:PATH"):
        MetricsEndpoint("nonsense")

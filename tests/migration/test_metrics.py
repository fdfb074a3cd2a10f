"""What Prometheus is told of a migration is what query-migrate says of it."""

from __future__ import annotations

import urllib.request
from collections.abc import Mapping
from contextlib import closing

from prometheus_client.parser import text_string_to_metric_families

from sealift.vmm.metrics import MetricsEndpoint

from . import rig
from .test_orders import controlled


def _kinds(labels: Mapping[str, str]) -> list[str]:
    """What a series is of, but for the guest."""
    return [value for name, value in labels.items() if name != "guest"]


def test_a_migration_is_measured_while_it_goes_on_and_when_it_has_ended(world: rig.World) -> None:
    guest = world.start()
    guest.work(4)
    attempt = rig.attempt(world, guest)
    user = controlled(guest)
    user._migration = attempt.migration
    with closing(MetricsEndpoint("127.0.0.1:0")) as endpoint:
        endpoint.serve(user)

        def scrape() -> dict[str, float]:
            with urllib.request.urlopen(endpoint.shown, timeout=30) as response:  # noqa: S310  # our own address
                families = text_string_to_metric_families(response.read().decode())
                samples = [sample for family in families for sample in family.samples]
            return {" ".join((sample.name, *sorted(_kinds(sample.labels)))): sample.value for sample in samples}

        during: list[dict[str, float]] = []
        attempt.migration.pass_begun = lambda _: during.append(scrape())
        attempt.begin()
        info = attempt.end()
        assert info.status == "completed", info
        after = scrape()
    assert [each["sealift_migration_active"] for each in during] == [1.0] * len(during)
    assert info.ram is not None
    assert info.x_sealift_pages is not None
    assert info.downtime is not None
    assert after["sealift_migration_active"] == 0
    assert after["sealift_migration_rounds"] == info.ram.dirty_sync_count == len(during)
    assert after["sealift_migration_transferred_bytes"] == info.ram.transferred
    assert after["sealift_migration_remaining_bytes"] == 0
    assert after["sealift_migration_pages private"] == info.x_sealift_pages.private_pages > 0
    assert after["sealift_migration_pages shared"] == info.x_sealift_pages.shared_pages > 0
    assert abs(after["sealift_migration_downtime_seconds"] - info.downtime / 1e3) < 0.001
    parts = {name: seconds for name, seconds in after.items() if "downtime_part" in name}
    assert len(parts) == len(info.x_sealift_downtime_parts or {})
    attempt.guest().work(4)

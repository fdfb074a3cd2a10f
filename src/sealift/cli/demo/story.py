"""The demonstration, step by step. Each step shows what it does, and gives its part of the report."""

from __future__ import annotations

from typing import Final

import msgspec

from sealift.cli.demo import words
from sealift.cli.demo.part import Part
from sealift.cli.demo.relay import RecordingRelay
from sealift.cli.demo.report import LaunchReport, MigrationReport, Report, SecrecyReport
from sealift.cli.demo.screen import Screen
from sealift.cli.demo.secrecy import Hunt, hunt
from sealift.cli.demo.stage import Stage
from sealift.cli.vmm_process import VmmProcess
from sealift.cli.way import Way
from sealift.errors import InternalError, PeerError, RefusedError, SealiftError
from sealift.owner.ledger import Launch
from sealift.vmm.migration.stats import MigrationInfo
from sealift.vmm.migration.status import MigrationStatus

_WIRE_PATIENCE_S: Final = 60.0
"""For the end of a connection whose migration is over."""

_MIGRATION_PATIENCE_S: Final = 600.0
"""Hundreds of MiB page by page through the mailbox, on a slow machine."""


class _Processes(msgspec.Struct, frozen=True):
    engine: str


class Story:
    """One demonstration: a guest's part on a stage, shown on a screen."""

    def __init__(self, stage: Stage, part: Part, screen: Screen) -> None:
        self._stage = stage
        self._part = part
        self._screen = screen

    def tell(self) -> Report:
        """Play it from the launch to the search; what came out.

        Raises:
            SealiftError: it could not be played to its end; the message says why.
        """
        self._screen.heading(words.HEADING)
        try:
            report = self._play()
        except SealiftError:
            self._screen.hints("What the VMMs said", self._stage.said())
            raise
        self._screen.verdict(words.verdict(report), ok=report.ok)
        if report.ok:
            self._screen.hints("What to try next", words.NEXT)
        return report

    def _play(self) -> Report:
        source, launch = self._launch()
        self._part.begin(self._screen)
        target, relay = self._stage.start_target(self._part.arrival_options)
        self._part.expect()
        migration = self._migrate(source, relay)
        guest = self._part.go_on(self._screen)
        secrecy = self._search(source, target, relay)
        engine = source.qmp.query("x-sealift-query-processes", _Processes).engine
        return Report.of(engine, launch, migration, guest, secrecy)

    def _launch(self) -> tuple[VmmProcess, LaunchReport]:
        recipe = self._part.recipe
        with self._screen.step("Launched", "Launching the guest on host-a, encrypted and measured …") as step:
            source = self._stage.start_source(self._part.launch_options)
            _ = source.qmp  # answers only once the owner has released the secret and the guest runs
            expected = recipe.launch_digest()
            report = LaunchReport(self._guests_launch().launch_digest == expected, expected.hex())
            step.outcome = words.launched(report, recipe.layout.size, recipe.vcpus)
        return source, report

    def _guests_launch(self) -> Launch:
        """The owner's record of the one launch whose measurement it verified and whose secret it released."""
        released = [launch for launch in self._stage.owners_ledger().released() if launch.source is None]
        if len(released) != 1:
            raise RefusedError(f"the owner released {len(released)} secrets for this guest, not one")
        return released[0]

    def _migrate(self, source: VmmProcess, relay: RecordingRelay) -> MigrationReport:
        with self._screen.step("Migrated", "Moving the running guest to host-b …") as step:
            source.qmp.execute("migrate-set-parameters", **self._part.way.parameters)
            source.qmp.execute("migrate-set-capabilities", capabilities=self._part.way.capabilities)
            source.qmp.execute("migrate", uri=relay.uri)
            info = MigrationInfo()
            for info in source.migrations_end(_MIGRATION_PATIENCE_S):
                step.progress(words.progress(info))
            if info.status is not MigrationStatus.COMPLETED:
                raise PeerError(f"the migration has {info.status}: {info.error_desc or 'no reason is known'}")
            if not relay.finished(_WIRE_PATIENCE_S):
                raise PeerError("the migration is over, but its connection is still open")
            report = _migration_report(info, self._part.way)
            step.outcome = words.migrated(report)
        return report

    def _search(self, source: VmmProcess, target: VmmProcess, relay: RecordingRelay) -> SecrecyReport:
        with self._screen.step("Secret", "Searching all that a VMM or the network could see …") as step:
            migration = bytes.fromhex(source.migration().x_sealift_migration_id or "")
            planted = Hunt(self._stage.secret, self._stage.marker, migration)
            report = hunt(planted, source, target, relay, self._part.disk)
            step.outcome = words.searched(report)
        self._screen.table(("place", "control marker", "secret"), words.search_rows(report))
        return report


def _migration_report(info: MigrationInfo, way: Way) -> MigrationReport:
    if info.ram is None or info.x_sealift_pages is None or info.downtime is None:
        raise InternalError("a completed migration without figures")
    return MigrationReport(
        status=info.status,
        transfer=way.name,
        total_time_ms=info.total_time,
        downtime_ms=info.downtime,
        rounds=info.ram.dirty_sync_count,
        private_pages=info.x_sealift_pages.private_pages,
        shared_pages=info.x_sealift_pages.shared_pages,
        hole_pages=info.x_sealift_pages.hole_pages,
        bytes=info.ram.transferred,
        method=way.method.value,
    )

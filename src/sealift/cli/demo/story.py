"""The demonstration, step by step. Each step shows what it does, and gives its part of the report."""

from __future__ import annotations

import hashlib
from typing import Final

import msgspec

from sealift.cli.demo import words
from sealift.cli.demo.chain import LedgerChain
from sealift.cli.demo.console import ConsoleWatcher, Printed
from sealift.cli.demo.relay import RecordingRelay
from sealift.cli.demo.report import GuestReport, LaunchReport, MigrationReport, Report, SecrecyReport
from sealift.cli.demo.screen import Screen
from sealift.cli.demo.secrecy import Hunt, hunt
from sealift.cli.demo.stage import VCPUS, Stage
from sealift.cli.vmm_process import MigrationState, VmmProcess
from sealift.errors import PeerError, RefusedError
from sealift.owner.ledger import Launch

_GUEST_PATIENCE_S: Final = 300.0
"""An emulated guest on a busy machine hashes a large payload first; longer than this and it hangs."""

_MIGRATION_PATIENCE_S: Final = 600.0
"""Hundreds of MiB page by page through the mailbox, on a slow machine."""


class _Processes(msgspec.Struct, frozen=True):
    engine: str


class Story:
    """One demonstration on a stage, shown on a screen."""

    def __init__(self, stage: Stage, screen: Screen) -> None:
        self._stage = stage
        self._screen = screen

    def tell(self) -> Report:
        """Play it from the launch to the search; what came out.

        Raises:
            SealiftError: it could not be played to its end; the message says why.
        """
        self._screen.heading(words.HEADING)
        source, launch = self._launch()
        here = self._stage.watch_console("host-a")
        digest = self._payload(here)
        self._count(here)
        target, relay = self._stage.start_target()
        there = self._stage.watch_console("host-b")
        migration = self._migrate(source, relay)
        guest = self._count_on(digest, here.printed, there)
        secrecy = self._search(source, target, relay)
        engine = source.qmp.query("x-sealift-query-processes", _Processes).engine
        report = Report.of(engine, launch, migration, guest, secrecy)
        self._screen.verdict(words.verdict(report), ok=report.ok)
        if report.ok:
            self._screen.hints("What to try next", words.NEXT)
        return report

    def _launch(self) -> tuple[VmmProcess, LaunchReport]:
        recipe = self._stage.recipe
        with self._screen.step("Launched", "Launching the guest on host-a, encrypted and measured …") as step:
            source = self._stage.start_source()
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

    def _payload(self, console: ConsoleWatcher) -> str:
        payload = self._stage.recipe.payload
        with self._screen.step("Payload", "The guest hashes its payload …") as step:
            expected = hashlib.sha256(payload[:]).hexdigest()
            seen = console.wait("it printed its payload's digest", lambda seen: bool(seen.payload), _GUEST_PATIENCE_S)
            step.outcome = words.payload(expected, seen.payload[0], len(payload))
        return expected

    def _count(self, console: ConsoleWatcher) -> None:
        """Let every vCPU walk its whole working set once, so that there is something to move."""
        pages = self._stage.pace.working_set

        def filled(seen: Printed) -> bool:
            return min(seen.updates(VCPUS)) >= pages

        with self._screen.step("Ledger", f"Both vCPUs fill their working sets of {pages:,} pages …") as step:
            seen = console.wait("it had filled its working sets", filled, _GUEST_PATIENCE_S)
            step.outcome = words.counting(seen.updates(VCPUS), pages)

    def _migrate(self, source: VmmProcess, relay: RecordingRelay) -> MigrationReport:
        with self._screen.step("Migrated", "Moving the running guest to host-b …") as step:
            source.qmp.execute("migrate-set-parameters", x_sealift_transfer=self._stage.transfer.value)
            source.qmp.execute("migrate", uri=relay.uri)
            state = MigrationState()
            for state in source.migrations_end(_MIGRATION_PATIENCE_S):
                step.progress(words.progress(state))
            if state.status != "completed":
                raise PeerError(f"the migration has {state.status}: {state.error_desc or 'no reason is known'}")
            if not relay.finished(_GUEST_PATIENCE_S):
                raise PeerError("the migration is over, but its connection is still open")
            report = _migration_report(state, self._stage.transfer.value)
            step.outcome = words.migrated(report)
        return report

    def _count_on(self, digest: str, before: Printed, console: ConsoleWatcher) -> GuestReport:
        """Let the guest walk through everything it brought, and hash its payload again."""
        due = tuple(updates + self._stage.pace.working_set for updates in before.updates(VCPUS))

        def enough(seen: Printed) -> bool:
            now = seen.updates(VCPUS)
            return bool(seen.payload) and all(got >= least for got, least in zip(now, due, strict=True))

        with self._screen.step("Went on", "On host-b the guest verifies every page it brought …") as step:
            after = console.wait("it had verified all that it brought", enough, _GUEST_PATIENCE_S)
            report = self._judge(digest, before, after)
            step.outcome = words.went_on(report)
        return report

    def _judge(self, digest: str, before: Printed, after: Printed) -> GuestReport:
        """Compare what the guest printed with what the owner can compute itself."""
        pages = self._stage.pace.working_set
        chains = [LedgerChain(vcpu, pages, self._stage.secret) for vcpu in range(VCPUS)]
        entries = [*before.entries, *after.entries]
        right = [entry.vcpu < VCPUS and entry.chain == chains[entry.vcpu].after(entry.updates) for entry in entries]
        return GuestReport(
            payload_sha256=digest,
            payload_sha256_source=before.payload[-1],
            payload_sha256_target=after.payload[-1],
            ledger_before=sum(before.updates(VCPUS)),
            ledger_after=sum(after.updates(VCPUS)),
            chain_entries=len(entries),
            chain_verified=all(right),
            faults=len(before.faults) + len(after.faults),
        )

    def _search(self, source: VmmProcess, target: VmmProcess, relay: RecordingRelay) -> SecrecyReport:
        with self._screen.step("Secret", "Searching all that a VMM or the network could see …") as step:
            migration = bytes.fromhex(source.migration().migration_id)
            planted = Hunt(self._stage.secret, self._stage.marker, migration)
            report = hunt(planted, source, target, relay)
            step.outcome = words.searched(report)
        self._screen.table(("place", "control marker", "secret"), words.search_rows(report))
        return report


def _migration_report(state: MigrationState, transfer: str) -> MigrationReport:
    return MigrationReport(
        status=state.status,
        transfer=transfer,
        total_time_ms=state.total_time,
        downtime_ms=state.downtime,
        rounds=state.ram.dirty_sync_count,
        private_pages=state.pages.private_pages,
        shared_pages=state.pages.shared_pages,
        hole_pages=state.pages.hole_pages,
        bytes=state.ram.transferred,
    )

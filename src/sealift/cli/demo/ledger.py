"""The ledger's part: it hashes its payload, and keeps a hash chain that its owner can compute too."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from sealift.cli.demo import words
from sealift.cli.demo.chain import LedgerChain
from sealift.cli.demo.console import ConsoleWatcher, Printed
from sealift.cli.demo.report import GuestReport
from sealift.cli.demo.screen import Screen
from sealift.cli.demo.stage import VCPUS, Stage
from sealift.cli.recipes import make_recipe, read_file
from sealift.cli.way import MAILBOX, PACKETS, RING, Way
from sealift.launch.image import GuestRecipe
from sealift.sev.policy import Policy

KERNEL: Final = "ledger"

_GUEST_PATIENCE_S: Final = 300.0
"""An emulated guest on a busy machine hashes a large payload first; longer than this and it hangs."""

_BUILT_IN_PAYLOAD: Final = (
    "Whoever runs this machine may stop it, copy it, and send it anywhere.\nReading it is another matter.\n"
)
_HASHED_PAGES: Final = 4096
"""Bytes of payload that a guest hashes in about the time of one update."""


@dataclass(frozen=True, slots=True)
class Pace:
    """How busy the guest is.

    Attributes:
        working_set: pages for each vCPU.
        burst: updates between two pauses.
        pause_us: length of a pause.
    """

    working_set: int
    burst: int
    pause_us: int


PACES: Final = {
    RING: Pace(working_set=256, burst=64, pause_us=2000),
    PACKETS: Pace(working_set=256, burst=64, pause_us=2000),
    # A page takes a round trip to the handler: what is written while a round is on its way must stay small.
    MAILBOX: Pace(working_set=128, burst=16, pause_us=5000),
}


class LedgerPart:
    """A `sealift.cli.demo.part.Part`.

    Args:
        stage: where it plays.
        memory: the guest's, in bytes.
        payload: the user's file, or None for the built-in text.
        way: how it is moved.
        policy: the guest's.
    """

    def __init__(self, stage: Stage, memory: int, payload: Path | None, way: Way, policy: Policy) -> None:
        self._stage = stage
        self._payload = payload or stage.write("payload", _BUILT_IN_PAYLOAD.encode())
        self._pace = PACES[way]
        self._command_line = self._make_command_line()
        self._digest = ""
        self._here: ConsoleWatcher[Printed]
        self._there: ConsoleWatcher[Printed]
        self.way = way
        recipe = make_recipe(memory, VCPUS, KERNEL, str(self._payload), self._command_line)
        self.recipe: GuestRecipe = recipe.under(policy)
        self.launch_options = [
            *("--kernel", KERNEL, "--payload", str(self._payload), "--append", self._command_line),
            *("--memory", str(memory), "--vcpus", str(VCPUS), "--policy", policy.describe()),
        ]
        self.arrival_options: list[str] = []
        self.disk: Path | None = None

    def begin(self, screen: Screen) -> None:
        """Let it hash its payload, and every vCPU walk its whole working set once."""
        self._here = self._stage.watch_console("host-a", Printed())
        self._hash_payload(screen)
        self._count(screen)

    def expect(self) -> None:
        """Watch its console on host-b."""
        self._there = self._stage.watch_console("host-b", Printed())

    def go_on(self, screen: Screen) -> GuestReport:
        """Let it walk through everything it brought, and hash its payload again."""
        before = self._here.printed
        due = tuple(updates + self._pace.working_set for updates in before.updates(VCPUS))

        def enough(seen: Printed) -> bool:
            now = seen.updates(VCPUS)
            return bool(seen.payload) and all(got >= least for got, least in zip(now, due, strict=True))

        with screen.step("Went on", "On host-b the guest verifies every page it brought …") as step:
            after = self._there.wait("it had verified all that it brought", enough, _GUEST_PATIENCE_S)
            report = self._judge(before, after)
            step.outcome = words.went_on(report)
        return report

    def _make_command_line(self) -> str:
        again = 256 + len(read_file("payload", self._payload)) // _HASHED_PAGES
        pace = self._pace
        return (
            f"ws={pace.working_set} every=32 burst={pace.burst} pause={pace.pause_us} again={again} "
            f"marker={self._stage.marker}"
        )

    def _hash_payload(self, screen: Screen) -> None:
        payload = self.recipe.payload
        with screen.step("Payload", "The guest hashes its payload …") as step:
            self._digest = hashlib.sha256(payload[:]).hexdigest()
            seen = self._here.wait(
                "it printed its payload's digest", lambda seen: bool(seen.payload), _GUEST_PATIENCE_S
            )
            step.outcome = words.payload(self._digest, seen.payload[0], len(payload))

    def _count(self, screen: Screen) -> None:
        pages = self._pace.working_set

        def filled(seen: Printed) -> bool:
            return min(seen.updates(VCPUS)) >= pages

        with screen.step("Ledger", f"Both vCPUs fill their working sets of {pages:,} pages …") as step:
            seen = self._here.wait("it had filled its working sets", filled, _GUEST_PATIENCE_S)
            step.outcome = words.counting(seen.updates(VCPUS), pages)

    def _judge(self, before: Printed, after: Printed) -> GuestReport:
        """Compare what the guest printed with what the owner can compute itself."""
        chains = [LedgerChain(vcpu, self._pace.working_set, self._stage.secret) for vcpu in range(VCPUS)]
        entries = [*before.entries, *after.entries]
        right = [entry.vcpu < VCPUS and entry.chain == chains[entry.vcpu].after(entry.updates) for entry in entries]
        return GuestReport(
            payload_sha256=self._digest,
            payload_sha256_source=before.payload[-1],
            payload_sha256_target=after.payload[-1],
            ledger_before=sum(before.updates(VCPUS)),
            ledger_after=sum(after.updates(VCPUS)),
            chain_entries=len(entries),
            chain_verified=all(right),
            faults=len(before.faults) + len(after.faults),
        )

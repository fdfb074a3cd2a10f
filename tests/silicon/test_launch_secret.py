"""The migration key is taken out of guest memory before the guest runs, and a VMM cannot keep a copy in there."""

from __future__ import annotations

import os
import socket

import pytest

from sealift.address import Gpa, RamBlock, RamLayout
from sealift.errors import RefusedError
from sealift.guest.programs import program, startup_blob
from sealift.launch.areas import ANCHOR
from sealift.launch.image import GuestRecipe
from sealift.launch.secrets import GUEST_GUID, MigrationSecret
from sealift.sev.secret import SecretEntry, build_table
from sealift.silicon.engines.interface import VmShape
from sealift.silicon.engines.unicorn.engine import UnicornFactory
from sealift.silicon.process.vm import VirtualMachine
from sealift.wire.platform import Phase

LAYOUT = RamLayout((RamBlock("pc.ram", Gpa(0), 32 << 20),))
DIGEST = bytes(range(32))
MEASURE = bytes(48)
ELSEWHERE = 0x100_0000


class Launch:
    """A guest that is measured and waits for its secret."""

    def __init__(self) -> None:
        self.recipe = GuestRecipe(startup_blob(), LAYOUT, 1, DIGEST, program("idle"))
        self.vm = VirtualMachine(LAYOUT, VmShape(1), UnicornFactory(), lambda: Phase.RUNNING, DIGEST)
        for piece in self.recipe.pieces():
            self.vm.memory.write_private(piece.gpa, piece.data)
        self.block = self.recipe.areas().secret
        self.migration = MigrationSecret(os.urandom(16), os.urandom(32))
        self.table = build_table((SecretEntry(GUEST_GUID, b"for the guest"), self.migration.entry()))

    def inject(self, gpa: int) -> None:
        """LAUNCH_SECRET, as the VMM asks for it."""
        self.vm.memory.write_private(gpa, self.table)
        self.vm.secret_injected(gpa, len(self.table))

    def finish(self) -> str | None:
        """Why there is no handler; None if there is one."""
        self.vm.start_handler(MEASURE, 0)
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            try:
                self.vm.open_handler(ours)
            except RefusedError as refusal:
                ours.close()
                return str(refusal)
        return None

    def key_is_in_memory(self) -> bool:
        """Whether the migration key is anywhere in private memory."""
        return self.migration.key in bytes(self.vm.memory.private.data)


def test_the_key_is_gone_from_memory_and_the_guests_own_secret_is_not() -> None:
    launch = Launch()
    launch.inject(launch.block.gpa)
    assert launch.key_is_in_memory()
    assert launch.finish() is None
    assert not launch.key_is_in_memory()
    assert b"for the guest" in launch.vm.memory.read_private(launch.block.gpa, launch.block.size)


@pytest.mark.attack(
    "guest memory", "has the secret injected twice, or elsewhere, to find the migration key later", gains="nothing"
)
@pytest.mark.parametrize(
    "places",
    [(0, ELSEWHERE), (ELSEWHERE,), (0x1000, 0), (0, 0), (ELSEWHERE, ELSEWHERE + 16, 0)],
)
def test_a_secret_put_elsewhere_or_twice_leaves_neither_a_handler_nor_a_copy_of_the_key(
    places: tuple[int, ...],
) -> None:
    """`places` are relative to the secret block."""
    launch = Launch()
    for place in places:
        launch.inject(launch.block.gpa + place)
    assert "is wiped" in (launch.finish() or "")
    assert not launch.key_is_in_memory()


def tables_of(launch: Launch) -> tuple[Gpa, ...]:
    """Where what the platform looks for in memory lies: the GUIDed table below the anchor, and the start-up table."""
    return Gpa(ANCHOR - 64), launch.recipe.areas().table.gpa


@pytest.mark.parametrize("which", [0, 1], ids=["anchor", "start-up table"])
def test_a_secret_put_over_what_the_handler_is_found_by_leaves_no_copy_of_the_key(which: int) -> None:
    launch = Launch()
    launch.inject(tables_of(launch)[which])
    assert "has no migration handler" in (launch.finish() or "")
    assert not launch.key_is_in_memory()


def test_a_guest_without_start_up_code_keeps_its_own_secret() -> None:
    launch = Launch()
    launch.table = build_table((SecretEntry(GUEST_GUID, b"for the guest"),))
    launch.vm.memory.write_private(Gpa(ANCHOR - 64), bytes(64))
    launch.inject(launch.block.gpa)
    assert "has no migration handler" in (launch.finish() or "")
    assert b"for the guest" in launch.vm.memory.read_private(launch.block.gpa, launch.block.size)


def test_a_guest_without_a_secret_has_a_handler_without_a_key() -> None:
    assert Launch().finish() is None

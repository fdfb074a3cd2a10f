"""What a guest has to do in the story: each kind of guest has a part of its own."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from sealift.cli.demo.report import GuestReport, LinuxGuestReport
from sealift.cli.demo.screen import Screen
from sealift.cli.way import Way
from sealift.launch.image import GuestRecipe


class Part(Protocol):
    """One kind of guest."""

    @property
    def recipe(self) -> GuestRecipe:
        """The guest, as its owner knows it from its files."""

    @property
    def way(self) -> Way:
        """How it is moved."""

    @property
    def launch_options(self) -> list[str]:
        """Options of ``sealift run`` that launch it."""

    @property
    def arrival_options(self) -> list[str]:
        """Options of ``sealift run`` where it is to arrive."""

    @property
    def disk(self) -> Path | None:
        """The image of its disk, if it has one."""

    def begin(self, screen: Screen) -> None:
        """It runs on host-a: wait until there is something to move.

        Raises:
            GuestError: it does not do as it should; so `go_on`.
        """

    def expect(self) -> None:
        """It is awaited on host-b: watch its console there."""

    def go_on(self, screen: Screen) -> GuestReport | LinuxGuestReport:
        """It runs on host-b: wait until it has been through all that it brought; what it said."""

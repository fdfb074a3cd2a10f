"""The human monitor's grammar: lines of words, answered with text (QEMU, docs/system/monitor.rst).

What is wrong with a line, or with what it asks for, is text as well: the command human-monitor-command itself
succeeds. Commands are in `sealift.vmm.qmp.commands.human`.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from sealift.errors import SealiftError, UserError, sentence
from sealift.vmm.guest import Guest
from sealift.vmm.qmp.prompt import END_OF_LINE


class Viewpoint:
    """What one user of the monitor looks at.

    Attributes:
        cpu: the vCPU whose registers and address space are meant.
        shown_as: the format of the last memory dump, one of ``oxduc``.
        size: of its items, in bytes.
    """

    def __init__(self, cpu: int = 0) -> None:
        self.cpu = cpu
        self.shown_as = "x"
        self.size = 4


@dataclass(frozen=True, slots=True)
class Call:
    """One line to be carried out: the guest, what is looked at, and the words by their parameter's name."""

    guest: Guest
    view: Viewpoint
    words: Mapping[str, str]

    @property
    def cpu(self) -> int:
        """The vCPU that is looked at."""
        return self.view.cpu


@dataclass(frozen=True, slots=True)
class HumanCommand:
    """One command of the monitor.

    Attributes:
        names: what it is called, the usual name first.
        parameters: what its words are, ``[in brackets]`` those that may be left out; ``[-d]`` is a flag, and
            ``[/fmt]`` comes first if it is there.
        help: what it does, for people.
        run: does it; lines to be shown.
    """

    names: tuple[str, ...]
    parameters: tuple[str, ...]
    help: str
    run: Callable[[Call], Iterable[str]]

    @property
    def usage(self) -> str:
        """A line of help."""
        return f"{' '.join(('|'.join(self.names), *self.parameters))} -- {self.help}"

    def words(self, given: list[str]) -> dict[str, str]:
        """The words by parameter.

        Raises:
            UserError: there are too few or too many, or there is no such flag.
        """
        flags = [parameter.strip("[]") for parameter in self.parameters if parameter.startswith("[-")]
        places = [parameter for parameter in self.parameters if not parameter.startswith("[-")]
        found: dict[str, str] = {}
        while given and given[0].startswith("-"):
            if given[0] not in flags:
                raise UserError(f"{self.names[0]}: unsupported option {given[0]}")
            found[given.pop(0)] = ""
        if "[/fmt]" in places:
            places.remove("[/fmt]")
            if given and given[0].startswith("/"):
                found["/fmt"] = given.pop(0).removeprefix("/")
        required = [place for place in places if not place.startswith("[")]
        if len(given) < len(required):
            raise UserError(f"{self.names[0]}: {required[len(given)]} expected")
        if len(given) > len(places):
            raise UserError(f"{self.names[0]}: extraneous characters at the end of line")
        return found | {place.strip("[]"): word for place, word in zip(places, given, strict=False)}


class HumanMonitor:
    """Carries out lines. `info` has its own table, as have further commands whose first word chooses one."""

    def __init__(self, commands: Iterable[HumanCommand], groups: Mapping[str, Iterable[HumanCommand]]) -> None:
        self._commands = {name: command for command in commands for name in command.names}
        self._groups = {
            group: {name: command for command in members for name in command.names} for group, members in groups.items()
        }

    def execute(self, guest: Guest, line: str, view: Viewpoint) -> str:
        """The answer to one line, which may change the view; never raises for what is wrong with it."""
        try:
            lines = self._run(guest, shlex.split(line), view)
        except ValueError as error:
            lines = [f"unparsable line: {error}"]
        except SealiftError as error:
            lines = [f"Error: {sentence(error)}"]
        return "".join(f"{shown}{END_OF_LINE}" for shown in lines)

    def _run(self, guest: Guest, words: list[str], view: Viewpoint) -> list[str]:
        if not words:
            return []
        name = words.pop(0)
        if name in {"help", "?"}:
            return self._help(words)
        commands = self._commands
        if name in self._groups:
            if not words:
                return self._help([name])
            commands, name = self._groups[name], words.pop(0)
        command = commands.get(name)
        if command is None:
            return [f"unknown command: '{name}'"]
        return list(command.run(Call(guest, view, command.words(words))))

    def _help(self, words: list[str]) -> list[str]:
        if not words:
            groups = [f"{group} [subcommand] -- show various things" for group in self._groups]
            return sorted({command.usage for command in self._commands.values()} | {*groups, _HELP})
        name = words[0]
        if name in self._groups:
            members = self._groups[name].values()
            return sorted({f"{name} {command.usage}" for command in members})
        if name not in self._commands:
            return [f"unknown command: '{name}'"]
        return [self._commands[name].usage]


_HELP: Final = "help|? [cmd] -- show the help"

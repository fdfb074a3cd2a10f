"""The command table: every command's name, the type of its arguments, its handler, and where that runs."""

from __future__ import annotations

import enum
import traceback
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Generic, TypeVar, get_type_hints

import msgspec

from sealift.errors import InternalError, SealiftError, sentence
from sealift.vmm.guest import Guest
from sealift.vmm.qmp.message import ErrorClass, QmpError, Request, convert_arguments

A = TypeVar("A", bound=msgspec.Struct)


class NoArguments(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A command that takes none."""


class Runs(enum.Enum):
    """Where a handler runs."""

    AT_ONCE = enum.auto()
    """On the event loop: it never waits."""
    IN_THREAD = enum.auto()
    """In a thread: it waits for vCPUs or for the platform."""
    AT_LEISURE = enum.auto()
    """In one of few threads of its own kind: it waits for another host, or looks at the guest for a while."""


@dataclass(frozen=True, slots=True)
class Command(Generic[A]):
    """One command. The handler's result is what ``return`` holds; None stands for ``{}``."""

    name: str
    arguments: type[A]
    handler: Callable[[Guest, A], object]
    runs: Runs = Runs.AT_ONCE

    @property
    def result(self) -> Any:  # noqa: ANN401  # any annotation
        """The type of what ``return`` holds, as the handler declares it; None if there is nothing."""
        kind = get_type_hints(self.handler, include_extras=True)["return"]
        return None if kind is type(None) else kind

    def bind(self, request: Request, guest: Guest) -> Callable[[], object]:
        """A call that carries out `request`; it raises nothing but QmpError.

        Raises:
            QmpError: the arguments are not this command's.
        """
        arguments = convert_arguments(request.arguments, self.arguments)

        def call() -> object:
            try:
                result = self.handler(guest, arguments)
            except QmpError:
                raise
            except SealiftError as error:
                raise QmpError(sentence(error)) from error
            except Exception as error:  # a bug of ours; its client is told, and the next one served
                traceback.print_exception(error)
                raise QmpError(f"a bug ended the command ({type(error).__name__})") from error
            return {} if result is None else result

        return call


class CommandTable:
    """Commands by name.

    Raises:
        InternalError: two have the same name.
    """

    def __init__(self, commands: Iterable[Command[Any]]) -> None:
        self._commands: dict[str, Command[Any]] = {}
        for command in commands:
            if command.name in self._commands:
                raise InternalError(f"there are two commands {command.name}")
            self._commands[command.name] = command

    def __iter__(self) -> Iterator[Command[Any]]:
        return iter(self._commands.values())

    def names(self) -> list[str]:
        """All names, sorted."""
        return sorted(self._commands)

    def find(self, name: str) -> Command[Any]:
        """The command of that name.

        Raises:
            QmpError: there is none.
        """
        command = self._commands.get(name)
        if command is None:
            raise QmpError(f"The command {name} has not been found", ErrorClass.COMMAND_NOT_FOUND)
        return command

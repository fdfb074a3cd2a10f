"""Ways to spoil an argument of a command."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

from .bench import Bench

Arguments: TypeAlias = dict[str, Any]
Spoil: TypeAlias = Callable[[Bench, Arguments], object]


def put(name: str, value: object) -> Spoil:
    """Spoil an argument."""
    return lambda _, arguments: arguments.update({name: value})


def cut(name: str) -> Spoil:
    """Take the last byte off an argument."""
    return lambda _, arguments: arguments.update({name: arguments[name][:-1]})


def flip(name: str, place: int) -> Spoil:
    """Flip a bit of an argument."""

    def spoil(_: Bench, arguments: Arguments) -> None:
        data = bytearray(arguments[name])
        data[place] ^= 1
        arguments[name] = bytes(data)

    return spoil


def overwrite(name: str, place: int, piece: bytes) -> Spoil:
    """Overwrite a piece of an argument."""

    def spoil(_: Bench, arguments: Arguments) -> None:
        data = bytearray(arguments[name])
        data[place : place + len(piece)] = piece
        arguments[name] = bytes(data)

    return spoil

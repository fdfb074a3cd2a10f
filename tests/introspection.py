"""Judges messages by the schema that we hand out, as a client that has nothing else could (qapi/introspect.json)."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any, Final

import msgspec

from sealift.vmm.qmp.commands import query_schema
from sealift.vmm.qmp.table import NoArguments

Info = dict[str, Any]

_BUILTINS: Final[dict[str, tuple[type, ...]]] = {
    "string": (str,),
    "int": (int,),
    "number": (int, float),
    "boolean": (bool,),
    "null": (type(None),),
    "value": (object,),
}


@functools.cache
def schema() -> dict[str, Info]:
    """Our schema as a client sees it, by name."""
    listed = msgspec.json.decode(msgspec.json.encode(query_schema(None, NoArguments())))  # type: ignore[arg-type]
    return {info["name"]: info for info in listed}


def judge_command(command: str, arguments: Any, result: Any) -> None:  # any JSON
    """A command was carried out: is that what the schema says?"""
    info = schema()[command]
    _accept([*_faults({} if arguments is None else arguments, info["arg-type"], f"{command}'s arguments")])
    _accept([*_faults(result, info["ret-type"], f"{command}'s result")])


def judge_event(message: Any) -> None:  # any JSON
    """An event came."""
    name = message["event"]
    _accept([*_faults(message.get("data", {}), schema()[name]["arg-type"], name)])


def judge(value: object, kind: str) -> None:
    """A value of ours, before it is JSON, against the type of that name."""
    _accept([*_faults(msgspec.json.decode(msgspec.json.encode(value)), kind, kind)])


def _accept(faults: list[str]) -> None:
    assert not faults, "; ".join(faults)


def _faults(value: Any, kind: str, place: str) -> Iterator[str]:  # any JSON
    """What of a value is not as its type says."""
    info = schema()[kind]
    match info["meta-type"]:
        case "builtin":
            if not _is_json(value, info["json-type"]):
                yield f"{place} is {value!r} and no {info['json-type']}"
        case "enum":
            if value not in info["values"]:
                yield f"{place} is {value!r} and none of {info['values']}"
        case "array":
            yield from _array_faults(value, info, place)
        case "alternate":
            if all([*_faults(value, member["type"], place)] for member in info["members"]):
                yield f"{place} is {value!r}, which is none of its alternatives"
        case "object":
            yield from _object_faults(value, info, place)
        case other:
            raise AssertionError(f"{kind} is of the unknown kind {other}")


def _is_json(value: object, json_type: str) -> bool:
    if isinstance(value, bool):
        return json_type in {"boolean", "value"}  # Python takes it for an int
    return isinstance(value, _BUILTINS[json_type])


def _array_faults(value: Any, info: Info, place: str) -> Iterator[str]:  # any JSON
    if not isinstance(value, list):
        yield f"{place} is {value!r} and no list"
        return
    for number, element in enumerate(value):
        yield from _faults(element, info["element-type"], f"{place}[{number}]")


def _object_faults(value: Any, info: Info, place: str) -> Iterator[str]:  # any JSON
    if not isinstance(value, dict):
        yield f"{place} is {value!r} and no object"
        return
    members = {member["name"]: member for member in info["members"]}
    for variant in info.get("variants", ()):
        if variant["case"] == value.get(info["tag"]):
            members |= {member["name"]: member for member in schema()[variant["type"]]["members"]}
    for name, member in members.items():
        if name in value:
            yield from _faults(value[name], member["type"], f"{place}.{name}")
        elif "default" not in member:
            yield f"{place} lacks {name}"
    for name in value.keys() - members.keys():
        yield f"{place} has {name}, of which the schema knows nothing"

"""What travels over a QMP connection (QEMU, docs/interop/qmp-spec.rst).

::

    server ── {"QMP": {"version": …, "capabilities": []}} ─────────────────────────────► client
    server ◄── {"execute": "qmp_capabilities"} ───────────────────────────────────────── client
    server ── {"return": {}} ──────────────────────────────────────────────────────────► client
    then any number of
    server ◄── {"execute": NAME, "arguments": {…}, "id": ANY} ────────────────────────── client
    server ── {"return": ANY, "id": ANY}  or  {"error": {"class", "desc"}, "id": ANY} ─► client
    server ── {"event": NAME, "data": {…}, "timestamp": {"seconds", "microseconds"}} ──► client
"""

from __future__ import annotations

import enum
import re
from typing import Any, Final, TypeVar

import msgspec

from sealift.errors import UserError
from sealift.wire.packed import UNDECODABLE

END_OF_MESSAGE: Final = b"\r\n"


class ErrorClass(enum.Enum):
    """QEMU's classes of errors (qapi/error.json); all but a few are generic."""

    GENERIC = "GenericError"
    COMMAND_NOT_FOUND = "CommandNotFound"


class QmpError(UserError):
    """A request cannot be done; the client is told so."""

    def __init__(self, message: str, error_class: ErrorClass = ErrorClass.GENERIC) -> None:
        super().__init__(message)
        self.error_class = error_class


class Request(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A client's request. `id` comes back with the reply, whatever it is."""

    execute: str
    arguments: dict[str, Any] = {}
    id: Any = msgspec.UNSET


class VersionTriple(msgspec.Struct, frozen=True):
    """Three numbers."""

    major: int
    minor: int
    micro: int


class VersionInfo(msgspec.Struct, frozen=True):
    """VersionInfo of qapi/control.json: the QEMU release whose interface this follows, and what it really is."""

    qemu: VersionTriple
    package: str


class Event(msgspec.Struct, frozen=True):
    """Something happened; the type of `data` belongs to the event's name (`sealift.vmm.qmp.events`)."""

    name: str
    data: msgspec.Struct | None = None


A = TypeVar("A", bound=msgspec.Struct)

_JSON: Final = msgspec.json.Encoder()
_REQUESTS: Final = msgspec.json.Decoder(Request)
_MISSING: Final = re.compile(r"Object missing required field `([^`]+)`")
_UNKNOWN: Final = re.compile(r"Object contains unknown field `([^`]+)`")
_WRONG_TYPE: Final = re.compile(r"Expected `([^`]+)`, got `[^`]+` - at `\$\.([^`]+)`")
_WRONG_VALUE: Final = re.compile(r"Invalid (?:enum )?value (.+) - at `\$\.(?:[^`]+\.)?([^`.]+)`")
_OUT_OF_RANGE: Final = re.compile(r"Expected `int` ([<>]=?) (-?\d+) - at `\$\.([^`]+)`")
_QEMU_TYPES: Final = {"str": "string", "bool": "boolean", "int": "integer", "float": "number", "object": "object"}


def greeting(version: VersionInfo) -> bytes:
    """What a server says first."""
    return _line({"QMP": {"version": version, "capabilities": []}})


def success(result: object, request_id: object = msgspec.UNSET) -> bytes:
    """The reply to a request that was carried out."""
    return _line(_with_id({"return": result}, request_id))


def failure(error: QmpError, request_id: object = msgspec.UNSET) -> bytes:
    """The reply to a request that was not."""
    return _line(_with_id({"error": {"class": error.error_class.value, "desc": str(error)}}, request_id))


def event_message(event: Event, time_us: int) -> bytes:
    """An event; `time_us` is microseconds since the epoch."""
    seconds, microseconds = divmod(time_us, 1_000_000)
    timestamp = {"seconds": seconds, "microseconds": microseconds}
    message: dict[str, object] = {"timestamp": timestamp, "event": event.name}
    return _line(message if event.data is None else message | {"data": event.data})


def decode_request(frame: bytes) -> Request:
    """Read one request.

    Raises:
        QmpError: it is not JSON, or not a request; in QEMU's words.
    """
    try:
        return _REQUESTS.decode(frame)
    except msgspec.ValidationError as error:
        raise QmpError(_request_complaint(str(error))) from error
    except UNDECODABLE as error:
        raise QmpError(f"JSON parse error, {error}") from error


def request_id(frame: bytes) -> object:
    """The id in a frame that is JSON but not a valid request, so that even its error can name it."""
    try:
        found = msgspec.json.decode(frame)
    except UNDECODABLE:
        return msgspec.UNSET
    return found.get("id", msgspec.UNSET) if isinstance(found, dict) else msgspec.UNSET


def convert_arguments(arguments: dict[str, Any], to: type[A]) -> A:
    """Arguments as a command's own type.

    Raises:
        QmpError: one is missing, unknown or of the wrong type; in QEMU's words.
    """
    try:
        return msgspec.convert(arguments, to)
    except msgspec.ValidationError as error:
        raise QmpError(_argument_complaint(str(error))) from error


def _request_complaint(complaint: str) -> str:
    if missing := _MISSING.search(complaint):
        return f"QMP input lacks member '{missing[1]}'"
    if unknown := _UNKNOWN.search(complaint):
        return f"QMP input member '{unknown[1]}' is unexpected"
    if wrong := _WRONG_TYPE.search(complaint):
        expected = _QEMU_TYPES.get(wrong[1], wrong[1])
        article = "an" if expected[0] in "aeiou" else "a"
        return f"QMP input member '{wrong[2]}' must be {article} {expected}"
    return "QMP input must be a JSON object"


def _argument_complaint(complaint: str) -> str:
    if missing := _MISSING.search(complaint):
        return f"Parameter '{missing[1]}' is missing"
    if unknown := _UNKNOWN.search(complaint):
        return f"Parameter '{unknown[1]}' is unexpected"
    if wrong := _WRONG_TYPE.search(complaint):
        expected = wrong[1].removesuffix(" | null")
        return f"Invalid parameter type for '{wrong[2]}', expected: {_QEMU_TYPES.get(expected, expected)}"
    if value := _WRONG_VALUE.search(complaint):
        return f"Parameter '{value[2]}' does not accept value {value[1]}"
    if range_ := _OUT_OF_RANGE.search(complaint):
        return f"Parameter '{range_[3]}' expects an integer {range_[1]} {range_[2]}"
    return f"Invalid parameter: {complaint}"


def _with_id(message: dict[str, object], identifier: object) -> dict[str, object]:
    return message if identifier is msgspec.UNSET else message | {"id": identifier}


def _line(message: object) -> bytes:
    return _JSON.encode(message) + END_OF_MESSAGE

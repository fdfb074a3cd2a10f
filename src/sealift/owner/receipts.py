"""Checking a migration's receipt: the owner alone has the keys of both launches (`sealift.wire.receipt`)."""

from __future__ import annotations

import hmac
from dataclasses import dataclass
from typing import Final

import msgspec

from sealift.errors import StreamError
from sealift.launch.secrets import receipt_key
from sealift.owner.ledger import Launch, Ledger
from sealift.wire.packed import UNDECODABLE
from sealift.wire.receipt import Receipt, Side, Statement

_FACTS: Final = {
    "migration": "migration id",
    "guest": "guest",
    "from_launch": "launch it left",
    "to_launch": "launch that received it",
    "records": "number of records",
    "pages": "number of pages",
    "length": "number of bytes",
    "tags": "digest of the record tags",
}
"""What both halves state, by the words used in messages."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What an owner finds.

    Attributes:
        faults: what is wrong, in sentences; nothing if both handlers state the same and are who they say.
        source: the launch the guest left, if it is this owner's.
        target: the launch that received it.
    """

    faults: tuple[str, ...]
    source: Launch | None
    target: Launch | None


def read_receipt(data: bytes) -> Receipt:
    """Parse a receipt's file.

    Raises:
        StreamError: it is none.
    """
    try:
        return msgspec.json.decode(data, type=Receipt)
    except UNDECODABLE as error:
        raise StreamError("this is no receipt of a migration") from error


def verify(receipt: Receipt, ledger: Ledger, guest: bytes | None = None) -> Verdict:
    """Check a receipt against the owner's launches; `guest` is the instance id that it should be about.

    Raises:
        UserError: the owner's records are damaged.
    """
    halves = {Side.SOURCE: receipt.source, Side.TARGET: receipt.target}
    launches = {side: _launch(side, halves, ledger) for side in Side}
    authentic = {
        side: half
        for side, half in halves.items()
        if half is not None and half.side is side and _is_of(half, launches[side])
    }
    faults = [
        _fault(side, half, launches[side], authentic.get(_OTHER[side]))
        for side, half in halves.items()
        if side not in authentic
    ]
    faults += _contradictions(authentic, launches)
    wrong = {half.guest for half in authentic.values() if guest is not None and half.guest != guest.hex()}
    faults += [f"it is about guest {each}, not {guest.hex() if guest else ''}" for each in sorted(wrong)]
    return Verdict(tuple(faults), launches[Side.SOURCE], launches[Side.TARGET])


_OTHER: Final = {Side.SOURCE: Side.TARGET, Side.TARGET: Side.SOURCE}


def _launch(side: Side, halves: dict[Side, Statement | None], ledger: Ledger) -> Launch | None:
    """A side's launch, by what its own half says of it, or else by what the other's does."""
    for half in (halves[side], halves[_OTHER[side]]):
        if half is not None:
            measure = half.from_launch if side is Side.SOURCE else half.to_launch
            if (found := ledger.find_released(bytes.fromhex(measure))) is not None:
                return found
    return None


def _is_of(half: Statement, launch: Launch | None) -> bool:
    """Whether the handler of that launch made it, and of the launch that it names."""
    if launch is None or launch.measure is None:
        return False
    named = half.from_launch if half.side is Side.SOURCE else half.to_launch
    made = hmac.digest(receipt_key(launch.key), half.body(), "sha256")
    return named == launch.measure.hex() and hmac.compare_digest(made, bytes.fromhex(half.mac))


def _fault(side: Side, half: Statement | None, launch: Launch | None, other: Statement | None) -> str:
    """What is wrong with a half that is not authentic; `other` is the other one, if that is."""
    if half is None:
        return f"the {side.value}'s half is missing"
    if half.side is not side:
        return f"in the place of the {side.value}'s half stands one of a {half.side.value}"
    if launch is None:
        measure = half.from_launch if side is Side.SOURCE else half.to_launch
        return f"the {side.value}'s half names a launch that this owner never released: {measure}"
    if other is not None and (differing := _differing(half, other)):
        return f"the {side.value}'s half was altered: its {differing} differ from the other half's"
    return f"the {side.value}'s half is not authentic: altered, or made under another launch's key"


def _contradictions(authentic: dict[Side, Statement], launches: dict[Side, Launch | None]) -> list[str]:
    """What is wrong with two halves that are authentic each by itself."""
    if len(authentic) < len(Side):
        return []
    source, target = authentic[Side.SOURCE], authentic[Side.TARGET]
    if differing := _differing(source, target):
        return [f"the halves are not of one migration: their {differing} differ"]
    left, received = launches[Side.SOURCE], launches[Side.TARGET]
    if left is not None and received is not None and received.source != left.launch_id:
        return [f"launch {received.launch_id} was not released to receive from launch {left.launch_id}"]
    return []


def _differing(one: Statement, other: Statement) -> str:
    return ", ".join(words for name, words in _FACTS.items() if getattr(one, name) != getattr(other, name))

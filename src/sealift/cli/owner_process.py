"""``python -m sealift.cli.owner_process FD ASSIGNMENT``: the local owner, for one VMM; ends with its connection."""

from __future__ import annotations

import signal
import socket
import sys
from collections.abc import Callable
from pathlib import Path

import msgspec

from sealift.cli.assignment import Assignment
from sealift.cli.owner_desk import OwnerDesk, definition_of, establish_trust, policy_warnings
from sealift.errors import LostError, SealiftError
from sealift.owner.owner import Owner
from sealift.wire.channel import Channel
from sealift.wire.failure import to_failed
from sealift.wire.owner_link import OwnerReply, OwnerRequest


def main() -> None:
    """Serve until the VMM disconnects."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    fd, assignment = sys.argv[1:]
    channel: Channel[OwnerRequest, msgspec.Struct] = Channel(socket.socket(fileno=int(fd)), OwnerRequest)
    answer = _prepared(msgspec.json.decode(assignment, type=Assignment))
    try:
        while True:
            request, _ = channel.receive()
            channel.send(answer(request))
    except LostError:
        return


def _prepared(assignment: Assignment) -> Callable[[OwnerRequest], OwnerReply]:
    """What answers requests; what went wrong while getting ready is the answer to all of them."""
    try:
        definition = definition_of(assignment)
        owner = Owner(Path(assignment.owner), definition)
        notes = establish_trust(owner, Path(assignment.manufacturer))
        return OwnerDesk(owner, (*notes, *policy_warnings(definition))).answer
    except SealiftError as error:
        failed = to_failed(error)
        return lambda _: failed


if __name__ == "__main__":
    main()

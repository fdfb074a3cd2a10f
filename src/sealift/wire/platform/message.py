"""What every message is, and the two answers that any request may get."""

from __future__ import annotations

import msgspec


class Message(msgspec.Struct, frozen=True, tag=True, forbid_unknown_fields=True):
    """Base of all messages: the class name is the tag on the wire."""


class Done(Message, frozen=True):
    """The request succeeded and has nothing to say."""


class Failed(Message, frozen=True):
    """The request failed and changed nothing.

    `branch` names the branch of the error tree, `status` is the firmware's status code where there is one.
    """

    reason: str
    branch: str = "RefusedError"
    status: int | None = None

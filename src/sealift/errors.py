"""The error tree: whose fault it is decides the branch.

::

    SealiftError
    ├── UserError            what was asked for cannot be done; the message says what to change
    ├── PeerError            the other side of a boundary misbehaved
    │   ├── StreamError      bytes that do not parse: truncated, wrong magic, unknown version, over a limit
    │   ├── SealError        bytes that parse but were not made by the peer's handler, or not for this place
    │   ├── RefusedError     the peer answered "no", with its reason
    │   ├── LostError        the peer is gone
    │   └── FirmwareError    a secure-processor command failed with a status code (see ``sealift.sev.status``)
    ├── GuestError           the guest itself came to an end it did not ask for
    └── InternalError        our own fault

A message is one sentence: what happened, to which object, and what to do. An outer message never repeats its
cause; the cause is chained with ``raise … from …``, or dropped with ``from None`` where the message says it all.
"""


class SealiftError(Exception):
    """Root of every error this project declares."""


class UserError(SealiftError):
    """What the caller asked for cannot be done as asked."""


class PeerError(SealiftError):
    """The other side of a boundary misbehaved."""


class StreamError(PeerError):
    """Received bytes do not parse: truncated, wrong magic, unknown version, or over a limit."""


class SealError(PeerError):
    """A sealed record, token or key-exchange message is not authentic, or not meant for this place."""


class RefusedError(PeerError):
    """The peer is well but refused; the message is its reason."""


class LostError(PeerError):
    """The peer closed the connection or stopped answering."""


class FirmwareError(PeerError):
    """A secure-processor command ended with a status code other than SUCCESS.

    Attributes:
        status: the firmware's status code (AMD SEV API, table "Status Codes").
    """

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class GuestError(SealiftError):
    """The guest ended by a fault or a check of its own."""


class InternalError(SealiftError):
    """A promise of our own code was broken; this is a bug."""


def sentence(error: BaseException) -> str:
    """The error and its causes as one line for a person: ``what happened: because: because``."""
    said = _words(error)
    cause = error.__cause__
    while cause is not None:
        words = _words(cause)
        if words not in said:
            said = f"{said}: {words}"
        cause = cause.__cause__
    return said


def _words(error: BaseException) -> str:
    """One error's own words; of an operating system's error its reason alone, without number and file name."""
    words = (error.strerror if isinstance(error, OSError) else None) or str(error) or type(error).__name__
    return words.rstrip(".")

"""How an error crosses a process boundary: the branch of the error tree by name, and its sentence."""

from __future__ import annotations

from sealift import errors
from sealift.wire.platform import Failed

_BRANCHES: dict[str, type[errors.SealiftError]] = {
    branch.__name__: branch
    for branch in (
        errors.UserError,
        errors.StreamError,
        errors.SealError,
        errors.RefusedError,
        errors.LostError,
        errors.GuestError,
        errors.InternalError,
    )
}


def to_failed(error: errors.SealiftError) -> Failed:
    """The reply that carries `error`, its causes included in the sentence."""
    status = error.status if isinstance(error, errors.FirmwareError) else None
    return Failed(errors.sentence(error), type(error).__name__, status)


def from_failed(failed: Failed) -> errors.SealiftError:
    """The error that `failed` carries; a name that is not of our tree counts as a refusal."""
    if failed.status is not None:
        return errors.FirmwareError(failed.status, failed.reason)
    return _BRANCHES.get(failed.branch, errors.RefusedError)(failed.reason)

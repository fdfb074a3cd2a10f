"""The target's last token as a file, for a source that the connection did not bring it to."""

from __future__ import annotations

import os
from pathlib import Path

from sealift.errors import UserError


def keep_token(path: Path, token: bytes) -> None:
    """Write the token whole or not at all, for nobody but the user to read.

    Raises:
        UserError: it cannot be written there.
    """
    fresh = path.with_name(f"{path.name}.{os.getpid()}")
    try:
        descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(token)
            file.flush()
            os.fsync(descriptor)
        fresh.replace(path)
    except OSError as error:
        fresh.unlink(missing_ok=True)
        raise UserError(f"the target's token cannot be written to {path} ({error.strerror})") from error

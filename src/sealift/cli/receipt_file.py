"""The receipt of a migration as a file: what the handlers stated, and beside it what this VMM's user saw."""

from __future__ import annotations

import os
import time
from pathlib import Path

import msgspec

from sealift.errors import UserError
from sealift.owner.files import OutputFile, write
from sealift.vmm.migration.stats import MigrationInfo
from sealift.wire.receipt import Claims


def check_place(path: Path) -> None:
    """Before the guest moves: can a receipt be written there?

    Raises:
        UserError: it cannot.
    """
    if os.path.lexists(path):
        raise UserError(f"the receipt's file {path} exists already; choose another name, or remove it")
    if not os.access(path.absolute().parent, os.W_OK | os.X_OK):
        raise UserError(f"the receipt cannot be written to {path}: its directory is none, or not writable")


def write_receipt(path: Path, name: str, uri: str, info: MigrationInfo) -> None:
    """Write the receipt of guest `name`, which has moved to `uri`.

    Raises:
        UserError: there is none, or it cannot be written. The guest has moved all the same.
    """
    if info.x_sealift_receipt is None:
        raise UserError(
            "the migration has no receipt: with method psp there is no handler that could state anything, and a "
            "connection that breaks at the end takes it along"
        )
    ended = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    claims = Claims(name, uri, ended, info.total_time, info.downtime or 0)
    receipt = msgspec.structs.replace(info.x_sealift_receipt, claimed_by_the_vmm=claims)
    text = msgspec.json.format(msgspec.json.encode(receipt), indent=2)
    write([OutputFile(path, text + b"\n")], replace=True)  # `check_place` found none there

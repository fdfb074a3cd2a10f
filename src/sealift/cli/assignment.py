"""What an owner's process is started with: apart, so that it loads nothing of a VMM."""

from __future__ import annotations

import os
from pathlib import Path

import msgspec

from sealift.cli.guest_options import GuestOptions
from sealift.sev.policy import parse_policy


class Assignment(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the user tells the owner: whom to trust at first, and which guest to expect.

    `kernel` None means that it only serves receivers. Paths are absolute; sizes are bytes.
    """

    owner: str
    manufacturer: str
    kernel: str | None = None
    initrd: str | None = None
    payload: str | None = None
    command_line: str = ""
    memory: int = 0
    vcpus: int = 0
    policy: int = 0
    secret: str | None = None
    zero_pages: bool = False


def assignment_of(options: GuestOptions, owner: Path, manufacturer: Path) -> Assignment:
    """What an owner in that directory is told; the VMM takes the same kernel, initrd and payload from the same files.

    Raises:
        UserError: the policy is none.
    """
    # A path that means the same in every process, or a built-in program's name.
    kernel = str(Path(options.kernel).absolute()) if os.path.lexists(options.kernel) else options.kernel
    return Assignment(
        owner=str(owner),
        manufacturer=str(manufacturer),
        kernel=kernel,
        initrd=None if options.initrd is None else str(options.initrd.absolute()),
        payload=None if options.payload is None else str(options.payload.absolute()),
        command_line=options.append,
        memory=options.memory,
        vcpus=options.vcpus,
        policy=int(parse_policy(options.policy)),
        secret=None if options.secret is None else str(options.secret.absolute()),
        zero_pages=options.zero_pages,
    )

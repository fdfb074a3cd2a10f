"""Status codes of the secure processor's firmware (AMD SEV API, "Status Codes"; Linux ``uapi/linux/psp-sev.h``).

The sentences are the ones QEMU's users know, so that a failure here can be looked up like one on silicon.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Final

from sealift.errors import FirmwareError


class Status(IntEnum):
    """What a firmware command ended with."""

    SUCCESS = 0x00
    INVALID_PLATFORM_STATE = 0x01
    INVALID_GUEST_STATE = 0x02
    INVALID_CONFIG = 0x03
    INVALID_LENGTH = 0x04
    ALREADY_OWNED = 0x05
    INVALID_CERTIFICATE = 0x06
    POLICY_FAILURE = 0x07
    INACTIVE = 0x08
    INVALID_ADDRESS = 0x09
    BAD_SIGNATURE = 0x0A
    BAD_MEASUREMENT = 0x0B
    ASID_OWNED = 0x0C
    INVALID_ASID = 0x0D
    WBINVD_REQUIRED = 0x0E
    DFFLUSH_REQUIRED = 0x0F
    INVALID_GUEST = 0x10
    INVALID_COMMAND = 0x11
    ACTIVE = 0x12
    HWERROR_PLATFORM = 0x13
    HWERROR_UNSAFE = 0x14
    UNSUPPORTED = 0x15
    INVALID_PARAM = 0x16
    RESOURCE_LIMIT = 0x17
    SECURE_DATA_INVALID = 0x18
    INVALID_PAGE_SIZE = 0x19
    INVALID_PAGE_STATE = 0x1A
    INVALID_MDATA_ENTRY = 0x1B
    INVALID_PAGE_OWNER = 0x1C
    AEAD_OFLOW = 0x1D
    EXIT_RING_BUFFER = 0x1F
    RMP_INIT_REQUIRED = 0x20
    BAD_SVN = 0x21
    BAD_VERSION = 0x22
    SHUTDOWN_REQUIRED = 0x23
    UPDATE_FAILED = 0x24
    RESTORE_REQUIRED = 0x25
    RMP_INIT_FAILED = 0x26
    INVALID_KEY = 0x27

    @property
    def sentence(self) -> str:
        """The code in words, without a full stop."""
        return _SENTENCES[self]


_SENTENCES: Final[dict[Status, str]] = {
    Status.SUCCESS: "Success",
    Status.INVALID_PLATFORM_STATE: "Platform state is invalid",
    Status.INVALID_GUEST_STATE: "Guest state is invalid",
    Status.INVALID_CONFIG: "Platform configuration is invalid",
    Status.INVALID_LENGTH: "Buffer too small",
    Status.ALREADY_OWNED: "Platform is already owned",
    Status.INVALID_CERTIFICATE: "Certificate is invalid",
    Status.POLICY_FAILURE: "Policy is not allowed",
    Status.INACTIVE: "Guest is not active",
    Status.INVALID_ADDRESS: "Invalid address",
    Status.BAD_SIGNATURE: "Bad signature",
    Status.BAD_MEASUREMENT: "Bad measurement",
    Status.ASID_OWNED: "ASID is already owned",
    Status.INVALID_ASID: "Invalid ASID",
    Status.WBINVD_REQUIRED: "WBINVD is required",
    Status.DFFLUSH_REQUIRED: "DF_FLUSH is required",
    Status.INVALID_GUEST: "Guest handle is invalid",
    Status.INVALID_COMMAND: "Invalid command",
    Status.ACTIVE: "Guest is active",
    Status.HWERROR_PLATFORM: "Hardware error",
    Status.HWERROR_UNSAFE: "Hardware error, the platform is no longer safe to use",
    Status.UNSUPPORTED: "Feature not supported",
    Status.INVALID_PARAM: "Invalid parameter",
    Status.RESOURCE_LIMIT: "Required firmware resource depleted",
    Status.SECURE_DATA_INVALID: "Part-specific integrity check failure",
    Status.INVALID_PAGE_SIZE: "RMP page size is incorrect",
    Status.INVALID_PAGE_STATE: "RMP page state is incorrect",
    Status.INVALID_MDATA_ENTRY: "Metadata entry is invalid",
    Status.INVALID_PAGE_OWNER: "RMP page owner is incorrect",
    Status.AEAD_OFLOW: "Authenticated encryption counter would overflow",
    Status.EXIT_RING_BUFFER: "Ring buffer mode was left",
    Status.RMP_INIT_REQUIRED: "RMP must be initialised",
    Status.BAD_SVN: "Security version is lower than the committed one",
    Status.BAD_VERSION: "Firmware version is lower than the committed one",
    Status.SHUTDOWN_REQUIRED: "Platform must be shut down first",
    Status.UPDATE_FAILED: "Firmware update failed",
    Status.RESTORE_REQUIRED: "Committed firmware must be restored",
    Status.RMP_INIT_FAILED: "RMP could not be initialised",
    Status.INVALID_KEY: "Invalid key",
}


def failure(status: Status, detail: str) -> FirmwareError:
    """The error for a command that ended with `status`; `detail` says which object and which check."""
    return FirmwareError(status, f"{status.sentence} (status {status:#x}): {detail}")

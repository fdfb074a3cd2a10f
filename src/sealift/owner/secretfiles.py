"""A launch secret as files, by the conventions of the tools that read them.

========  ===================================================================================================
sevctl    secret_header.bin, secret_payload.bin: raw
sev-tool  packaged_secret_header.bin, packaged_secret.bin: raw
libvirt   secret_header.b64, secret_payload.b64: base64 text, also virt-qemu-sev-validate's and virsh's
qmp       one JSON object: the command sev-inject-launch-secret
========  ===================================================================================================
"""

from __future__ import annotations

import base64
import re
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any, Final
from uuid import UUID

from sealift.errors import StreamError, UserError
from sealift.launch.secrets import GUEST_GUID, MIGRATION_GUID
from sealift.owner.files import OutputFile, parsed, read
from sealift.sev import packet, secret
from sealift.sev.secret import LUKS_KEY_GUID, SecretEntry
from sealift.sev.text import decode_base64

NAMES: Final = {"luks-key": LUKS_KEY_GUID, "guest": GUEST_GUID}
"""Short names for GUIDs of entries."""

_TEXT_LIMIT: Final = 2 * secret.SIZE_LIMIT
_GUID: Final = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.IGNORECASE)


class SecretFormat(Enum):
    """Whose conventions."""

    SEVCTL = "sevctl"
    SEV_TOOL = "sev-tool"
    LIBVIRT = "libvirt"
    QMP = "qmp"


@dataclass(frozen=True, slots=True)
class SealedSecret:
    """A packet for LAUNCH_SECRET; only the launch it was made for can open it."""

    header: bytes
    payload: bytes

    @classmethod
    def read(cls, header: Path, payload: Path) -> SealedSecret:
        """From two files, raw or base64.

        Raises:
            UserError: one cannot be read or holds something else.
        """
        return cls(
            parsed("secret's header", header, _TEXT_LIMIT, _header), parsed("secret", payload, _TEXT_LIMIT, _payload)
        )

    def files(self, directory: Path, form: SecretFormat) -> list[OutputFile]:
        """Header and payload as files.

        Raises:
            ValueError: QMP takes no files.
        """
        match form:
            case SecretFormat.SEVCTL:
                names = ("secret_header.bin", "secret_payload.bin")
            case SecretFormat.SEV_TOOL:
                names = ("packaged_secret_header.bin", "packaged_secret.bin")
            case SecretFormat.LIBVIRT:
                names = ("secret_header.b64", "secret_payload.b64")
                pair = zip(names, (self.header, self.payload), strict=True)
                return [OutputFile.base64(directory / name, data) for name, data in pair]
            case SecretFormat.QMP:
                raise ValueError("a QMP command is no pair of files")
        return [OutputFile(directory / names[0], self.header), OutputFile(directory / names[1], self.payload)]

    def command(self, gpa: int | None) -> dict[str, Any]:
        """The QMP command that injects it; without `gpa`, where the firmware says."""
        arguments: dict[str, Any] = {
            "packet-header": base64.b64encode(self.header).decode(),
            "secret": base64.b64encode(self.payload).decode(),
        }
        if gpa is not None:
            arguments["gpa"] = gpa
        return {"execute": "sev-inject-launch-secret", "arguments": arguments}


def read_entry(text: str) -> SecretEntry:
    """An entry of the secret table from ``GUID:FILE`` or ``NAME:FILE``.

    Raises:
        UserError: no such GUID or name, or the file cannot be read.
    """
    name, colon, path = text.partition(":")
    if not colon or not path:
        raise UserError(f"{text!r} is no secret; write GUID:FILE, or one of {', '.join(NAMES)} in the GUID's place")
    guid = NAMES.get(name) or (UUID(name) if _GUID.fullmatch(name) else None)
    if guid is None:
        raise UserError(f"{name!r} is no GUID; write it like {LUKS_KEY_GUID}, or one of {', '.join(NAMES)}")
    if guid == MIGRATION_GUID:
        raise UserError(f"{guid} is the migration key's entry, which `sealift run`'s own owner makes")
    return SecretEntry(guid, read("secret", Path(path), secret.SIZE_LIMIT))


def read_whole(path: Path) -> bytes:
    """A file whose bytes are the secret, without a table; zeros make it whole blocks, as firmware needs it.

    Raises:
        UserError: it cannot be read, or is empty.
    """
    data = read("secret", path, secret.SIZE_LIMIT)
    if not data:
        raise UserError(f"the secret {path} is empty")
    return data + bytes(-len(data) % packet.BLOCK_SIZE)


def name_of(guid: UUID) -> str:
    """The short name of an entry's GUID; the GUID itself if it has none."""
    return next((name for name, known in NAMES.items() if known == guid), str(guid))


def _header(data: bytes) -> bytes:
    raw = data if len(data) == packet.HEADER_SIZE else decode_base64(data) or data
    packet.Header.decode(raw)
    return raw


def _payload(data: bytes) -> bytes:
    raw = decode_base64(data) or data
    if not raw or len(raw) % packet.BLOCK_SIZE or len(raw) > secret.SIZE_LIMIT:
        raise StreamError(f"a secret has whole blocks of 16 bytes up to {secret.SIZE_LIMIT}, not {len(raw)} bytes")
    return raw

"""What a user says about a guest: on the command line, in a TOML file, or in code that calls `sealift.cli.wiring`."""

from __future__ import annotations

import enum
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Final, Literal

import msgspec

from sealift.cli.engines import DEFAULT_ENGINE
from sealift.cli.options import parse_size
from sealift.cli.places import owner_place
from sealift.cpu.library import is_file
from sealift.errors import UserError

DEFAULT_NAME: Final = "guest"
DEFAULT_MEMORY: Final = 256 << 20
DEFAULT_VCPUS: Final = 2
DEFAULT_KERNEL: Final = "ledger"
DEFAULT_POLICY: Final = "nodbg,nosend"
DEFAULT_CPU: Final = "host"
"""All that the engine can give here."""
DEFAULT_DOWNTIME_LIMIT_MS: Final = 300

_CONFIG_LIMIT: Final = 1 << 20
"""Bytes of a configuration: a page of text at most; a guest's image given by mistake is not read."""


_READ_ONLY: Final = ",ro"


@dataclass(frozen=True, slots=True)
class DiskPath:
    """A disk image to be opened."""

    path: Path
    read_only: bool = False

    @classmethod
    def parse(cls, text: str) -> DiskPath:
        """From ``PATH`` or ``PATH,ro``."""
        return cls(Path(text.removesuffix(_READ_ONLY)), text.endswith(_READ_ONLY))


@dataclass(frozen=True, slots=True)
class SecretFiles:
    """Where an owner's packet for LAUNCH_SECRET is, or will be."""

    header: Path
    payload: Path

    @classmethod
    def parse(cls, text: str) -> SecretFiles:
        """From ``HEADER:PAYLOAD``.

        Raises:
            UserError: these are not two paths.
        """
        header, _, payload = text.partition(":")
        if not header or not payload or ":" in payload:
            raise UserError(f"{text!r} does not name two files; write --launch-secret HEADER:PAYLOAD")
        return cls(Path(header), Path(payload))


class GuestType(enum.Enum):
    """How a guest is protected from its host."""

    PLAIN = "plain"
    """Not at all."""
    SEV = "sev"
    """By SEV, or SEV-ES if its policy says so."""


@dataclass(frozen=True, slots=True)
class GuestOptions:
    """One guest.

    Attributes:
        name: what its run directory and its console are called.
        type: whether it is confidential, and how.
        memory: bytes.
        vcpus: how many.
        kernel: a built-in program's name, or the path of an ELF file or a Linux bzImage.
        initrd: file that Linux unpacks as its first file system.
        payload: file that a kernel of our own finds through the start-up table.
        append: the kernel's command line.
        policy: as `sealift.sev.policy.parse_policy` reads it.
        secret: file whose content the owner plants for the guest's own use.
        zero_pages: let the migration handler leave out what zero pages contain; the host learns which they are.
        downtime_limit_ms: for migrations away from here.
        tls_creds: directory with what a TLS connection needs, for migrations to here and away from here.
        prealloc: of a guest that is to arrive, get its memory from the machine before its pages come.
        disks: images for Linux's /dev/vda and on.
        engine: what runs vCPUs: auto, kvm or unicorn.
        cpu: what the guest sees: a model, with changes, or a file, as `Library.resolve` reads it; or `DEFAULT_CPU`.
        verbose: tell why the engine is which it is.
        dh_cert_file: the Diffie-Hellman certificate of an owner who is not asked from here; with `session_file`.
        session_file: the launch session that this owner made.
        launch_secret: where this owner leaves its secret.
        no_owner: launch without a channel to any owner.
        paused: do not start the guest until somebody asks for it.
    """

    name: str = DEFAULT_NAME
    type: GuestType = GuestType.SEV
    memory: int = DEFAULT_MEMORY
    vcpus: int = DEFAULT_VCPUS
    kernel: str = DEFAULT_KERNEL
    initrd: Path | None = None
    payload: Path | None = None
    append: str = ""
    policy: str | int = DEFAULT_POLICY
    secret: Path | None = None
    zero_pages: bool = False
    downtime_limit_ms: int = DEFAULT_DOWNTIME_LIMIT_MS
    tls_creds: Path | None = None
    prealloc: bool = False
    disks: tuple[DiskPath, ...] = ()
    engine: str = DEFAULT_ENGINE
    cpu: str = DEFAULT_CPU
    verbose: bool = False
    dh_cert_file: Path | None = None
    session_file: Path | None = None
    launch_secret: SecretFiles | None = None
    no_owner: bool = False
    paused: bool = False


def check_plain(options: GuestOptions) -> None:
    """A guest that is not confidential has no owner, so nothing can be said about one.

    Raises:
        UserError: something was.
    """
    given = {
        "--policy": options.policy != DEFAULT_POLICY,
        "--secret": options.secret is not None,
        "--zero-pages": options.zero_pages,
        "--dh-cert-file": options.dh_cert_file is not None,
        "--session-file": options.session_file is not None,
        "--launch-secret": options.launch_secret is not None,
        "--no-owner": options.no_owner,
    }
    for option, said in given.items():
        if said:
            raise UserError(f"{option} has no use with --type plain: such a guest has no owner, and keeps no secrets")


class ConfigFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename="kebab"):
    """The keys of a configuration file: those of the command line. Relative paths start at the file."""

    name: str | None = None
    type: Literal["plain", "sev"] | None = None
    memory: Annotated[int, msgspec.Meta(gt=0)] | str | None = None
    vcpus: Annotated[int, msgspec.Meta(gt=0)] | None = None
    kernel: str | None = None
    initrd: str | None = None
    payload: str | None = None
    append: str | None = None
    policy: int | str | None = None
    secret: str | None = None
    zero_pages: bool | None = None
    host: str | None = None
    owner: str | None = None
    incoming: str | None = None
    qmp: list[str] | None = None
    monitor: list[str] | None = None
    gdb: str | None = None
    restore: str | None = None
    downtime_limit: Annotated[int, msgspec.Meta(ge=0)] | None = None
    tls_creds: str | None = None
    prealloc: bool | None = None
    disk: list[str] | None = None
    engine: Literal["auto", "kvm", "unicorn"] | None = None
    cpu: str | None = None
    verbose: bool | None = None
    dh_cert_file: str | None = None
    session_file: str | None = None
    launch_secret: str | None = None
    no_owner: bool | None = None
    paused: bool | None = None
    metrics: str | None = None


def read_config(path: Path) -> dict[str, object]:
    """What a configuration file sets, by parameter name of ``sealift run``.

    Raises:
        UserError: it cannot be read, or has a key or value that means nothing.
    """
    try:
        with path.open("rb") as file:
            text = file.read(_CONFIG_LIMIT + 1)
        if len(text) > _CONFIG_LIMIT:
            raise UserError(f"{path} is too large for a guest's configuration")
        config = msgspec.convert(tomllib.loads(text.decode()), ConfigFile)
    except OSError as error:
        raise UserError(f"the configuration {path} cannot be read") from error
    except UnicodeDecodeError:
        raise UserError(f"the configuration {path} is no text") from None
    except tomllib.TOMLDecodeError as error:
        raise UserError(f"the configuration {path} is no TOML") from error
    except msgspec.ValidationError as error:
        raise UserError(f"the configuration {path} does not say what it should") from error
    found = {name: value for name, value in msgspec.structs.asdict(config).items() if value is not None}
    return _resolved(found, path.parent)


def _resolved(found: dict[str, object], base: Path) -> dict[str, object]:
    """The same with sizes as numbers and paths that no longer depend on where the file is."""
    for key in ("initrd", "payload", "secret", "host", "restore", "dh_cert_file", "session_file", "tls_creds"):
        if key in found:
            found[key] = base / str(found[key])
    if "owner" in found and isinstance(owner_place(str(found["owner"])), Path):
        found["owner"] = str(base / str(found["owner"]))
    if isinstance(disks := found.get("disk"), list):
        found["disk"] = [str(base / str(disk)) for disk in disks]
    if "launch_secret" in found:
        files = SecretFiles.parse(str(found["launch_secret"]))
        found["launch_secret"] = f"{base / files.header}:{base / files.payload}"
    if "cpu" in found and is_file(str(found["cpu"])):
        found["cpu"] = str(base / str(found["cpu"]))
    if "kernel" in found and "/" in str(found["kernel"]):
        found["kernel"] = str(base / str(found["kernel"]))
    if isinstance(memory := found.get("memory"), str):
        found["memory"] = parse_size(memory)
    return found

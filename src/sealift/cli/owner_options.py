"""What the owner's commands share: whom to trust, a session's keys, the firmware's version, values as text or files.

Options that belong together reach a command as one object, which reads the files they name.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Collection
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from sealift.cli.options import F, file_option
from sealift.cli.places import default_owner
from sealift.errors import SealError, StreamError, UserError

if TYPE_CHECKING:
    from sealift.owner.judgement import Judgement
    from sealift.sev.certfile import CertificateSet
    from sealift.sev.measurement import FirmwareVersion
    from sealift.sev.session import TransportKeys

FINGERPRINT_SIZE: Final = 32
_SHOWN: Final = 64
"""Characters of a wrong value that are shown: it may be a whole certificate."""

force_option = click.option("--force", is_flag=True, help="Replace files that exist.")
directory_option = click.option(
    "--owner",
    type=click.Path(path_type=Path),
    default=default_owner,
    show_default="the user's own",
    help="Directory of the guest owner.",
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print a JSON object instead.")


@dataclass(frozen=True, slots=True)
class Trust:
    """Whom the owner trusts: ``--ca``, ``--trust`` and ``--unverified``."""

    ca: Path | None
    trust: tuple[str, ...]
    unverified: bool

    def load(self, paths: tuple[Path, ...]) -> CertificateSet:
        """The certificates of all these files, and of ``--ca``.

        Raises:
            UserError: one cannot be read or holds something else, or two contradict each other.
        """
        from sealift.owner.files import parsed
        from sealift.sev.certfile import SIZE_LIMIT, CertificateSet

        wanted = [("certificate file", path) for path in paths] + ([("CA file", self.ca)] if self.ca else [])
        whole: CertificateSet | None = None
        for what, path in wanted:
            found = parsed(what, path, SIZE_LIMIT, CertificateSet.decode)
            try:
                whole = found if whole is None else whole.joined(found)
            except StreamError as error:
                raise UserError(f"the {what} {path} and the others are not of one platform") from error
        if whole is None:
            raise click.UsageError("give a file of certificates")
        return whole

    def judge(self, certificates: CertificateSet) -> Judgement:
        """The owner's judgement, by the roots that ``--trust`` names and the local owner has pinned.

        Raises:
            UserError: a root is none, or the local owner's settings are damaged.
        """
        from sealift.owner import settings
        from sealift.owner.judgement import judge
        from sealift.privatefiles import PrivateDirectory

        roots = {chip_or_root(text, root=True) for text in self.trust}
        if default_owner().exists():
            roots.update(settings.load(PrivateDirectory(default_owner(), "owner")).roots)
        return judge(certificates, roots)

    def require(self, judgement: Judgement) -> None:
        """Go on only with a platform that is proven genuine, or with a warning if that was asked for.

        Raises:
            SealError: it is not, and nobody said that it need not be.
        """
        if judgement.genuine:
            return
        reasons = "; ".join(judgement.faults)
        if not self.unverified:
            raise SealError(reasons)
        click.echo(f"sealift: WARNING: nothing proves that the platform is genuine: {reasons}", err=True)


@dataclass(frozen=True, slots=True)
class KeyFiles:
    """A session's keys: ``--tik`` and ``--tek``, or ``--tk``."""

    tik: Path | None
    tek: Path | None
    tk: Path | None

    def read(self) -> TransportKeys | None:
        """The keys; None if no file was named.

        Raises:
            UsageError: one alone of a pair, or both kinds.
            UserError: a file cannot be read or holds something else.
        """
        from sealift.owner.files import read_joint_transport, read_transport

        if self.tk is not None:
            if self.tik is not None or self.tek is not None:
                raise click.UsageError("--tk holds both keys; it goes without --tik and --tek")
            return read_joint_transport(self.tk)
        if self.tik is None and self.tek is None:
            return None
        if self.tik is None or self.tek is None:
            raise click.UsageError("--tik and --tek go together")
        return read_transport(self.tek, self.tik)

    def require(self) -> TransportKeys:
        """The keys.

        Raises:
            UsageError: no file was named, and as `read`.
            UserError: as `read`.
        """
        keys = self.read()
        if keys is None:
            raise click.UsageError("the session's keys are needed: --tik and --tek, or --tk")
        return keys


@dataclass(frozen=True, slots=True)
class Version:
    """The firmware's version: ``--api`` and ``--build``."""

    api: str | None
    build: int | None

    @property
    def given(self) -> bool:
        """Whether anything was said of it."""
        return self.api is not None or self.build is not None

    def read(self) -> FirmwareVersion:
        """The version.

        Raises:
            UsageError: a part is missing, or the API version is none.
        """
        from sealift.sev.measurement import FirmwareVersion

        if self.api is None or self.build is None:
            raise click.UsageError("the measurement binds the firmware's version: say --api MAJOR.MINOR and --build N")
        try:
            major, minor = (int(part) for part in self.api.split("."))
            return FirmwareVersion(major, minor, self.build)
        except (ValueError, StreamError):
            raise click.UsageError(f"--api: {self.api!r} is no version; write it like 1.55") from None


def gathered(name: str, kind: type[Any], *options: Callable[[F], F]) -> Callable[[F], F]:
    """Options that reach the command as one argument: `kind`, whose fields are called as they are."""
    members = [field.name for field in fields(kind)]

    def apply(function: F) -> F:
        @functools.wraps(function)
        def command(*arguments: Any, **settings: Any) -> Any:  # noqa: ANN401  # the command's own
            gathered = kind(**{member: settings.pop(member) for member in members})
            return function(*arguments, **{name: gathered}, **settings)

        for option in reversed(options):
            command = option(command)
        return command  # type: ignore[return-value]  # it takes what the options give in place of `name`

    return apply


trust_options = gathered(
    "whom",
    Trust,
    file_option("--ca", "ASK||ARK, if the chain does not hold them."),
    click.option(
        "--trust",
        multiple=True,
        metavar="ROOT",
        help="Trust this root too: a file with the manufacturer's ARK that you have from a source you trust, or its "
        "fingerprint (SHA-256 over the signed part). Roots that the local owner has pinned are trusted as they are.",
    ),
    click.option("--unverified", is_flag=True, help="Go on without proof that the platform is genuine."),
)

key_options = gathered(
    "keys",
    KeyFiles,
    file_option("--tik", "The session's TIK (sevctl's NAME_tik.bin)."),
    file_option("--tek", "The session's TEK (sevctl's NAME_tek.bin)."),
    file_option("--tk", "Both in one file, TEK||TIK (sev-tool's tmp_tk.bin)."),
)

version_options = gathered(
    "version",
    Version,
    click.option("--api", metavar="MAJOR.MINOR", help="The firmware's API version (query-sev: api-major, api-minor)."),
    click.option("--build", type=click.IntRange(0, 255), help="The firmware's build (query-sev: build-id)."),
)


def binary(what: str, text: str, sizes: Collection[int]) -> bytes:
    """A value given as base64, as hexadecimal, or as the name of a file that holds it raw or as base64.

    Raises:
        UserError: it is none of them, or has another size.
    """
    from sealift.owner.files import read_blob
    from sealift.sev.text import decode_base64

    for decode in (_hexadecimal, decode_base64):
        value = decode(os.fsencode(text))
        if value is not None and len(value) in sizes:
            return value
    if os.path.lexists(text):
        return read_blob(what, Path(text), sizes)
    wanted = " or ".join(map(str, sorted(sizes)))
    shown = text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"
    raise UserError(f"the {what} {shown!r} is neither {wanted} bytes in base64 or hexadecimal, nor a file")


def chip_or_root(text: str, *, root: bool) -> bytes:
    """The fingerprint of a host's chip, or of a root: itself, or out of a file with the certificates.

    Raises:
        UserError: it is neither.
    """
    from sealift.owner.files import parsed
    from sealift.sev.certfile import SIZE_LIMIT, CertificateSet
    from sealift.sev.certificate import Usage

    if not os.path.lexists(text):
        return binary("fingerprint", text, {FINGERPRINT_SIZE})
    what, usage = ("root's file", Usage.ARK) if root else ("host's file", Usage.CEK)
    found = parsed(what, Path(text), SIZE_LIMIT, CertificateSet.decode).certificates.get(usage)
    if found is None:
        raise UserError(f"the {what} {text} holds no {usage.name}")
    return found.fingerprint()


def print_json(value: Any) -> None:  # noqa: ANN401  # whatever msgspec writes
    """Print a value as one line of JSON."""
    import msgspec

    click.echo(msgspec.json.encode(value).decode())


def _hexadecimal(text: bytes) -> bytes | None:
    try:
        return bytes.fromhex(text.decode())
    except ValueError:
        return None

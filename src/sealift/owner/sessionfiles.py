"""A launch session as files, by the conventions of the tools that read them.

=========  ======================================================================================
sevctl     NAME_godh.b64, NAME_session.b64 (base64 text, as QEMU and libvirt take them),
           NAME_tek.bin, NAME_tik.bin (16 bytes each)
sev-tool   godh.cert, launch_blob.bin (raw), tmp_tk.bin (TEK||TIK, 32 bytes)
=========  ======================================================================================
"""

from __future__ import annotations

from enum import Enum
from pathlib import Path

from sealift.owner.files import OutputFile
from sealift.sev.session import OwnerSession


class SessionFormat(Enum):
    """Whose conventions."""

    SEVCTL = "sevctl"
    SEV_TOOL = "sev-tool"


def session_files(session: OwnerSession, directory: Path, name: str, form: SessionFormat) -> list[OutputFile]:
    """The files of a session; those for the host first, then the owner's secret ones. sev-tool's have no `name`."""
    keys = session.transport
    match form:
        case SessionFormat.SEVCTL:
            return [
                OutputFile.base64(directory / f"{name}_godh.b64", session.dh_cert),
                OutputFile.base64(directory / f"{name}_session.b64", session.session),
                OutputFile(directory / f"{name}_tek.bin", keys.tek, secret=True),
                OutputFile(directory / f"{name}_tik.bin", keys.tik, secret=True),
            ]
        case SessionFormat.SEV_TOOL:
            return [
                OutputFile(directory / "godh.cert", session.dh_cert),
                OutputFile(directory / "launch_blob.bin", session.session),
                OutputFile(directory / "tmp_tk.bin", keys.tek + keys.tik, secret=True),
            ]

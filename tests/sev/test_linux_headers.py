"""Status codes, buffers and names are those of Linux's own headers; a C compiler is the judge.

``linux/psp-sev.h`` is what a host's tools are built with, ``linux/kvm.h`` what a VMM is.
"""

from __future__ import annotations

import inspect
import platform
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from sealift.sev import report
from sealift.sev.status import Status
from sealift.silicon.processor.firmware import VERSION, SecureProcessor
from sealift.silicon.processor.identity import CHIP_ID_SIZE
from sealift.silicon.processor.platform import PlatformStatus
from sealift.silicon.processor.states import Command, PlatformState

COMPILER = shutil.which("gcc") or shutil.which("cc")

PROBE = """
#include <linux/kvm.h>
#include <linux/psp-sev.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>
int main(void) {
%s
    return 0;
}
"""

Probe = Callable[[dict[str, str]], dict[str, int]]


@pytest.fixture
def probe(tmp_path: Path) -> Probe:
    """Asks the headers for values of C expressions, by label."""
    if platform.machine() != "x86_64":
        pytest.skip(f"NOT TESTED: the headers here are those of {platform.machine()}, and SEV is x86's")
    if COMPILER is None:
        pytest.skip("NOT TESTED: there is no C compiler (Debian: gcc, libc6-dev)")
    source, program = tmp_path / "probe.c", tmp_path / "probe"
    source.write_text(PROBE % "")
    if subprocess.run([COMPILER, "-E", source], capture_output=True, check=False).returncode:
        pytest.skip("NOT TESTED: there are no headers of the kernel (Debian: linux-libc-dev)")

    def ask(questions: dict[str, str]) -> dict[str, int]:
        lines = [f'    printf("%s=%lld\\n", "{label}", (long long)({c}));' for label, c in questions.items()]
        source.write_text(PROBE % "\n".join(lines))
        subprocess.run([COMPILER, "-o", program, source], check=True)
        said = subprocess.run([program], capture_output=True, text=True, check=True).stdout
        return {label: int(value) for label, value in (line.split("=") for line in said.splitlines())}

    return ask


OTHER_NAMES = {
    "INVALID_CONFIG": "INAVLID_CONFIG",  # so spelled in the header
    "INVALID_LENGTH": "INVALID_LEN",
    "HWERROR_PLATFORM": "HWSEV_RET_PLATFORM",
    "HWERROR_UNSAFE": "HWSEV_RET_UNSAFE",
}
"""Status codes that Linux calls otherwise."""


def test_status_codes_are_linuxs(probe: Probe) -> None:
    """Test every code of the SEV API; those from 0x19 on came with SEV-SNP and later headers."""
    ours = {status.name: int(status) for status in Status if status <= Status.SECURE_DATA_INVALID}
    assert probe({name: f"SEV_RET_{OTHER_NAMES.get(name, name)}" for name in ours}) == ours
    assert len(ours) == 0x19


@pytest.mark.parametrize("owned", [False, True])
@pytest.mark.parametrize("es", [False, True])
def test_the_status_buffer_reads_in_c(probe: Probe, owned: bool, es: bool) -> None:  # noqa: FBT001
    """Test that a program built with the header finds in our buffer what we put into it."""
    status = PlatformStatus(VERSION, PlatformState.WORKING, owned, es, guests=0x01020304)
    numbers = ",".join(str(byte) for byte in status.encode())
    cast = f"((struct sev_user_data_status *)(unsigned char[]){{{numbers}}})"
    found = probe(
        {
            "size": "sizeof(struct sev_user_data_status)",
            "owned": f"{cast}->flags & 1",
            "es": f"!!({cast}->flags & SEV_STATUS_FLAGS_CONFIG_ES)",
            "other flags": f"{cast}->flags & ~(1 | SEV_STATUS_FLAGS_CONFIG_ES)",
            **{name: f"{cast}->{name}" for name in ("api_major", "api_minor", "state", "build", "guest_count")},
        }
    )
    assert found == {
        "size": len(status.encode()),
        "owned": owned,
        "es": es,
        "other flags": 0,
        "api_major": 1,
        "api_minor": 55,
        "state": 2,
        "build": 25,
        "guest_count": 0x01020304,
    }


BUFFERS = {
    Command.PEK_CSR: "struct sev_user_data_pek_csr",
    Command.PEK_CERT_IMPORT: "struct sev_user_data_pek_cert_import",
    Command.PDH_CERT_EXPORT: "struct sev_user_data_pdh_cert_export",
    Command.GET_ID: "struct sev_user_data_get_id2",
}
"""Linux gives each buffer of these commands 64 bits of address and 32 of length, and packs them."""


def test_platform_commands_have_linuxs_buffers(probe: Probe) -> None:
    """Test that our commands take and fill as many buffers as Linux's structures have."""
    found = probe({command.name: f"sizeof({structure})" for command, structure in BUFFERS.items()})
    for command in BUFFERS:
        method = getattr(SecureProcessor, command.name.lower())
        buffers = len(inspect.signature(method).parameters) - 1
        assert found[command.name] == buffers * (8 + 4), command.name


def test_sizes_of_ids_and_nonces_are_linuxs(probe: Probe) -> None:
    found = probe(
        {
            "id": "sizeof(((struct sev_user_data_get_id *)0)->socket1)",
            "nonce": "sizeof(((struct kvm_sev_attestation_report *)0)->mnonce)",
        }
    )
    assert found == {"id": CHIP_ID_SIZE, "nonce": report.MNONCE_SIZE}


OTHER_COMMANDS = {Command.ATTESTATION: "GET_ATTESTATION_REPORT"}


def test_guest_commands_have_the_names_kvm_gives_them(probe: Probe) -> None:
    """Test that a VMM asks KVM for what we call by the same name; ASIDs and handles it never sees."""
    kernels_own = {Command.DECOMMISSION, Command.ACTIVATE, Command.DEACTIVATE}
    names = {
        command.name: f"KVM_SEV_{OTHER_COMMANDS.get(command, command.name)}"
        for command in Command
        if command >= Command.DECOMMISSION and command not in kernels_own
    }
    numbers = probe(names)
    assert len(set(numbers.values())) == len(names) == 19

"""Status codes, buffers and names are those of Linux's own headers; a C compiler is the judge.

``linux/psp-sev.h`` is what a host's tools are built with, ``linux/kvm.h`` what a VMM is.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

import judges
from sealift.sev import report
from sealift.sev.measurement import FirmwareVersion
from sealift.sev.status import Status
from sealift.silicon.processor.firmware import VERSION, SecureProcessor
from sealift.silicon.processor.identity import CHIP_ID_SIZE
from sealift.silicon.processor.platform import PlatformStatus
from sealift.silicon.processor.states import Command, PlatformState

HEADERS = ("linux/kvm.h", "linux/psp-sev.h")

Probe = Callable[[dict[str, str]], dict[str, int]]


@pytest.fixture
def probe(tmp_path: Path) -> Probe:
    """Asks the headers for values of C expressions, by label."""
    return lambda questions: judges.header_values(tmp_path, HEADERS, questions)


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


def test_every_field_of_the_status_buffer_lies_where_c_has_it(probe: Probe) -> None:
    """Test offsets: in ours, by which bytes change with the field alone."""
    nothing = PlatformStatus(FirmwareVersion(0, 0, 0), PlatformState.UNINIT, owned=False, es=False, guests=0)
    changed = {
        "api_major": replace(nothing, version=FirmwareVersion(0xFF, 0, 0)),
        "api_minor": replace(nothing, version=FirmwareVersion(0, 0xFF, 0)),
        "state": replace(nothing, state=PlatformState.WORKING),
        "flags": replace(nothing, owned=True, es=True),
        "build": replace(nothing, version=FirmwareVersion(0, 0, 0xFF)),
        "guest_count": replace(nothing, guests=0xFFFF_FFFF),
    }
    field = "offsetof(struct sev_user_data_status, {0})", "sizeof(((struct sev_user_data_status *)0)->{0})"
    offsets, sizes = (probe({name: expression.format(name) for name in changed}) for expression in field)
    for name, status in changed.items():
        places = [at for at, byte in enumerate(status.encode()) if byte]
        assert offsets[name] == places[0], name
        assert places[-1] < offsets[name] + sizes[name], name
    assert [list(offsets), sum(sizes.values())] == [list(changed), len(nothing.encode())]


BUFFERS = {
    Command.PEK_CSR: ("pek_csr", {"room": ("address", "length")}),
    Command.PEK_CERT_IMPORT: (
        "pek_cert_import",
        {"pek": ("pek_cert_address", "pek_cert_len"), "oca": ("oca_cert_address", "oca_cert_len")},
    ),
    Command.PDH_CERT_EXPORT: (
        "pdh_cert_export",
        {"pdh_room": ("pdh_cert_address", "pdh_cert_len"), "chain_room": ("cert_chain_address", "cert_chain_len")},
    ),
    Command.GET_ID: ("get_id2", {"room": ("address", "length")}),
}
"""What Linux calls each buffer of a command: the structure, and by our name of the buffer its address and length."""


@pytest.mark.parametrize("command", BUFFERS, ids=lambda command: command.name)
def test_platform_commands_have_linuxs_buffers_in_its_order(probe: Probe, command: Command) -> None:
    """Test that each is 64 bits of address and 32 of length, one behind the other, and that there are no others."""
    name, buffers = BUFFERS[command]
    structure = f"struct sev_user_data_{name}"
    fields = [field for pair in buffers.values() for field in pair]
    offsets = {f"offset of {field}": f"offsetof({structure}, {field})" for field in fields}
    sizes = {f"size of {field}": f"sizeof((({structure} *)0)->{field})" for field in fields}
    found = probe(offsets | sizes | {"all": f"sizeof({structure})"})
    assert [found[label] for label in offsets] == [
        base + part for base in range(0, found["all"], 12) for part in (0, 8)
    ]
    assert [found[label] for label in sizes] == [8, 4] * len(buffers)
    parameters = list(inspect.signature(getattr(SecureProcessor, command.name.lower())).parameters)
    assert parameters == ["self", *buffers]


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

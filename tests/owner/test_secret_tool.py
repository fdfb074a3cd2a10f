"""``sealift owner secret``: packets in every tool's files, which firmware takes, and no other launch can open."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import hmac
import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from owner.conftest import Host
from owner.tool import owner
from sealift.address import Gpa, RamBlock, RamLayout
from sealift.errors import FirmwareError, SealiftError, UserError
from sealift.launch.secrets import GUEST_GUID, MIGRATION_GUID
from sealift.owner.secretfiles import SealedSecret, read_entry
from sealift.sev.policy import DEFAULT_POLICY
from sealift.sev.secret import LUKS_KEY_GUID
from sealift.silicon.memory.guest_memory import GuestMemory
from sealift.silicon.processor.asids import fitting

PASSPHRASE = b"correct horse battery"


@pytest.fixture
def launch(tmp_path: Path) -> tuple[str | Path, ...]:
    """Options for a launch with keys and a measurement."""
    (tmp_path / "tk").write_bytes(os.urandom(32))
    (tmp_path / "measure").write_bytes(os.urandom(48))
    (tmp_path / "passphrase").write_bytes(PASSPHRASE)
    return ("--tk", tmp_path / "tk", "--measurement", tmp_path / "measure")


def opened(tmp_path: Path, header: bytes, payload: bytes) -> bytes:
    """The secret, by `hmac` and OpenSSL's command line."""
    tk, measure = (tmp_path / "tk").read_bytes(), (tmp_path / "measure").read_bytes()
    length = len(payload).to_bytes(4, "little")
    message = b"\x01" + header[:20] + length + length + payload + measure[:32]
    assert hmac.new(tk[16:], message, hashlib.sha256).digest() == header[20:]
    assert header[:4] == bytes(4)
    decrypt = ("openssl", "enc", "-d", "-aes-128-ctr", "-K", tk[:16].hex(), "-iv", header[4:20].hex())
    return subprocess.run(decrypt, check=True, capture_output=True, input=payload).stdout


FILES = {
    "sevctl": ("secret_header.bin", "secret_payload.bin"),
    "sev-tool": ("packaged_secret_header.bin", "packaged_secret.bin"),
    "libvirt": ("secret_header.b64", "secret_payload.b64"),
}


@pytest.mark.parametrize("form", [*FILES, "qmp"])
def test_a_second_implementation_opens_every_form(launch: tuple[str | Path, ...], tmp_path: Path, form: str) -> None:
    entry = f"luks-key:{tmp_path / 'passphrase'}"
    answer = owner("secret", entry, *launch, "--format", form, *(() if form == "qmp" else ("--directory", tmp_path)))
    if form == "qmp":
        command = json.loads(answer.out)
        assert command["execute"] == "sev-inject-launch-secret"
        assert set(command["arguments"]) == {"packet-header", "secret"}
        packet = tuple(base64.b64decode(command["arguments"][name]) for name in ("packet-header", "secret"))
    else:
        packet = tuple((tmp_path / name).read_bytes() for name in FILES[form])
    if form == "libvirt":
        packet = tuple(map(base64.b64decode, packet))
    table = opened(tmp_path, *packet)
    total, entry_size = 40 + len(PASSPHRASE), 20 + len(PASSPHRASE)
    assert table.startswith(UUID("1e74f542-71dd-4d66-963e-ef4287ff173b").bytes_le + total.to_bytes(4, "little"))
    assert table[20:40] == LUKS_KEY_GUID.bytes_le + entry_size.to_bytes(4, "little")
    assert table[40:total] == PASSPHRASE
    assert not any(table[total:])
    assert len(table) == -(-total // 16) * 16


def test_a_raw_secret_has_no_table(launch: tuple[str | Path, ...], tmp_path: Path) -> None:
    words = ("secret", "--raw", tmp_path / "passphrase", *launch, "--directory", tmp_path)
    owner(*words)
    plain = opened(tmp_path, *((tmp_path / name).read_bytes() for name in FILES["sevctl"]))
    assert plain == PASSPHRASE.ljust(32, b"\0")
    listed = owner("secret", "--open", *(tmp_path / name for name in FILES["sevctl"]), *launch)
    assert listed.out == "32 bytes without a table\n"


def test_several_entries_are_listed_without_their_content(launch: tuple[str | Path, ...], tmp_path: Path) -> None:
    path = tmp_path / "passphrase"
    guid = "11111111-2222-3333-4444-555555555555"
    owner("secret", f"guest:{path}", f"{guid}:{path}", *launch, "--directory", tmp_path, "--format", "sev-tool")
    listed = owner("secret", "--open", *(tmp_path / name for name in FILES["sev-tool"]), *launch).out
    assert [line.split() for line in listed.splitlines()[1:]] == [["guest", "21"], [guid, "21"]]
    assert PASSPHRASE.decode() not in listed


def test_another_launch_cannot_open_it(launch: tuple[str | Path, ...], tmp_path: Path) -> None:
    owner("secret", f"guest:{tmp_path / 'passphrase'}", *launch, "--directory", tmp_path)
    (tmp_path / "measure").write_bytes(os.urandom(48))
    answer = owner("secret", "--open", *(tmp_path / name for name in FILES["sevctl"]), *launch, status=1)
    assert "the packet's MAC fails" in answer.complaint


def test_the_qmp_command_says_where(launch: tuple[str | Path, ...], tmp_path: Path) -> None:
    entry = f"guest:{tmp_path / 'passphrase'}"
    command = json.loads(owner("secret", entry, *launch, "--format", "qmp", "--gpa", "0x810000").out)
    assert command["arguments"]["gpa"] == 0x810000


def test_firmware_takes_the_secret_of_its_launch_alone(make_host: Callable[[str], Host], tmp_path: Path) -> None:
    """Test the owner's tools from session to secret against our firmware, with files between them."""
    host, pdh, data = make_host("a"), tmp_path / "pdh.cert", tmp_path / "token"
    pdh.write_bytes(host.evidence().pdh)
    data.write_bytes(PASSPHRASE)
    owner("session", pdh, "--unverified", "--directory", tmp_path)
    godh, session = (base64.b64decode((tmp_path / f"vm_{name}.b64").read_text()) for name in ("godh", "session"))
    memory = GuestMemory(RamLayout((RamBlock("ram", Gpa(0), 1 << 20),)), bytes(32))
    handle = host.processor.launch_start(memory, 9, godh, session)
    image = os.urandom(4096)
    memory.shared.data[:4096] = image
    host.processor.activate(handle, fitting(DEFAULT_POLICY).start)
    host.processor.launch_update_data(handle, 0, 4096)
    measure = base64.b64encode(host.processor.launch_measure(handle)).decode()
    (tmp_path / "image").write_bytes(image)
    keys = ("--tik", tmp_path / "vm_tik.bin", "--tek", tmp_path / "vm_tek.bin")
    version = ("--api", "1.55", "--build", "25")
    owner("validate", "--measurement", measure, *keys, *version, "--firmware", tmp_path / "image")
    owner("secret", f"guest:{data}", "--measurement", measure, *keys, "--directory", tmp_path)
    header, payload = ((tmp_path / name).read_bytes() for name in FILES["sevctl"])
    with pytest.raises(FirmwareError):
        host.processor.launch_secret(handle, header, payload[:-1] + b"\0", 0x2000, len(payload))
    host.processor.launch_secret(handle, header, payload, 0x2000, len(payload))
    assert PASSPHRASE in bytes(memory.read_private(Gpa(0x2000), len(payload)))


@pytest.mark.parametrize(
    ("words", "status", "reason"),
    [
        ([], 2, "give entries (GUID:FILE), or --raw, or --open"),
        (["guest:DATA", "--raw", "DATA"], 2, "give entries"),
        (["DATA"], 1, "'DATA' is no secret; write GUID:FILE"),
        (["1234:DATA"], 1, "'1234' is no GUID"),
        ([f"{MIGRATION_GUID}:DATA"], 1, "is the migration key's entry"),
        (["guest:/nonexistent"], 1, "the secret /nonexistent cannot be read"),
        (["guest:LARGE"], 1, "LARGE has more than the 16384 bytes"),
        (["guest:DATA", "guest:FULL"], 1, "the launch secrets take"),
        (["--raw", "EMPTY"], 1, "the secret EMPTY is empty"),
        (["guest:DATA", "--gpa", "0x1000"], 2, "--gpa is part of the command that --format qmp prints"),
        (["guest:DATA", "--gpa", "0x1001", "--format", "qmp"], 2, "'0x1001' is no guest physical address"),
        (["--open", "DATA", "DATA"], 1, "the secret's header DATA does not parse: a packet header has 52 bytes, not 5"),
        (["--open", "HEADER", "DATA"], 1, "the secret DATA does not parse: a secret has whole blocks of 16 bytes"),
    ],
)
def test_mistakes_are_sentences(
    launch: tuple[str | Path, ...],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    words: list[str],
    status: int,
    reason: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    sizes = {"DATA": 5, "LARGE": (16 << 10) + 1, "FULL": 16 << 10, "EMPTY": 0, "HEADER": 52}
    for name, size in sizes.items():
        Path(name).write_bytes(bytes(size))
    answer = owner("secret", *words, *launch, status=status)
    assert reason in answer.complaint
    assert answer.out == ""


@given(text=st.text(max_size=80))
def test_any_word_is_an_entry_or_a_sentence(text: str) -> None:
    with contextlib.suppress(UserError):
        assert read_entry(text).guid != MIGRATION_GUID


@given(header=st.binary(max_size=100), payload=st.binary(max_size=100))
def test_arbitrary_packet_files(tmp_path_factory: pytest.TempPathFactory, header: bytes, payload: bytes) -> None:
    directory = tmp_path_factory.getbasetemp()
    for name, data in (("fuzz-header", header), ("fuzz-payload", payload)):
        (directory / name).write_bytes(data)
    with contextlib.suppress(SealiftError):
        read = SealedSecret.read(directory / "fuzz-header", directory / "fuzz-payload")
        assert len(read.header) == 52
        assert len(read.payload) % 16 == 0


def test_the_guests_entry_has_a_name() -> None:
    assert read_entry("guest:/proc/version").guid == GUEST_GUID

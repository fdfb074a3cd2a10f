"""Descriptors: the whole schema, wrong input, look-up and what the commands say."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from hypothesis import given
from hypothesis import strategies as st

import judges
from firmware.descriptors import descriptor, flash, write
from sealift.cli.main import sealift
from sealift.errors import StreamError, UserError
from sealift.firmware.descriptor import ARCHITECTURES, FEATURES, INTERFACES, SIZE_LIMIT, decode, faults
from sealift.firmware.image import inspect
from sealift.firmware.lookup import directories, look_up
from sealift.firmware.selection import Wanted, judge

OVMF = Path("/usr/share/qemu/firmware")


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(sealift, ["firmware", *map(str, arguments)], standalone_mode=False)


def encoded(**members: Any) -> bytes:
    return json.dumps(descriptor(**members)).encode()


@pytest.mark.parametrize("feature", FEATURES)
def test_every_feature_is_known(feature: str) -> None:
    assert decode(encoded(features=[feature])).known == {feature}


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_architecture_is_known(architecture: str) -> None:
    (target,) = decode(encoded(targets=[{"architecture": architecture, "machines": ["virt-*"]}])).targets
    assert target.fits(architecture, "virt-7.2")
    assert not target.fits(architecture, "virt")


@pytest.mark.parametrize("interface", INTERFACES)
def test_every_interface_is_known(interface: str) -> None:
    assert decode(encoded(interface_types=[interface])).interface_types == (interface,)


@pytest.mark.parametrize(
    ("mapping", "path"),
    [
        (flash("/a"), "/a"),
        (flash("/a", mode="split"), "/a"),
        (flash("/a", mode="combined", template=False), "/a"),
        (flash("/a", mode="stateless", template=False, form="qcow2"), "/a"),
        ({"device": "kernel", "filename": "/k"}, "/k"),
        ({"device": "memory", "filename": "/m"}, "/m"),
        ({"device": "igvm", "filename": "/i"}, "/i"),
    ],
)
def test_every_mapping_is_known(mapping: dict[str, Any], path: str) -> None:
    found = decode(encoded(mapping=mapping)).mapping
    assert (found.device, found.path) == (mapping["device"], path)


def test_features_of_later_releases_are_left_out() -> None:
    found = decode(encoded(features=["amd-sev", "next-year"], surprise=1))
    assert found.known == {"amd-sev"}
    assert "feature 'next-year' is not known - at `$.features[1]`" in faults(found)


@pytest.mark.parametrize(
    ("members", "why"),
    [
        ({"targets": [{"architecture": "vax", "machines": []}]}, r"\$\.targets\[0\]\.architecture"),
        ({"targets": [{"architecture": "arm"}]}, r"missing required field `machines` - at `\$\.targets"),
        ({"targets": "x"}, r"\$\.targets"),
        ({"interface_types": ["telepathy"]}, r"\$\.interface-types\[0\]"),
        ({"mapping": {"device": "tape", "filename": "/x"}}, r"\$\.mapping\.device"),
        ({"mapping": {"filename": "/x"}}, r"missing required field `device` - at `\$\.mapping"),
        ({"mapping": flash(mode="torn")}, r"\$\.mapping\.mode"),
        ({"mapping": flash(form="vmdk")}, r"\$\.mapping\.executable\.format"),
        ({"mapping": flash(template=False)}, r"needs an nvram-template - at `\$\.mapping"),
        ({"mapping": {"device": "kernel", "filename": ""}}, r"\$\.mapping\.filename"),
        ({"features": [1]}, r"\$\.features\[0\]"),
        ({"description": None}, r"\$\.description"),
    ],
)
def test_what_cannot_be_used_is_refused_with_its_place(members: dict[str, Any], why: str) -> None:
    with pytest.raises(StreamError, match=why):
        decode(encoded(**members))


@pytest.mark.parametrize("member", descriptor())
def test_every_member_is_needed(member: str) -> None:
    text = descriptor()
    del text[member]
    with pytest.raises(StreamError, match=f"missing required field `{member}`"):
        decode(json.dumps(text).encode())


@given(st.binary(max_size=200) | st.text(max_size=200).map(str.encode))
def test_bytes_of_any_kind_are_a_descriptor_or_refused(data: bytes) -> None:
    with pytest.raises(StreamError):
        decode(data)


@pytest.mark.parametrize("data", [b"[" * 100_000, b" " * (SIZE_LIMIT + 1), b"\xff\xfe{}", b"{", b"null"])
def test_rubbish_is_refused(data: bytes) -> None:
    with pytest.raises(StreamError):
        decode(data)


@pytest.mark.parametrize(
    ("members", "fault"),
    [
        ({"features": ["verbose-static", "verbose-dynamic"]}, "exclude each other"),
        ({"features": ["enrolled-keys"]}, "means nothing without secure-boot"),
        ({"features": ["amd-sev", "amd-sev"]}, "there twice - at `$.features[1]`"),
        ({"interface_types": []}, "nothing is listed - at `$.interface-types`"),
        ({"targets": []}, "nothing is listed - at `$.targets`"),
        ({"targets": [{"architecture": "arm", "machines": []}]}, "`$.targets[0].machines`"),
        ({"mapping": flash(mode="stateless")}, "a stateless image has no nvram-template"),
        ({}, "there is no file '/fw/code.fd' - at `$.mapping.executable.filename`"),
    ],
)
def test_validate_tells_what_is_wrong_and_usable(tmp_path: Path, members: dict[str, Any], fault: str) -> None:
    path = write(tmp_path, "a.json", **members)
    found = run("validate", path)
    assert found.return_value == 1
    assert fault in found.stdout


def test_a_bad_descriptor_hides_no_other(tmp_path: Path) -> None:
    packages, administrators = tmp_path / "share", tmp_path / "etc"
    for name in ("10-good", "20-masked", "30-replaced", "90-good"):
        write(packages, f"{name}.json", mapping=flash(f"/{name}"))
    write(administrators, "30-replaced.json", mapping=flash("/local"))
    (administrators / "20-masked.json").touch()
    (administrators / "40-bad.json").write_text("{")
    (administrators / "50-huge.json").write_bytes(b" " * (SIZE_LIMIT + 1))
    (administrators / "60-loop.json").symlink_to("60-loop.json")
    (administrators / "70-directory.json").mkdir()
    (administrators / ".80-hidden.json").write_text("{")
    os.mkfifo(administrators / "85-pipe.json")
    found = look_up([packages, administrators, tmp_path / "none"])
    usable = [file.descriptor.mapping.path for file in found.files if file.descriptor]
    assert usable == ["/10-good", "/local", "/90-good"]
    assert [file.name for file in found.files if file.masked] == ["20-masked.json"]
    assert [file.name for file in found.files if file.problem] == ["40-bad.json", "50-huge.json", "60-loop.json"]
    assert found.unreadable == ()
    (tmp_path / "file").touch()
    assert "cannot be read: Not a directory" in look_up([packages, tmp_path / "file"]).unreadable[0]

    said = run("list", "--dir", packages, "--dir", administrators)
    assert said.return_value is None
    assert len(said.stdout.splitlines()) == 4
    assert said.stderr.count("is passed over") == 3


def test_no_descriptor_writes_to_a_terminal_as_it_likes(tmp_path: Path) -> None:
    write(tmp_path, "a.json", description="\x1b[2J", features=["\x1b[31m"], mapping=flash("/\x1b[0m"))
    for said in (run("list", "--dir", tmp_path), run("show", "a.json", "--dir", tmp_path)):
        assert said.exception is None
        assert "\x1b" not in said.stdout


def test_directories_are_those_of_the_specification() -> None:
    assert directories({"HOME": "/root"})[2] == Path("/root/.config/qemu/firmware")
    assert directories({"HOME": "/root", "XDG_CONFIG_HOME": "/c"})[2] == Path("/c/qemu/firmware")
    assert directories({})[:2] == (Path("/usr/share/qemu/firmware"), Path("/etc/qemu/firmware"))


@pytest.mark.parametrize(("options", "chosen"), [((), "10"), (("--smm",), "10"), (("--no-smm",), "20")])
def test_smm_can_be_had_excluded_or_left_open(tmp_path: Path, options: tuple[str, ...], chosen: str) -> None:
    write(tmp_path, "10.json", features=["requires-smm"], mapping=flash("10"))
    write(tmp_path, "20.json", mapping=flash("20"))
    assert run("select", "--dir", tmp_path, *options).stdout.strip() == chosen


def test_select_explains_every_descriptor(tmp_path: Path) -> None:
    write(tmp_path, "10.json", features=[])
    write(tmp_path, "20.json", mapping=flash(mode="stateless", template=False))
    write(tmp_path, "30.json", mapping=flash("/this"))
    write(tmp_path, "40.json")
    (tmp_path / "50.json").touch()
    asked = ("select", "--dir", tmp_path, "--feature", "amd-sev", "--explain")
    found = run(*asked)
    assert (found.return_value, found.stdout) == (0, "/this\n")
    for line in (
        "10.json: it lacks amd-sev",
        "20.json: its flash image is stateless, not split",
        "30.json: chosen",
        "40.json: 30.json comes before it",
        "50.json: an empty file hides it",
    ):
        assert line in found.stderr
    told = json.loads(run(*asked, "--json").stdout)
    assert told["chosen"]["name"] == "30.json"
    assert [one["name"] for one in told["explained"] if not one["reasons"]] == ["30.json"]
    assert json.loads(run(*asked, "--mode", "stateless", "--json").stdout)["chosen"]["name"] == "20.json"
    assert "--explain says why" in str(run("select", "--dir", tmp_path, "--feature", "amd-sev-snp").exception)


@pytest.mark.parametrize(
    ("options", "why"),
    [
        (("--feature", "sev"), "there is no firmware feature 'sev'"),
        (("--feature", "amd-sev", "--without", "amd-sev"), "wanted and unwanted at once"),
        (("--arch", "vax"), "there is no architecture 'vax'"),
        (("--machine", "q35"), "q35 is an alias"),
    ],
)
def test_what_makes_no_sense_is_refused(options: tuple[str, ...], why: str) -> None:
    assert why in str(run("select", *options).exception)


def test_debians_images_are_found_and_good() -> None:
    judges.file(OVMF / "60-edk2-x86_64.json", "ovmf")
    files = look_up([OVMF]).files
    chosen = next(one.found.name for one in judge(files, Wanted(machine="pc-i440fx-7.2")) if not one.reasons)
    assert chosen == "60-edk2-x86_64.json"
    assert run("validate", "--dir", OVMF).return_value == 0


def test_an_images_table_says_what_it_supports(tmp_path: Path) -> None:
    image = judges.file(Path("/usr/share/ovmf/OVMF.fd"), "ovmf")
    found = inspect(image)
    assert {entry.name for entry in found.entries} >= {"sev-es-reset-block", "sev-secret-block", "sev-metadata"}
    assert found.supports["amd-sev-es"]
    assert not found.supports["launch-secret"]
    assert "sev-es-reset-block" in run("inspect", image).stdout
    (bare := tmp_path / "bare.fd").write_bytes(bytes(4096))
    assert not any(inspect(bare).supports.values())
    for data in (b"", b"x", image.read_bytes()[16:-50] + bytes(2) + image.read_bytes()[-48:]):
        (bad := tmp_path / "bad.fd").write_bytes(data)
        with pytest.raises(UserError, match=r"bad\.fd cannot be inspected"):
            inspect(bad)
    with pytest.raises(UserError, match="cannot be read"):
        inspect(tmp_path)


@pytest.mark.parametrize("name", ["list", "show", "select", "validate", "inspect"])
def test_every_command_has_help_with_an_example(name: str) -> None:
    assert f"sealift firmware {name}" in run(name, "--help").stdout.partition("Examples:")[2]

"""The library of CPU models is QEMU's, and what users say of CPUs is understood or refused with a sentence."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

import judges
from cpu import qemu_models
from sealift.cli.main import sealift
from sealift.cpu.choice import Verdict, baseline, compare
from sealift.cpu.description import CpuDescription
from sealift.cpu.host import processor
from sealift.cpu.levels import LEVELS, levels_of, missing_for
from sealift.cpu.library import library, shipped
from sealift.cpu.published import RELEASES, rows
from sealift.errors import UserError

VECTORS = Path(__file__).parents[1] / "vectors" / "cpu"


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(sealift, ["cpu", *map(str, arguments)], standalone_mode=False, catch_exceptions=False)


def test_the_installed_qemu_says_the_same_of_every_model() -> None:
    """One QEMU answers for all models; a newer one may know more of them."""
    asked = qemu_models.ask(judges.program(qemu_models.PROGRAM, "qemu-system-x86"))
    theirs = {model.name: model for model in asked.models}
    assert len(shipped().models) >= 74
    for ours in shipped().models:
        assert ours == theirs[ours.name]
    if asked.provenance.qemu == shipped().provenance.qemu:
        assert set(theirs) == {model.name for model in shipped().models}


@pytest.mark.parametrize("release", RELEASES)
def test_the_tables_are_qemus_byte_for_byte(release: str) -> None:
    found = run("levels", "--format", "csv", "--release", release)
    assert found.stdout == (VECTORS / f"abi-{release}.csv").read_text()


def test_a_row_is_quoted_only_where_the_library_has_no_model() -> None:
    own = rows(library())
    assert own == {model.name: levels_of(model.features) for model in shipped().models}
    for release in RELEASES:
        table = rows(library(), release)
        assert {model: own[model] for model in table if model in own}.items() <= table.items()


@pytest.mark.parametrize("feature", sorted(frozenset().union(*LEVELS.values())))
def test_every_feature_of_a_level_is_needed_for_it_and_all_above(feature: str) -> None:
    whole = frozenset().union(*LEVELS.values())
    at = next(name for name, needed in LEVELS.items() if feature in needed)
    names = list(LEVELS)
    assert levels_of(whole) == tuple(names)
    assert levels_of(whole - {feature}) == tuple(names[: names.index(at)])
    assert missing_for(names[-1], whole - {feature}) == [feature]


@pytest.mark.parametrize(
    ("said", "why"),
    [
        ("Haswel", "there is Haswell"),
        ("zzzzzz", "sealift cpu list"),
        ("", "there is no CPU model ''"),
        ("EPYC,svm", "write .FEATURE"),
        ("EPYC,+", "write .FEATURE"),
        ("EPYC,+svn", "there is no CPU feature 'svn'"),
        ("EPYC,+svm,-svm", "svm cannot be added and removed at once"),
        ("./nothing", "cannot be read"),
        ("/dev/null", "holds no description"),
        ("/", "cannot be read"),
    ],
)
def test_what_is_no_cpu_is_said_to_be_none(said: str, why: str) -> None:
    with pytest.raises(UserError, match=why):
        library().resolve(said)


@pytest.mark.parametrize(
    "text",
    [
        "{}",
        "[]",
        "nonsense",
        '{"name": "a", "features": [1]}',
        '{"name": "a", "features": "sse"}',
        '{"name": "a", "features": ["\\u001b[31m"]}',
        '{"name": "a", "features": [], "vendor": "much too long a vendor"}',
        '{"name": "a", "features": [], "surprise": 1}',
        '{"name": "a", "features": [], "family": -1}',
        "[" * 100_000,
        " " * (1 << 20) + "{}",
    ],
)
def test_what_is_no_description_is_refused_with_the_files_name(tmp_path: Path, text: str) -> None:
    (path := tmp_path / "bad.json").write_text(text)
    with pytest.raises(UserError, match=r"bad\.json"):
        library().resolve(str(path))


def test_what_show_and_host_write_is_read_again(tmp_path: Path) -> None:
    for arguments in (("show", "Nehalem,+aes,-sse4.2"), ("host", "--engine", "unicorn")):
        (path := tmp_path / "cpu.json").write_text(run(*arguments, "--json").stdout)
        described = library().resolve(str(path))
        assert compare(described, described).verdict is Verdict.IDENTICAL
        assert json.loads(described.to_json())["features"] == sorted(described.features)
    changed = library().resolve("Nehalem,+aes,-sse4.2")
    assert changed.features == library().find("Nehalem").features - {"sse4.2"} | {"aes"}


def test_a_baseline_said_as_text_is_that_cpu() -> None:
    hosts = [
        library().resolve(name) for name in ("Haswell-v4,+invtsc", "Skylake-Server-v4,+invtsc", "Broadwell-v2,+invtsc")
    ]
    common = frozenset.intersection(*(host.features for host in hosts))
    assert library().resolve(str(baseline(hosts, library()))).features == common - {"invtsc"}
    assert library().resolve(str(baseline(hosts, library(), migratable=False))).features == common


def test_what_cannot_be_moved_is_removed_even_from_a_model_that_has_it() -> None:
    host = library().find("EPYC-Rome-v2")
    assert "xsaves" in host.features
    assert str(baseline([host], library())) == "EPYC-Rome-v2,-xsaves"
    assert str(baseline([host], library(), migratable=False)) == "EPYC-Rome-v2"


def test_hosts_without_anything_in_common_have_no_baseline() -> None:
    nothing = CpuDescription("none", frozenset({"lm"}))
    with pytest.raises(UserError, match="no feature in common"):
        baseline([nothing, library().find("486")], library())
    with pytest.raises(UserError, match=r"different vendors.*EPYC-v1 AuthenticAMD.*Haswell-v4 GenuineIntel"):
        baseline([library().find("EPYC"), library().find("Haswell-v4")], library())


def test_compare_says_what_is_missing_and_fails() -> None:
    found = run("compare", "EPYC-Rome-v2", "EPYC-v3", "--json")
    assert found.return_value == 1
    said = json.loads(found.stdout)
    assert said["result"] == "incompatible"
    assert {"clwb", "rdpid", "umip"} <= set(said["missing"])
    assert run("compare", "EPYC-v3", "EPYC-Rome-v2").return_value == 0


def test_linuxs_names_of_flags_become_qemus(tmp_path: Path) -> None:
    (path := tmp_path / "cpuinfo").write_text(
        "processor\t: 0\nvendor_id\t: AuthenticAMD\ncpu family\t: 25\nmodel\t\t: 17\nstepping\t: 1\n"
        "flags\t\t: fpu sse4_1 lahf_lm sha_ni nonstop_tsc cr8_legacy hypervisor rep_good npt\n\nprocessor\t: 1\n"
    )
    found = processor(path)
    assert found.features == {"fpu", "sse4.1", "lahf-lm", "sha-ni", "invtsc", "cr8legacy", "npt"}
    assert (found.vendor, found.family, found.model, found.stepping) == ("AuthenticAMD", 25, 17, 1)
    path.write_text("Hardware : some ARM\n")
    with pytest.raises(UserError, match="no x86 processor"):
        processor(path)
    with pytest.raises(UserError, match="not known"):
        processor(tmp_path / "none")


@pytest.mark.parametrize("name", ["list", "show", "host", "levels", "baseline", "compare"])
def test_every_command_has_help_with_an_example(name: str) -> None:
    said = run(name, "--help").stdout
    assert f"sealift cpu {name}" in said.partition("Examples:")[2]


def test_json_is_json() -> None:
    assert {model["name"] for model in json.loads(run("list", "--json").stdout)} == set(rows(library()))
    assert json.loads(run("levels", "--json").stdout)["EPYC-v1"] == ["baseline", "v2", "v3"]
    said = json.loads(run("baseline", "EPYC-v1", "EPYC-v2", "--json").stdout)
    assert said == {"model": "EPYC-v1", "vendor": "AuthenticAMD", "added": [], "removed": []}

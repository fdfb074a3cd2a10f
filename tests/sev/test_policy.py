from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sealift.errors import UserError
from sealift.sev.policy import DEFAULT_POLICY, Policy, parse_policy


def test_numbers_and_words_mean_the_same() -> None:
    assert parse_policy("nodbg,nosend") == parse_policy("0x9") == parse_policy("9") == parse_policy(9)
    assert parse_policy("nodbg,nosend") == DEFAULT_POLICY


def test_the_version_half() -> None:
    policy = parse_policy("ES, api=1.55")
    assert policy.api == (1, 55)
    assert policy == 0x37010004
    assert policy.encode() == bytes.fromhex("04000137")


@given(st.integers(0, 2**32 - 1))
def test_what_a_policy_says_of_itself_reads_back(number: int) -> None:
    assert parse_policy(Policy(number).describe()) == number
    assert int(parse_policy(number)) == number


def test_reserved_bits_are_kept_and_found() -> None:
    assert parse_policy(0x1FFFF).reserved == 0xFFC0
    assert not parse_policy("nodbg,noks,es,nosend,domain,sev,api=255.255").reserved


@pytest.mark.parametrize("text", ["", "nodbug", "0x100000000", "-1", "api=1", "api=256.0", "nodbg;nosend", "1.5"])
def test_nonsense_is_refused_with_the_words_that_exist(text: str) -> None:
    with pytest.raises(UserError, match=r"nodbg, noks, es, nosend, domain, sev, api=MAJOR\.MINOR"):
        parse_policy(text)


@pytest.mark.parametrize(
    ("policy", "wanting"),
    [
        ("nodbg,nosend", []),
        ("nodbg,sev", []),
        ("nodbg,domain,es", []),
        ("nosend", ["without nodbg"]),
        ("nodbg,es", ["with none of nosend, domain and sev"]),
        ("0", ["without nodbg", "with none of nosend, domain and sev"]),
    ],
)
def test_what_lays_a_guest_open_to_its_host_is_a_warning_each(policy: str, wanting: list[str]) -> None:
    warnings = parse_policy(policy).warnings()
    assert len(warnings) == len(wanting)
    for warning, part in zip(warnings, wanting, strict=True):
        assert warning.startswith(f"warning: {part}")

"""The owner's rules about receivers and its log of decisions."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sealift.errors import RefusedError, StreamError, UserError
from sealift.launch.image import GuestRecipe
from sealift.owner.decisions import LOG_FILE, REFUSALS_FILE, Decision, DecisionLog, Outcome, folded, older, timestamp
from sealift.owner.owner import Owner
from sealift.owner.receivers import ANYWHERE, ReceiverRule, Scope, in_order, require_approved, with_rule
from sealift.privatefiles import PrivateDirectory

from .test_owner import MakeHost, _launch, _receive
from .tool import owner as tool

HOST, OTHER, ROOT = bytes([1]) * 32, bytes([2]) * 32, bytes([3]) * 32
GUEST, STRANGER = bytes([4]) * 16, bytes([5]) * 16


def rule(scope: Scope, *, approved: bool, guest: bytes | None = None) -> ReceiverRule:
    fingerprint = {Scope.HOST: HOST, Scope.ROOT: ROOT, Scope.ANY: b""}[scope]
    return ReceiverRule(scope, approved, fingerprint, guest)


def allowed(rules: tuple[ReceiverRule, ...], host: bytes = HOST, guest: bytes = GUEST) -> bool:
    try:
        require_approved(rules, host, ROOT, guest)
    except RefusedError:
        return False
    return True


# --- rules --------------------------------------------------------------------------------------------------------


def test_a_new_owner_lets_any_host_receive_and_one_without_rules_none(tmp_path: Path) -> None:
    assert Owner(tmp_path / "new").settings.receivers == (ANYWHERE,)
    assert allowed((ANYWHERE,))
    assert not allowed(())


@pytest.mark.parametrize("approved", [True, False])
@pytest.mark.parametrize("nearest", range(6))
def test_the_nearest_rule_decides_whatever_all_others_say(nearest: int, approved: bool) -> None:  # noqa: FBT001  # a case
    places = [(scope, guest) for scope in Scope for guest in (GUEST, None)]
    rules = tuple(
        rule(scope, approved=approved is (place == nearest), guest=guest)
        for place, (scope, guest) in enumerate(places)
        if place >= nearest
    )
    assert allowed(rules) is approved
    assert allowed(tuple(reversed(rules))) is approved


def test_a_rule_about_another_host_or_guest_decides_nothing() -> None:
    rules = with_rule((ANYWHERE,), rule(Scope.HOST, approved=False))
    assert allowed(rules, host=OTHER)
    rules = with_rule((ANYWHERE,), rule(Scope.HOST, approved=False, guest=GUEST))
    assert allowed(rules, guest=STRANGER)
    assert not allowed(rules)


@given(st.lists(st.tuples(st.sampled_from(Scope), st.booleans(), st.sampled_from([None, GUEST, STRANGER]))))
def test_the_last_word_about_a_host_and_a_guest_holds(words: list[tuple[Scope, bool, bytes | None]]) -> None:
    rules: tuple[ReceiverRule, ...] = ()
    for scope, approved, guest in words:
        rules = with_rule(rules, rule(scope, approved=approved, guest=guest))
        assert rule(scope, approved=approved, guest=guest) in rules
    assert len(rules) == len({(scope, guest) for scope, _, guest in words})
    assert list(rules) == in_order(rules)


@pytest.mark.parametrize(
    "nonsense",
    [
        ReceiverRule(Scope.HOST, approved=True),
        ReceiverRule(Scope.ROOT, approved=True, fingerprint=bytes(31)),
        ReceiverRule(Scope.ANY, approved=True, fingerprint=bytes(32)),
        ReceiverRule(Scope.ANY, approved=True, guest=bytes(15)),
    ],
)
def test_a_rule_about_nothing_is_refused(nonsense: ReceiverRule) -> None:
    with pytest.raises(StreamError, match="bytes, not"):
        with_rule((ANYWHERE,), nonsense)


def test_a_root_is_approved_or_not_with_all_its_hosts(owner: Owner, make_host: MakeHost, recipe: GuestRecipe) -> None:
    source, _ = _launch(owner, make_host("a"), recipe)
    (root,) = owner.settings.roots
    owner.set_receivers(ReceiverRule(Scope.ROOT, approved=False, fingerprint=root))
    with pytest.raises(RefusedError, match=f"the owner has revoked root {root.hex()}"):
        owner.begin_receiver(make_host("b").evidence(), source)
    owner.set_receivers(ReceiverRule(Scope.ROOT, approved=True, fingerprint=root))
    _receive(owner, make_host("b"), recipe, source)


def test_a_receiver_that_is_revoked_while_it_launches_gets_no_key(
    owner: Owner, make_host: MakeHost, recipe: GuestRecipe
) -> None:
    source, _ = _launch(owner, make_host("a"), recipe)
    target = make_host("b")
    grant = owner.begin_receiver(target.evidence(), source)
    measure = target.load(grant, recipe.receiver())
    owner.set_receivers(ReceiverRule(Scope.HOST, approved=False, fingerprint=target.fingerprint))
    with pytest.raises(RefusedError, match=f"the owner has revoked host {target.fingerprint.hex()}"):
        owner.release(grant.launch_id, measure)


def test_rules_say_nothing_about_launches(owner: Owner, make_host: MakeHost, recipe: GuestRecipe) -> None:
    owner.set_receivers(ReceiverRule(Scope.ANY, approved=False))
    _launch(owner, make_host("a"), recipe)


# --- commands -----------------------------------------------------------------------------------------------------


def test_rules_are_given_and_shown_by_command(tmp_path: Path) -> None:
    place = ("--owner", tmp_path / "owner")
    assert tool("list", *place).out.split() == [
        "RULE",
        "HOSTS",
        "FINGERPRINT",
        "GUEST",
        "approved",
        "any",
        "-",
        "every",
    ]
    assert tool("revoke", "any", *place).out == "revoked: any host, every guest\n"
    said = tool("approve", HOST.hex(), "--guest", GUEST.hex(), *place).out
    assert said == f"approved: host {HOST.hex()}, guest {GUEST.hex()}\n"
    tool("approve", "--root", ROOT.hex(), *place)
    shown = json.loads(tool("list", "--json", *place).out)
    assert [(each["rule"], each["hosts"]) for each in shown] == [
        ("approved", "host"),
        ("approved", "root"),
        ("revoked", "any"),
    ]
    log = [json.loads(line) for line in tool("log", "--json", *place).out.splitlines()]
    assert [entry["what"] for entry in log] == [
        "receivers: revoked any host",
        f"receivers: approved host {HOST.hex()}",
        f"receivers: approved root {ROOT.hex()}",
    ]


@pytest.mark.parametrize(
    ("words", "status", "complaint"),
    [
        (("approve", "nobody"), 1, "the fingerprint 'nobody' is neither 32 bytes in base64 or hexadecimal, nor a file"),
        (("approve", HOST.hex(), "--guest", "ff"), 1, "the instance id 'ff' is neither 16 bytes"),
        (("revoke", "any", "--root"), 2, "`any` names no root"),
        (("approve",), 2, "Missing argument 'WHO'"),
    ],
)
def test_mistakes_have_sentences(tmp_path: Path, words: tuple[str, ...], status: int, complaint: str) -> None:
    assert complaint in tool(*words, "--owner", tmp_path / "owner", status=status).err


# --- the log ------------------------------------------------------------------------------------------------------


def decision(number: int, reason: str = "because", outcome: Outcome = Outcome.REFUSED) -> Decision:
    return Decision(timestamp(1_800_000_000 + number), outcome, "a launch", reason, launch=f"{number:032x}")


@pytest.mark.parametrize(("outcome", "file"), [(Outcome.REFUSED, REFUSALS_FILE), (Outcome.BEGAN, LOG_FILE)])
def test_the_log_is_bounded_and_keeps_the_latest(tmp_path: Path, outcome: Outcome, file: str) -> None:
    directory = PrivateDirectory(tmp_path / "owner", "owner")
    log = DecisionLog(directory, limit=4096)
    for number in range(500):
        log.add(decision(number, outcome=outcome))
        assert directory.size(file) <= 4096
        assert directory.size(older(file)) <= 4096
    kept = [int(entry.launch, 16) for entry in log.read()]
    assert kept == list(range(kept[0], 500))
    assert len(kept) > 4096 // 200
    assert (tmp_path / "owner" / older(file)).stat().st_mode & 0o077 == 0


def test_who_is_refused_without_end_pushes_no_decision_out(tmp_path: Path) -> None:
    log = DecisionLog(PrivateDirectory(tmp_path / "owner", "owner"), limit=4096)
    taken = [decision(0, outcome=Outcome.BEGAN), decision(250, outcome=Outcome.RELEASED)]
    for number in range(500):
        log.add(decision(number))
        for one in taken:
            if one.launch == f"{number:032x}":
                log.add(one)
    assert [entry for entry in log.read() if entry.outcome is not Outcome.REFUSED] == taken
    times = [entry.time for entry in log.read()]
    assert times == sorted(times)


def test_refusals_that_repeat_each_other_are_told_once() -> None:
    decisions = [
        *(decision(number) for number in range(3)),
        *(decision(number, outcome=Outcome.BEGAN) for number in (3, 4)),
        decision(5, "for another reason"),
    ]
    told = [repeated.sentence for repeated in folded(decisions)]
    assert len(told) == 4
    assert told[0] == f"{decisions[0].sentence} (3 times until {decisions[2].time})"
    assert told[1:] == [entry.sentence for entry in decisions[3:]]


def test_whatever_a_vmm_says_is_one_short_entry(tmp_path: Path) -> None:
    log = DecisionLog(PrivateDirectory(tmp_path / "owner", "owner"))
    log.add(decision(1, '\n"}\x1b[2J\u2028' + "x" * 10_000))
    (entry,) = log.read()
    assert entry.reason.startswith('?"}?[2J?xxx')
    assert len(entry.sentence) < 1200
    assert "\n" not in entry.sentence


def test_a_damaged_log_has_a_sentence(tmp_path: Path) -> None:
    log = DecisionLog(PrivateDirectory(tmp_path / "owner", "owner"))
    log.add(decision(1))
    with (tmp_path / "owner" / REFUSALS_FILE).open("ab") as file:
        file.write(os.urandom(40) + b"\n")
    with pytest.raises(UserError, match="is damaged"):
        list(log.read())


def test_what_cannot_be_logged_is_not_granted(owner: Owner, make_host: MakeHost, tmp_path: Path) -> None:
    path = tmp_path / "owner" / LOG_FILE
    path.touch(mode=0o600)
    path.chmod(0o644)
    with pytest.raises(UserError, match="chmod 600"):
        owner.begin(make_host("a").evidence())

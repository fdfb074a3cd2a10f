"""Looking before sleeping finds what is there, and ends."""

from __future__ import annotations

from sealift.wire.lookout import CREDIT_NS, Lookout

PATIENCE_NS = 50_000


class Watched:
    """There after so many looks."""

    def __init__(self, looks: int) -> None:
        self.left = looks
        self.looks = 0

    def __call__(self) -> bool:
        """Look."""
        self.looks += 1
        return self.looks > self.left


def test_what_is_there_is_seen_at_once_and_what_comes_soon_without_sleeping() -> None:
    lookout = Lookout(10**9)
    assert lookout.sees(Watched(0))
    assert lookout.sees(Watched(5))


def test_who_has_no_patience_looks_and_does_not_wait() -> None:
    never = Watched(10**9)
    assert not Lookout(0).sees(never)
    assert never.looks == 1
    assert Lookout(0).sees(lambda: True)


def test_looking_in_vain_ends_and_is_given_up_for_good_after_a_while() -> None:
    lookout = Lookout(PATIENCE_NS)
    for _ in range(CREDIT_NS // PATIENCE_NS + 1):
        assert not lookout.sees(lambda: False)
    never = Watched(10**9)
    assert not lookout.sees(never)
    assert never.looks <= 2, "the account is empty: it does not wait any more"


def test_who_gave_up_tries_again_after_many_messages_for_which_it_slept() -> None:
    lookout = Lookout(PATIENCE_NS)
    while lookout._balance_ns >= 0:
        lookout.sees(lambda: False)
    for _ in range(10 * CREDIT_NS // PATIENCE_NS * PATIENCE_NS // 500):
        if lookout._balance_ns >= 0:
            break
        lookout.sees(lambda: False)
    assert lookout._balance_ns >= 0

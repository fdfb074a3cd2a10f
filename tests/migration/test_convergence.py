"""A user is told when a migration does not come nearer to its end, and what helps."""

from __future__ import annotations

from sealift.vmm.migration.convergence import Convergence


def test_a_migration_whose_rounds_shrink_needs_no_advice() -> None:
    rounds = Convergence()
    assert not any(rounds.advice(remaining, 1.0) for remaining in (800, 400, 500, 390, 380, 400, 370))


def test_three_rounds_without_progress_say_which_downtime_limit_would_do() -> None:
    rounds = Convergence()
    assert [rounds.advice(1000, 0.5) for _ in range(3)] == [None] * 3
    advice = rounds.advice(1001, 0.5004)
    assert advice is not None
    assert "downtime limit to 501 ms" in advice


def test_advice_goes_when_rounds_get_somewhere_again() -> None:
    rounds = Convergence()
    for _ in range(5):
        rounds.advice(1000, 0.5)
    assert rounds.advice(900, 0.45) is None

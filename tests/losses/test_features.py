"""Feature losses: what they are by definition, and where they have no gradient. Recorded values: tests/distillers."""

import math

import pytest
import torch

from edkd import losses


def test_hint_is_the_mean_square_over_all_entries_and_leaves_the_teacher_alone() -> None:
    student = torch.zeros(2, 3, 4, 4, requires_grad=True)
    teacher = torch.full((2, 3, 4, 4), 3.0, requires_grad=True)
    loss = losses.hint(student, teacher)
    loss.backward()
    assert loss.item() == 9
    assert student.grad is not None and teacher.grad is None


def test_nce_is_a_logistic_loss_of_one_positive_and_k_negatives() -> None:
    scores = torch.rand(3, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    noise = 5 / 20
    expected = 0.0
    for row in scores.tolist():
        expected -= math.log(row[0] / (row[0] + noise + 1e-7))
        expected -= sum(math.log(noise / (score + noise + 1e-7)) for score in row[1:])
    assert losses.nce(scores, 20).item() == pytest.approx(expected / 3, rel=1e-12)


def test_nce_falls_with_the_positive_and_rises_with_a_negative() -> None:
    scores = torch.ones(2, 4, requires_grad=True)
    losses.nce(scores, 10).backward()
    assert (scores.grad[:, 0] < 0).all()
    assert (scores.grad[:, 1:] > 0).all()

import numpy as np
import pytest
import torch

from edkd.data import views


@pytest.mark.parametrize(("padding", "flip", "count"), [(4, True, 162), (4, False, 81), (2, True, 50), (0, False, 1)])
def test_views_number_every_crop_and_flip_once(padding, flip, count):
    assert views.n_views(padding, flip) == count
    dy, dx, flipped = views.decode(torch.arange(count), padding, flip)
    seen = set(zip(dy.tolist(), dx.tolist(), flipped.tolist()))
    side, flips = range(2 * padding + 1), (0, 1) if flip else (0,)
    assert seen == {(y, x, f) for y in side for x in side for f in flips}


def test_numbering_is_the_documented_one():
    dy, dx, flipped = views.decode(torch.tensor([(5 * 9 + 7) * 2 + 1]), 4, True)
    assert (dy.item(), dx.item(), flipped.item()) == (5, 7, 1)
    dy, dx, flipped = views.decode(torch.tensor([3 * 5 + 4]), 2, False)
    assert (dy.item(), dx.item(), flipped.item()) == (3, 4, 0)


def test_order_is_a_permutation_that_changes_with_seed_and_epoch():
    first = views.epoch_order(0, 1, 1000)
    assert first.dtype == np.int64
    assert np.array_equal(np.sort(first), np.arange(1000))
    assert np.array_equal(first, views.epoch_order(0, 1, 1000))
    for other in (views.epoch_order(0, 2, 1000), views.epoch_order(1, 1, 1000)):
        assert (first == other).mean() < 0.02


def test_views_are_uniform_and_belong_to_images():
    first = views.epoch_views(0, 1, 50_000, 162)
    assert first.dtype == np.int64
    counts = np.bincount(first, minlength=162)
    assert len(counts) == 162
    assert ((counts - 50_000 / 162) ** 2 / (50_000 / 162)).sum() < 240  # chi-square, 161 degrees: p below 1e-4
    assert np.array_equal(first[:100], views.epoch_views(0, 1, 100, 162)), "image i keeps its view in a larger set"
    for other in (views.epoch_views(0, 2, 50_000, 162), views.epoch_views(1, 1, 50_000, 162)):
        assert (first == other).mean() < 0.01


def test_draws_of_an_epoch_stay_as_they_are():
    """Frozen values: a change would alter every published result, and cached teacher logits with it."""
    assert views.epoch_order(0, 1, 8).tolist() == [4, 7, 0, 1, 5, 6, 2, 3]
    assert views.epoch_views(0, 1, 8, 162).tolist() == [113, 36, 66, 157, 30, 89, 119, 15]
    assert views.epoch_order(2**40, 240, 8).tolist() == [2, 0, 3, 7, 5, 1, 6, 4]


def test_order_and_views_share_no_draws():
    draws = [views.draw(64, seed=5, stream=stream, counter=1) for stream in (views.ORDER, views.VIEWS)]
    assert not np.intersect1d(*draws).size

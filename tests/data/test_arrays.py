import numpy as np
import pytest

from edkd.data.arrays import Arrays, Split, hold_out, prepare, subset
from edkd.errors import EdkdError


def make(counts, size=2):
    """A split with counts[c] images of class c in mixed order; each image's pixels are its own number."""
    labels = np.random.RandomState(0).permutation(np.repeat(np.arange(len(counts)), counts)).astype(np.int64)
    numbers = np.arange(len(labels), dtype=np.int64)
    images = np.zeros((len(labels), size, size, 3), dtype=np.uint8)
    images[:, 0, 0, 0], images[:, 0, 0, 1] = numbers % 256, numbers // 256
    return Split(images, labels)


def numbers(split):
    return split.images[:, 0, 0, 0].astype(int) + 256 * split.images[:, 0, 0, 1].astype(int)


def arrays(train=(50, 40, 60), test=(10, 10, 10)):
    return Arrays(train=make(train), validation=None, test=make(test), classes=("a", "b", "c"))


def test_subset_is_balanced_deterministic_and_nested():
    split = make([50, 40, 60])
    small, large = subset(split, 5), subset(split, 40)
    assert np.bincount(small.labels).tolist() == [5, 5, 5]
    assert np.bincount(large.labels).tolist() == [40, 40, 40]
    assert np.array_equal(numbers(subset(split, 5)), numbers(small))
    assert np.array_equal(numbers(small), numbers(large)[:15])
    assert len(set(numbers(large))) == 120
    assert np.array_equal(small.labels, split.labels[numbers(small)]), "labels stay with their images"
    in_file_order = np.sort(np.concatenate([np.flatnonzero(split.labels == c)[:5] for c in range(3)]))
    assert not np.array_equal(np.sort(numbers(small)), in_file_order)


@pytest.mark.parametrize("per_class", [0, -1, 41])
def test_subset_refuses_what_the_classes_do_not_have(per_class):
    with pytest.raises(EdkdError, match=rf"{per_class} images per class .* allowed: 1 to 40, .*smallest class \(1\)"):
        subset(make([50, 40, 60]), per_class)


def test_hold_out_is_stratified_seeded_and_complete():
    split = make([50, 40, 65])
    rest, held = hold_out(split, 0.1, seed=3)
    assert np.bincount(held.labels).tolist() == [5, 4, 7]
    assert np.bincount(rest.labels).tolist() == [45, 36, 58]
    assert sorted([*numbers(rest), *numbers(held)]) == list(range(155))
    assert (np.diff(numbers(rest)) > 0).all(), "the original order is kept"
    assert np.array_equal(held.labels, split.labels[numbers(held)])
    assert np.array_equal(numbers(hold_out(split, 0.1, seed=3)[1]), numbers(held))
    assert not np.array_equal(numbers(hold_out(split, 0.1, seed=4)[1]), numbers(held))


@pytest.mark.parametrize("fraction", [0.0, 1.0, -0.1, 1.5, float("nan")])
def test_hold_out_refuses_fractions_outside_0_and_1(fraction):
    with pytest.raises(EdkdError, match="allowed: more than 0 and less than 1"):
        hold_out(make([50, 40]), fraction, seed=0)


@pytest.mark.parametrize("fraction", [0.01, 0.99])
def test_hold_out_refuses_to_empty_a_class(fraction):
    with pytest.raises(EdkdError, match=f"holding out {fraction} of the 10 images of class 1"):
        hold_out(make([500, 10]), fraction, seed=0)


def test_prepare_takes_subsets_first_and_holds_out_of_what_is_left():
    whole = arrays()
    part = prepare(whole, train_per_class=20, test_per_class=3, validation=0.25, validation_seed=1)
    assert part.validation is not None
    assert np.bincount(part.train.labels).tolist() == [15] * 3
    assert np.bincount(part.validation.labels).tolist() == [5] * 3
    assert np.bincount(part.test.labels).tolist() == [3] * 3
    used = [*numbers(part.train), *numbers(part.validation)]
    assert sorted(used) == sorted(numbers(subset(whole.train, 20)))
    assert part.classes == whole.classes


def test_prepare_can_leave_everything():
    whole = arrays()
    same = prepare(whole, train_per_class=None, test_per_class=None, validation=0.0, validation_seed=0)
    assert same.validation is None
    assert same.fingerprint() == whole.fingerprint()


@pytest.mark.parametrize(
    ("change", "option"),
    [
        ({"train_per_class": 41}, "train_per_class"),
        ({"test_per_class": 11}, "test_per_class"),
        ({"validation": 1.0}, "validation"),
        ({"validation": -0.1}, "validation"),
    ],
)
def test_prepare_names_the_option(change, option):
    values = {"train_per_class": None, "test_per_class": None, "validation": 0.0, "validation_seed": 0, **change}
    with pytest.raises(EdkdError, match=f"^dataset.{option}: ") as caught:
        prepare(arrays(), **values)
    assert "\n" not in str(caught.value)


def test_fingerprint_sees_pixels_labels_and_parts():
    whole = arrays()
    prints = {whole.fingerprint(), arrays().fingerprint()}
    assert len(prints) == 1
    pixel, label = arrays(), arrays()
    pixel.test.images[3, 1, 1, 2] ^= 1
    label.train.labels[:2] = label.train.labels[1::-1]
    assert label.train.labels[0] != label.train.labels[1], "the exchange must be one"
    held = prepare(whole, train_per_class=None, test_per_class=None, validation=0.1, validation_seed=0)
    swapped = Arrays(train=whole.test, validation=None, test=whole.train, classes=whole.classes)
    prints |= {changed.fingerprint() for changed in (pixel, label, held, swapped)}
    assert len(prints) == 5
    assert all(len(digest) == 64 for digest in prints)


def test_fingerprint_ignores_the_layout_in_memory():
    whole = arrays()
    strided = Split(np.asfortranarray(whole.train.images), whole.train.labels)
    other = Arrays(train=strided, validation=None, test=whole.test, classes=whole.classes)
    assert other.fingerprint() == whole.fingerprint()


def test_arrays_check_their_types():
    good = make([2, 2])
    with pytest.raises(ValueError, match="expected uint8"):
        Split(good.images.astype(np.float32), good.labels)
    with pytest.raises(ValueError, match=r"expected int64 \[4\]"):
        Split(good.images, good.labels[:3])
    with pytest.raises(ValueError, match="leave the range of the 1 classes"):
        Arrays(train=good, validation=None, test=good, classes=("a",))
    with pytest.raises(ValueError, match="test images are"):
        Arrays(train=good, validation=None, test=make([2, 2], size=3), classes=("a", "b"))
    assert arrays().num_classes == 3
    assert arrays().image_size == 2

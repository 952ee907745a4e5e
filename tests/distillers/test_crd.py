"""CRD: recorded steps, the draw of negatives, and a memory that continues exactly."""

import numpy as np
import pytest
import torch
from torch import Tensor

from edkd.distillers.base import Batch, Shapes, Spec
from edkd.distillers.crd import CRD, _mix
from edkd.errors import EdkdError
from edkd.models.base import Prediction
from tests.golden.methods import CASES, assert_recorded, fill, normal

ARGUMENTS = {
    "ce_weight": 1.0,
    "feat_weight": 0.8,
    "feat_dim": 6,
    "negatives": 8,
    "temperature": 0.07,
    "momentum": 0.5,
}


def made(*, images: int = 30, student: int = 7, teacher: int = 9, kind: type[CRD] = CRD, **changes: float) -> CRD:
    method = kind(**{**ARGUMENTS, **changes})
    method.setup(Spec(Shapes((), (), student, (student, 1, 1)), Shapes((), (), teacher, (teacher, 1, 1)), 3, images))
    return method


def step(number: int, images: int = 30, size: int = 4) -> tuple[Prediction, Prediction, Batch]:
    """A batch of training images whose labels are index % 3."""
    stream = torch.Generator().manual_seed(number)
    index = torch.randperm(images, generator=stream)[:size]
    logits = torch.randn(2, size, 3, generator=stream)
    student, teacher = torch.randn(size, 7, generator=stream), torch.randn(size, 9, generator=stream)
    batch = Batch(index, index % 3, torch.tensor(1.0 + number))
    return Prediction(logits[0], pooled_feat=student), Prediction(logits[1], pooled_feat=teacher), batch


class Given(CRD):
    """CRD with negatives that the test chooses."""

    negatives_given: Tensor

    def draw_negatives(self, batch: Batch) -> Tensor:
        return self.negatives_given


@pytest.mark.parametrize("case", CASES["features"]["crd"], ids=lambda case: f"seed{case['inputs']['seed']}")
def test_recorded_steps(case: dict) -> None:
    given, batch_size = case["parameters"], case["inputs"]["batch"]
    samples = given["samples"]
    method = made(
        images=samples,
        student=given["student_dim"],
        teacher=given["teacher_dim"],
        kind=Given,
        feat_weight=given["weight"],
        feat_dim=given["dim"],
        negatives=given["negatives"],
        temperature=given["temperature"],
        momentum=given["momentum"],
    ).double()
    stream = np.random.RandomState(case["inputs"]["seed"])
    memories = [torch.nn.functional.normalize(normal(stream, samples, given["dim"])) for _ in range(2)]
    layers = torch.nn.ModuleDict({"embed_s": method.embed_s, "embed_t": method.embed_t})
    fill(layers)
    method.memory_student.copy_(memories[0])
    method.memory_teacher.copy_(memories[1])

    logits, target = torch.zeros(batch_size, 3).double(), torch.zeros(batch_size, dtype=torch.int64)
    for recorded in case["steps"]:
        student = normal(stream, batch_size, given["student_dim"]).requires_grad_()
        teacher = normal(stream, batch_size, given["teacher_dim"])
        index = torch.as_tensor(stream.permutation(samples)[:batch_size])
        assert index.tolist() == recorded["index"]
        method.negatives_given = torch.as_tensor(stream.randint(0, samples, size=(batch_size, given["negatives"])))
        method.zero_grad()
        loss = method(
            Prediction(logits, pooled_feat=student),
            Prediction(logits, pooled_feat=teacher),
            Batch(index, target, torch.tensor(1.0)),
        ).losses["kd"]
        loss.backward()
        found = [loss.item(), method.z_student.item(), method.z_teacher.item()]
        assert found == pytest.approx([recorded["loss"], recorded["z_v1"], recorded["z_v2"]], rel=1e-9)
        assert_recorded(method.memory_student, recorded["memory_v1"])
        assert_recorded(method.memory_teacher, recorded["memory_v2"])
        gradients = {"student": student.grad, **{name: each.grad for name, each in method.named_parameters()}}
        for name, gradient in recorded["grad"].items():
            assert_recorded(gradients[name], gradient)


def test_the_constructor_allocates_nothing_and_setup_makes_embeddings_and_memories() -> None:
    assert not CRD(**ARGUMENTS).state_dict()
    method = made(images=500)
    assert {name: tuple(value.shape) for name, value in method.state_dict().items()} == {
        "memory_student": (500, 6),
        "memory_teacher": (500, 6),
        "z_student": (),
        "z_teacher": (),
        "labels": (500,),
        "seed": (),
        "embed_s.linear.weight": (6, 7),
        "embed_s.linear.bias": (6,),
        "embed_t.linear.weight": (6, 9),
        "embed_t.linear.bias": (6,),
    }
    bound = (3 / 6) ** 0.5
    for memory in (method.memory_student, method.memory_teacher):
        assert 0.98 * bound < memory.abs().max() <= bound
    assert not torch.equal(method.memory_student, method.memory_teacher)


def test_the_hash_is_that_of_splitmix64() -> None:
    # The first outputs of SplitMix64 with seed 0.
    expected = [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]
    assert [value % 2**64 for value in _mix(torch.arange(1, 4)).tolist()] == expected


def test_negatives_are_different_images_of_other_classes() -> None:
    method = made(images=30, negatives=20)
    method.labels.copy_(torch.arange(30) % 3)
    for number in range(5):
        _, _, batch = step(number)
        negatives = method.draw_negatives(batch)
        assert negatives.shape == (4, 20)
        assert (negatives % 3 != batch.target[:, None]).all()
        assert all(len(row.unique()) == 20 for row in negatives)


def test_where_other_classes_are_smaller_their_images_come_about_equally_often() -> None:
    method = made(images=30, negatives=30)
    method.labels.copy_(torch.arange(30) % 3)
    _, _, batch = step(0)
    for row in method.draw_negatives(batch):
        assert row.unique(return_counts=True)[1].sort().values.tolist() == [1] * 10 + [2] * 10


def test_more_negatives_than_images_are_refused() -> None:
    with pytest.raises(EdkdError, match=r"negatives is 31, but there are 30 training images: it must be 30 or less"):
        made(images=30, negatives=31)


def test_negatives_are_uniform() -> None:
    method = made(images=12, negatives=3)
    method.labels.copy_(torch.arange(12) % 3)
    index = torch.tensor([5, 0])
    counts = torch.zeros(2, 12)
    for epoch in range(1, 2001):
        negatives = method.draw_negatives(Batch(index, index % 3, torch.tensor(float(epoch))))
        counts += torch.nn.functional.one_hot(negatives, 12).sum(1)
    # 8 images of other classes, each with probability 3/8: 750 of 2000, standard deviation 22.
    assert (counts[0, 2::3] == 0).all() and (counts[1, 0::3] == 0).all()
    assert ((counts[counts > 0] - 750).abs() < 100).all()


def test_the_draw_depends_on_the_saved_seed_the_epoch_and_the_images_alone() -> None:
    method = made(images=500)
    method.labels.copy_(torch.arange(500) % 3)
    _, _, batch = step(0, images=500)
    first = method.draw_negatives(batch)
    torch.manual_seed(99)
    assert torch.equal(method.draw_negatives(batch), first)
    assert not torch.equal(method.draw_negatives(Batch(batch.index, batch.target, batch.epoch + 1)), first)
    assert not torch.equal(method.draw_negatives(Batch(batch.index + 1, batch.target, batch.epoch)), first)
    method.seed += 1
    assert not torch.equal(method.draw_negatives(batch), first)


def test_labels_become_known_as_images_come_by() -> None:
    method = made()
    student, teacher, batch = step(0)
    method(student, teacher, batch)
    assert torch.equal(method.labels[batch.index], batch.target)
    assert (method.labels == -1).sum() == 30 - 4


def test_z_is_fixed_by_the_first_batch() -> None:
    method = made()
    method(*step(0))
    fixed = method.z_student.clone(), method.z_teacher.clone()
    assert fixed[0] > 0 and fixed[1] > 0
    method(*step(1))
    assert (method.z_student, method.z_teacher) == fixed


def test_a_restored_memory_continues_exactly() -> None:
    def losses(method: CRD, steps: range) -> list[float]:
        return [method(*step(number)).losses["kd"].item() for number in steps]

    method = made()
    losses(method, range(3))
    saved = {name: value.clone() for name, value in method.state_dict().items()}
    expected = losses(method, range(3, 6))
    other = made()
    other.load_state_dict(saved)
    assert losses(other, range(3, 6)) == expected
    assert all(torch.equal(value, method.state_dict()[name]) for name, value in other.state_dict().items())


def test_memories_change_in_place_and_only_for_the_batch() -> None:
    method = made()
    before = {name: (value.data_ptr(), value.clone()) for name, value in method.named_buffers()}
    student, teacher, batch = step(0)
    loss = method(student, teacher, batch).losses["kd"]
    loss.backward()  # refused by autograd if a memory changed under it
    changed = torch.zeros(30, dtype=torch.bool).index_fill(0, batch.index, True)
    for name, value in method.named_buffers():
        assert value.data_ptr() == before[name][0]
        if name.startswith("memory_"):
            assert torch.equal((value != before[name][1]).any(dim=1), changed)
            assert torch.allclose(value[batch.index].norm(dim=1), torch.ones(4))

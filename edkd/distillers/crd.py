"""Contrastive representation distillation: Tian, Krishnan and Isola, ICLR 2020, arXiv:1910.10699."""

from typing import Annotated, ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt
from torch import Tensor

from edkd import losses
from edkd.distillers.base import Batch, Distiller, Outcome, Spec
from edkd.distillers.cc import Embedding
from edkd.errors import EdkdError
from edkd.models.base import Prediction


class CRD(Distiller):
    """ce_weight·CE + feat_weight·(NCE of the student's embeddings + NCE of the teacher's).

    An embedding is a linear map of `pooled_feat` to `feat_dim` entries, scaled to length 1. Each is scored against the
    other network's memory of the same image (the positive) and of `negatives` images of other classes,
    exp(memory · embedding / temperature) / Z. Z, the number of training images times the mean score, is fixed by the
    first batch. Afterwards the batch's rows of both memories become unit(momentum·row + (1 − momentum)·embedding).

    The negatives of an image are successive images of other classes in a random order of the training set, beginning
    at a random place: a uniform draw without replacement. The images of a batch share the order, which is therefore
    drawn once a step. If other classes have fewer than `negatives` images, these repeat in that order; the published
    code then repeats images at random. `setup` refuses more negatives than training images. Order and places depend on
    `seed` (drawn at setup and saved), the epoch and the batch's images alone, so a resumed run continues with the same
    negatives.

    The labels of the training set become known batch by batch. Before its first visit, in the first epoch, an image
    counts as one of another class.
    """

    needs_feats: ClassVar[bool] = True
    memory_student: Tensor  # [train_images, feat_dim]
    memory_teacher: Tensor
    z_student: Tensor  # 0-dim; 0 before the first batch
    z_teacher: Tensor
    labels: Tensor  # int64 [train_images]; -1: not known yet
    seed: Tensor  # int64, 0-dim

    def __init__(
        self,
        *,
        ce_weight: NonNegativeFloat,
        feat_weight: NonNegativeFloat,
        feat_dim: PositiveInt,
        negatives: PositiveInt,
        temperature: PositiveFloat,
        momentum: Annotated[float, Field(ge=0, lt=1)],
    ) -> None:
        super().__init__()
        self.ce_weight = ce_weight
        self.feat_weight = feat_weight
        self.feat_dim = feat_dim
        self.negatives = negatives
        self.temperature = temperature
        self.momentum = momentum

    def setup(self, spec: Spec) -> None:
        """Make the embeddings and the memories, whose entries start uniform in ±sqrt(3 / feat_dim)."""
        assert spec.teacher is not None
        if self.negatives > spec.train_images:
            raise EdkdError(
                f"distiller.negatives is {self.negatives}, but there are {spec.train_images} training images: it must "
                f"be {spec.train_images} or less (see conf/distiller/crd.yaml)"
            )
        self.embed_s = Embedding(spec.student.pooled_feat, self.feat_dim)
        self.embed_t = Embedding(spec.teacher.pooled_feat, self.feat_dim)
        bound = (3 / self.feat_dim) ** 0.5
        for name in ("student", "teacher"):
            memory = torch.empty(spec.train_images, self.feat_dim).uniform_(-bound, bound)
            self.register_buffer(f"memory_{name}", memory)
            self.register_buffer(f"z_{name}", torch.zeros(()))
        self.register_buffer("labels", torch.full((spec.train_images,), -1))
        self.register_buffer("seed", torch.randint(2**62, ()))

    def forward(self, student: Prediction, teacher: Prediction | None, batch: Batch) -> Outcome:
        """Losses: `ce`, `kd`."""
        assert student.pooled_feat is not None and teacher is not None and teacher.pooled_feat is not None
        ce = losses.cross_entropy(student.logits, batch.target)
        embedded_student = F.normalize(self.embed_s(student.pooled_feat))
        embedded_teacher = F.normalize(self.embed_t(teacher.pooled_feat.detach()))
        self.labels.index_copy_(0, batch.index, batch.target)
        images = torch.cat((batch.index[:, None], self.draw_negatives(batch)), dim=1)
        nce_student = self._nce(embedded_student, self.memory_teacher, self.z_student, images)
        nce_teacher = self._nce(embedded_teacher, self.memory_student, self.z_teacher, images)
        self._remember(self.memory_student, embedded_student, batch.index)
        self._remember(self.memory_teacher, embedded_teacher, batch.index)
        return Outcome({"ce": self.ce_weight * ce, "kd": self.feat_weight * (nce_student + nce_teacher)}, {})

    def draw_negatives(self, batch: Batch) -> Tensor:
        """Indices of training images of other classes, int64 [B, negatives]."""
        count = len(self.labels)
        key = _mix(_mix(self.seed + batch.epoch.long()) + batch.index[0])  # another key in each step
        order = _mix(key + torch.arange(count, device=key.device)).argsort()
        others_so_far = (self.labels[order] != batch.target[:, None]).cumsum(dim=1)  # [B, train_images]
        others = others_so_far[:, -1:]
        start = _mix(_mix(~key) + batch.index[:, None]) % others
        wanted = (start + torch.arange(self.negatives, device=key.device)) % others + 1
        return order[torch.searchsorted(others_so_far, wanted)]

    def _nce(self, embedded: Tensor, memory: Tensor, z: Tensor, images: Tensor) -> Tensor:
        """NCE of embeddings [B, feat_dim] against the memory's rows `images`, [B, 1 + negatives]; fixes z if it is 0.

        Every row is scored and the wanted scores are picked, because the wanted rows would take half a gigabyte. The
        backward pass needs the memory as it is here, hence the copy.
        """
        scores = (embedded @ memory.clone().T / self.temperature).gather(1, images).exp()
        z.copy_(torch.where(z == 0, len(memory) * scores.detach().mean(), z))
        return losses.nce(scores / z, len(memory))

    @torch.no_grad()
    def _remember(self, memory: Tensor, embedded: Tensor, index: Tensor) -> None:
        """Move the rows of a batch's images towards their embeddings, in place."""
        memory.index_copy_(0, index, F.normalize(torch.lerp(embedded, memory[index], self.momentum)))


def _mix(x: Tensor) -> Tensor:
    """Hash int64 numbers one to one, to numbers that look independent.

    The output function of SplitMix64 (Steele, Lea and Flood, "Fast Splittable Pseudorandom Number Generators", OOPSLA
    2014), increment included. Products wrap around; a mask makes the arithmetic shifts logical ones.
    """
    x = x * -0x61C8864680B583EB
    x = (x ^ ((x >> 30) & (2**34 - 1))) * -0x40A7B892E31B1A47
    x = (x ^ ((x >> 27) & (2**37 - 1))) * -0x6B2FB644ECCEEE15
    return x ^ ((x >> 31) & (2**33 - 1))

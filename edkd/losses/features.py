"""Distillation losses on features, as pure tensor functions. B samples; gradients reach the student's side only."""

import torch.nn.functional as F
from torch import Tensor


def hint(regressed: Tensor, feat_teacher: Tensor) -> Tensor:
    """The hint loss of FitNets: mean squared error over all entries (scalar).

    Romero et al., "FitNets: Hints for Thin Deep Nets", ICLR 2015, arXiv:1412.6550, equation 3. `regressed` is the
    student's map after the regressor, in the shape of the teacher's, [B, C, H, W].
    """
    return F.mse_loss(regressed, feat_teacher.detach())


def nce(scores: Tensor, images: int) -> Tensor:
    """Noise-contrastive estimation of one positive against k negatives, batch mean (scalar).

    Tian, Krishnan and Isola, "Contrastive Representation Distillation", ICLR 2020, arXiv:1910.10699. A sample gives
    −log(x_0 / (x_0 + c)) − Σ_j log(c / (x_j + c)), with c = k / images; the published code adds 1e-7 to both
    denominators.

    Args:
        scores: [B, 1 + k], positive numbers; the first column belongs to the positive.
        images: the number of training images.
    """
    noise = (scores.shape[1] - 1) / images
    total = scores + (noise + 1e-7)
    positive = (scores[:, 0] / total[:, 0]).log()
    negative = (noise / total[:, 1:]).log().sum(dim=1)
    return -(positive + negative).mean()

"""What every network returns, and what the families share."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Classifier(NamedTuple):
    """The last, linear layer of a network: logits = weight · pooled_feat + bias."""

    weight: Tensor
    """[K, C]."""
    bias: Tensor
    """[K]."""


class Prediction(NamedTuple):
    """One forward pass; B images, K classes.

    A network called with ``want_feats=False`` fills in ``logits`` alone, and computes and keeps nothing for the rest.
    """

    logits: Tensor
    """[B, K], before the softmax."""

    feats: tuple[Tensor, ...] = ()
    """One [B, C, H, W] map per stage, the stem's first."""

    preact_feats: tuple[Tensor, ...] = ()
    """The same maps before the ReLU that ends each stage (WideResNet: after the batch norm that follows it), except
    the first, which is the first of `feats` again: the benchmark's convention. Empty where a family has no such point
    (MobileNetV2)."""

    pooled_feat: Tensor | None = None
    """[B, C], what the classifier receives."""

    last_map: Tensor | None = None
    """[B, C, H, W], the map whose mean over the image is `pooled_feat`."""

    classifier: Classifier | None = None
    """The network's classifier, as it is now; a student's gradient reaches it."""

    def map(self, function: Callable[[Tensor], Tensor]) -> "Prediction":
        """Apply a function to every tensor of the B images."""
        return Prediction(
            function(self.logits),
            tuple(map(function, self.feats)),
            tuple(map(function, self.preact_feats)),
            None if self.pooled_feat is None else function(self.pooled_feat),
            None if self.last_map is None else function(self.last_map),
            self.classifier,
        )

    @staticmethod
    def join(parts: Sequence["Prediction"]) -> "Prediction":
        """One prediction of the images of several, made by one network."""
        pooled = [part.pooled_feat for part in parts if part.pooled_feat is not None]
        last = [part.last_map for part in parts if part.last_map is not None]
        return Prediction(
            torch.cat([part.logits for part in parts]),
            tuple(torch.cat(each) for each in zip(*(part.feats for part in parts), strict=True)),
            tuple(torch.cat(each) for each in zip(*(part.preact_feats for part in parts), strict=True)),
            torch.cat(pooled) if pooled else None,
            torch.cat(last) if last else None,
            parts[0].classifier,
        )


class StagePass(NamedTuple):
    """The last map of a pass through the stages of a network, and the maps that were kept on the way."""

    last: Tensor
    feats: tuple[Tensor, ...]
    preact_feats: tuple[Tensor, ...]


def through_stages(stem: Tensor, stages: Iterable[nn.Sequential], want_feats: bool) -> StagePass:
    """Run stages whose blocks return their result before its last ReLU, from the stem's map [B, C, H, W].

    That ReLU sits here, not in the blocks, so that the map before it can be kept at the end of a stage, and
    overwritten everywhere else.
    """
    x = stem
    feats, preact_feats = ([x], [x]) if want_feats else ([], [])
    for stage in stages:
        last_block = len(stage) - 1
        for i, block in enumerate(stage):
            keep = want_feats and i == last_block
            preact = block(x)
            x = F.relu(preact, inplace=not keep)
            if keep:
                feats.append(x)
                preact_feats.append(preact)
    return StagePass(x, tuple(feats), tuple(preact_feats))


def classify(last_map: Tensor, classifier: nn.Linear, kept: StagePass | None = None) -> Prediction:
    """Average the last map [B, C, H, W] over the image and classify it.

    kept: the maps of the stages, where they are wanted; None makes a prediction of logits alone.
    """
    pooled = last_map.mean(dim=(2, 3))
    logits = classifier(pooled)
    if kept is None:
        return Prediction(logits)
    own = Classifier(classifier.weight, classifier.bias)
    return Prediction(logits, kept.feats, kept.preact_feats, pooled, last_map, own)


def last_norm(stage: nn.Module) -> nn.BatchNorm2d:
    """The last batch norm of a stage's main path; its output goes to the last ReLU or is added to the shortcut."""
    main = [module for name, module in stage.named_modules() if "downsample" not in name and "shortcut" not in name]
    return [module for module in main if isinstance(module, nn.BatchNorm2d)][-1]


def init_convolutions(network: nn.Module) -> None:
    """Draw convolutions from normal(0, 2 / (k²·out_channels)), biases zero (He et al. 2015, fan-out mode).

    Batch norms start as torch makes them, with weight 1 and bias 0.
    """
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def init_classifier(classifier: nn.Linear) -> None:
    """Draw the weights of a classifier from normal(0, 0.01²), bias zero, as VGG and MobileNet do."""
    nn.init.normal_(classifier.weight, std=0.01)
    nn.init.zeros_(classifier.bias)


def channel_shuffle(x: Tensor, groups: int) -> Tensor:
    """Interleave the channels of `groups` equal groups, [B, C, H, W] (Zhang et al., ShuffleNet, 2018, figure 1)."""
    return x.unflatten(1, (groups, -1)).transpose(1, 2).flatten(1, 2)


def in_own_names(network: nn.Module, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A ``state_dict`` with torchvision's names replaced by the network's own (its `torchvision_names`)."""
    renamed = dict(state)
    for theirs, ours in getattr(network, "torchvision_names", {}).items():
        renamed = {key.replace(theirs, ours): tensor for key, tensor in renamed.items()}
    return renamed

"""Networks of torchvision and timm, and any other whose `forward` gives logits, as networks of this project.

Parameters keep their names, so that the weights of a library load as they are.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeGuard

from torch import Tensor, nn

from edkd.errors import EdkdError, import_extra
from edkd.models import _torchvision
from edkd.models.base import Classifier, Prediction

_STAGES = ("features", "stages", "blocks", "layers", "trunk_output")  # the usual names of a sequence of stages
_POOLS = ("AdaptiveAvgPool2d", "SelectAdaptivePool2d", "FastAdaptiveAvgPool")  # classes of torch and of timm


def torchvision(
    *,
    num_classes: int,
    arch: str,
    options: dict[str, Any] | None = None,
    feats: list[str] | None = None,
    last_map: str | None = None,
) -> nn.Module:
    """A classification network of torchvision, with fresh weights; `options` are further arguments of its function."""
    return _made("torchvision", arch, _torchvision_models().get_model, num_classes, options, feats, last_map)


def timm(
    *,
    num_classes: int,
    arch: str,
    options: dict[str, Any] | None = None,
    feats: list[str] | None = None,
    last_map: str | None = None,
) -> nn.Module:
    """A network of timm, with fresh weights; `options` are further arguments of `timm.create_model`."""
    return _made("timm", arch, _timm().create_model, num_classes, options, feats, last_map)


class Pretrained(NamedTuple):
    """Weights that a library offers, and the images that they were trained on."""

    id: str
    mean: list[float]
    std: list[float]
    size: int  # the side of an image
    load: Callable[[], dict[str, Tensor]]  # downloads them where they are not on this machine yet


def pretrained(library: str, arch: str, weights: str) -> Pretrained:
    """The weights of this name; DEFAULT are those that the library recommends. Nothing is downloaded yet."""
    if library == "timm":
        return _of_timm(arch, weights)
    offered = _torchvision_models().get_model_weights(_known("torchvision", arch))
    if weights not in offered.__members__:
        raise EdkdError(
            f"weights={weights}: torchvision has for {arch} {', '.join(offered.__members__)}; or name a file"
        )
    chosen = offered[weights]
    shown = chosen.transforms()
    return Pretrained(
        id=f"torchvision:{arch}.{chosen.name}",
        mean=list(shown.mean),
        std=list(shown.std),
        size=shown.crop_size[0],
        load=lambda: dict(chosen.get_state_dict(progress=False, check_hash=True)),
    )


def _of_timm(arch: str, tag: str) -> Pretrained:
    library, plain = _timm(), _known("timm", arch).partition(".")[0]
    name = arch if tag == "DEFAULT" else f"{plain}.{tag}"
    cfg = library.get_pretrained_cfg(name, allow_unregistered=False) if library.is_model_pretrained(name) else None
    if cfg is None:
        offered = [name.partition(".")[2] for name in library.list_models(f"{plain}.*", pretrained=True)]
        raise EdkdError(f"weights={tag}: timm has for {arch} {', '.join(offered) or 'none'}; or name a file")
    return Pretrained(
        id=f"timm:{cfg.architecture}.{cfg.tag}",
        mean=list(cfg.mean),
        std=list(cfg.std),
        size=cfg.input_size[-1],
        load=lambda: library.create_model(name, pretrained=True).state_dict(),
    )


def predicting(network: nn.Module, *, feats: Sequence[str] | None = None, last_map: str | None = None) -> nn.Module:
    """Convert a network whose `forward` gives logits [B, K] to one that gives a `Prediction`, and return it.

    feats: names of modules whose outputs are `feats`, the stem's first; by default the last map of each size that a
    stage gives.
    last_map: the name of the module whose output, averaged over the image, is the input of the last linear layer; by
    default the input of the last average pooling, unless a module with weights lies between it and that layer.
    That layer is the classifier; without one there is no `pooled_feat`, either. Parameters keep their names.
    """
    modules = dict(network.named_modules())
    for name in [*(feats or ()), *([last_map] if last_map else ())]:
        if name not in modules:
            near = [each for each in modules if each and each.count(".") <= name.count(".")]
            raise EdkdError(f"{type(network).__name__} has no module {name}; it has: {', '.join(near[:12])}, …")
    linear = [name for name, module in modules.items() if isinstance(module, nn.Linear)]
    classifier = linear[-1] if linear else None
    places = _Places(
        feats=list(feats) if feats else _stages(network),
        by_size=not feats,
        last_map=last_map,
        pool=None if last_map else _pool_before(modules, classifier),
        classifier=classifier,
    )
    kind = type(network)
    # A subclass, not a module around the network, keeps the parameters' names and everything else of the class.
    network.__class__ = type(kind.__name__, (_Predicting, kind), {"places": places})
    return network


class _Places(NamedTuple):
    """The names of the modules whose inputs or outputs are a network's features."""

    feats: list[str]
    by_size: bool  # whether only the last output of each size is kept, as its stage's map
    last_map: str | None  # the module whose output is the last map
    pool: str | None  # the module whose input is the last map
    classifier: str | None


class _Predicting(nn.Module):
    """The base class that `predicting` puts before a network's own class."""

    places: _Places

    def forward(self, x: Tensor, want_feats: bool = True) -> Prediction:
        """Classify images [B, 3, H, W]."""
        if not want_feats:
            return Prediction(self._logits(x))
        at, modules = self.places, dict(self.named_modules())
        outputs: dict[str | None, Any] = {}
        inputs: dict[str | None, Any] = {}

        def keep(name: str) -> Callable[[nn.Module, Any, Any], None]:
            return lambda module, given, output: outputs.update({name: output})

        def receive(name: str) -> Callable[[nn.Module, Any], None]:
            return lambda module, given: inputs.update({name: given[0]})

        handles = [modules[name].register_forward_hook(keep(name)) for name in {*at.feats, at.last_map} if name]
        handles += [modules[name].register_forward_pre_hook(receive(name)) for name in (at.pool, at.classifier) if name]
        try:
            logits = self._logits(x)
        finally:
            for handle in handles:
                handle.remove()
        maps = [outputs[name] for name in at.feats if name in outputs]
        feats = _last_of_each_size(maps) if at.by_size else tuple(maps)
        pooled = inputs.get(at.classifier)
        if pooled is None or pooled.ndim != 2:
            return Prediction(logits, feats)
        last = outputs.get(at.last_map, inputs.get(at.pool))
        if not (_is_map(last) and last.shape[1] == pooled.shape[1]):
            last = None
        linear = modules[at.classifier or ""]
        assert isinstance(linear, nn.Linear)
        bias = linear.bias if linear.bias is not None else linear.weight.new_zeros(linear.out_features)
        return Prediction(logits, feats, (), pooled, last, Classifier(linear.weight, bias))

    def _logits(self, x: Tensor) -> Tensor:
        logits = super().forward(x)
        if not isinstance(logits, Tensor) or logits.ndim != 2:
            raise EdkdError(f"{type(self).__name__} returns {type(logits).__name__}, not logits [images, classes]")
        return logits


def _is_map(value: Any) -> TypeGuard[Tensor]:
    return isinstance(value, Tensor) and value.ndim == 4 and value.shape[2] == value.shape[3]


def _stages(network: nn.Module) -> list[str]:
    """The names of the modules, in order, whose outputs may be the maps of a network's stages."""
    names = []
    for name, child in network.named_children():
        if name in _STAGES and isinstance(child, nn.Sequential):
            names += [f"{name}.{inner}" for inner, _ in child.named_children()]
        elif type(child).__name__ not in _POOLS:
            names.append(name)
    return names


def _last_of_each_size(maps: Sequence[Any]) -> tuple[Tensor, ...]:
    by_size: dict[int, Tensor] = {}
    for each in maps:
        if _is_map(each):
            by_size[each.shape[2]] = each
    return tuple(by_size.values())


def _pool_before(modules: dict[str, nn.Module], classifier: str | None) -> str | None:
    """The last average pooling, unless something with weights follows it before the classifier."""
    pools = [name for name, module in modules.items() if type(module).__name__ in _POOLS]
    if not pools or classifier is None:
        return None
    names = list(modules)
    between = [modules[name] for name in names[names.index(pools[-1]) + 1 : names.index(classifier)]]
    weighted = any(list(module.parameters(recurse=False)) for module in between)
    return None if weighted else pools[-1]


def _made(
    library: str,
    arch: str,
    make: Callable[..., nn.Module],
    num_classes: int,
    options: dict[str, Any] | None,
    feats: list[str] | None,
    last_map: str | None,
) -> nn.Module:
    try:
        network = make(_known(library, arch), num_classes=num_classes, **(options or {}))
    except (TypeError, ValueError, AssertionError) as error:
        raise EdkdError(f"{library} cannot make {arch} with options={options}: {error}") from error
    return predicting(network, feats=feats, last_map=last_map)


def _known(library: str, arch: str) -> str:
    if library == "timm":
        known = _timm().is_model(arch)
    else:
        known = arch in _torchvision_models().list_models(module=_torchvision_models())
    if not known:
        raise EdkdError(f"arch={arch}: {library} has no such network; `{library}.list_models()` lists them")
    return arch


def _torchvision_models() -> Any:
    return _torchvision.load().models


def _timm() -> Any:
    _torchvision.load()  # timm imports it, too
    return import_extra("timm", "timm")

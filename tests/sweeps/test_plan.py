"""Planning: jobs have the configurations that Hydra composes for each alone, though it composes one for all seeds."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
from hydra.core.config_loader import ConfigLoader
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.types import RunMode
from omegaconf import DictConfig

from edkd import CONF
from edkd.config import schema
from edkd.config.compose import Composer
from edkd.distillers import Distiller
from edkd.errors import EdkdError
from edkd.runs.method import check_method
from edkd.sweeps import plan

Planner = Callable[..., tuple[DictConfig, ConfigLoader]]


@pytest.fixture
def planner() -> Iterator[Planner]:
    """`planner(*overrides of Hydra)`: what Hydra hands to a sweeper."""

    def made(*own: str, folder: Path | None = None) -> tuple[DictConfig, ConfigLoader]:
        from hydra import initialize_config_dir

        GlobalHydra.instance().clear()
        initialize_config_dir(version_base="1.3", config_dir=str(folder or CONF))
        loader = GlobalHydra.instance().config_loader()
        return loader.load_configuration("config", list(own), RunMode.MULTIRUN), loader

    yield made
    GlobalHydra.instance().clear()


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The overrides of every composition by Hydra from now on."""
    from hydra._internal.config_loader_impl import ConfigLoaderImpl

    original, asked = ConfigLoaderImpl.load_sweep_config, []

    def load(self: Any, master: DictConfig, overrides: list[str]) -> DictConfig:
        asked.append(list(overrides))
        return original(self, master, overrides)

    monkeypatch.setattr(ConfigLoaderImpl, "load_sweep_config", load)
    return asked


JOBS = [
    "",
    "seed=3",
    "distiller=dkd & pair=vgg13-vgg8 & seed=3",  # a tweak
    "pair=vgg13-vgg8 & distiller=dkd & seed=4",
    "distiller=dkd & pair=vgg13-vgg8 & distiller.beta=3.0 & seed=4",  # over the tweak
    "distiller=dkd & pair=vgg13-vgg8 & distiller.beta=3.0 & seed=5",
    "seed=5 & distiller=dkd & pair=vgg13-vgg8 & distiller.beta=3.0",
    "distiller=vanilla & student=resnet8 & seed=7 & teacher_seed=8",
    "distiller=vanilla & student=resnet8 & seed=8 & teacher_seed=8",
    "experiment=demo & dataset.train_per_class=null & seed=2",
    "experiment=demo & dataset.train_per_class=null & seed=3",
    "+extra=${seed} & seed=5",
    "+extra=${seed} & seed=6",
    "+extra.deep='${..seed}' & seed=5",
    "+extra.deep='${..seed}' & seed=6",
    "++extra=1 & ++seed=4",
    "seed=1 & ++seed=2",
    "seed=1 & seed=2",
    "seed=1",
    "seed=text",
    "seed='3'",
    "seed=03",
    "seed=null",
    "seed=1e3",
    "seed=true",
    "seed=-1",
    "distiller=kd & seed=1 & dataset.padding=2.5",
    "distiller=kd & seed=2 & dataset.padding=2.5",
    # and what is wrong
    "sede=1",
    "seed=1 & schedule.epoch=3",
    "seed=2 & schedule.epoch=3",
    "pair=vgg13-vgg9 & seed=1",
    "dataset=folder & seed=1",
    "dataset=folder & dataset.name=birds & seed=2",
    "+seed=1",
    "~seed=7",
    "seed=${nowhere}",
    "seed.deep=1",
    "seed",
]


def plain(value: Any) -> Any:
    """A configuration with the type of every leaf, in its own order: True is no 1, and 1 is no 1.0."""
    if isinstance(value, dict):
        return [(key, plain(inner)) for key, inner in value.items()]
    return [plain(inner) for inner in value] if isinstance(value, list) else (type(value), value)


def outcome(compose: Callable[[list[str]], tuple[dict[str, Any], str]], job: str) -> Any:
    """What composing a job gives: values with their types, and the method; or the error."""
    try:
        resolved, method = compose(job.split(" & ") if job else [])
    except EdkdError as error:
        return str(error)
    return plain(resolved), method


def test_jobs_are_what_hydra_composes_for_each_alone(planner: Planner) -> None:
    master, loader = planner()
    shared = Composer(master, loader)
    quick = [outcome(shared.compose, job) for job in JOBS]
    again = [outcome(shared.compose, job) for job in reversed(JOBS)]  # whatever came before
    assert again == quick[::-1]
    for job, made in zip(JOBS, quick, strict=True):
        assert made == outcome(Composer(master, loader).compose, job), job


def test_hydra_composes_once_for_all_seeds(planner: Planner, counted: list[list[str]]) -> None:
    shared = Composer(*planner())
    for method in ("kd", "dkd"):
        for seed in range(20):
            resolved, named = shared.compose([f"distiller={method}", f"seed={seed}", "output=x"])
            assert (resolved["seed"], resolved["output"], named) == (seed, "x", method)
    assert len(counted) == 2


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        ("copy: ${seed}", [0, 1, 2]),
        ("group: {copy: '${..seed}'}", [{"copy": 0}, {"copy": 1}, {"copy": 2}]),
        ("copy: ${${name}}\nname: seed", [0, 1, 2]),
        ("copy: ${group}\ngroup: {inner: '${seed}'}", [{"inner": 0}, {"inner": 1}, {"inner": 2}]),
    ],
)
def test_values_that_refer_to_the_seed_follow_it(
    planner: Planner, tmp_path: Path, more: str, expected: list[Any]
) -> None:
    (tmp_path / "distiller").mkdir()
    (tmp_path / "distiller" / "kd.yaml").touch()
    (tmp_path / "config.yaml").write_text(f"defaults: [_self_, distiller: kd]\nseed: 7\n{more}\n")
    shared = Composer(*planner(folder=tmp_path))
    key = more.partition(":")[0]
    assert [shared.compose([f"seed={seed}"])[0][key] for seed in range(3)] == expected


def test_options_of_a_user_are_found(planner: Planner, tmp_path: Path) -> None:
    (tmp_path / "distiller").mkdir()
    (tmp_path / "distiller" / "mine.yaml").write_text("weight: ${schedule.lr}\n")
    master, loader = planner(f"hydra.searchpath=['file://{tmp_path}']")
    resolved, method = Composer(master, loader).compose(["distiller=mine", "schedule.lr=3"])
    assert (resolved["distiller"], method) == ({"weight": 3}, "mine")


def test_a_large_plan_needs_few_compositions(
    planner: Planner, counted: list[list[str]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    master, loader = planner()
    words = ["distiller=kd,dkd,edkd", "pair=all", "seed=range(48)", "schedule=short"]
    overrides = OverridesParser.create(loader).parse_overrides(words)
    combinations = plan.expand(overrides, plan.pair_lists(overrides, master, loader))
    planned = plan.make_plan(combinations, overrides, Composer(master, loader))
    assert (len(planned.students), len(planned.teachers)) == (1008, 4)
    assert len({job.run for job in planned.students}) == 1008
    assert len(counted) == 1 + 21 + 4
    assert {(job.settings.seed, job.config["seed"]) for job in planned.students} == {(n, n) for n in range(48)}
    assert not list(tmp_path.iterdir())


def test_an_optimiser_of_distillation_losses_trains_no_teacher(planner: Planner, tmp_path: Path) -> None:
    master, loader = planner()
    asked = ["distiller=kd", "optimizer=dot", "optimizer.delta=0.05", f"output={tmp_path}"]
    overrides = OverridesParser.create(loader).parse_overrides(asked)
    planned = plan.make_plan([asked], overrides, Composer(master, loader))
    assert [job.settings.optimizer for job in planned.teachers] == [schema.SGD]
    assert planned.students[0].settings.optimizer["delta"] == 0.05


def test_strong_views_of_ones_own_data(make_job: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_data_without_hints.py").write_text("def source(**values):\n    return values\n")
    monkeypatch.syspath_prepend(tmp_path)
    source = "dataset.source._target_=own_data_without_hints.source"
    check_method(make_job("mlkd", source, teacher_id="run:0").settings)


TRANSFORMER = ["teacher=torchvision", "teacher.arch=vit_b_32", "+teacher.options.image_size=32"]


def test_a_transformer_is_distilled_by_its_logits_alone(make_job: Any) -> None:
    others = [*TRANSFORMER, "dataset.image_size=32", "student=resnet8"]
    check_method(make_job("ctkd", *others, teacher_id="run:0").settings)
    with pytest.raises(EdkdError, match="VisionTransformer gives no pooled_feat, last_map and classifier"):
        check_method(make_job("fitnet", *others, teacher_id="run:0").settings)


OWN_NETWORKS = """
from torch import nn
from edkd.models import Prediction


class WithoutFeats(nn.Linear):
    def forward(self, images):
        return Prediction(super().forward(images.mean((2, 3))))


class Plain(nn.Linear):
    def forward(self, images, want_feats=False):
        return super().forward(images.mean((2, 3)))


class NotOnMeta(nn.Linear):
    def forward(self, images, want_feats=False):
        assert images.sum().item() == 0  # which the meta device does not have
        return Prediction(super().forward(images.mean((2, 3))))


def make(*, num_classes: int, kind: str) -> nn.Module:
    return globals()[kind](3, num_classes)
"""


@pytest.mark.parametrize(
    ("student", "message"),
    [
        ("student=timm student.arch=resnet10tt", "^student=timm_resnet10tt: arch=resnet10tt: timm has no such network"),
        (
            "student=torchvision student.arch=vit_b_32",
            r"^student=torchvision_vit_b_32: VisionTransformer fails on images of 8x8: AssertionError: Wrong image ",
        ),
        (
            "student.model._target_=own_networks.make +student.model.kind=WithoutFeats",
            r"WithoutFeats fails on images of 8x8: TypeError: .*unexpected keyword argument 'want_feats'",
        ),
        ("student.model._target_=own_networks.make +student.model.kind=Plain", "Plain returned Tensor; a network "),
    ],
)
def test_students_that_fail_on_an_image_are_refused(
    make_job: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, student: str, message: str
) -> None:
    (tmp_path / "own_networks.py").write_text(OWN_NETWORKS)
    monkeypatch.syspath_prepend(tmp_path)
    for method in ("kd", "fitnet"):
        with pytest.raises(EdkdError, match=message):
            check_method(make_job(method, *student.split(), teacher_id="run:0").settings)


def test_a_network_that_needs_values_is_tried_with_values(
    make_job: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "own_networks.py").write_text(OWN_NETWORKS)
    monkeypatch.syspath_prepend(tmp_path)
    network = ["student.model._target_=own_networks.make", "+student.model.kind=NotOnMeta"]
    check_method(make_job("kd", *network, teacher_id="run:0").settings)


def test_values_that_an_optimiser_refuses(make_job: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = "from edkd.training.optimizers import SGD\n\n\nclass Choosy(SGD):\n    def __init__(self, params, *, lr, "
    text += "momentum, weight_decay, beta: float):\n        raise ValueError(f'no such beta: {beta}')\n"
    (tmp_path / "own_optimiser.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    chosen = ["optimizer._target_=own_optimiser.Choosy", "+optimizer.beta=1.5"]
    with pytest.raises(EdkdError, match="^optimizer: no such beta: 1.5; see conf/optimizer$"):
        check_method(make_job("kd", *chosen, teacher_id="run:0").settings)


class Alone(Distiller):
    """A method with flags that contradict each other."""

    needs_teacher: ClassVar[bool] = False
    needs_strong_view: ClassVar[bool] = True


def test_strong_views_without_a_teacher_are_refused(make_job: Any) -> None:
    cfg = make_job("vanilla").settings
    with pytest.raises(EdkdError, match="^distiller=vanilla needs strong views, which only methods with a teacher"):
        check_method(replace(cfg, distiller={"_target_": f"{Alone.__module__}.Alone"}))


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (
            "distiller=simkd pair=resnet50-mobilenetv2 dataset=digits dataset.image_size=20",
            r"^distiller=simkd on resnet50-mobilenetv2: .*student's is 2 high, the teacher's 3: it works for ",
        ),
        (
            "distiller=crd dataset.train_per_class=10",
            r"^distiller=crd on resnet32x4-resnet8x4: .*16384, but there are 1000 training images: it must be 1000 or",
        ),
        ("distiller=crd dataset=digits distiller.negatives=1500", r"there are 1437 training images"),
        ("distiller=crd dataset.validation=0.8", r"there are 10000 training images"),
        (
            "distiller=mlkd dataset=imagefolder dataset.name=birds dataset.root=birds",
            r"^distiller=mlkd needs strong views, which only data in memory have, not birds",
        ),
        ("distiller=kd optimizer=dot optimizer.delta=0.5", r"^optimizer.delta is 0.5: both momenta"),
    ],
)
def test_a_method_that_cannot_work_is_refused_when_planning(
    planner: Planner, tmp_path: Path, asked: str, message: str
) -> None:
    master, loader = planner()
    given = [*asked.split(), f"output={tmp_path}"]
    overrides = OverridesParser.create(loader).parse_overrides(given)
    with pytest.raises(EdkdError, match=message) as error:
        plan.make_plan([given], overrides, Composer(master, loader))
    assert "\n" not in str(error.value)
    assert not list(tmp_path.iterdir())


def test_every_method_serves_a_pair_of_equal_stages(planner: Planner, tmp_path: Path) -> None:
    master, loader = planner()
    asked = ["distiller=glob(*)", "pair=vgg13-vgg8", "experiment=demo", f"output={tmp_path}"]
    overrides = OverridesParser.create(loader).parse_overrides(asked)
    planned = plan.make_plan(plan.expand(overrides, {}), overrides, Composer(master, loader))
    assert {job.settings.method for job in planned.students} == {*loader.get_group_options("distiller")}

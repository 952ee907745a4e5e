"""Planning: the configurations of a sweep's jobs are Hydra's own, though Hydra composes few of them."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from hydra.core.config_loader import ConfigLoader
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig

from edkd.config import schema
from edkd.errors import EdkdError
from edkd.sweeps import composer, plan
from edkd.sweeps.composer import Composer

Planner = Callable[..., tuple[DictConfig, ConfigLoader]]


@pytest.fixture
def planner() -> Iterator[Planner]:
    """`planner(*overrides of Hydra)`: what Hydra hands to a sweeper."""

    def made(*own: str, folder: Path | None = None) -> tuple[DictConfig, ConfigLoader]:
        from hydra import initialize_config_dir

        GlobalHydra.instance().clear()
        initialize_config_dir(version_base="1.3", config_dir=str(folder or schema.folder()))
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
    "distiller=kd & pair=resnet32x4-mobilenetv2 & seed=5",
    "distiller=kd & teacher=vgg13 & student=vgg8",
    "distiller=vanilla & student=resnet8 & seed=7 & teacher_seed=8",
    "schedule=short & dataset=digits & dataset.image_size=12 & seed=1",  # interpolated in its own group
    "schedule=short & dataset=digits & dataset.image_size=14 & seed=1",
    "experiment=demo & pair=wrn_40_2-wrn_16_2 & seed=2",
    "experiment=demo & dataset.train_per_class=null & seed=2",
    "experiment=demo & dataset.train_per_class=50 & seed=2",
    "experiment=cifar100_small & schedule.epochs=7 & tracking=journal",
    "student.lr=0.02 & seed=1",  # schedule.lr refers to it
    "student.lr=0.03 & seed=1",
    "schedule.lr=0.5 & student.lr=0.03",  # no longer
    "schedule.warmup_epochs=3 & distiller=dkd",  # distiller.warmup_epochs refers to it
    "schedule.milestones=[1,2,3] & seed=1",
    "schedule.milestones=[] & seed=1",
    "output=elsewhere & seed=1",  # tracking refers to it
    "output='with space' & seed=1",
    'output="it\'s, quoted" & seed=1',
    "tracking=server & tracking.uri=http://127.0.0.1:5001",
    "tracking.uri=null",
    "+extra=1",
    "+extra.deep.er=[1,{a: 2}]",
    "+extra='${seed}' & seed=5",
    "+extra=${seed} & seed=6",
    "++extra=1 & ++seed=4",
    "++distiller.note=x & distiller=kd",
    "seed=1 & ++seed=2",
    "seed=1 & seed=2",
    "~distiller.weighting",
    "~distiller.weighting & +distiller.weighting=sample",
    "~tracking",
    "distiller={_target_:x.Y} & seed=4",
    "dataset.mean=[0.1,0.2,0.3] & dataset.padding=2 & dataset.flip=false",
    "dataset.padding=2.5",
    "seed=text",
    "seed='3'",
    "seed=null",
    "seed=1e3",
    "seed=true",
    "dataset=folder & dataset.name=birds & dataset.root=/data/birds",
    "dataset=folder & dataset.name=cats & dataset.root=/data/cats & dataset.image_size=64",
    "engine.device=cpu & engine.threads=2 & engine.precision=bf16",
    "engine.device='cuda:1'",
    "schedule.lr='${student.lr}' & student.lr=0.3",
    "experiment=null & seed=1",
    "seed=1 & pair=null",
    # and what is wrong
    "sede=1",
    "seed=1 & schedule.epoch=3",
    "distiller=edk & seed=1",
    "pair=vgg13-vgg9",
    "dataset=folder",
    "dataset=folder & dataset.name=birds & seed=2",
    "+seed=1",
    "~sede",
    "~seed=7",
    "~distiller",
    "distiller=[kd]",
    "distiller=3",
    "+distiller=kd",
    "+tweak=dkd/vgg13-vgg8",
    "dataset@other=digits",
    "seed=${nowhere}",
    "seed.deep=1",
    "schedule=3 & schedule.lr=1",
    "schedule.milestones.0=3",
    "seed",
    "seed=[1,",
    "teacher.model._target_=edkd.models.vgg8 & student.model._target_=edkd.models.vgg8",
]


def plain(value: Any) -> Any:
    """A configuration with the type of every leaf, in its own order: True is no 1, and 1 is no 1.0."""
    if isinstance(value, dict):
        return [(key, plain(inner)) for key, inner in value.items()]
    return [plain(inner) for inner in value] if isinstance(value, list) else (type(value), value)


def outcome(compose: Callable[[list[str]], tuple[dict[str, Any], str]], job: str) -> Any:
    """What composing a job gives: text, types and method, or the error."""
    try:
        resolved, method = compose(job.split(" & ") if job else [])
    except Exception as error:
        return type(error), str(error)
    return plain(resolved), yaml.safe_dump(resolved, sort_keys=False), method


def test_jobs_are_what_hydra_composes_for_each_alone(planner: Planner) -> None:
    master, loader = planner()
    shared = Composer(master, loader)
    with composer.files_read_once(loader):
        quick = [outcome(shared.compose, job) for job in JOBS]
        again = [outcome(shared.compose, job) for job in reversed(JOBS)]  # whatever came before
    assert again == quick[::-1]
    for job, made in zip(JOBS, quick, strict=True):
        assert made == outcome(Composer(master, loader).by_hydra, job), job


def test_hydra_composes_once_for_each_choice_of_options(planner: Planner, counted: list[list[str]]) -> None:
    master, loader = planner()
    shared = Composer(master, loader)
    for method in ("kd", "dkd"):
        for seed in range(20):
            for rate in (0.1, 0.2):
                resolved, _ = shared.compose([f"distiller={method}", f"seed={seed}", f"student.lr={rate}", "output=x"])
                assert (resolved["seed"], resolved["schedule"]["lr"]) == (seed, rate)
    assert counted == [["distiller=kd"], ["distiller=dkd"]]


def test_no_two_jobs_share_a_part(planner: Planner) -> None:
    shared = Composer(*planner())
    first, second = (shared.compose([f"seed={seed}"])[0] for seed in (0, 1))
    first["schedule"]["milestones"].append(7)
    assert 7 not in second["schedule"]["milestones"] + shared.compose(["seed=2"])[0]["schedule"]["milestones"]


OWN = """
defaults: [_self_, distiller: kd, optional part: null]
plain: 1
alias: ${group}
group: {inner: 2, listed: [1, "${plain}"]}
relative: {a: 1, b: "${.a}"}
home: ${oc.env:HOME}
copied: {whole: "${group}"}
nested: ${copied.${pointer}}
pointer: whole
"""


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """A configuration with everything that interpolations can do."""
    (tmp_path / "distiller").mkdir()
    (tmp_path / "part").mkdir()
    (tmp_path / "empty").mkdir()
    (tmp_path / "distiller" / "kd.yaml").write_text("weight: 1.0\n")
    (tmp_path / "part" / "extra.yaml").write_text("# @package _global_\nplain: 7\nempty: 1\n")
    (tmp_path / "config.yaml").write_text(OWN)
    return tmp_path


@pytest.mark.parametrize("without", [(), ("relative",), ("nested",), ("relative", "nested")])
def test_interpolations_are_followed_as_hydra_does(own: Path, planner: Planner, without: tuple[str, ...]) -> None:
    """Without those that are not understood, plain values take the short way: both ways must be right."""
    (own / "config.yaml").write_text("\n".join(line for line in OWN.splitlines() if not line.startswith(without)))
    master, loader = planner(folder=own)
    shared = Composer(master, loader)
    jobs = [
        "plain=5",
        "plain=6",
        "plain=6 & part=extra",
        "alias.inner=4",
        "alias.inner=4 & group.inner=5",
        "group.inner=5 & alias.inner=4",
        "group.inner=5 & +alias.new=4",
        "group.inner=5 & ~alias.inner",
        "group={inner: 3} & plain=8",
        "group.listed=[3] & plain=8",
        "copied.whole.inner=9",
        "copied.whole=1",
        "relative.a=4",
        "pointer=other",
        "home=elsewhere",
        "distiller.weight=2.0",
        "distiller.weight=2",
        "+other=${plain} & plain=9",
        "+other=${plain} & plain=10",
        "empty=2",
        "part=extra & empty=2",
        "plain=???",
        "plain='${group.inner}' & group.inner=0",
    ]
    made = [outcome(shared.compose, job) for job in jobs]
    assert made == [outcome(Composer(master, loader).by_hydra, job) for job in jobs]


def test_options_of_a_user_are_found(own: Path, planner: Planner, tmp_path_factory: pytest.TempPathFactory) -> None:
    more = tmp_path_factory.mktemp("more")
    (more / "distiller").mkdir()
    (more / "distiller" / "mine.yaml").write_text("weight: ${plain}\n")
    master, loader = planner(f"hydra.searchpath=['file://{more}']", folder=own)
    with composer.files_read_once(loader):
        shared = Composer(master, loader)
        for job in ("distiller=mine", "distiller=mine & plain=3", "distiller=kd & plain=3", "distiller=yours"):
            assert outcome(shared.compose, job) == outcome(Composer(master, loader).by_hydra, job)
        assert shared.compose(["distiller=mine", "plain=3"])[0]["distiller"] == {"weight": 3}


def test_files_are_read_once_for_a_plan(own: Path, planner: Planner) -> None:
    master, loader = planner(folder=own)
    with composer.files_read_once(loader):
        before = Composer(master, loader).by_hydra(["part=extra"])
        (own / "part" / "extra.yaml").write_text("plain: [")
        assert Composer(master, loader).by_hydra(["part=extra"]) == before
    with pytest.raises((EdkdError, HydraException, yaml.YAMLError)):
        Composer(master, loader).by_hydra(["part=extra"])


def test_a_large_plan_needs_few_compositions(
    planner: Planner, counted: list[list[str]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    master, loader = planner()
    words = ["distiller=kd,dkd,edkd", "pair=all", "seed=range(48)", "schedule=short"]
    overrides = OverridesParser.create(loader).parse_overrides(words)
    combinations = plan.expand(overrides, plan.pair_lists(overrides, master, loader))
    planned = plan.make_plan(combinations, overrides, master, loader)
    assert (len(planned.students), len(planned.teachers)) == (1008, 4)
    assert len({job.run for job in planned.students}) == 1008
    assert len(counted) <= 1 + 21 + 4
    assert {(job.settings.seed, job.config["seed"]) for job in planned.students} == {(n, n) for n in range(48)}
    assert not list(tmp_path.iterdir())

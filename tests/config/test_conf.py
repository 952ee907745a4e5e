"""What conf/ says: every option composes, and the numbers are those of the papers."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra

from edkd import CONF, models
from edkd.config import schema
from edkd.config.compose import own_folder
from edkd.config.instantiate import target
from edkd.config.job import make_job
from tests.commandline import REPOSITORY

TABLE = [
    "resnet32x4-resnet8x4",
    "wrn_40_2-wrn_16_2",
    "wrn_40_2-wrn_40_1",
    "vgg13-vgg8",
    "vgg13-mobilenetv2",
    "resnet50-mobilenetv2",
    "resnet32x4-mobilenetv2",
]
BESIDE = [
    "resnet32x4-shufflenetv2",
    "resnet32x4-shufflenetv1",
    "wrn_40_2-shufflenetv1",
    "resnet50-vgg8",
    "resnet56-resnet20",
    "resnet110-resnet32",
]
BETAS = {  # DKD's paper, supplement; 8 for every other pair
    "wrn_40_2-wrn_16_2": 6.0,
    "wrn_40_2-wrn_40_1": 6.0,
    "vgg13-vgg8": 6.0,
    "vgg13-mobilenetv2": 6.0,
    "resnet56-resnet20": 2.0,
    "resnet110-resnet32": 2.0,
}
IMAGENET = {"imagenet": 0.5, "imagenet_resnet50-mobilenetv1": 2.0}  # mdistiller's configs/imagenet
FAMILIES = ("vgg13", "wrn_40_2", "resnet32x4", "resnet50")  # teachers of the table: `pair=vgg13` lists its pairs
SLOW = ("mobilenetv2", "shufflenetv1", "shufflenetv2")  # students whose learning rate is lower


def options(group: str) -> list[str]:
    return sorted(path.stem for path in (CONF / group).glob("*.yaml"))


@pytest.mark.parametrize("role", ["teacher", "student"])
def test_every_network_can_be_either(role: str) -> None:
    assert len(models.names()) == 23
    assert options(role) == sorted([*models.names(), *models.IMAGENET, "timm", "torchvision"])


@pytest.mark.parametrize("name", models.names())
def test_every_network_composes(compose: Any, name: str) -> None:
    given = schema.settings(compose(f"teacher={name}", f"student={name}"), "edkd")
    for network in (given.teacher, given.student):
        assert network.name == name
        assert target(network.model, "model") is getattr(models, name)
    assert given.schedule.lr == (0.01 if name in SLOW else 0.05)


def test_the_pairs() -> None:
    assert options("pair") == sorted([*TABLE, *BESIDE, "all", "field", *FAMILIES])


@pytest.mark.parametrize("pair", [*TABLE, *BESIDE])
def test_every_pair_composes_with_dkds_own_beta(compose: Any, pair: str) -> None:
    teacher, student = pair.split("-")
    given = schema.settings(compose(f"pair={pair}", "distiller=dkd"), "dkd")
    assert (given.teacher.name, given.student.name, given.pair) == (teacher, student, pair)
    assert given.distiller["beta"] == BETAS.get(pair, 8.0)
    assert given.schedule.lr == (0.01 if student in SLOW else 0.05)


def test_the_lists_of_pairs(compose: Any) -> None:
    assert compose("pair=all")["pairs"] == TABLE
    assert sorted(compose("pair=field")["pairs"]) == sorted([*TABLE, *BESIDE])
    for teacher in FAMILIES:
        assert compose(f"pair={teacher}")["pairs"] == [pair for pair in TABLE if pair.startswith(f"{teacher}-")]


@pytest.mark.parametrize(
    ("overrides", "beta"),
    [
        ("distiller=dkd teacher=vgg13 student=vgg8", 6.0),  # however the two networks were chosen
        ("distiller=dkd pair=resnet50-vgg8 teacher=vgg13", 6.0),
        ("distiller=edkd pair=vgg13-vgg8", 8.0),  # a tweak belongs to its method
        ("distiller=dkd pair=vgg13-vgg8 distiller.beta=3", 3),
    ],
)
def test_where_a_tweak_counts(compose: Any, overrides: str, beta: float) -> None:
    assert compose(*overrides.split())["distiller"]["beta"] == beta


def test_an_experiment_wins_over_a_tweak_and_a_pair_over_an_experiment(tmp_path: Path) -> None:
    (tmp_path / "experiment").mkdir()
    mine = "# @package _global_\ndefaults:\n  - override /distiller: dkd\n  - override /teacher: resnet56\n"
    (tmp_path / "experiment" / "mine.yaml").write_text(f"{mine}distiller:\n  beta: 3.5\n")
    GlobalHydra.instance().clear()
    with initialize_config_dir(version_base="1.3", config_dir=str(CONF)):
        own = f"hydra.searchpath=[file://{tmp_path}]"
        composed = hydra_compose("config", overrides=[own, "experiment=mine", "pair=vgg13-vgg8"])
    assert (composed.teacher.name, composed.distiller.beta) == ("vgg13", 3.5)


@pytest.mark.parametrize(
    ("overrides", "negatives"),
    [("dataset=digits", 512), ("experiment=demo", 512), ("", 16384), ("dataset=digits distiller.negatives=3", 3)],
)
def test_a_tweak_for_a_data_set(compose: Any, overrides: str, negatives: int) -> None:
    assert compose("distiller=crd", *overrides.split())["distiller"]["negatives"] == negatives


def test_every_tweak_names_a_method_and_two_networks_or_a_data_set() -> None:
    # `optional` hides a misspelt file: it would never be read.
    folder = CONF / "tweak"
    for path in folder.rglob("*.yaml"):
        method, *optimizer, _ = path.relative_to(folder).parts  # an optimiser's own values lie in a folder of its name
        assert method in options("distiller")
        assert optimizer in ([], *([name] for name in options("optimizer")))
        teacher, _, student = path.stem.partition("-")
        assert (teacher in options("teacher") and student in options("student")) or path.stem in options("dataset")
        assert path.read_text().startswith(f"# @package {'optimizer' if optimizer else 'distiller'}\n")
        assert yaml.safe_load(path.read_text())
    assert {path.stem for path in (folder / "dkd").iterdir()} == {*BETAS, *IMAGENET}


@pytest.mark.parametrize("pair", [*TABLE, *BESIDE])
def test_scale_decoupled_methods_follow_dkds_beta_and_see_more_scales_between_kinds(compose: Any, pair: str) -> None:
    teacher, student = pair.split("-")
    same_kind = teacher[:3] == student[:3]
    for method, weight in (("sd_kd", None), ("sd_dkd", "beta"), ("sd_nkd", "gamma")):
        values = compose(f"pair={pair}", f"distiller={method}")["distiller"]
        assert values["scales"] == ([1, 2] if same_kind else [1, 2, 4])
        assert weight is None or values[weight] == BETAS.get(pair, 8.0)


KD: dict[str, Any] = {"ce_weight": 0.1, "kd_weight": 0.9, "temperature": 4.0}
DKD: dict[str, Any] = {"ce_weight": 1.0, "alpha": 1.0, "beta": 8.0, "temperature": 4.0, "warmup_epochs": 20}
MLKD = KD | {"masking": "published", "standardise": False}
CTKD = {"t_start": 1.0, "t_end": 20.0, "decay": "cosine", "decay_max": 0.0, "decay_min": -1.0, "decay_loops": 10}
CRLD = {"within_weight": 2.0, "cross_weight": 0.5, "weak_threshold": 0.9, "strong_threshold": 0.2, "mask_by": "term"}
EXPECTED: dict[str, dict[str, Any]] = {
    "vanilla": {},
    "kd": KD,
    "kd_ls": {"ce_weight": 0.1, "kd_weight": 9.0, "temperature": 2.0, "standardise": True},
    "dkd": DKD,
    "dkd_ls": DKD | {"alpha": 9.0, "beta": 72.0, "temperature": 2.0, "standardise": True},
    "edkd": DKD | {"weighting": "batch"},
    "edkd_ls": DKD | {"temperature": 2.0, "weighting": "batch", "standardise": True},
    "sd_kd": KD | {"scales": [1, 2]},
    "sd_dkd": DKD | {"scales": [1, 2]},
    "sd_nkd": {
        **{"ce_weight": 1.0, "gamma": 8.0, "temperature": 4.0, "mask_target": True},
        **{"scales": [1, 2], "warmup_epochs": 20},
    },
    "rld": DKD | {"alpha_temperature": 4.0, "standardise": False},
    "normkd": {"ce_weight": 0.1, "kd_weight": 0.9, "temperature_norm": 2.0},
    "normkd_dkd": {"ce_weight": 1.0, "alpha": 4.0, "beta": 5.0, "temperature_norm": 2.0, "warmup_epochs": 20},
    "ctkd": {"ce_weight": 0.1, "kd_weight": 0.9, "standardise": False} | CTKD,
    "deepkd": {"ce_weight": 0.5, "temperature": 4.0, "top_k": 0, "weighting": "batch"},  # of resnet32x4-resnet8x4
    "deepkd_dkd": DKD | {"top_k": 0},
    "mlkd": MLKD | {"strong_temperatures": "published"},
    "mlkd_one_view": MLKD,
    "crld": {"ce_weight": 1.0, "temperature": 4.0} | CRLD,
    "dist": {"ce_weight": 1.0, "kd_weight": 2.0, "beta": 1.0, "gamma": 1.0, "temperature": 4.0},
    "nkd": {"ce_weight": 1.0, "kd_weight": 1.0, "gamma": 1.5, "temperature": 1.0},
    "ttm": {"ce_weight": 1.0, "kd_weight": 45.0, "exponent": 0.1},
    "wttm": {"ce_weight": 1.0, "kd_weight": 4.0, "exponent": 0.2},
    "fitnet": {"ce_weight": 1.0, "feat_weight": 100.0, "hint_stage": 2},
    "crd": {
        **{"ce_weight": 1.0, "feat_weight": 0.8, "feat_dim": 128},
        **{"negatives": 16384, "temperature": 0.07, "momentum": 0.5},
    },
    "at": {"ce_weight": 1.0, "feat_weight": 1000.0, "p": 2.0},
    "nst": {"ce_weight": 1.0, "feat_weight": 50.0},
    "pkt": {"ce_weight": 1.0, "feat_weight": 30000.0},
    "sp": {"ce_weight": 1.0, "feat_weight": 3000.0},
    "cc": {"ce_weight": 1.0, "feat_weight": 0.02, "feat_dim": 128},
    "rkd": {"ce_weight": 1.0, "distance_weight": 25.0, "angle_weight": 50.0},
    "vid": {"ce_weight": 1.0, "feat_weight": 1.0, "init_pred_var": 5.0, "eps": 1e-5},
    "ofd": {"ce_weight": 1.0, "feat_weight": 0.001, "kernel_size": 1},
    "reviewkd": {"ce_weight": 1.0, "feat_weight": 5.0, "max_width": 512, "warmup_epochs": 20},
    "simkd": {"feat_weight": 1.0, "factor": 2},
    "catkd": {"ce_weight": 1.0, "feat_weight": 15.0, "resolution": 2, "normalize": False, "binarize": False},
}


@pytest.mark.parametrize("method", EXPECTED)
def test_every_method_has_the_values_of_its_paper(compose: Any, method: str) -> None:
    distiller = schema.settings(compose(f"distiller={method}"), method).distiller
    module = "sdd" if method.startswith("sd_") else method.partition("_")[0]
    assert distiller.pop("_target_").startswith(f"edkd.distillers.{module}.")
    assert distiller == EXPECTED[method]


def test_the_recipe(compose: Any) -> None:
    given = schema.settings(compose("schedule=cifar240", "dataset=cifar100"), "edkd")
    assert (given.schedule.epochs, given.schedule.batch_size, given.schedule.lr) == (240, 64, 0.05)
    assert (given.schedule.momentum, given.schedule.weight_decay) == (0.9, 5e-4)
    assert (given.schedule.milestones, given.schedule.gamma) == ([150, 180, 210], 0.1)
    assert given.schedule.warmup_epochs == 20
    assert given.dataset.mean == [0.5071, 0.4867, 0.4408]
    assert given.dataset.std == [0.2675, 0.2565, 0.2761]
    assert (given.dataset.padding, given.dataset.flip) == (4, True)
    assert given.engine.precision == "fp32"


LARGE = {  # networks, epochs, batch, weight decay and milestones
    "imagenet_resnet34_resnet18": ("imagenet_resnet34", "imagenet_resnet18", 100, 512, 1e-4, [30, 60, 90]),
    "imagenet_resnet50_mobilenetv1": ("imagenet_resnet50", "mobilenetv1", 100, 512, 1e-4, [30, 60, 90]),
    "tiny_resnet18_mobilenetv2": ("resnet18", "mobilenetv2", 200, 256, 5e-4, [60, 120, 160]),
    "tiny_resnet18_shufflenetv2": ("resnet18", "shufflenetv2", 200, 256, 5e-4, [60, 120, 160]),
}


@pytest.mark.parametrize("experiment", LARGE)
def test_the_experiments_on_streamed_images(compose: Any, experiment: str) -> None:
    given = schema.settings(compose(f"experiment={experiment}"), "edkd")
    recipe = given.schedule
    found = (recipe.epochs, recipe.batch_size, recipe.weight_decay, recipe.milestones)
    assert (given.teacher.name, given.student.name, *found) == LARGE[experiment]
    assert (recipe.lr, recipe.gamma, recipe.momentum) == (0.2, 0.1, 0.9)
    assert given.engine.precision == "bf16" and given.engine.channels_last
    kd, dkd = (compose(f"experiment={experiment}", f"distiller={name}")["distiller"] for name in ("kd", "dkd"))
    on_imagenet = experiment.startswith("imagenet")
    beta = IMAGENET.get(f"{given.teacher.name}-{given.student.name}", IMAGENET["imagenet"])
    expected = [(0.5, 0.5, 1.0), (beta, 1.0, 1)] if on_imagenet else [(0.1, 0.9, 4.0), (8.0, 4.0, 20)]
    assert (kd["ce_weight"], kd["kd_weight"], kd["temperature"]) == expected[0]
    assert (dkd["beta"], dkd["temperature"], dkd["warmup_epochs"]) == expected[1]


@pytest.mark.parametrize(
    ("choice", "key"),
    [
        ("dataset=cifar100", "cifar100"),
        ("dataset=digits", "digits-16"),
        ("dataset=folder dataset.name=birds dataset.root=/data/birds", "birds"),
        ("dataset=imagefolder dataset.name=birds dataset.root=/data/birds", "birds"),
        ("schedule=short", "cifar100"),
        ("engine=default", "cifar100"),
        ("tracking=journal", "cifar100"),
        ("tracking=server", "cifar100"),
        ("tracking=sqlite", "cifar100"),
        ("dataset=imagenet", "imagenet-224"),
        ("dataset=tiny_imagenet", "tiny_imagenet-64"),
        ("experiment=demo", "digits-8-100perclass"),
        ("experiment=demo_methods", "digits-8-100perclass"),
        ("experiment=cifar100_short", "cifar100"),
        ("experiment=cifar100_small", "cifar100-20perclass-test10"),
        ("experiment=search_digits", "digits-8-100perclass-val0.2"),
        ("experiment=search_cifar100", "cifar100-val0.1"),
    ],
)
def test_every_other_option_composes(compose: Any, choice: str, key: str) -> None:
    assert schema.settings(compose(*choice.split()), "edkd").dataset.key == key


def test_the_demo_makes_its_table_of_its_recipe(compose: Any) -> None:
    recipe = make_job(compose("experiment=demo", "distiller=kd"), "kd", None).tags["recipe"]
    assert f"\nDEMO = {recipe}\n" in (REPOSITORY / "Makefile").read_text()


def test_no_other_option_was_forgotten() -> None:
    assert options("distiller") == sorted(EXPECTED)
    assert options("dataset") == ["cifar100", "digits", "folder", "imagefolder", "imagenet", "tiny_imagenet"]
    assert options("schedule") == ["cifar240", "imagenet100", "short", "tiny200"]
    assert options("engine") == ["default"]
    assert options("optimizer") == ["deepkd", "dot", "sgd"]
    assert options("tracking") == ["journal", "server", "sqlite"]
    small = ["cifar100_short", "cifar100_small", "demo", "demo_methods", "search_cifar100", "search_digits"]
    assert options("experiment") == sorted([*small, *LARGE])
    assert options("hydra/launcher") == ["local", "slurm", "slurm_detached"]
    assert options("hydra/sweeper") == ["optuna"]


def test_everything_that_is_written_lies_below_output(compose: Any) -> None:
    tracking = compose("output=/elsewhere")["tracking"]
    assert tracking["uri"] == "sqlite:////elsewhere/mlflow.db"
    assert tracking["artifacts"] == "/elsewhere/mlartifacts"


@pytest.mark.parametrize(
    ("arguments", "folder"),
    [
        (["-m", "--config-dir", "mine", "seed=1"], "mine"),
        (["--config-dir=mine"], "mine"),
        (["-cd", "mine"], "mine"),
        (["evaluate", "-c", "best.pt"], None),
    ],
)
def test_the_folder_of_a_user_is_that_of_launch_alone(
    arguments: list[str], folder: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", ["program", *arguments])
    assert own_folder() == folder

"""What a configuration may say, what it is refused for, and what belongs to a run's identity."""

import copy
import math
from typing import Any

import pytest
import torch

from edkd.config import job as config_job
from edkd.config import schema
from edkd.config.job import Job
from edkd.config.schema import Dataset
from edkd.distillers import Batch, Distiller, Outcome
from edkd.distillers.vanilla import Vanilla
from edkd.errors import EdkdError
from edkd.models import Prediction

# --- a whole configuration ---


ABSENT = object()


@pytest.fixture(scope="module")
def base(compose: Any) -> dict[str, Any]:
    """A resolved configuration of EDKD on digits."""
    return compose("dataset=digits", "teacher=resnet8", "student=resnet8", "schedule=short", "distiller=edkd")


@pytest.mark.parametrize(
    ("method", "optimizer", "message"),
    [
        ("deepkd", "sgd", "has the losses ce, tckd, nckd: they need a momentum each, which optimizer=deepkd gives"),
        ("deepkd_dkd", "dot", "has the losses ce, tckd, nckd: they need a momentum each"),
        ("kd", "deepkd", "has the losses ce, kd: optimizer=deepkd needs ce, tckd and nckd, as distiller=deepkd"),
        ("vanilla", "dot", "has the losses ce: optimizer=dot needs ce and at least one other"),
        ("simkd", "dot", "has the losses kd: optimizer=dot needs ce and at least one other"),
        ("edkd", "dot", None),
        ("mlkd", "dot", None),
        ("deepkd", None, None),  # brings its own
    ],
)
def test_which_optimiser_serves_which_method(
    compose: Any, method: str, optimizer: str | None, message: str | None
) -> None:
    chosen = [f"optimizer={optimizer}"] if optimizer else []
    composed = compose(f"distiller={method}", *chosen)
    if message is None:
        assert schema.settings(composed, method).optimizer["_target_"] == composed["optimizer"]["_target_"]
        return
    with pytest.raises(EdkdError) as error:
        schema.settings(composed, method)
    assert str(error.value).startswith(f"distiller={method} {message}")
    assert "\n" not in str(error.value)


class NoMinimise(torch.optim.SGD):
    """Takes the arguments of an optimiser here, but has no `minimise`."""


@pytest.mark.parametrize("name", ["torch.optim.AdamW", f"{__name__}.NoMinimise", "edkd.models.resnet8"])
def test_what_is_no_optimiser_of_named_losses(base: dict[str, Any], name: str) -> None:
    with pytest.raises(EdkdError, match=f"^optimizer._target_: {name} must be a subclass of torch.optim.Optimizer "):
        schema.settings({**base, "optimizer": {"_target_": name}}, "edkd")


class Asserting(Distiller):
    """Refuses a value by an assertion."""

    def __init__(self, *, weight: float) -> None:
        super().__init__()
        assert weight > 1, "weight above 1"

    def forward(self, student: Prediction, teacher: Prediction | None, batch: Batch) -> Outcome:
        raise NotImplementedError


def test_any_error_of_a_method_is_one_line(base: dict[str, Any]) -> None:
    node = {"_target_": f"{__name__}.Asserting", "weight": 0.5}
    with pytest.raises(EdkdError, match="^distiller: AssertionError: weight above 1.*; see conf/distiller$"):
        schema.settings({**base, "distiller": node}, "asserting")


def changed(base: dict[str, Any], key: str, value: Any) -> dict[str, Any]:
    """The configuration with another value under a dotted key; `ABSENT` takes the key away."""
    outer = node = copy.deepcopy(base)
    *parents, last = key.split(".")
    for parent in parents:
        node = node[parent]
    if value is ABSENT:
        del node[last]
    else:
        node[last] = value
    return outer


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("schedule.epochs", 0, "schedule.epochs=0: must be above 0"),
        ("engine.threads", 100_000, "engine.threads=100000: must be 1024 or less or null"),
        ("schedule.epochs", 2.5, "schedule.epochs=2.5: must be a whole number"),
        ("schedule.lr", -1, "schedule.lr=-1: must be above 0"),
        ("schedule.lr", math.inf, "schedule.lr=inf: must be a finite number"),
        ("schedule.batch_size", 0, "schedule.batch_size=0: must be above 0"),
        ("schedule.momentum", 2, "schedule.momentum=2: must be below 1"),
        ("schedule.momentum", -0.1, "schedule.momentum=-0.1: must be 0 or more"),
        ("schedule.warmup_epochs", -1, "schedule.warmup_epochs=-1: must be 0 or more"),
        ("schedule.milestones", 3, "schedule.milestones=3: must be a list"),
        ("schedule.milestones", ["a"], "schedule.milestones[0]=a: must be a number"),
        *(
            ("schedule.milestones", wrong, f"schedule.milestones={shown}: must be epochs, or fractions of the epochs")
            for wrong, shown in (
                ([3, 2], "[3.0, 2.0]"),
                ([2, 2], "[2.0, 2.0]"),
                ([0.5, 0.25], "[0.5, 0.25]"),
                ([0.5, 2], "[0.5, 2.0]"),
                ([1.5], "[1.5]"),
                ([0], "[0.0]"),
                ([-1], "[-1.0]"),
            )
        ),
        ("schedule.decay", 2, "schedule.decay: no such value; allowed: epochs, batch_size, lr"),
        ("dataset.validation", 1, "dataset.validation=1: must be below 1"),
        ("dataset.validation_seed", -1, "dataset.validation_seed=-1: must be 0 or more"),
        ("dataset.padding", -1, "dataset.padding=-1: must be 0 or more"),
        ("dataset.std", [1, 1, 0], "dataset.mean and std need three numbers each, std above 0"),
        ("dataset.mean", [125.3, 123.0, 113.9], "dataset.mean and std are of pixels between 0 and 1, not 0 and 255"),
        ("dataset.std", [63.0, 62.1, 66.7], "dataset.mean and std are of pixels between 0 and 1, not 0 and 255"),
        ("dataset.mean", [1, 1], "dataset.mean and std need three numbers each, std above 0"),
        (
            "dataset.name",
            "a/b",
            "dataset.name=a/b: a name has up to 100 letters, digits, '_', '-' and '.', and begins with none of",
        ),
        ("dataset.name", "..", "dataset.name=..: a name has up to 100 letters"),
        ("student.name", "my net", "student.name=my net: a name has up to 100 letters"),
        ("student.name", "../../evil", "student.name=../../evil: a name has up to 100 letters"),
        ("teacher.name", "", "teacher.name=: a name has up to 100 letters"),
        ("dataset.flip", 1, "dataset.flip=1: must be true or false"),
        ("dataset.source.image_size", "big", "dataset.source.image_size=big: must be a whole number"),
        ("distiller.temperature", "hot", "distiller.temperature=hot: must be a number"),
        ("distiller.weighting", "mean", "distiller.weighting=mean: must be one of batch, sample"),
        ("distiller.gamma", 1, "distiller.gamma: no such value; allowed: ce_weight"),
        ("distiller.beta", ABSENT, "distiller.beta is missing; see conf/distiller"),
        ("distiller._target_", "edkd.models.resnet8", "distiller._target_: edkd.models.resnet8 is no subclass of"),
        ("distiller", "edkd", "distiller._target_ must be the dotted path of a class or function, not None"),
        ("student.model.depth", 9, "student.model.depth: no such value; allowed: none"),
        ("student.model", ABSENT, "student.model is missing; see conf/student"),
        ("engine.threads", "many", "engine.threads=many: must be a whole number or null"),
        ("engine", ABSENT, "engine must be a group of values, not None; see conf/engine"),
        ("dataset.train_per_class", 0, "dataset.train_per_class=0: must be above 0 or null"),
        ("seed", -1, "seed=-1: must be 0 or more"),
        ("seed", 2**32, "seed=4294967296: must be below 4294967296"),
        ("seed", True, "seed=True: must be a whole number"),
        ("seed", "0..3", "seed=0..3: must be a whole number; several values, with -m, are seed=0,1,2,3"),
        ("output", "", "output is empty: it must name a folder; see conf/config.yaml"),
        ("seed", 1.0, "seed=1.0: must be a whole number"),
        ("allow_weak_teacher", "perhaps", "allow_weak_teacher=perhaps: must be true or false"),
        ("colour", "red", "colour: no such value; allowed: seed, teacher_seed, allow_weak_teacher, output, dataset, "),
        ("pairs", ["a-b"], "several pairs are a sweep: add -m, or name one pair (see conf/pair)"),
    ],
)
def test_a_wrong_configuration_is_one_line(base: dict[str, Any], key: str, value: Any, message: str) -> None:
    with pytest.raises(EdkdError) as caught:
        schema.settings(changed(base, key, value), "edkd")
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


class Choosy(Vanilla):
    """A method that refuses a value."""

    def __init__(self, *, size: int) -> None:
        super().__init__()
        if size == 3:
            raise ValueError("size 3 is\n too odd")
        if size == 5:
            raise EdkdError("distiller.size is 5: 2 and 4 are allowed")


def test_a_method_may_refuse_a_value(base: dict[str, Any]) -> None:
    node = {"_target_": f"{__name__}.Choosy", "size": 2}
    assert schema.settings(changed(base, "distiller", node), "choosy").distiller == node
    with pytest.raises(EdkdError, match=r"^distiller: size 3 is too odd; see conf/distiller$"):
        schema.settings(changed(base, "distiller", node | {"size": 3}), "choosy")
    with pytest.raises(EdkdError, match=r"^distiller.size is 5: 2 and 4 are allowed$"):
        schema.settings(changed(base, "distiller", node | {"size": 5}), "choosy")


def test_the_name_of_a_method_is_one_of_a_file(base: dict[str, Any]) -> None:
    with pytest.raises(EdkdError, match=r"^distiller=mine/kd: a name has up to 100 letters, "):
        schema.settings(base, "mine/kd")


@pytest.mark.parametrize(
    ("values", "key"),
    [
        ({}, "own"),
        ({"train_per_class": 50}, "own-50perclass"),
        ({"train_per_class": 50, "test_per_class": 10}, "own-50perclass-test10"),
        ({"validation": 0.1}, "own-val0.1"),
        ({"validation": 0.1, "validation_seed": 3}, "own-val0.1s3"),
        ({"validation_seed": 3}, "own"),
    ],
)
def test_data_set_keys(values: dict[str, Any], key: str) -> None:
    defaults = {"train_per_class": None, "test_per_class": None, "validation": 0.0, "validation_seed": 0}
    fixed = {"name": "own", "source": {}, "mean": [0.5] * 3, "std": [0.5] * 3, "padding": 4, "flip": True}
    assert Dataset(**fixed | defaults | values).key == key


@pytest.mark.parametrize(
    ("epochs", "given", "epochs_of_decay"),
    [
        (240, [0.625, 0.75, 0.875], [150, 180, 210]),
        (100, [0.625, 0.75, 0.875], [62, 75, 88]),
        (8, [0.625, 0.75, 0.875], [5, 6, 7]),
        (5, [0.625, 0.75, 0.875], [3, 4]),  # two are one
        (2, [0.625, 0.75, 0.875], [1]),  # one is the end
        (1, [0.2], []),
        (3, [2, 9], [2, 9]),
        (3, [], []),
    ],
)
def test_milestones_are_epochs_or_fractions_of_them(
    base: dict[str, Any], epochs: int, given: list[float], epochs_of_decay: list[int]
) -> None:
    config = changed(changed(base, "schedule.epochs", epochs), "schedule.milestones", given)
    job = config_job.make_job(config, "edkd", teacher_id=None)
    assert job.identity["schedule"]["milestones"] == job.config["schedule"]["milestones"] == epochs_of_decay
    assert all(isinstance(milestone, int) for milestone in job.settings.schedule.milestones)


# --- identity ---


def identity(resolved: dict[str, Any], *, method: str = "edkd", teacher_id: str = "run:aaaa") -> dict[str, Any]:
    return config_job.identity(schema.settings(resolved, method), teacher_id)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("output", "elsewhere"),
        ("tracking", {"uri": "http://127.0.0.1:5000", "artifacts": None, "experiment": "other"}),
        ("engine.device", "cuda:1"),
        ("engine.threads", 7),
        ("engine.channels_last", False),
        ("engine.deterministic", False),
        ("engine.teacher_cache", False),
        ("teacher_seed", 5),
        ("allow_weak_teacher", True),
        ("distiller.temperature", 4),
        ("dataset.image_size", 99),  # what reads the images is dataset.source.image_size
    ],
)
def test_what_cannot_change_a_result_is_not_part_of_the_identity(base: dict[str, Any], key: str, value: Any) -> None:
    assert identity(changed(base, key, value)) == identity(base)


def test_where_the_data_lie_is_not_part_of_the_identity(compose: Any) -> None:
    there = identity(compose("dataset.root=/d", "dataset.download=false"))
    assert identity(compose()) == there
    assert there["dataset"]["source"] == {"_target_": "edkd.data.sources.cifar100"}


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("seed", 1),
        ("schedule.lr", 0.02),
        ("schedule.epochs", 3),
        ("schedule.milestones", [1]),
        ("distiller.temperature", 2),
        ("distiller.weighting", "sample"),
        ("engine.precision", "bf16"),
        ("dataset.train_per_class", 21),
        ("dataset.test_per_class", 10),
        ("dataset.validation", 0.1),
        ("dataset.source.image_size", 8),
        ("dataset.padding", 0),
        ("dataset.mean", [0.3, 0.3, 0.3]),
        ("student.model._target_", "edkd.models.resnet14"),
        ("teacher.model._target_", "edkd.models.resnet14"),
    ],
)
def test_what_changes_a_result_changes_the_identity(base: dict[str, Any], key: str, value: Any) -> None:
    assert config_job.digest(identity(changed(base, key, value))) != config_job.digest(identity(base))


def test_the_weights_that_teach_are_part_of_the_identity(base: dict[str, Any]) -> None:
    hashes = {config_job.digest(identity(base, teacher_id=id)) for id in ("run:aaaa", "run:bbbb", "file:aaaa")}
    assert len(hashes) == 3


def test_a_method_without_a_teacher_does_not_depend_on_one(base: dict[str, Any]) -> None:
    alone = changed(base, "distiller", {"_target_": "edkd.distillers.vanilla.Vanilla"})
    assert identity(alone, method="vanilla")["teacher"] is None
    other = changed(alone, "teacher", {"name": "vgg13", "lr": 0.05, "model": {"_target_": "edkd.models.vgg13"}})
    assert identity(other, method="vanilla", teacher_id="run:bbbb") == identity(alone, method="vanilla")


def test_numbers_that_are_equal_make_one_hash(base: dict[str, Any]) -> None:
    hashes = {config_job.digest(identity(changed(base, "distiller.beta", beta))) for beta in (6, 6.0, 6.5)}
    assert len(hashes) == 2
    assert identity(changed(base, "schedule.lr", 1)) == identity(changed(base, "schedule.lr", 1.0))


def test_runs_of_one_cell_differ_in_their_seed_alone(base: dict[str, Any]) -> None:
    def cell(key: str, value: Any) -> str:
        return config_job.cell(identity(changed(base, key, value)))

    assert cell("seed", 1) == cell("seed", 2)
    assert len({cell("seed", 0), cell("schedule.lr", 0.02), cell("distiller.beta", 2)}) == 3


def test_a_table_has_one_recipe_whatever_method_rate_seed_and_networks(base: dict[str, Any]) -> None:
    def recipe(key: str, value: Any) -> str:
        return config_job.recipe(identity(changed(base, key, value)))

    assert config_job.recipe(identity(base)).startswith("5ep-b64-fp32-")
    same = {
        "seed": 4,
        "schedule.lr": 0.5,
        "distiller": {"_target_": "edkd.distillers.vanilla.Vanilla"},
        "student.model._target_": "edkd.models.vgg8",
        "teacher.model._target_": "edkd.models.vgg13",
    }
    assert {recipe(key, value) for key, value in same.items()} == {config_job.recipe(identity(base))}
    other = {"schedule.epochs": 3, "engine.precision": "bf16", "dataset.train_per_class": 5, "schedule.gamma": 0.5}
    assert len({recipe(key, value) for key, value in (other | {"seed": 0}).items()}) == 5


def test_the_tags_that_runs_are_sorted_by(make_job: Any) -> None:
    job: Job = make_job("kd", "seed=3", teacher_id="run:aaaa")
    assert job.tags == {
        "pair": "resnet8-resnet8",
        "teacher": "resnet8",
        "student": "resnet8",
        "distiller": "kd",
        "dataset": "digits-8-20perclass-test10",
        "seed": "3",
        "config_hash": job.run,
        "cell": config_job.cell(job.identity),
        "recipe": config_job.recipe(job.identity),
        **{"title": "KD", "family": "logits", "year": "2015"},  # the labels of conf/distiller/kd.yaml
    }
    assert not set(schema.LABELS) & job.identity["distiller"].keys()
    alone: Job = make_job("vanilla", teacher_id="run:aaaa")
    assert (alone.teacher_id, alone.tags["teacher"], alone.tags["pair"]) == (None, "", "resnet8")
    assert alone.run == make_job("vanilla").run

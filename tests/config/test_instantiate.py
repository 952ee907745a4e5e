"""What a node of the configuration may hold: values against type hints, arguments against what is called."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt

from edkd.config import instantiate
from edkd.config.schema import Engine
from edkd.distillers import Batch, Distiller, Outcome
from edkd.errors import EdkdError
from edkd.models.base import Prediction

HERE = __name__


class Mine(Distiller):
    """A method as a user may write it."""

    def __init__(
        self,
        *,
        weight: float,
        steps: int,
        mode: Literal["mean", "max", 2],
        layers: list[float],
        label: str,
        symmetric: bool = False,
        start: int | None = None,
        shape: tuple[int, ...] = (),
        free: Any = None,
    ) -> None:
        super().__init__()
        self.weight, self.layers = weight, layers

    def forward(self, student: Prediction, teacher: Prediction | None, batch: Batch) -> Outcome:
        return Outcome({"mine": self.weight * student.logits.square().mean()}, {})


def anything(size: int, **others: float) -> tuple[int, dict[str, float]]:
    return size, others


def node_of(hint: Any, value: Any, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A node whose target takes a `key` of this type."""

    def called(key: Any) -> None: ...

    called.__annotations__["key"] = hint
    monkeypatch.setattr(f"{HERE}.called", called, raising=False)
    return {"_target_": f"{HERE}.called", "key": value}


MINE = {"_target_": f"{HERE}.Mine", "weight": 2, "steps": 3, "mode": "mean", "layers": [1, 0.5], "label": "x"}


def mine(**changes: Any) -> dict[str, Any]:
    return MINE | changes


@pytest.mark.parametrize(
    ("value", "hint", "expected"),
    [
        (3, int, 3),
        (3, float, 3.0),
        (1e-4, float, 1e-4),
        (True, bool, True),
        ("text", str, "text"),
        (None, int | None, None),
        (7, int | None, 7),
        (7, float | None, 7.0),
        (7, PositiveFloat, 7.0),
        (7, PositiveInt | None, 7),
        (None, type(None), None),
        ([1, 2.5], list[float], [1.0, 2.5]),
        ([1, 2], Sequence[int], [1, 2]),
        ([1, 2], tuple[int, ...], (1, 2)),
        ([], list[int], []),
        ({"a": 1}, dict[str, int], {"a": 1}),
        ({"a": 1}, dict, {"a": 1}),
        ([[1], [2, 3]], list[list[float]], [[1.0], [2.0, 3.0]]),
        ("batch", Literal["batch", "sample"], "batch"),
        (2, Literal["batch", 2], 2),
        (True, Literal[True], True),
        ("auto", float | Literal["auto"], "auto"),
        (object, Any, object),
        ([[1, 2]], list[tuple[int, int]], [(1, 2)]),
        ([3], tuple[int, ...] | None, (3,)),
    ],
)
def test_values_that_fit(value: Any, hint: Any, expected: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    converted = instantiate.check_call(node_of(hint, value, monkeypatch), "node")["key"]
    assert converted == expected
    assert type(converted) is type(expected)
    if isinstance(expected, list | tuple):
        assert [type(item) for item in converted] == [type(item) for item in expected]


@pytest.mark.parametrize(
    ("value", "hint", "message"),
    [
        ("3", int, "key=3: must be a whole number"),
        (3.0, int, "key=3.0: must be a whole number"),
        (True, int, "key=True: must be a whole number"),
        (True, float, "key=True: must be a number"),
        (float("nan"), float, "key=nan: must be a finite number"),
        ("fast", float, "key=fast: must be a number"),
        (1, bool, "key=1: must be true or false"),
        ("yes", bool, "key=yes: must be true or false"),
        (1, str, "key=1: must be a text"),
        (None, float, "key=None: must be a number"),
        ("x", int | None, "key=x: must be a whole number or null"),
        (False, int | None, "key=False: must be a whole number or null"),
        (4, list[float], "key=4: must be a list"),
        ("34", list[int], "key=34: must be a list"),
        ([1, "b", 3], list[float], "key[1]=b: must be a number"),
        ("max", Literal["batch", "sample"], "key=max: must be one of batch, sample"),
        ("hot", float | Literal["auto"], "key=hot: must be a number or one of auto"),
        ({"a": "b"}, dict[str, int], "key.a=b: must be a whole number"),
        ([1], dict, "key=[1]: must be a group of values"),
        (-0.5, NonNegativeFloat, "key=-0.5: must be 0 or more"),
        (1, Annotated[float, Field(ge=0, lt=1)], "key=1: must be below 1"),
        (0, PositiveInt | None, "key=0: must be above 0 or null"),
        (1, re.Pattern, "key=1: must be a valid pattern"),
        (1, Batch, "key=1: must be an instance of Batch"),
    ],
)
def test_values_that_do_not_fit_are_named_with_what_is_allowed(
    value: Any, hint: Any, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(EdkdError) as caught:
        instantiate.check_call(node_of(hint, value, monkeypatch), "node")
    assert str(caught.value) == f"node.{message}"


def test_the_arguments_of_a_users_method_are_converted_to_its_hints() -> None:
    values = instantiate.check_call(mine(shape=[3, 3], start=None, free={"any": 1}), "distiller")
    assert values == {
        "weight": 2.0,
        "steps": 3,
        "mode": "mean",
        "layers": [1.0, 0.5],
        "label": "x",
        "shape": (3, 3),
        "start": None,
        "free": {"any": 1},
    }
    assert type(values["weight"]) is float
    assert instantiate.build(mine(weight=4), "distiller").weight == 4.0


class Unknown:
    """A class whose type hint is not there as the program runs."""

    def __init__(self, *, weights: "Elsewhere[float]") -> None:  # type: ignore[name-defined] # noqa: F821
        raise NotImplementedError


def test_a_type_hint_that_is_not_imported_is_named() -> None:
    where = r"test_instantiate\.Unknown\.__init__: name 'Elsewhere' is not defined in its type hints"
    with pytest.raises(EdkdError, match=where):
        instantiate.check_call({"_target_": f"{__name__}.Unknown", "weights": [1.0]}, "distiller")


def test_a_key_that_is_no_text_is_named() -> None:
    with pytest.raises(EdkdError, match=r"^distiller\.1: a key is a text, which a number .* in quotes alone$"):
        instantiate.check_call(mine() | {1: 3}, "distiller")


def test_arguments_that_the_code_gives_itself_are_not_the_users() -> None:
    node = {"_target_": "edkd.models.resnet8"}
    assert instantiate.check_call(node, "student.model", "num_classes") == {}
    with pytest.raises(EdkdError, match=r"^student.model.num_classes: no such value; allowed: none$"):
        instantiate.check_call(node | {"num_classes": 10}, "student.model", "num_classes")


def test_a_target_with_open_keywords_takes_any_name() -> None:
    node = {"_target_": f"{HERE}.anything", "size": 1, "more": 2.0}
    assert instantiate.build(node, "x") == (1, {"more": 2.0})


@pytest.mark.parametrize(
    ("path", "message"),
    [
        (None, "x._target_ must be the dotted path of a class or function, not None"),
        ("Mine", "x._target_ must be the dotted path of a class or function, not 'Mine'"),
        ("nowhere.at.all", "x._target_: cannot import nowhere.at.all: No module named 'nowhere'; is it on PYTHONPATH?"),
        ("edkd.models.resnet9", r"x._target_: cannot import edkd.models.resnet9: .*no attribute .resnet9.$"),
        ("edkd.rundir.paths.JOURNAL", "x._target_: edkd.rundir.paths.JOURNAL is no class or function"),
    ],
)
def test_targets_that_cannot_be_called(path: str | None, message: str) -> None:
    with pytest.raises(EdkdError) as caught:
        instantiate.target({"_target_": path}, "x")
    assert str(caught.value) == message or re.fullmatch(message, str(caught.value))


def test_a_module_that_cannot_be_read_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "unfinished.py").write_text("def (")
    monkeypatch.syspath_prepend(tmp_path)
    message = r"^x._target_: importing unfinished fails: SyntaxError: .*\(unfinished.py, line 1\)$"
    with pytest.raises(EdkdError, match=message):
        instantiate.target({"_target_": "unfinished.Method"}, "x")


def test_a_group_as_a_dataclass() -> None:
    expected = Engine("cpu", "bf16", True, False, False, True, False, None, True, 1.0)
    values = vars(expected) | {"teacher_cache_gb": 1}
    assert instantiate.typed(Engine, values, "engine") == expected
    with pytest.raises(EdkdError, match=r"^engine.precision=fp16: must be one of fp32, bf16$"):
        instantiate.typed(Engine, values | {"precision": "fp16"}, "engine")
    with pytest.raises(EdkdError, match=r"^engine.speed: no such value; allowed: device, precision, channels_last, "):
        instantiate.typed(Engine, values | {"speed": 1}, "engine")
    with pytest.raises(EdkdError, match=r"^engine.device is missing; see conf/engine$"):
        instantiate.typed(Engine, {name: values[name] for name in values if name != "device"}, "engine")
    with pytest.raises(EdkdError, match=r"^engine must be a group of values, not 'fast'; see conf/engine$"):
        instantiate.typed(Engine, "fast", "engine")

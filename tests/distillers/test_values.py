"""Values of methods that are refused, in one line with the key, the value and what is allowed."""

from typing import Any

import pytest
import yaml

from edkd import CONF
from edkd.config import schema
from edkd.config.instantiate import build
from edkd.errors import EdkdError

METHODS = sorted(path.stem for path in (CONF / "distiller").glob("*.yaml"))
WEIGHTS = {"ce_weight", "kd_weight", "feat_weight", "alpha", "beta", "gamma"} | {
    *("within_weight", "cross_weight", "distance_weight", "angle_weight")
}
POSITIVE = {"temperature", "temperature_norm", "alpha_temperature", "exponent", "t_start", "t_end", "eps"}
COUNTS = {"feat_dim", "negatives", "resolution", "factor", "max_width", "kernel_size", "decay_loops"}
OTHERS = {"momentum", "weak_threshold", "strong_threshold", "decay_max", "decay_min", "hint_stage"} | {
    *("init_pred_var", "p")
}


def values_of(method: str) -> dict[str, Any]:
    values: dict[str, Any] = yaml.safe_load((CONF / "distiller" / f"{method}.yaml").read_text())
    if "warmup_epochs" in values:  # ${schedule.warmup_epochs}
        values["warmup_epochs"] = 20
    return {key: value for key, value in values.items() if key not in (*schema.LABELS, "defaults")}


def refused(method: str, **changes: Any) -> str:
    with pytest.raises(EdkdError) as error:
        build(values_of(method) | changes, "distiller")
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("method", METHODS)
def test_every_number_has_a_range(method: str) -> None:
    for name, value in values_of(method).items():
        if type(value) not in (int, float) or name in OTHERS:
            continue
        if name in WEIGHTS | {"warmup_epochs", "top_k"}:
            assert refused(method, **{name: -1}) == f"distiller.{name}=-1: must be 0 or more"
        else:
            assert name in POSITIVE | COUNTS
            assert refused(method, **{name: 0}) == f"distiller.{name}=0: must be above 0"
        if name in WEIGHTS | POSITIVE:
            assert refused(method, **{name: float("inf")}) == f"distiller.{name}=inf: must be a finite number"
            assert refused(method, **{name: float("nan")}) == f"distiller.{name}=nan: must be a finite number"


@pytest.mark.parametrize(
    ("method", "name", "value", "message"),
    [
        ("edkd", "weighting", "class", "=class: must be one of batch, sample"),
        ("deepkd", "weighting", "class", "=class: must be one of batch, sample"),
        ("ctkd", "decay", "steps", "=steps: must be one of cosine, linear"),
        ("ctkd", "decay_max", 1.0, "=1.0: must be 0 or less"),
        ("ctkd", "decay_min", 0.5, " is 0.5: it must be distiller.decay_max, 0.0, or less (see conf/distiller"),
        ("mlkd", "masking", "some", "=some: must be one of published, per_sample"),
        ("mlkd_one_view", "masking", "some", "=some: must be one of published, per_sample"),
        ("mlkd", "strong_temperatures", "some", "=some: must be one of published, all"),
        ("crld", "weak_threshold", 1.5, "=1.5: must be 1 or less"),
        ("crld", "strong_threshold", -0.1, "=-0.1: must be 0 or more"),
        ("crld", "mask_by", "some", "=some: must be one of term, teacher_view"),
        ("at", "p", 0.5, "=0.5: must be 1 or more"),
        ("at", "p", float("inf"), "=inf: must be a finite number"),
        ("crd", "momentum", 1.0, "=1.0: must be below 1"),
        ("crd", "momentum", -0.1, "=-0.1: must be 0 or more"),
        ("vid", "eps", 5.0, " is 5.0: it must be below distiller.init_pred_var, 5.0 (see conf/distiller/vid.yaml)"),
        ("ofd", "kernel_size", 2, " is 2: it must be odd (see conf/distiller/ofd.yaml)"),
        ("sd_kd", "scales", [2], " is [2]: it must begin with 1, the whole image"),
        ("sd_kd", "scales", [1, 3], " is [1, 3]: it must begin with 1, the whole image"),
    ],
)
def test_a_value_that_does_not_fit_is_one_line(method: str, name: str, value: Any, message: str) -> None:
    assert refused(method, **{name: value}).startswith(f"distiller.{name}{message}")

"""The result of an importer, one for each trained student, and our names of other code bases' networks."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from edkd import CONF
from edkd.errors import EdkdError


@dataclass(frozen=True)
class Result:
    """One finished run of another code base."""

    origin: str  # the code base
    source: Path
    method: str
    teacher: str  # empty for a student alone
    student: str
    epochs: Mapping[int, Mapping[str, float]]  # metrics by our names, of the known epochs; the last is known
    best: Mapping[str, float]  # epoch and top1 (percent), of the best epoch on the test set
    given: Mapping[str, str] = field(default_factory=dict)  # hyper-parameters from the folder's name
    notes: tuple[str, ...] = ()  # for a reader: how the file was read


_ALIASES = {
    "mv2": "mobilenetv2",
    "mobilehalf": "mobilenetv2",
    "shuv1": "shufflenetv1",
    "shuv2": "shufflenetv2",
    "shufflev1": "shufflenetv1",
    "shufflev2": "shufflenetv2",
}


def network(name: str) -> str:
    """Our name of a network: `res32x4`, `ResNet32x4` -> `resnet32x4`; `wrn40_2` -> `wrn_40_2`. Raises EdkdError."""
    plain = re.sub(r"[\W_]", "", name).lower()
    plain = re.sub(r"^res(?=\d)", "resnet", plain)
    plain = re.sub(r"^wrn(\d\d)(\d)$", r"wrn_\1_\2", plain)
    plain = _ALIASES.get(plain, plain)
    known = sorted(path.stem for path in (CONF / "student").glob("*.yaml"))
    if plain not in known:
        raise EdkdError(f"{name!r} is no network known here ({', '.join(known)})")
    return plain

"""What a student's weights file holds beside the student: the modules of its method, where it ends in them."""

from pathlib import Path

from torch import nn

from edkd.config.instantiate import build, target
from edkd.config.job import thaw
from edkd.config.schema import Settings
from edkd.data.arrays import Arrays
from edkd.data.files import Streamed
from edkd.distillers.base import Distiller
from edkd.errors import EdkdError
from edkd.rundir import checkpoint
from edkd.rundir.paths import RunDir
from edkd.runs.setup import make_method


def load_method(cfg: Settings, file: Path, student: nn.Module, arrays: Arrays | Streamed) -> Distiller | None:
    """The method in a student's weights file, with its weights; None for a student that does not end in one.

    It is the method of `cfg`, else of the run in whose directory the file lies. Raises EdkdError if neither has a
    method that students end in, or if the weights do not fit.
    """
    if not checkpoint.ends_in_method(file):
        return None
    frozen = RunDir(file.parent).config
    if target(cfg.distiller, "distiller").predict is Distiller.predict and frozen.exists():
        cfg = thaw(frozen)[0].settings
    if target(cfg.distiller, "distiller").predict is Distiller.predict:
        raise EdkdError(
            f"{file}: the student ends in modules of its method (`distiller` in the file), and lies in no run's "
            "directory: name the method and its teacher, such as distiller=simkd teacher=resnet32x4"
        )
    teacher = build(cfg.teacher.model, "teacher.model", num_classes=arrays.num_classes)  # for its shapes alone
    distiller = make_method(cfg, student, teacher, arrays)
    checkpoint.load_into(distiller, checkpoint.read(file)["distiller"], f"{file} (distiller)")
    return distiller

"""A run's student as a file that other programs load: images in, logits out, checked against its checkpoint."""

import contextlib
import json
import tempfile
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from edkd import __version__, tracking
from edkd.config.instantiate import build
from edkd.config.job import Job, thaw
from edkd.config.schema import Settings
from edkd.console import LOG
from edkd.data.arrays import Arrays
from edkd.data.files import Streamed
from edkd.distillers.base import Distiller
from edkd.errors import EdkdError, import_extra
from edkd.rundir import checkpoint, journal
from edkd.rundir.paths import RunDir
from edkd.runs.inputs import device_data, load_arrays
from edkd.runs.method import load_method
from edkd.training.evaluation import EVALUATION_BATCH, measure
from edkd.training.trainer import Splits

Logits = NDArray[np.float32]
Predict = Callable[[Logits], Logits]  # images [B, 3, H, W], normalised, to logits [B, K]

ENDINGS = {"onnx": ".onnx", "torchscript": ".pt", "safetensors": ".safetensors", "mlflow": ""}
TOLERANCE = 1e-3  # relative to the largest logit; it allows only for another library's order of additions
CALIBRATION = (8, 64)  # batches, and training images of each, that give int8 the ranges of activations, at most


class Student(nn.Module):
    """A run's student from images to logits, with the modules of its method if it ends in them."""

    def __init__(self, student: nn.Module, distiller: Distiller | None) -> None:
        super().__init__()
        self.student, self.distiller = student, distiller

    def forward(self, images: Tensor) -> Tensor:
        """[B, 3, H, W], normalised as in training, to [B, K]."""
        made = self.student(images, want_feats=self.distiller is not None)
        logits: Tensor = (made if self.distiller is None else self.distiller.predict(made)).logits
        return logits

    def weights(self) -> dict[str, Tensor]:
        """The student's weights under its own names; with a method, both under prefixes: `student.`, `distiller.`."""
        return checkpoint.portable(self.student.state_dict() if self.distiller is None else self.state_dict())


@dataclass(frozen=True)
class Exported:
    """The written file and the results of its check."""

    path: Path
    epoch: int | None  # epoch of the weights
    images: int  # number of test images in the check
    difference: float  # largest difference of one logit from the checkpoint's
    top1: tuple[float, float] | None  # in percent on the test set, before and after int8


def export(run_dir: Path, output: Path, *, form: str, which: str, to: Path | None, force: bool, int8: bool) -> Exported:
    """Write the student of a run into one file (MLflow: a folder), by default below `output`/exports.

    An existing file at `to` is replaced only with `force`; below `output`/exports the run's own file is replaced.

    The file is loaded again and compared with the checkpoint on test images before it gets its name. Raises
    EdkdError for a run without weights, a package that is not installed, and a file that predicts something else.
    """
    if int8 and form != "onnx":
        raise EdkdError(f"--int8 is of ONNX Runtime: --format onnx, not {form}")
    file = getattr(RunDir(run_dir), which)
    if not file.is_file():
        raise EdkdError(f"{run_dir} has no {file.name}: it has not finished, or was unpacked or imported")
    state = journal.state(run_dir)
    if state.status != "finished":
        LOG.warning("%s is %s, after epoch %d: its weights may change", run_dir, state.status, state.epoch)
    job, _ = thaw(RunDir(run_dir).config)
    # Everything on the CPU in single precision, whatever the run was trained on and with.
    cfg = replace(job.settings, output=str(output), engine=replace(job.settings.engine, channels_last=False))
    arrays, _ = load_arrays(cfg)
    network = load_student(cfg, file, arrays).eval().requires_grad_(False)
    splits = device_data(arrays, cfg, torch.device("cpu"))
    images, _ = next(iter(splits.test.batches(EVALUATION_BATCH["cpu"])))
    epoch = checkpoint.read(file).get("epoch")
    about = _about(job, arrays, which, epoch)
    name = f"{run_dir.parent.name}-{run_dir.name}-{which}{'-int8' if int8 else ''}{ENDINGS[form]}"
    path = to or output / "exports" / name
    top1 = None
    with _aside(path, replace=force or to is None) as made:
        _WRITERS[form](network, images, made, about)
        predict = _reader(form, made, lambda: load_student(cfg, file, arrays).eval())
        with torch.no_grad():
            expected = network(images).numpy()
        difference = float(np.abs(predict(images.numpy()) - expected).max())
        if not difference <= TOLERANCE * max(1.0, float(np.abs(expected).max())):
            raise EdkdError(
                f"{form}: a logit differs by {difference:.3g} from the checkpoint's on test images; nothing was written"
            )
        if int8:
            before = _top1(predict, splits)
            _quantise(made, splits, cfg.seed)
            top1 = before, _top1(_onnx_reader(made), splits)
    return Exported(path, epoch, len(images), difference, top1)


def load_student(cfg: Settings, file: Path, arrays: Arrays | Streamed) -> Student:
    """The student in a weights file of ours, with the modules of its method where it ends in them."""
    student = build(cfg.student.model, "student.model", num_classes=arrays.num_classes)
    checkpoint.load_into(student, checkpoint.load_weights(file), str(file))
    return Student(student, load_method(cfg, file, student, arrays))


def _about(job: Job, arrays: Arrays | Streamed, which: str, epoch: int | None) -> dict[str, Any]:
    """The metadata for users of the file: how images become input, and where the network comes from."""
    cfg = job.settings
    return {
        "input": "images, float32 [batch, 3, height, width], RGB: pixels from 0 to 1, minus mean, divided by std",
        "output": "logits, float32 [batch, classes], before the softmax",
        "mean": cfg.dataset.mean,
        "std": cfg.dataset.std,
        "image_size": arrays.image_size,
        "classes": list(arrays.classes),
        "dataset": cfg.dataset.key,
        "network": cfg.student.name,
        "run": job.name,
        "weights": which,
        "epoch": epoch,
        "edkd": __version__,
    }


@contextlib.contextmanager
def _aside(path: Path, *, replace: bool) -> Iterator[Path]:
    """Yield a temporary path beside `path`; it is renamed to `path` on success and removed on an error."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_dir() and not (path / "MLmodel").is_file():
            raise EdkdError(f"{path} is a folder: --to names the file, or a folder of MLflow's that is there or not")
        if not replace and path.exists():
            raise EdkdError(f"{path} exists; --force replaces it")
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as name:
            made = Path(name) / path.name
            yield made
            if path.is_dir():
                path.rename(Path(name) / "former")
            if made.is_file():
                plain = Path(name) / ".mode"
                plain.touch()
                made.chmod(plain.stat().st_mode)  # as the umask says: safetensors writes for its owner alone
            made.replace(path)
    except OSError as error:
        raise EdkdError(f"could not write {path}: {error.strerror or error}") from error


def _write_onnx(network: Student, images: Tensor, to: Path, about: dict[str, Any]) -> None:
    for module in ("onnx", "onnxscript", "onnxruntime"):
        import_extra(module, "export")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter warns about itself
        program = torch.onnx.export(
            network,
            (images[:2],),
            input_names=["images"],
            output_names=["logits"],
            dynamic_shapes={"images": {0: torch.export.Dim("batch")}},
            dynamo=True,
            verbose=False,
        )
    assert program is not None
    program.model.metadata_props["edkd"] = json.dumps(about)
    program.save(to)


def _write_torchscript(network: Student, images: Tensor, to: Path, about: dict[str, Any]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.jit is called deprecated; programs in C++ still load its files
        traced = torch.jit.trace(network, images[:2])
        torch.jit.save(traced, str(to), _extra_files={"edkd.json": json.dumps(about)})


def _write_safetensors(network: Student, images: Tensor, to: Path, about: dict[str, Any]) -> None:
    save_file = import_extra("safetensors.torch", "export").save_file
    save_file(network.weights(), to, metadata={"format": "pt", "edkd": json.dumps(about)})


def _write_mlflow(network: Student, images: Tensor, to: Path, about: dict[str, Any]) -> None:
    tracking.save_model(network, images[:2], to, about)


_WRITERS: dict[str, Callable[[Student, Tensor, Path, dict[str, Any]], None]] = {
    "onnx": _write_onnx,
    "torchscript": _write_torchscript,
    "safetensors": _write_safetensors,
    "mlflow": _write_mlflow,
}


def _reader(form: str, path: Path, fresh: Callable[[], Student]) -> Predict:
    """The prediction function of the file, loaded as by other programs; `fresh` makes a network for bare weights."""
    if form == "onnx":
        return _onnx_reader(path)
    if form == "mlflow":
        return lambda images: tracking.predict_saved(path, images)
    if form == "torchscript":
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            loaded = torch.jit.load(str(path))
    else:
        loaded = fresh()
        for parameter in loaded.parameters():
            parameter.data.zero_()  # so that what is compared can only come from the file
        state = import_extra("safetensors.torch", "export").load_file(path)
        checkpoint.load_into(loaded.student if loaded.distiller is None else loaded, state, str(path))

    @torch.no_grad()
    def predict(images: Logits) -> Logits:
        logits: Logits = loaded(torch.from_numpy(images)).numpy()
        return logits

    return predict


def _onnx_reader(path: Path) -> Predict:
    session = import_extra("onnxruntime", "export").InferenceSession(path, providers=["CPUExecutionProvider"])

    def predict(images: Logits) -> Logits:
        (logits,) = session.run(["logits"], {"images": images})
        return np.asarray(logits)

    return predict


def _top1(predict: Predict, splits: Splits) -> float:
    """Accuracy on the whole test set, in percent."""
    found = measure(lambda images: torch.from_numpy(predict(images.numpy())), splits.test, torch.device("cpu"))
    return found["top1"]


def _quantise(path: Path, splits: Splits, seed: int) -> None:
    """Quantise an ONNX file to int8: weights by channel, activations by their ranges on training images."""
    quantization = import_extra("onnxruntime.quantization", "export")
    batches, size = CALIBRATION
    counts = splits.train.begin(seed, 1, size).counts[:batches]
    held = iter([{"images": splits.train.next(count).images.numpy()} for count in counts])

    class Reader(quantization.CalibrationDataReader):  # type: ignore
        def get_next(self) -> dict[str, Logits] | None:
            return next(held, None)

    prepared = path.with_name("prepared.onnx")
    quantization.quant_pre_process(path, prepared)
    quantization.quantize_static(prepared, path, Reader(), per_channel=True)

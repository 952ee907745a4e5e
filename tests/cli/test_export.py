"""`edkd export`, on runs that `launch.py` made; what it writes is read as other programs read it."""

import json
import os
import stat
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from edkd import models
from edkd.rundir import checkpoint
from tests.commandline import DIGITS, Ended, edkd, error, journals, launch, run_file

RUN = "resnet8-resnet8/kd-s0"
IMAGES = np.random.default_rng(0).standard_normal((3, 3, 8, 8)).astype(np.float32)


def export(form: str, *arguments: str, run: str = RUN) -> Ended:
    return edkd("export", run, "--format", form, *arguments)


def expected(file: Path) -> NDArray[np.float32]:
    network = models.resnet8(num_classes=10).eval()
    checkpoint.load_into(network, checkpoint.load_weights(file), "")
    with torch.no_grad():
        logits: NDArray[np.float32] = network(torch.from_numpy(IMAGES)).logits.numpy()
    return logits


def by_onnx(path: Path) -> tuple[Any, dict[str, Any]]:
    import onnxruntime

    session = onnxruntime.InferenceSession(path)
    (logits,) = session.run(None, {"images": IMAGES})
    return logits, json.loads(session.get_modelmeta().custom_metadata_map["edkd"])


def by_torchscript(path: Path) -> tuple[Any, dict[str, Any]]:
    about = {"edkd.json": ""}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        loaded = torch.jit.load(str(path), _extra_files=about)
    return loaded(torch.from_numpy(IMAGES)).detach().numpy(), json.loads(about["edkd.json"])


def by_safetensors(path: Path) -> tuple[Any, dict[str, Any]]:
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        return expected(path), json.loads(file.metadata()["edkd"])


def by_mlflow(path: Path) -> tuple[Any, dict[str, Any]]:
    """The answer of MLflow's scoring server, asked through its web application in this process."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import mlflow.pyfunc
        from fastapi.testclient import TestClient
        from mlflow.pyfunc import scoring_server

        model = mlflow.pyfunc.load_model(str(path))
        answer = TestClient(scoring_server.init(model)).post("/invocations", json={"inputs": IMAGES.tolist()})
    return np.asarray(answer.json()["predictions"], dtype=np.float32), model.metadata.metadata


@pytest.mark.parametrize(
    ("form", "ending", "read"),
    [
        ("onnx", ".onnx", by_onnx),
        ("torchscript", ".pt", by_torchscript),
        ("safetensors", ".safetensors", by_safetensors),
        ("mlflow", "", by_mlflow),
    ],
)
def test_what_is_exported_predicts_as_the_checkpoint(output: Path, form: str, ending: str, read: Any) -> None:
    done = export(form, "--which", "last")
    assert (done.code, done.err) == (0, "")
    file = run_file(output, "kd", "last.pt")
    path = Path("outputs/exports") / f"resnet8-resnet8-{file.parent.name}-last{ending}"
    first, second, third = done.out.splitlines()
    assert first == f"last weights of resnet8-resnet8/{file.parent.name}, epoch 2"
    assert second.startswith("largest difference of a logit from the checkpoint's, on 100 test images: ")
    assert float(second.rpartition(" ")[2]) < 1e-4
    assert third == str(path)
    logits, about = read(path)
    np.testing.assert_allclose(logits, expected(file), atol=1e-5)
    assert about["mean"] == [0.3057, 0.3057, 0.3057] and about["std"] == [0.3570, 0.3570, 0.3570]
    assert (about["image_size"], about["classes"], about["network"]) == (8, [str(n) for n in range(10)], "resnet8")
    assert [each.name for each in path.parent.iterdir()] == [path.name]  # nothing half-written beside it
    assert export(form, "--which", "last").code == 0  # again, over what is there


def test_an_export_of_a_run_that_has_not_ended_says_so(output: Path, caplog: pytest.LogCaptureFixture) -> None:
    journal = run_file(output, "kd", "journal.jsonl")
    assert export("torchscript").code == 0 and not caplog.records
    journal.write_text("".join(journal.read_text().splitlines(keepends=True)[:2]))
    assert export("torchscript").code == 0
    (record,) = caplog.records
    assert record.getMessage().endswith(" is interrupted, after epoch 1: its weights may change")


def test_a_file_that_exists_is_replaced_by_force_alone(output: Path) -> None:
    Path("student.pt").write_text("mine")
    assert error(export("torchscript", "--to", "student.pt")) == "student.pt exists; --force replaces it"
    assert Path("student.pt").read_text() == "mine"
    assert export("torchscript", "--to", "student.pt", "--force").code == 0
    assert by_torchscript(Path("student.pt"))[1]["network"] == "resnet8"


def test_the_umask_decides_who_reads_an_export(output: Path) -> None:
    before = os.umask(0o027)
    try:
        assert export("safetensors", "--to", "student.safetensors").code == 0
    finally:
        os.umask(before)
    assert stat.S_IMODE(Path("student.safetensors").stat().st_mode) == 0o640


def test_int8(output: Path) -> None:
    done = export("onnx", "--int8", "--to", "small.onnx")
    assert (done.code, done.err) == (0, "")
    best = journals(output)[RUN][-1]["best"]["top1"]
    line = done.out.splitlines()[2]
    assert line.startswith(f"int8: top-1 {best:.2f} % before, ") and line.endswith(" % after, on the test set")
    logits, _ = by_onnx(Path("small.onnx"))
    assert np.abs(logits - expected(run_file(output, "kd", "best.pt"))).max() > 1e-4  # it is rounded


def test_int8_of_fewer_training_images_than_a_batch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    common = ["dataset=digits", *DIGITS, "dataset.train_per_class=5", "schedule=short", "schedule.epochs=1"]
    assert launch(*common, "tracking=journal", "student=resnet8", "distiller=vanilla", "engine.threads=1").code == 0
    done = export("onnx", "--int8", run="resnet8/vanilla-s0")
    assert (done.code, done.err) == (0, "") and done.out.splitlines()[2].startswith("int8: top-1 "), done


def test_a_student_that_ends_in_its_method(output: Path) -> None:
    common = ["dataset=digits", *DIGITS, "schedule=short", "schedule.epochs=1", "tracking=journal", "teacher=resnet8"]
    trained = launch(*common, "student=resnet8", "distiller=simkd", "engine.threads=1")
    assert trained.code == 0, trained
    measured = journals(output)["resnet8-resnet8/simkd-s0"][-1]["last"]["top1"]
    done = export("onnx", "--int8", "--which", "last", "--to", "simkd.onnx", run="resnet8-resnet8/simkd-s0")
    assert done.code == 0, done
    assert done.out.splitlines()[2].startswith(f"int8: top-1 {measured:.2f} % before, ")
    assert export("safetensors", "--to", "simkd.safetensors", run="resnet8-resnet8/simkd-s0").code == 0
    assert checkpoint.ends_in_method(Path("simkd.safetensors"))


def test_what_cannot_be_exported(output: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert error(export("torchscript", "--int8")) == "--int8 is of ONNX Runtime: --format onnx, not torchscript"
    assert error(export("onnx", "--to", "outputs")).startswith("outputs is a folder: --to names the file")
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    assert error(export("onnx")).startswith("onnxscript cannot be imported (")
    assert error(export("onnx")).endswith("pip install 'edkd[export]' brings it")
    monkeypatch.setattr("edkd.runs.export.TOLERANCE", -1.0)
    assert error(export("safetensors")).endswith(" from the checkpoint's on test images; nothing was written")
    assert list(Path("outputs/exports").iterdir()) == []
    run_file(output, "kd", "best.pt").unlink()
    assert error(export("onnx")).endswith(" has no best.pt: it has not finished, or was unpacked or imported")

"""Which network teaches, and when a teacher is worth a warning."""

from typing import Any

import pytest
from torch import nn

from edkd.config.job import Job, make_job
from edkd.distillers.base import Batch, Distiller, Outcome, Spec
from edkd.models.base import Prediction
from edkd.rundir.paths import RunDir
from edkd.runs.inputs import teacher_folder
from edkd.runs.run import execute
from edkd.runs.teaching import import_teacher, warn_of_teacher
from edkd.teachers import store
from tests.conftest import MakeJob


@pytest.mark.parametrize(
    ("overrides", "top1", "warned"),
    [
        ("student=vgg13", 74.0, False),
        ("student=vgg13", 73.5, True),
        ("student=vgg13", 75.8, True),
        ("student=vgg11", 10.0, False),  # nothing is published
        ("student=vgg13 schedule.epochs=8", 50.0, False),
        ("student=vgg13 dataset=digits", 50.0, False),
    ],
)
def test_a_teacher_that_is_far_off(
    compose: Any, caplog: pytest.LogCaptureFixture, overrides: str, top1: float, warned: bool
) -> None:
    warn_of_teacher(make_job(compose("distiller=vanilla", *overrides.split()), "vanilla", None), top1)
    assert [record.getMessage().split(":")[0] for record in caplog.records] == (
        [f"teacher vgg13 has {top1:.2f} % after its last epoch, published are 74.64 %"] if warned else []
    )


def stored(job: Job) -> str:
    """The id of the teacher that students of this job's network have."""
    found = store.find(teacher_folder(job.settings), job.settings.dataset.key, job.settings.student.name)
    assert found is not None
    return found.id


def test_a_network_trained_for_longer_replaces_a_teacher_but_not_an_imported_one(make_job: MakeJob) -> None:
    jobs = [make_job("vanilla", f"schedule.epochs={epochs}") for epochs in (1, 2, 3)]
    for job in jobs[:2]:
        assert execute(job, sweep=None, show=False).status == "finished"
        assert stored(job) == f"run:{job.run}"
    imported = import_teacher(jobs[0].settings, RunDir(jobs[0].directory).last, replace=True, force=True)
    assert execute(jobs[2], sweep=None, show=False).status == "finished"
    assert stored(jobs[2]) == imported.id


class OwnHead(Distiller):
    """A method without a teacher that classifies by a module of its own."""

    needs_teacher = False
    needs_feats = True

    def setup(self, spec: Spec) -> None:
        self.head = nn.Linear(spec.student.pooled_feat, spec.num_classes)

    def predict(self, prediction: Prediction) -> Prediction:
        assert prediction.pooled_feat is not None
        return prediction._replace(logits=self.head(prediction.pooled_feat))

    def forward(self, student: Prediction, teacher: Prediction | None, batch: Batch) -> Outcome:
        return Outcome({"ce": nn.functional.cross_entropy(self.predict(student).logits, batch.target)}, {})


def test_a_network_that_ends_in_its_method_is_no_teacher(make_job: MakeJob) -> None:
    job = make_job("vanilla", "distiller._target_=tests.runs.test_teaching.OwnHead")
    assert execute(job, sweep=None, show=False).status == "finished"
    assert store.find(teacher_folder(job.settings), job.settings.dataset.key, job.settings.student.name) is None

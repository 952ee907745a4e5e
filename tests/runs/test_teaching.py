"""A trained teacher that is far from the published one is worth a warning."""

from typing import Any

import pytest

from edkd.config.job import make_job
from edkd.runs.teaching import warn_of_teacher


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

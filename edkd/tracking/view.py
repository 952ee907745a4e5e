"""The saved view of runs in MLflow's pages: its default view is an empty page, or a tree of cut names."""

import base64
import json
import zlib

KEY = "edkd"  # names the view in the link
TAG = f"mlflow.sharedViewState.{KEY}"

_COLUMNS = (  # without the pair: the page cuts it before the student
    *("tags.`distiller`", "tags.`seed`", "tags.`recipe`", "tags.`teacher`", "tags.`student`"),
    *("metrics.`last/top1`", "metrics.`best/top1`"),
)
_STATE = {
    # A filter and a sort make MLflow list runs without the tree below their sweeps.
    "searchFilter": "tags.distiller != ''",
    "orderByKey": "metrics.`last/top1`",
    "orderByAsc": False,
    "startTime": "ALL",
    "lifecycleFilter": "Active",
    "datasetsFilter": [],
    "modelVersionFilter": "All Runs",
    "selectedColumns": list(_COLUMNS),
}
_MADE = 1795713600000  # unix ms: when the view was last changed
_NOTE = (
    "One run for each pair, method and seed; a sweep's own run holds its table and report. "
    "top1, top5, agreement: percent of the test images; last: after the last epoch, best: of the epoch that best_by "
    "names the images of; loss, kl: nats; ece: percent; seconds/…: of an epoch's parts, seconds: of the whole run; "
    "peak_memory_mb: 10⁶ bytes; images_per_second: in training."
)


def tags() -> dict[str, str]:
    """The tags of an experiment that hold the view, and what its numbers mean."""
    state = base64.b64encode(zlib.compress(json.dumps(_STATE).encode(), 9)).decode()
    view = {"name": "Runs by accuracy", "createdAt": _MADE, "updatedAt": _MADE, "state": f"deflate;{state}"}
    return {TAG: json.dumps(view), "mlflow.note.content": _NOTE}


def link(server: str, experiment_id: str) -> str:
    """The URL of the view on the MLflow server with the URL `server`."""
    return f"{server}/#/experiments/{experiment_id}/runs?workflowType=machine_learning&viewStateShareKey={KEY}"

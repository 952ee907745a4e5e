"""Read logged runs from MLflow or from packed journals, as plain data for the analysis."""

import json
from pathlib import Path
from typing import Any

from edkd.errors import EdkdError
from edkd.rundir import results
from edkd.tracking.recorded import comparable, summarise
from edkd.tracking.store import one_line, open_existing, search
from edkd.tracking.uri import redacted


def load_runs(uri: str, experiment: str) -> list[dict[str, Any]]:
    """All training runs of an experiment; the parent runs of sweeps are left out.

    Each is {"run_id", "name", "status", "tags", "params", "metrics", "start_time", "end_time"}: tags and params are
    text by name, metrics the latest value by name, times unix milliseconds (end_time None while it runs). Oldest
    first. Raises `EdkdError` if the store or the experiment does not exist.
    """
    with one_line(uri):
        client = open_existing(uri)
        found = client.get_experiment_by_name(experiment)
        if found is None:
            known = ", ".join(sorted(each.name for each in client.search_experiments())) or "none"
            raise EdkdError(f"MLflow store {redacted(uri)} has no experiment {experiment!r}; it has: {known}")
        runs = search(client, found.experiment_id, "tags.`edkd.run` LIKE '%'")
    return [
        {
            "run_id": run.info.run_id,
            "name": run.data.tags.get("edkd.name", run.info.run_name),
            "status": run.info.status,
            "tags": dict(run.data.tags),
            "params": comparable(run.data.params),
            "metrics": {**run.data.metrics, **json.loads(run.data.tags.get("edkd.exact", "{}"))},
            "start_time": run.info.start_time,
            "end_time": None if run.info.status == "RUNNING" else run.info.end_time,
        }
        for run in runs
    ]


def load_packed(folder: Path) -> list[dict[str, Any]]:
    """All packed runs below a folder (`edkd.rundir.results`), in the form of `load_runs`; oldest first.

    The `run_id` is the path in the folder, without its ending. Raises `EdkdError` for a file that is damaged.
    """
    runs = []
    for path in results.find(folder):
        recorded = summarise(results.read(path, every_epoch=False), path, held=False)
        assert recorded is not None  # every packed run has a start
        latest = recorded.epochs[-1].metrics if recorded.epochs else {}
        runs.append(
            {
                "run_id": path.relative_to(folder).as_posix().removesuffix(results.SUFFIX),
                "name": recorded.name,
                "status": recorded.status,
                "tags": {**recorded.tags, "edkd.run": recorded.run},
                "params": recorded.params,
                "metrics": {**latest, **recorded.final},
                "start_time": recorded.started,
                "end_time": recorded.since,
            }
        )
    return sorted(runs, key=lambda run: (run["start_time"], run["run_id"]))

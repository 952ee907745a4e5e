"""Log journals to MLflow. Only this package imports mlflow, and only inside functions: the import takes seconds.

There is one way: a sync brings MLflow up to date with the journal in a run's directory (`sync_run`). `LiveTracker`
syncs beside the training after each epoch; ``edkd sync`` syncs all runs later (`sync_all`). A sync reads from MLflow
what is already logged, so that a repeated or concurrent sync changes nothing. Our tags:

- ``edkd.run``     the hash of the configuration
- ``edkd.path``    the run directory's path below ``runs/``, on a server after the user's name; it distinguishes the
  runs of one configuration
- ``edkd.synced``  the last epoch that was logged, and a digest of all values up to it
- ``edkd.state``   the status that was logged, and its start time
- ``edkd.journal`` the digest of the journal's file, only for a finished or failed run
- ``edkd.name``    the run's full name; MLflow shows a shorter one
- ``edkd.exact``   final accuracies with all digits; MLflow shows two decimals
- ``model``       the URI of the student as an MLflow model; a sweep has ``best_student``, the run and its weights file
- ``directory``, ``weights``  the run's directory and its best weights, below the output folder, on a server absolute
- ``edkd.sweep``   only on the parent run of a sweep: the sweep's id

`recorded` turns a journal into plain data; `store` opens the MLflow store that a `uri` names, and `server` shows it;
`sync`, `sweeps` and `live` write, `load` reads. `models` saves a network as an MLflow model.
"""

from edkd.tracking.live import LiveTracker
from edkd.tracking.load import load_packed, load_runs
from edkd.tracking.models import log_model, predict_saved, save_model
from edkd.tracking.server import serve
from edkd.tracking.store import create_store
from edkd.tracking.sweeps import attach, settle_sweeps, start_sweep
from edkd.tracking.sync import SyncReport, sync_all, sync_run
from edkd.tracking.uri import redacted, sqlite_path, sync_command

__all__ = [
    "LiveTracker",
    "SyncReport",
    "attach",
    "create_store",
    "load_packed",
    "load_runs",
    "log_model",
    "predict_saved",
    "redacted",
    "save_model",
    "serve",
    "settle_sweeps",
    "sqlite_path",
    "start_sweep",
    "sync_all",
    "sync_command",
    "sync_run",
]

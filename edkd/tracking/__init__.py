"""From journals to MLflow. The only package that imports mlflow, and only inside functions, for it takes seconds.

There is one way: bring MLflow up to date with what the journal in a run's directory says (`sync_run`). `LiveTracker`
goes it beside the training after each epoch, ``edkd sync`` goes it later for all runs (`sync_all`). What MLflow has
already is read from MLflow, so that doing it twice, or from several processes at once, changes nothing. Tags of ours:

- ``edkd.run``     the hash of the configuration
- ``edkd.path``    the run directory's path below ``runs/``, on a server after the user's name: one configuration may
  be trained several times
- ``edkd.synced``  the last epoch that was logged, and a digest of all values up to it
- ``edkd.state``   the status that was logged, and since when the run has it
- ``edkd.journal`` the digest of the journal's file, of a run that has finished or failed
- ``edkd.name``    its name, as its directory has it; MLflow shows a shorter one
- ``edkd.exact``   of accuracies, which MLflow shows with two decimals, all digits
- ``model``       the URI of the student as an MLflow model; on a sweep ``best_student``, its file of weights
- ``directory``, ``weights``  the run's directory and its best weights, below the output folder, on a server absolute
- ``edkd.sweep``   on the parent run of a sweep: which sweep

`recorded` turns a journal into plain data and `store` opens the MLflow store; `sync`, `sweeps` and `live` write,
`load` reads. `models` has what saves a network as an MLflow model.
"""

from edkd.tracking.live import LiveTracker
from edkd.tracking.load import load_packed, load_runs
from edkd.tracking.models import log_model, predict_saved, save_model
from edkd.tracking.store import create_store, serve
from edkd.tracking.sweeps import attach, settle_sweeps, start_sweep
from edkd.tracking.sync import SyncReport, sync_all, sync_run

__all__ = [
    "LiveTracker",
    "SyncReport",
    "attach",
    "create_store",
    "load_packed",
    "load_runs",
    "log_model",
    "predict_saved",
    "save_model",
    "serve",
    "settle_sweeps",
    "start_sweep",
    "sync_all",
    "sync_run",
]

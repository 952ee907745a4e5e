"""What must hold before any run is launched: a teacher that is strong enough, a tracking store that can be written."""

from edkd import tracking
from edkd.config.schema import Settings, Tracking
from edkd.console import LOG, counted
from edkd.errors import EdkdError
from edkd.teachers.store import Entry


def check_strength(cfg: Settings, entry: Entry) -> None:
    """Refuse a teacher that was trained here for fewer epochs than its student will be, unless that is wanted."""
    if cfg.allow_weak_teacher or entry.epochs is None or entry.epochs >= cfg.schedule.epochs:
        return
    raise EdkdError(
        f"teacher {entry.name} of {entry.dataset} was trained for {counted(entry.epochs, 'epoch')}, the student is to "
        f"train {cfg.schedule.epochs}: remove {entry.path} to train it anew, or set allow_weak_teacher=true"
    )


def open_tracking(where: Tracking) -> None:
    """Create MLflow's store before any run needs it.

    A SQLite file that cannot be used is an error now; a server that is away costs nothing but `edkd sync` later.
    """
    if where.uri is None:
        return
    try:
        tracking.create_store(uri=where.uri, experiment=where.experiment, artifacts=where.artifacts)
    except EdkdError as error:
        if not where.uri.startswith(("http://", "https://")):
            raise EdkdError(f"{error}; or run with tracking=journal") from error
        LOG.warning("%s; training goes on, `edkd sync` brings MLflow up to date later", error)

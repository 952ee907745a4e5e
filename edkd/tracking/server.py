"""MLflow's web server for a store."""

import os
import socket
import sys
from typing import NoReturn

from edkd.errors import EdkdError
from edkd.tracking import view
from edkd.tracking.store import create_store, open_store
from edkd.tracking.uri import user


def serve(*, uri: str, experiment: str, artifacts: str | None, port: int) -> NoReturn:
    """Print the page's address, then replace this process with MLflow's web server for a store, made where absent."""
    create_store(uri=uri, experiment=experiment, artifacts=artifacts)
    store = open_store(uri, experiment, artifacts)
    try:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # a server that has just ended is no hindrance
            probe.bind(("127.0.0.1", port))
    except (OSError, OverflowError) as error:
        raise EdkdError(f"cannot serve at port {port}: {error}; --port names another") from error
    here = f"http://127.0.0.1:{port}"
    print(f"Runs by accuracy: {view.link(here, store.experiment_id)}")
    print(f"from another machine, first: ssh -N -L {port}:127.0.0.1:{port} {user()}@{socket.gethostname()}")
    print("Ctrl-C ends it", flush=True)
    # One worker: the usual four take a gigabyte and, on a busy machine, longer to start than their time limit.
    command = [sys.executable, "-m", "mlflow", "ui", "--workers", "1", "--host", "127.0.0.1", "--port", str(port)]
    # At Ctrl-C the job workers, which the pages do not need, and the lifespan events would print tracebacks.
    command += ["--uvicorn-opts", "--lifespan off", "--backend-store-uri", store.uri]
    os.execve(sys.executable, command, {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"})

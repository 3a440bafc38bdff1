"""The recipe and the epochs' numbers in MLflow, if MLFLOW_TRACKING_URI names a place for them."""

import json
import os
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from irv2.errors import EngineError
from irv2.system.files import write_atomically

STATE = "mlflow.json"
SETTINGS = {
    "MLFLOW_DISABLE_TELEMETRY": "true",  # it tells MLflow's makers; ours is for MLflow's user
    # By default the trainer would wait four minutes and more for a server that is away.
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
}


def log_epochs(
    run_path: Path, recipe: Mapping[str, Any], rows: Sequence[Mapping[str, float]]
) -> None:
    """Log the rows of metrics.jsonl that MLflow does not have yet, under their own names.

    The first call begins a run in MLflow, with the recipe as its parameters; later ones, also of a
    resumed training, go on with it by the id in `run_path`/mlflow.json. Experiment, name and
    access come from MLflow's own variables. A no-op if MLFLOW_TRACKING_URI is not set. Raises
    EngineError if MLflow is not installed, and whatever MLflow raises.
    """
    if not os.environ.get("MLFLOW_TRACKING_URI"):
        return
    path = run_path / STATE
    state = json.loads(path.read_text()) if path.is_file() else {}
    new = [row for row in rows if row["epoch"] > state.get("epoch", 0)]
    if not new:
        return
    if find_spec("mlflow") is None:
        got = "is set, but the package mlflow is not installed"
        way_out = "pip install mlflow, or unset it"
        raise EngineError("MLFLOW_TRACKING_URI", got, way_out=way_out)
    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)
    import mlflow

    title = None if state else os.environ.get("MLFLOW_RUN_NAME", run_path.absolute().name)
    with mlflow.start_run(run_id=state.get("run_id"), run_name=title) as run:
        if not state:
            mlflow.log_params(dict(recipe))
        for row in new:
            mlflow.log_metrics(dict(row), step=int(row["epoch"]))
    state = {"run_id": run.info.run_id, "epoch": new[-1]["epoch"]}
    write_atomically(path, json.dumps(state).encode())

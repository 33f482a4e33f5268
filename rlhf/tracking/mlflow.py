"""MLflow by URI: one run per stage, named RUN-STAGE, on a server or in a directory.

The run carries a tag with the id that STAGE/mlflow/id keeps and is found by it again, and what it has already is asked
of it whenever it is opened: so nothing is sent twice, whatever was lost on the way. User, password and token come from
the environment (MLFLOW_TRACKING_USERNAME, _PASSWORD, _TOKEN).
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from itertools import islice
from typing import Any

from rlhf.config import MlflowConfig
from rlhf.tracking.entries import Entry, Line, Table
from rlhf.tracking.public import flattened, public
from rlhf.tracking.services import Job, forget_sent, note_sent

# Read by mlflow when it is imported or called; whoever has set them keeps them. Its own retries would hide for minutes
# that a server is away: we try again ourselves.
DEFAULTS = {
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ALLOW_FILE_STORE": "true",  # who gives a directory wants one, although mlflow itself prefers a database
}
METRICS_AT_ONCE, PARAMS_AT_ONCE, TAGS_AT_ONCE = 1000, 100, 100  # of one request, by mlflow's own limits
PARAM_LENGTH, TAG_LENGTH, KEY_LENGTH = 6000, 8000, 250  # characters
IDENTITY = "rlhf.id"


class MlflowService:
    """The MLflow run of a stage."""

    name = "mlflow"

    def __init__(self, job: Job) -> None:
        for name, value in DEFAULTS.items():
            os.environ.setdefault(name, value)
        import mlflow  # noqa: F401  (its seconds are no server's)

        self.job = job
        self.config = MlflowConfig(**job.tracking["mlflow"])
        self.remote = self.config.is_server
        self.identity = job.ids[self.name]
        self.client: Any = None
        self.run_id = ""
        self.experiment: str | None = None
        self.known: dict[str, set[int]] = {}  # steps that the run has, by metric
        self.tables: set[str] = set()  # files of samples that the run has
        self.failed: Exception | None = None  # why some samples could not be stored

    def open(self) -> None:
        """Find the stage's run or make it, and ask what it has."""
        from mlflow import MlflowClient

        forget_sent(self.job, self.name)
        self.failed = None
        self.client = MlflowClient(self.config.address)
        self.run_id = self._find() or self._create()
        run = self.client.get_run(self.run_id)
        self._describe(run.data.params)
        self.known = {
            key: {metric.step for metric in self.client.get_metric_history(self.run_id, key)}
            for key in run.data.metrics
        }
        self.tables = self._stored()

    def _find(self) -> str | None:
        from mlflow.entities import ViewType

        experiment = self.client.get_experiment_by_name(self.config.experiment)
        self.experiment = experiment.experiment_id if experiment else None
        if self.experiment is None:
            return None
        query = f"tags.`{IDENTITY}` = '{self.identity}'"
        found = self.client.search_runs([self.experiment], query, run_view_type=ViewType.ALL, max_results=1)
        return str(found[0].info.run_id) if found else None

    def _create(self) -> str:
        experiment = self.experiment or self.client.create_experiment(self.config.experiment)
        tags = {IDENTITY: self.identity, "rlhf.run": self.job.name, "rlhf.stage": self.job.stage}
        run = self.client.create_run(experiment, tags=tags, run_name=f"{self.job.name}-{self.job.stage}")
        return str(run.info.run_id)

    def _describe(self, known: Mapping[str, str]) -> None:
        """The recipe as parameters, which cannot be changed once they are there."""
        from mlflow.entities import Param

        values = {key[:KEY_LENGTH]: str(value)[:PARAM_LENGTH] for key, value in flattened(public(self.job.recipe))}
        missing = iter([Param(key, value) for key, value in values.items() if key not in known])
        while part := list(islice(missing, PARAMS_AT_ONCE)):
            self.client.log_batch(self.run_id, params=part)
        self.client.update_run(self.run_id, status="RUNNING")

    def _stored(self) -> set[str]:
        try:
            return {file.path for file in self.client.list_artifacts(self.run_id, "samples")}
        except Exception as error:  # a server without a store of files is one for figures
            self.failed = error
            return set()

    def send(self, entries: Sequence[Entry]) -> None:
        """Figures in batches, samples as files of columns and data."""
        from mlflow.entities import Metric

        metrics = iter(
            [
                Metric(name[:KEY_LENGTH], value, round(line.time * 1000), line.step)
                for line in entries
                if isinstance(line, Line)
                for name, value in line.figures.items()
                if line.step not in self.known.get(name[:KEY_LENGTH], ())
            ]
        )
        while part := list(islice(metrics, METRICS_AT_ONCE)):
            self.client.log_batch(self.run_id, metrics=part)
        for table in entries:
            if isinstance(table, Table):
                self._store(table)

    def _store(self, table: Table) -> None:
        name = f"samples/{table.path.stem}.json"
        if name in self.tables:
            return
        rows = table.rows()
        columns = list(rows[0]) if rows else []
        content = {"columns": columns, "data": [[row[column] for column in columns] for row in rows]}
        try:
            self.client.log_dict(self.run_id, content, name)
            self.tables.add(name)
        except Exception as error:  # the store of files may be another server than that of the figures
            self.failed = error

    def finish(self, result: Mapping[str, Any] | None) -> None:
        """Say what the stage was made from, and end the run."""
        from mlflow.entities import Metric, RunTag

        if result is not None:
            tags = {"rlhf.fingerprint": result["fingerprint"]}
            tags |= {f"rlhf.input.{stage}": fingerprint for stage, fingerprint in result["inputs"].items()}
            tags |= {f"rlhf.data.{kind}": digest for kind, digest in result["data"].items()}
            shown = [RunTag(key[:KEY_LENGTH], str(value)[:TAG_LENGTH]) for key, value in tags.items()]
            figures = {f"result/{name}": value for name, value in result["results"].items()}
            now = int(os.stat(self.job.directory).st_mtime * 1000)
            numbers = [
                Metric(name[:KEY_LENGTH], float(value), now, 0)
                for name, value in figures.items()
                if isinstance(value, int | float) and 0 not in self.known.get(name[:KEY_LENGTH], ())
            ]
            self.client.log_batch(self.run_id, metrics=numbers[:METRICS_AT_ONCE], tags=shown[:TAGS_AT_ONCE])
        if self.failed is not None:
            raise RuntimeError(f"figures are there, samples are not: {self.failed}")
        self.client.set_terminated(self.run_id, status="FINISHED" if result is not None else "KILLED")
        note_sent(self.job, self.name, self.config.address)

"""The trackers: a run for each training, whose curves transformers' own callback writes, and a run for each cell.

Nothing but the names of the sweep, settings and numbers is sent: no weights, no code, no texts of training. Accounts
and addresses are those of each tracker's own variables and files, and are written to no record.
"""

from __future__ import annotations

import logging
import os
import re
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import urlsplit

from ...foundation.errors import UserError
from ...foundation.files import digest
from .names import Tracking

PROJECT = "lowrank-bench"
"""Project of wandb and experiment of MLflow, where no variable names another."""

_OWN_ADDRESSES: set[str] = set()
"""Stores that this process gave to MLflow itself."""

Facts = Mapping[str, Any]
Values = Mapping[str, float]


class Tracker(ABC):
    """One tracker of a sweep.

    A title names a run. A run of the same title, sweep and folder is continued where the tracker can do that.
    """

    name: ClassVar[str]

    def __init__(self, tracking: Tracking) -> None:
        self.tracking = tracking

    def prepare(self) -> None:  # noqa: B027 - most need nothing before
        """Make what processes share, before they start.

        Raises:
            UserError: the tracker cannot be used as it is set up.
        """

    @abstractmethod
    def open_training(self, title: str) -> Any:
        """Begin the run of a training; returns the callback of transformers that writes its curves."""

    def close_training(self) -> None:  # noqa: B027 - some end by their callback
        """End the run of a training."""

    @abstractmethod
    def log_cell(self, title: str, facts: Facts, values: Values) -> None:
        """Write one cell as a run of its own: what it is, and its numbers."""

    @abstractmethod
    def log_table(self, title: str, columns: list[str], rows: list[list[Any]], csv: Path) -> None:
        """Write the results of the whole sweep as a run of its own.

        Args:
            title: of the run.
            columns, rows: what a table shows.
            csv: file with all records.
        """

    def run_id(self, title: str) -> str:
        """Return what a run of this sweep in this folder is always called, 16 hexadecimal digits."""
        return digest({"title": title, "sweep": self.tracking.sweep, "folder": str(self.tracking.folder)})[:16]


class TensorBoard(Tracker):
    """Event files in ``tensorboard/TITLE``, below the results or ``TENSORBOARD_LOGGING_DIR``."""

    name = "tensorboard"

    def _writer(self, title: str) -> Any:
        from torch.utils.tensorboard import SummaryWriter

        root = os.environ.get("TENSORBOARD_LOGGING_DIR") or self.tracking.folder / "tensorboard"
        return SummaryWriter(str(Path(root).expanduser() / re.sub(r"[^\w@.=-]+", "-", title).strip("-")))

    def open_training(self, title: str) -> Any:
        from transformers.integrations import TensorBoardCallback

        return TensorBoardCallback(self._writer(title))

    def log_cell(self, title: str, facts: Facts, values: Values) -> None:
        with self._writer(title) as writer:
            writer.add_text("facts", _grid(["fact", "value"], [[name, fact] for name, fact in facts.items()]))
            for name, value in values.items():
                writer.add_scalar(name, value)

    def log_table(self, title: str, columns: list[str], rows: list[list[Any]], csv: Path) -> None:
        with self._writer(title) as writer:
            writer.add_text("results", _grid(columns, rows))


class MLflow(Tracker):
    """Runs of one experiment, at ``MLFLOW_TRACKING_URI`` or in ``mlflow.db`` beside the results."""

    name = "mlflow"

    def _client(self) -> Any:
        # A tracker is no reason to send anything else, nor to wait for minutes where a server is gone.
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
        import mlflow

        for noisy in ("mlflow", "alembic"):
            logging.getLogger(noisy).setLevel(logging.WARNING)
        if self._is_local:
            self.tracking.folder.mkdir(parents=True, exist_ok=True)
            address = f"sqlite:///{self.tracking.folder / 'mlflow.db'}"
            mlflow.set_tracking_uri(address)  # which sets the variable too
            _OWN_ADDRESSES.add(address)
        return mlflow

    @property
    def _is_local(self) -> bool:
        """Whether the user named no server or store."""
        address = os.environ.get("MLFLOW_TRACKING_URI")
        return not address or address in _OWN_ADDRESSES

    @property
    def _experiment(self) -> str:
        return os.environ.get("MLFLOW_EXPERIMENT_NAME") or PROJECT

    def prepare(self) -> None:
        # Workers that made the same database at once would break it.
        try:
            mlflow = self._client()
            if mlflow.get_experiment_by_name(self._experiment) is None:
                artifacts = (self.tracking.folder / "mlflow-artifacts").as_uri() if self._is_local else None
                mlflow.create_experiment(self._experiment, artifact_location=artifacts)
        except Exception as error:
            raise UserError(
                f"MLflow at {_without_account(os.environ.get('MLFLOW_TRACKING_URI', 'mlflow.db'))} cannot be used "
                f"({type(error).__name__}); start the server or correct MLFLOW_TRACKING_URI, or leave mlflow out of "
                "--report-to"
            ) from error

    def _start(self, title: str) -> Any:
        mlflow = self._client()
        mlflow.set_experiment(self._experiment)
        key = self.run_id(title)
        # MLflow numbers runs itself, so the id that a run is found by is a tag.
        known = mlflow.search_runs(
            filter_string=f"tags.lowrank_bench_run = '{key}'", output_format="list", max_results=1
        )
        mlflow.start_run(
            run_id=known[0].info.run_id if known else None,
            run_name=title,
            tags={"lowrank_bench_run": key, "sweep": self.tracking.sweep},
        )
        return mlflow

    def open_training(self, title: str) -> Any:
        from transformers.integrations import MLflowCallback

        self._start(title)
        return MLflowCallback()

    def close_training(self) -> None:
        self._client().end_run()

    def log_cell(self, title: str, facts: Facts, values: Values) -> None:
        mlflow = self._start(title)
        try:
            # Tags may change in a run that is continued, parameters may not.
            mlflow.set_tags({name: str(fact)[:5000] for name, fact in facts.items()})
            mlflow.log_metrics({re.sub(r"[^\w\-. :/]", "_", name): value for name, value in values.items()}, step=0)
        finally:
            mlflow.end_run()

    def log_table(self, title: str, columns: list[str], rows: list[list[Any]], csv: Path) -> None:
        mlflow = self._start(title)
        try:
            mlflow.log_artifact(str(csv))
        finally:
            mlflow.end_run()


class Wandb(Tracker):
    """Runs of one group in the project ``WANDB_PROJECT``; files go beside the results, or to ``WANDB_DIR``."""

    name = "wandb"

    def _module(self) -> Any:
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
        import wandb

        return wandb

    @property
    def _offline(self) -> bool:
        return os.environ.get("WANDB_MODE", "online") in ("offline", "dryrun", "disabled")

    def prepare(self) -> None:
        if not self._offline and not self._module().login(prompt=False):
            raise UserError(
                "wandb has no key here; type wandb login, or set WANDB_MODE=offline to keep the runs on this machine, "
                "or leave wandb out of --report-to"
            )

    def _start(self, title: str, kind: str, facts: Facts) -> Any:
        self.tracking.folder.mkdir(parents=True, exist_ok=True)
        wandb = self._module()
        return wandb.init(
            project=os.environ.get("WANDB_PROJECT") or PROJECT,
            group=self.tracking.sweep,
            job_type=kind,
            name=title,
            id=self.run_id(title),
            resume=None if self._offline else "allow",
            dir=os.environ.get("WANDB_DIR") or str(self.tracking.folder),
            config=dict(facts),
            settings=wandb.Settings(console="off", silent=True, disable_git=True, disable_code=True, save_code=False),
        )

    def open_training(self, title: str) -> Any:
        from transformers.integrations import WandbCallback

        # Weights are not sent, nor are gradients: the callback does so where these say otherwise.
        os.environ["WANDB_LOG_MODEL"] = os.environ["WANDB_WATCH"] = "false"
        self._start(title, "training", {})
        return WandbCallback()

    def close_training(self) -> None:
        self._module().finish()

    def log_cell(self, title: str, facts: Facts, values: Values) -> None:
        with self._start(title, "cell", facts) as run:
            run.log(dict(values))

    def log_table(self, title: str, columns: list[str], rows: list[list[Any]], csv: Path) -> None:
        table = self._module().Table(columns=columns, data=[[_plain(cell) for cell in row] for row in rows])
        with self._start(title, "results", {}) as run:
            run.log({"results": table})


class Trackio(Tracker):
    """Runs of the project that has the sweep's name, in trackio's folder (``TRACKIO_DIR``) on this machine."""

    name = "trackio"

    def open_training(self, title: str) -> Any:
        from transformers.integrations import TrackioCallback

        return TrackioCallback()  # which begins and ends the run by the names in the training's arguments

    def _start(self, title: str, facts: Facts) -> Any:
        import trackio

        trackio.init(project=self.tracking.sweep, name=title, resume="allow", config=dict(facts), embed=False)
        return trackio

    def log_cell(self, title: str, facts: Facts, values: Values) -> None:
        trackio = self._start(title, facts)
        trackio.log(dict(values))
        trackio.finish()

    def log_table(self, title: str, columns: list[str], rows: list[list[Any]], csv: Path) -> None:
        import pandas as pd

        trackio = self._start(title, {})
        frame = pd.DataFrame([[_plain(cell) for cell in row] for row in rows], columns=columns)
        trackio.log({"results": trackio.Table(dataframe=frame)})
        trackio.finish()


_KINDS = {kind.name: kind for kind in (TensorBoard, MLflow, Wandb, Trackio)}


def trackers(tracking: Tracking | None) -> list[Tracker]:
    """Return the trackers of a sweep; none where it is reported to none."""
    return [_KINDS[name](tracking) for name in tracking.names] if tracking else []


def _without_account(address: str) -> str:
    parts = urlsplit(address)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()


def _plain(cell: Any) -> Any:
    return cell if cell is None or isinstance(cell, (bool, int, float, str)) else str(cell)


def _grid(columns: list[str], rows: list[list[Any]]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join("| " + " | ".join(str(cell).replace("|", "\\|") for cell in line) + " |" for line in lines)

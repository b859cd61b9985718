"""Where and how a sweep runs: the part of a configuration that changes no result."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, ClassVar, Literal

from pydantic import (
    ConfigDict,
    Field,
    field_validator,
    model_validator,
)

from ...foundation.errors import unknown
from ...foundation.strict_numbers import StrictNumbers
from ..tracking.names import TRACKERS
from .checks import Positive, check_repeats
from .methods import check_recordable
from .options import NONE, Option

_FILES = "Files"

MAX_WORKERS = 1024


_ADDRESS = re.compile(r"(?P<host>\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+):(?P<port>[0-9]{1,5})")


def host_and_port(address: str) -> tuple[str, int]:
    """Return both parts of the address of a Ray cluster.

    Raises:
        ValueError: it is none.
    """
    match = _ADDRESS.fullmatch(address)
    if match is None or not 0 < int(match["port"]) <= 65535:
        raise ValueError(
            f"the address '{address}' is none of a Ray cluster; write HOST:PORT as 'ray start --head' prints it, such "
            "as 10.0.0.1:6379, or auto on a machine of the cluster"
        )
    return match["host"].strip("[]"), int(match["port"])


class Execution(StrictNumbers):
    """Where and how fast a sweep runs: none of it is part of a stage's key or of ``sweep.yaml``.

    What the machine decides for a setting that is ``auto`` (engine, optimizer's kernel, placement) is part of a key by
    its own name, and so is the content of the data that are read.
    """

    panel: ClassVar[str] = "Execution: where and how fast, with the same results"
    model_config = ConfigDict(frozen=True, extra="forbid", defer_build=True)

    device: str = Field(default="auto", description="torch device; auto takes a GPU where there is one.")
    workers: Annotated[int | None, Option(default="by cores and device")] = Field(
        default=None, ge=1, le=MAX_WORKERS, description="Stages side by side."
    )
    memory: Literal["auto", "layerwise", "whole"] = Field(
        default="auto", description="Fit and compress layer by layer from disk (layerwise), whole, or by size."
    )
    eval_batch_size: Positive = Field(default=64, description="Prompts per batch.")
    accelerate: Path | None = Field(
        default=None, description="accelerate's config file: train in several processes, such as one per GPU."
    )
    executor: Literal["local", "ray"] = Field(
        default="local", description="local, or ray: stages as tasks of a Ray cluster."
    )
    address: Annotated[str | None, Option(default="Ray is started on this machine")] = Field(
        default=None, description="Running Ray cluster: HOST:PORT or auto."
    )
    allow_weak_isolation: bool = Field(
        default=False, description="Run generated code even where only resource limits hold it."
    )
    data: Annotated[Path | None, Option(environment="LOWRANK_BENCH_DATA", panel=_FILES)] = Field(
        default=None, description="Folder with local datasets; without it the hub is used."
    )
    include_path: Annotated[Path | None, Option(panel=_FILES)] = Field(
        default=None, description="Folder with YAML files of your own lm_eval: tasks."
    )
    out: Annotated[Path, Option(panel=_FILES)] = Field(
        default=Path("runs"), description="Folder for stages and results."
    )
    storage: Annotated[str | None, Option(panel=_FILES)] = Field(
        default=None, description="URL of shared or object storage for stages and results: s3://BUCKET/FOLDER."
    )
    keep: Annotated[Literal["auto", "all", "needed"], Option(default="needed from 1 B parameters on", panel=_FILES)] = (
        Field(default="auto", description="all weights, or needed: remove what no later stage reads.")
    )
    checkpoint_minutes: Annotated[float, Option(panel=_FILES)] = Field(
        default=30.0,
        ge=0,
        description="Minutes between two states of a training that it can be resumed from; inf: none.",
    )

    report_to: Annotated[tuple[str, ...], Option(default=NONE, example="tensorboard,wandb")] = Field(
        default=(),
        description="Trackers of training curves and results: tensorboard, mlflow, wandb, trackio.",
    )

    @property
    def folder(self) -> Path:
        """The absolute path of ``out``."""
        return self.out.expanduser().resolve()

    @field_validator("device")
    @classmethod
    def _recordable(cls, value: str) -> str:
        return check_recordable("device", value)

    @field_validator("report_to")
    @classmethod
    def _known_trackers(cls, values: tuple[str, ...]) -> tuple[str, ...]:
        for value in values:
            if value not in TRACKERS:
                raise ValueError(str(unknown("tracker", value, TRACKERS)))
        check_repeats("tracker", list(values))
        return values

    @field_validator("address")
    @classmethod
    def _address_of_a_cluster(cls, value: str | None) -> str | None:
        if value not in (None, "auto"):
            host_and_port(str(value))
        return value

    @field_validator("storage")
    @classmethod
    def _storage_url(cls, value: str | None) -> str | None:
        if value is not None:
            from ..store.storage import check_url

            check_url(value)
        return value

    @model_validator(mode="after")
    def _together(self) -> Execution:
        if self.address is not None and self.executor != "ray":
            raise ValueError(f"--address {self.address} names a Ray cluster; add --executor ray, or leave it out")
        if self.accelerate is not None and self.executor != "local":
            raise ValueError("--accelerate starts its processes on this machine; leave it out, or --executor ray")
        if self.keep == "needed" and self.storage is not None:
            raise ValueError(
                f"--keep needed removes weights that --storage {self.storage} would keep for other machines; leave one "
                "of them out"
            )
        return self

"""A worker's side of a training stage over several processes: start them, listen, and read what came out."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

from ....evals.hosting.host import cause_of_death
from ....foundation.environment import without_launcher
from ....foundation.errors import UserError
from ....foundation.files import write_atomic
from ....foundation.memory import release_memory
from ....foundation.process import python_command, python_environment
from ....foundation.progress import Report
from ...process_setup import FSDP2
from ...specs import CompressStage, Stage
from ...stage_results import CompressResult, StageResult, TrainingResult
from ...training.divergence import Diverged

DESK = ".launch"
"""Folder inside the stage's own, by which the processes and the worker exchange files; gone when the stage is done."""
STAGE, RESULT, PROGRESS, ERROR, _LOG = "stage.json", "result.json", "progress", "error-{}.json", "log"
_POLL_SECONDS = 0.25
_LAST_WORDS = 30


class ProcessesCrashed(Exception):
    """The processes that trained together ended without a result; the text has their last words."""


def train_together(stage: Stage, folder: Path, report: Report | None) -> StageResult:
    """Do a training stage in the processes that its ``accelerate`` names; return its result.

    Raises:
        Diverged: the loss became infinite or NaN.
        UserError: one of them met another reason that the user can mend.
        ProcessesCrashed: they failed otherwise.
    """
    import torch

    setup, desk = stage.accelerate, folder / DESK
    assert setup is not None
    desk.mkdir()
    threads = max(1, torch.get_num_threads() // setup.processes)
    write_atomic(desk / STAGE, stage.model_dump_json())
    release_memory()  # an earlier stage's; the first GPU is about to need it
    command = python_command("-m", f"{__package__}.launcher", str(os.getpid()))
    command += ["--config_file", str(setup.file or _own_file(desk, setup.processes)), "--main_process_port", "0"]
    command += ["--module", f"{__package__}.rank", str(desk), str(folder), str(threads)]
    quiet = {"OMP_NUM_THREADS": str(threads), "TOKENIZERS_PARALLELISM": "false", "TQDM_DISABLE": "1"}
    with open(desk / _LOG, "wb") as log:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env=without_launcher(python_environment()) | quiet,  # the configuration file alone decides
            start_new_session=True,
        )
        try:
            code = _listen(process, desk / PROGRESS, report)
        except BaseException:
            # Enough for all of them: the processes that the launcher started die with it (`die_with_parent`).
            process.kill()
            process.wait()
            raise
    if code or not (desk / RESULT).is_file():
        raise _failure(desk, stage, code)
    result = result_class(stage).model_validate_json((desk / RESULT).read_text(encoding="utf-8"))
    shutil.rmtree(desk)
    return result


def result_class(stage: Stage) -> type[CompressResult] | type[TrainingResult]:
    """Return what a training stage results in."""
    return CompressResult if isinstance(stage, CompressStage) else TrainingResult


def _own_file(desk: Path, processes: int) -> str:
    """Write accelerate's configuration for FSDP2 and return its path."""
    file = desk / "accelerate.yaml"
    file.write_text(FSDP2.format(processes=processes), encoding="utf-8")
    return str(file)


def _listen(process: subprocess.Popen[bytes], news: Path, report: Report | None) -> int:
    seen = ""
    while True:
        try:
            return process.wait(_POLL_SECONDS)
        except subprocess.TimeoutExpired:
            text = news.read_text(encoding="ascii") if news.is_file() else ""
            if report and text != seen:
                seen = text
                done, total, unit = text.split(" ", 2)
                report(int(done), int(total), unit)


def _failure(desk: Path, stage: Stage, code: int) -> Exception:
    """Return the exception for what the processes left: a user's error first, else the first that failed."""
    files = sorted(desk.glob(ERROR.format("*")), key=lambda file: file.stat().st_mtime_ns)
    errors = [json.loads(file.read_text(encoding="utf-8")) for file in files]
    for error in sorted(errors, key=lambda error: not error["expected"]):
        if "diverged" in error:
            return Diverged(error["text"], *error["diverged"])
        return UserError(error["text"]) if error["expected"] else ProcessesCrashed(error["text"])
    lines = (desk / _LOG).read_bytes()[-20_000:].decode("utf-8", "replace").replace("\r", "\n").splitlines()
    words = "\n".join([line for line in lines if line.strip()][-_LAST_WORDS:]) or "(none)"
    processes = stage.accelerate.processes if stage.accelerate else 1
    return ProcessesCrashed(
        f"the {processes} processes of '{stage.shown}' died ({cause_of_death(code)}); their last "
        f"words:\n{words}\nThe same command goes on where it was."
    )

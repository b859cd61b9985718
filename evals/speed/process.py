"""Runs one measurement in a process of its own, so that its peak memory is its own and comes back."""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path

from ...foundation.environment import one_gpu
from ...foundation.errors import UserError
from ...foundation.process import python_command, python_environment
from ..hosting.installing import vllm_command
from .spec import Measured, SpeedSpec

_PACKAGE = __package__.rpartition(".evals.")[0]
_MESSAGE_CHARACTERS = 300


def is_installed(engine: str) -> bool:
    """Whether an engine can be measured here; nothing is imported."""
    return engine != "vllm" or find_spec("vllm") is not None


def check_engine(engine: str, device: str, instead: str = "or add --engine transformers") -> None:
    """Check that an engine is installed.

    Args:
        engine: its name.
        device: torch device that it is to run on.
        instead: what else the user can type.

    Raises:
        UserError: it is not; says what to install.
    """
    if not is_installed(engine):
        raise UserError(f"vLLM is not installed here; type {vllm_command(device)}{f', {instead}' if instead else ''}")


def measure_apart(spec: SpeedSpec) -> Measured:
    """Measure a checkpoint in a new process and wait for it.

    Raises:
        UserError: the process's own message, or its last output where it died.
    """
    with tempfile.TemporaryDirectory() as folder:
        result, log = Path(folder) / "result.json", Path(folder) / "log"
        spec_json = json.dumps(asdict(spec) | {"device": one_gpu(spec.device)[0]})
        command = python_command("-m", f"{_PACKAGE}.evals.speed.child", spec_json, str(result), str(os.getpid()))
        with log.open("wb") as output:
            code = subprocess.run(command, stdout=output, stderr=subprocess.STDOUT, env=_environment(spec)).returncode
        if code:
            raise UserError(_why_it_died(spec, code, log.read_text(errors="replace")))
        values = json.loads(result.read_text(encoding="utf-8"))
    if "error" in values:
        raise UserError(values["error"])
    return Measured.read(values)


def _environment(spec: SpeedSpec) -> dict[str, str]:
    threads = str(spec.threads)
    inherited = {
        key: value for key, value in python_environment().items() if key != "VLLM_CPU_KVCACHE_SPACE"
    }  # it would override ours
    return inherited | {
        **one_gpu(spec.device)[1],
        "OMP_NUM_THREADS": threads,
        "MKL_NUM_THREADS": threads,
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # or every process would sit on the first core
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # or load time and peak memory would be another process's
        "VLLM_LOGGING_LEVEL": "ERROR",
        "VLLM_NO_USAGE_STATS": "1",
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_VERBOSITY": "error",
    }


def _why_it_died(spec: SpeedSpec, code: int, log: str) -> str:
    measurement = f"measuring {Path(spec.folder).name} with {spec.engine}"
    if code == -9:
        return f"{measurement} was killed, most likely for want of memory; lower --batch-sizes or use a smaller model"
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    errors = [line for line in lines if line.partition(":")[0].endswith(("Error", "Exception"))]
    message = " ".join((errors or lines or ["no message"])[-1].split())[:_MESSAGE_CHARACTERS]
    return f"{measurement} ended with exit code {code}: {message}"

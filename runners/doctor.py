"""What this machine can do."""

from __future__ import annotations

import importlib.util
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import psutil

from ..evals.data.datasets import find_file, specs
from ..evals.engines.base import engines
from ..evals.grading.sandbox.isolation import isolation_level
from ..evals.hosting.choice import engine_version, vllm_version
from ..evals.hosting.installing import vllm_command
from ..foundation.errors import UserError
from .estimates.probe import probe_cpu
from .gpus import unseen_gpu
from .provenance import processor, versions
from .store.files import reason_of
from .store.folders import StageStore

_NAMED = 5


@dataclass(frozen=True)
class Finding:
    """One line of the examination: what was looked at, whether it is fine, what was found, and the remedy if not."""

    subject: str
    fine: bool
    text: str
    remedy: str = ""


def examine(data: Path | None, out: Path) -> list[Finding]:
    """Look at devices, memory, disk, engines, isolation, data, and every byte of the stages.

    Nothing is changed, but the probe of this machine's speed is remembered.
    """
    known = ", ".join(f"{name} {value}" for name, value in versions().items() if value)
    findings = [Finding("versions", True, known)]
    findings += [*_devices(), _disk(out), _stages(out), *_engines(), _isolation(), *_data(data)]
    return findings


@dataclass(frozen=True)
class Repair:
    """A damaged stage: its key, what is wrong, and where it was moved."""

    key: str
    reason: str
    moved_to: Path


def repair(out: Path, progress: Callable[[int, int], None] | None = None) -> tuple[int, list[Repair], list[Path]]:
    """Compare every file of every stage with its checksum, move aside what is damaged, and clear what was cut off.

    Args:
        out: folder with the runs.
        progress: called with how many of how many stages have been looked at.

    Returns:
        How many stages are complete, those that were moved to ``stages/damaged``, and the removed leavings of killed
        stages.
    """
    store = StageStore(out.expanduser() / "stages")
    keys, moved = store.keys(), []
    for done, key in enumerate(keys):
        if progress:
            progress(done, len(keys))
        try:
            store.verify(key)
        except UserError as error:
            moved.append(Repair(key, reason_of(error), store.set_aside(key)))
    left = store.cut_off()
    for part in left:
        shutil.rmtree(part, ignore_errors=True)
    return len(keys) - len(moved), moved, left


def _stages(out: Path) -> Finding:
    store, wrong, light, removed = StageStore(out.expanduser() / "stages"), dict[str, str](), 0, 0
    keys = store.keys()
    for key in keys:
        try:
            store.verify(key)
            light += bool(store.lacking(key))
            removed += bool(store.removed(key))
        except UserError as error:
            wrong[key] = reason_of(error)
    left, resumable = len(store.cut_off()), len(store.resumable())
    text = f"{len(keys) - len(wrong)} complete in {out}" + (f", {len(wrong)} damaged" if wrong else "")
    text += "".join(f"; {key}: {reason}" for key, reason in list(wrong.items())[:_NAMED])
    text += f", {light} of them light: their large files are in their storage alone" if light else ""
    text += f", {removed} of them without the weights, which their sweep had read (--keep needed)" if removed else ""
    text += f", {left} cut off" if left else ""
    text += f", {resumable} can be resumed" if resumable else ""
    return Finding("stages", not wrong, text, f"bench doctor --repair --out {out} moves them aside" if wrong else "")


def _devices() -> list[Finding]:
    import torch

    memory = psutil.virtual_memory()
    cpu = f"{processor()}, {len(os.sched_getaffinity(0))} cores, {memory.available / 2**30:.1f} GiB of memory free"
    rows = [Finding("cpu", True, cpu), Finding("one thread", True, probe_cpu().sentence())]
    if not torch.cuda.is_available():
        unseen = unseen_gpu(torch.__version__, torch.version.cuda)
        if unseen is None:
            return [*rows, Finding("gpu", True, "none; models up to some 50 M parameters train on the CPU in minutes")]
        return [*rows, Finding("gpu", False, unseen.shows, unseen.remedy)]
    for index in range(torch.cuda.device_count()):
        free, total = torch.cuda.mem_get_info(index)
        name = torch.cuda.get_device_name(index)
        rows.append(Finding(f"gpu {index}", True, f"{name}, {free / 2**30:.0f} of {total / 2**30:.0f} GiB free"))
    return rows


def _disk(out: Path) -> Finding:
    folder = out.expanduser().resolve()
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    writable = os.access(folder, os.W_OK)
    remedy = "" if writable else "choose another folder with --out"
    return Finding(
        "disk", writable, f"{free / 1e9:.0f} GB free for {out}" if writable else f"{folder} is read-only", remedy
    )


def _engines() -> list[Finding]:
    import torch

    rows, device = [], "cuda" if torch.cuda.is_available() else "cpu"
    for name in engines.names():
        text, remedy = engine_version(name) or "ready", ""
        if name == "vllm" and not vllm_version():
            text = "not installed, so everything runs with transformers"
            remedy = f"for {'CPUs' if device == 'cpu' else 'GPUs'}: {vllm_command(device)}"
        rows.append(Finding(f"engine {name}", True, text, remedy))
    harness = importlib.util.find_spec("lm_eval") is not None
    remedy = "" if harness else "commonsense and CrowS-Pairs need it: pip install 'lowrank-bench[harness]'"
    rows.append(Finding("lm-eval", True, "installed" if harness else "not installed", remedy))
    return rows


def _isolation() -> Finding:
    try:
        level = isolation_level()
        remedy = (
            "" if level == "bwrap" else "bubblewrap is missing and not needed then: sudo apt-get install bubblewrap"
        )
        return Finding("isolation", True, f"generated code runs under: {level}", remedy)
    except UserError as error:
        return Finding("isolation", False, "generated code cannot be run safely", str(error))


def _data(data: Path | None) -> list[Finding]:
    if data is None:
        return [
            Finding(
                "data", True, "none local; datasets come from the hub (--data or LOWRANK_BENCH_DATA names a folder)"
            )
        ]
    if not data.is_dir():
        return [Finding("data", False, f"{data} does not exist", "name the folder that holds gsm8k/, math/, …")]
    rows = []
    for name, spec in sorted(specs.items()):
        present = []
        for split in spec.splits:
            try:
                find_file(name, split, data)
                present.append(split)
            except UserError:
                continue
        text = f"{', '.join(present)} in {data}" if present else "not there"
        rows.append(Finding(f"data {name}", True, text))
    return rows

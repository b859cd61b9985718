"""Tasks of lm-evaluation-harness as they are measured here: loaded, with their shots set, on local data."""

from __future__ import annotations

import itertools
import json
import random
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from importlib.metadata import requires
from pathlib import Path
from typing import Any

from ...foundation.errors import UserError
from ...foundation.files import digest, sha256_file
from ..kinds.harness import harness_version, quiet
from .data import local_datasets
from .index import code_files, find_tasks
from .names import TaskName

SHOT_SEED = 1234
"""Draws the examples, as the harness's command line does."""

_FIRST = 100
"""Problems whose answers are looked at."""


@dataclass(frozen=True)
class Loaded:
    """Tasks as the harness's ``TaskManager.load`` returns them, and what identifies them.

    Random numbers are drawn while tasks are loaded; see `seeded`.

    Attributes:
        tasks: ``tasks``, ``groups`` and ``group_map``; the harness changes them while it evaluates.
        version: of the task or group, as its YAML says.
        shots: examples before each problem; -1 where members differ.
        generates: whether any completion is generated.
        rules: hashes of configurations and code, by name of a member.
        data: hash of problems and, where there are shots, of what they are drawn from, by name of a task.
    """

    tasks: Mapping[str, Any]
    version: str
    shots: int
    generates: bool
    rules: Mapping[str, str]
    data: Mapping[str, str]


def load(name: TaskName, include_path: Path | None, data_dir: Path | None) -> Loaded:
    """Load a task or group.

    Raises:
        UserError: it is unknown, cannot be measured here, or its data are missing.
    """
    harness_version()
    manager, configs = find_tasks(name.task, include_path)
    with quiet(), local_datasets(data_dir):
        try:
            loaded = manager.load([name.task])
        except UserError:
            raise
        except Exception as error:  # a task's YAML and Python may do anything
            raise UserError(_unloadable(name, manager, configs, error)) from error
        tasks = loaded["tasks"]
        for member, task in tasks.items():
            _check_kind(name, member, task)
            _check_language_data(name, manager, member)
            _set_shots(name, member, task)
        data = {member: _data_hash(name, member, task) for member, task in tasks.items()}
    group = loaded.get("groups", {}).get(name.task)
    if group is not None:
        _check_group(name, group)
    shots = {int(task.get_config("num_fewshot") or 0) for task in tasks.values()}
    code = [sha256_file(path) for path in code_files(manager, configs)]
    rules = {member: digest([_plain(config), code]) for member, config in configs.items()}
    return Loaded(
        loaded,
        _version(group.version if group is not None else tasks[name.task].VERSION),
        shots.pop() if len(shots) == 1 else -1,
        any(task.OUTPUT_TYPE == "generate_until" for task in tasks.values()),
        rules,
        data,
    )


@dataclass(frozen=True)
class Described:
    """What a plan has to know of a task, without the task; see `Loaded`."""

    version: str
    shots: int
    generates: bool
    rules: Mapping[str, str]
    data: Mapping[str, str]


@lru_cache(maxsize=64)
def describe(name: TaskName, include_path: Path | None, data_dir: Path | None) -> Described:
    """Return what identifies a task, loaded once a process; see `load` for errors."""
    with seeded():
        loaded = load(name, include_path, data_dir)
    return Described(loaded.version, loaded.shots, loaded.generates, loaded.rules, loaded.data)


@contextmanager
def seeded() -> Iterator[None]:
    """Context: random numbers begin where the harness's command line lets them begin; afterwards as before."""
    import numpy as np
    import torch

    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    random.seed(0)
    np.random.seed(SHOT_SEED)
    torch.manual_seed(SHOT_SEED)
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])


def _unloadable(name: TaskName, manager: Any, configs: Mapping[str, Mapping[str, Any]], error: BaseException) -> str:
    """Say why a task was not loaded, and what to do."""
    if isinstance(error, ModuleNotFoundError) and error.name:
        return (
            f"'{name}' needs the Python package '{error.name}', which is not installed; install it with: "
            f"pip install '{_provider(error.name)}'"
        )
    for member, config in configs.items():
        files = (config.get("dataset_kwargs") or {}).get("data_files")
        for key in ("test_split", "validation_split", "training_split", "fewshot_split"):
            if isinstance(error, KeyError) and config.get(key) is not None and error.args == (config[key],):
                present = f"; its data_files are {', '.join(files)}" if isinstance(files, Mapping) else ""
                return f"the data of '{member}' have no split '{config[key]}', its {key}{present}: change {key}"
    path = manager.task_index[name.task].yaml_path
    return (
        f"'{name}' cannot be loaded ({type(error).__name__}: {_line(error)}); repair its YAML"
        f"{f', {path},' if path else ''} or the Python beside it"
    )


def _provider(module: str) -> str:
    """Return what to install for a module: the harness's extra that brings it, else a package of that name."""
    for line in requires("lm_eval") or ():
        package, _, marker = line.partition(";")
        extra = re.search(r"extra == ['\"]([\w-]+)", marker)
        if extra and re.match(r"[\w-]+", package.strip())[0].replace("-", "_").lower() == module.lower():  # type: ignore[index]
            return f"lm-eval[{extra[1]}]"
    return module


def _check_language_data(name: TaskName, manager: Any, member: str) -> None:
    """Refuse a task that splits texts with nltk's models where they could not be fetched: it would fail at its end."""
    texts = [path.read_text(encoding="utf-8", errors="replace") for path in code_files(manager, [member])]
    if not any("punkt" in text or "tasks.ifeval" in text for text in texts):
        return
    import nltk

    try:
        nltk.data.find("tokenizers/punkt_tab")
    except LookupError as error:
        raise UserError(
            f"'{name}' splits texts with nltk's 'punkt_tab', which is not on this machine and could not be fetched; "
            "run 'python -m nltk.downloader punkt_tab' where there is a connection, copy its folder nltk_data here, "
            "and name it with NLTK_DATA"
        ) from error


def _check_kind(name: TaskName, member: str, task: Any) -> None:
    part = "" if member == name.task else f" (through its member '{member}')"
    if getattr(task, "MULTIMODAL", False):
        raise UserError(f"'{name}'{part} shows images or sound to a model, and the engines here take text alone")
    if getattr(task, "UNSAFE_CODE", False):
        raise UserError(f"'{name}'{part} executes generated code without a sandbox; leave it out")
    unknown = [metric for metric, function in getattr(task, "_metric_fn_list", {}).items() if function is None]
    if unknown and task.config.process_results is None:  # the harness would leave it out with a line in its log
        raise UserError(
            f"'{name}'{part} has the metric '{unknown[0]}', which neither lm-evaluation-harness nor the library "
            "evaluate has; repair metric_list in its YAML"
        )
    if task.OUTPUT_TYPE == "multiple_choice":
        _check_answers(name, member, task)


def _check_answers(name: TaskName, member: str, task: Any) -> None:
    """Refuse multiple choice whose first answers are none of the choices: the harness would call all problems wrong."""
    gold, choices = None, None
    for doc in itertools.islice(task.eval_docs, _FIRST):
        gold, choices = task.doc_to_target(doc), task.doc_to_choice(doc)
        golds = gold if isinstance(gold, list) else [gold]
        if task.multiple_input or any(
            -len(choices) <= item < len(choices) if isinstance(item, int) else item in choices for item in golds
        ):
            return
    if choices is not None:
        raise UserError(
            f"the answers of '{member}' are none of its choices: doc_to_target gives {gold!r} and doc_to_choice "
            f"{str(choices)[:100]}; repair them in its YAML"
        )


def _check_group(name: TaskName, group: Any) -> None:
    members = ",".join(f"lm_eval:{child}" for child in group.child_names)
    if not group.has_aggregation:
        raise UserError(
            f"the group '{name.task}' has no number of its own (no aggregate_metric_list in its YAML); name its "
            f"members: {members}"
        )
    aggregated = [entry.metric for entry in group.aggregate_metric_list]
    measured = {str(entry.get("metric")) for task in group.get_all_tasks() for entry in task.config.metric_list or ()}
    if measured and not measured & set(aggregated):
        raise UserError(
            f"the group '{name.task}' aggregates {', '.join(aggregated)}, which none of its members has; they have "
            f"{', '.join(sorted(measured))}: change aggregate_metric_list in its YAML"
        )


def _set_shots(name: TaskName, member: str, task: Any) -> None:
    """Set the number of examples and the seed as the harness's command line does; a task's own 0 stays."""
    own = task.get_config("num_fewshot")
    if name.shots is not None and own != 0:
        task.set_config(key="num_fewshot", value=name.shots)
    elif own is None:
        task.set_config(key="num_fewshot", value=0)
    if name.shots and own == 0:
        raise UserError(f"'{member}' is defined without examples (num_fewshot: 0); leave :shots={name.shots} out")
    task.set_fewshot_seed(seed=SHOT_SEED)


def _data_hash(name: TaskName, member: str, task: Any) -> str:
    documents = [_plain(doc) for doc in task.eval_docs]
    if not documents:
        split = task.config.test_split or task.config.validation_split
        raise UserError(
            f"the data of '{member}' have no problems (split '{split}' of {task.config.dataset_path}); put its file "
            "into the --data folder (docs/lm-eval.md), or leave --data out for the hub"
        )
    shots = int(task.get_config("num_fewshot") or 0)
    examples = list(map(_plain, task.fewshot_docs() or ())) if shots else []
    if len(examples) < shots:
        split = task.fewshot_cfg.split or task.config.training_split or task.config.validation_split
        raise UserError(
            f"'{member}' needs {shots} examples and its data have {len(examples)} (split '{split}' of "
            f"{task.config.dataset_path}); put that split's file into the --data folder (docs/lm-eval.md), or write "
            f"lm_eval:{name.task}:shots={len(examples)}"
        )
    return digest([documents, examples])


def _version(version: Any) -> str:
    """Return a version as it is written in a name; empty where the YAML has none."""
    return "" if version in (None, "Yaml", "N/A") else f"{version:g}" if isinstance(version, float) else str(version)


def _plain(value: Any) -> str:
    return json.dumps(value, sort_keys=True, default=str)


def _line(error: BaseException) -> str:
    text = error.args[0] if isinstance(error, KeyError) and error.args else error  # of which str is the repr
    return " ".join(str(text).split())[:300]

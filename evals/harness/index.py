"""Which YAML files define a task or group of lm-evaluation-harness, without reading all fourteen thousand of them.

The harness's own index takes 16 seconds. Here the text of the files is searched for the name, and the folders of the
files that have it are indexed; which folders is remembered for this version of the harness.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from ...foundation.errors import UserError
from ...foundation.files import digest
from ...foundation.remembered import remembered
from ..kinds.harness import harness_version
from .unknown import unknown_member, unknown_task

SANDBOXED = {"humaneval": "humaneval", "mbpp": "mbpp"}
"""Tasks that run generated code, and the benchmark of this package that does so in a sandbox."""


def find_tasks(name: str, include_path: Path | None) -> tuple[Any, dict[str, Mapping[str, Any]]]:
    """Return a task manager that knows a task or group, and the configurations of all that it consists of, by name.

    Functions in the configurations are not imported: this runs no code of a task.

    Args:
        name: of the task or group.
        include_path: folder with more YAML files, which win where a name is in both.

    Raises:
        UserError: no such task; a tag; a task that runs generated code.
    """
    version = harness_version()
    import lm_eval.tasks

    root = Path(next(iter(lm_eval.tasks.__path__)))
    if include_path is not None and not include_path.is_dir():
        raise UserError(
            f"--include-path {include_path} is no folder; name the folder that holds your task's YAML files"
        )
    own = [include_path] if include_path else []
    manager = lm_eval.tasks.TaskManager(include_path=own, include_defaults=False)
    mine = list(manager.task_index)
    folders: list[str] = []
    needed, asked = {name}, set[str]()
    while True:
        index = manager.task_index
        needed |= {member for known in needed & index.keys() for member in _member_names(index[known])}
        # A name that no file defines stays missing; not asking for it twice is what ends the loop.
        missing = sorted(needed - index.keys() - asked)
        if not missing:
            break
        asked |= set(missing)
        key = digest(["folders of tasks of lm_eval", version, missing])
        more = remembered(key, lambda names=missing: _folders(root, names))  # type: ignore[misc]
        folders += [folder for folder in more if folder not in folders]
        paths = [*(root / folder for folder in folders), *own]
        manager = lm_eval.tasks.TaskManager(include_path=paths, include_defaults=False)
    if name not in index:
        raise unknown_task(name, root, mine, include_path)
    for group in _members(name, index):
        lacking = next((member for member in _plain_members(index[group]) if member not in index), None)
        if lacking is not None:
            raise unknown_member(group, lacking, root, mine, include_path)
    if index[name].kind.name == "TAG":
        members = ",".join(f"lm_eval:{member}" for member in sorted(index[name].tags))
        raise UserError(
            f"'{name}' is a tag of lm-evaluation-harness: a list of tasks without a number of its own; name them: "
            f"{members}"
        )
    configs = {member: index[member].cfg or {} for member in _members(name, index)}
    for member, config in configs.items():
        _check_runs_no_code(name, member, config)
    return manager, configs


def code_files(manager: Any, names: Iterable[str]) -> list[Path]:
    """Return the Python files beside the YAML files of tasks: what their functions may be in."""
    folders = {Path(manager.task_index[name].yaml_path).parent for name in names if manager.task_index[name].yaml_path}
    return sorted(path for folder in folders for path in folder.glob("*.py"))


def _check_runs_no_code(name: str, member: str, config: Mapping[str, Any]) -> None:
    # Before anything is imported: importing the harness's module for HumanEval runs a test program.
    metrics = [entry.get("metric") for entry in config.get("metric_list") or () if isinstance(entry, Mapping)]
    if not config.get("unsafe_code") and not any("pass_at_k" in str(metric) for metric in metrics):
        return
    family = next((family for family in SANDBOXED if member.startswith(family)), None)
    part = "" if member == name else f" (through its member '{member}')"
    advice = (
        f"use this package's benchmark '{SANDBOXED[family]}', which runs the same problems in a sandbox"
        if family
        else "leave it out; humaneval, mbpp and toy-code are measured in a sandbox"
    )
    raise UserError(f"'lm_eval:{name}'{part} executes generated code in this process without a sandbox; {advice}")


def _folders(root: Path, names: Iterable[str]) -> list[str]:
    """Return the folders, relative to the root, of the files that say one of these names as task, group or tag."""
    words = "|".join(re.escape(name) for name in names)
    says = re.compile(rf"^\s*(?:task|group|tag|-)\s*:?\s*['\"]?(?:{words})['\"]?\s*$", re.MULTILINE)
    folders = {
        str(path.parent.relative_to(root))
        for path in root.glob("**/*.yaml")
        if says.search(path.read_text(encoding="utf-8", errors="replace"))
    }
    # The harness indexes a folder with all below it.
    return sorted(folder for folder in folders if not any(folder.startswith(f"{other}/") for other in folders))


def _member_names(entry: Any) -> Iterator[str]:
    """Yield what a group consists of, as its YAML names it; tags stand for their tasks."""
    if entry.kind.name == "TAG":
        yield from entry.tags
    if entry.kind.name != "GROUP":
        return
    yield from _listed(entry.cfg or {})


def _plain_members(entry: Any) -> list[str]:
    """Return the members that a group's YAML only names; others may be defined on the spot."""
    listed = (entry.cfg or {}).get("task") if entry.kind.name == "GROUP" else ()
    return [item for item in ([listed] if isinstance(listed, str) else listed or ()) if isinstance(item, str)]


def _listed(config: Mapping[str, Any]) -> Iterator[str]:
    listed = config.get("task") or ()
    for item in [listed] if isinstance(listed, str) else listed:
        if isinstance(item, str):
            yield item
        elif isinstance(item.get("task"), str):
            yield item["task"]
        elif "group" in item and "task" not in item:
            yield item["group"]
        else:
            yield from _listed(item)


def _members(name: str, index: Mapping[str, Any]) -> list[str]:
    """Return a name and all that it consists of, groups included, each once."""
    names_seen: dict[str, None] = {}
    waiting = [name]
    while waiting:
        entry = waiting.pop(0)
        if entry in index and entry not in names_seen:
            names_seen[entry] = None
            waiting += sorted(_member_names(index[entry]))
    return [entry for entry in names_seen if index[entry].kind.name != "TAG"]

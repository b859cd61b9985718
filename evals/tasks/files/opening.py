"""From a task file on disk to a task that is known: every problem is one sentence with file, line and field."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from ....foundation.errors import UserError, did_you_mean, reason
from ....foundation.plain import parse_yaml, read_input
from ...grading.text import check_schema
from ..base import Task, add_task, get_task
from . import schema as parts
from .benchmarks import add_benchmark
from .rows import SUFFIXES, is_file
from .schema import KINDS, Json, TaskFile
from .task import SOURCE, FileTask
from .training import find_layout

ENDINGS = (".yaml", ".yml")


def is_task_file(name: str) -> bool:
    """Return whether what was named as a task is a file rather than a task's name."""
    return name.lower().endswith(ENDINGS)


def open_task(name: str) -> Task:
    """Return a task by its name, or that of a task file, which is known by its own name from here on.

    Raises:
        UserError: no task of that name, or a file that is none.
    """
    return add_definition(read_task_file(Path(name))) if is_task_file(name) else get_task(name)


def add_definition(definition: TaskFile | str) -> FileTask:
    """Make a task file's task and benchmarks known in this process, in place of those of the same name.

    Args:
        definition: the task file, or its JSON (`specs.Execution.task_file`).

    Raises:
        UserError: names that are taken, or training data that cannot be read.
    """
    if isinstance(definition, str):
        definition = TaskFile.model_validate_json(definition)
    form = find_layout(definition).form
    task = FileTask(
        definition.name,
        definition.summary,
        "language" if form == "text" else "instruction",
        tuple(definition.benchmark_name(part) for part in definition.benchmarks),
        definition.max_length,
        {SOURCE: _not_by_loader},
        pretrained_row=form == "text",
        definition=definition,
    )
    add_task(task)
    for part in definition.benchmarks:
        add_benchmark(definition, part)
    return task


def _not_by_loader(data_dir: Path | None, seed: int) -> Any:
    raise AssertionError("a task file's rows are read by FileTask")


def read_task_file(path: Path) -> TaskFile:
    """Return a validated task file whose paths are absolute and whose JSON schemas are read.

    Raises:
        UserError: one sentence about the first thing that is wrong.
    """
    text = read_input(path, "task file")
    values = parse_yaml(text, f"the task file {path}")
    if not isinstance(values, dict):
        raise UserError(f"the task file {path} must hold 'key: value' lines; bench task new writes one to start from")
    try:
        definition = TaskFile.model_validate(values)
    except ValidationError as error:
        raise UserError(_sentence(error, text, path)) from error
    lines = _Lines(text)
    train = definition.train.model_copy(update={"data": _source(definition.train, path, lines, ("train",))})
    benchmarks = []
    for index, part in enumerate(definition.benchmarks):
        changes: dict[str, Any] = {}
        location = ("benchmarks", str(index))
        source = part.source("test")
        if source is not None:
            changes["data"] = _source(source, path, lines, location)
        if isinstance(part, Json):
            changes["schema_"] = _schema(part, path, lines, location)
        benchmarks.append(part.model_copy(update=changes))
    return definition.model_copy(update={"train": train, "benchmarks": tuple(benchmarks)})


def _source(source: parts.Data, path: Path, lines: _Lines, location: tuple[str, ...]) -> str:
    title = lines.title(path, (*location, "data"))
    data = source.data
    if not is_file(data) and not (path.parent / data).exists():
        if data.count("/") != 1 or data.startswith((".", "~", "/")):
            raise UserError(
                f"{title}: '{data}' is neither a file ({', '.join(SUFFIXES)}) nor a hub id; name a file beside the "
                "task file, or OWNER/NAME with its revision"
            )
        if source.revision is None:
            raise UserError(
                f"{title}: the hub dataset '{data}' needs its revision, a commit of 40 digits; add 'revision: …', or "
                "name a local file"
            )
        return data
    if source.revision or source.config:
        raise UserError(f"{title}: '{data}' is a file, which has no revision or configuration; leave them out")
    file = (path.parent / Path(data).expanduser()).resolve()
    if not is_file(file.name) or not file.name.lower().endswith(SUFFIXES):
        raise UserError(f"{title}: '{data}' has an unknown ending; allowed: {', '.join(SUFFIXES)}")
    if not file.is_file():
        near = [other.name for other in file.parent.iterdir()] if file.parent.is_dir() else []
        hint = did_you_mean(file.name, near) or "; name an existing file"
        raise UserError(f"{title}: there is no file '{data}' in {file.parent}{hint}")
    return str(file)


def _schema(part: Json, path: Path, lines: _Lines, location: tuple[str, ...]) -> dict[str, Any]:
    title, value = lines.title(path, (*location, "schema")), part.schema_
    if isinstance(value, str):
        file = path.parent / value
        try:
            text = read_input(file, "JSON schema")
        except UserError as error:
            raise UserError(f"{title}: {error}") from error
        try:
            value = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise UserError(f"{title}: the JSON schema {file} is not JSON ({error}); repair it") from error
    if not isinstance(value, dict):
        raise UserError(f"{title}: a JSON schema is an object, such as {{type: object}}")
    try:
        check_schema(value)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{title}: that is no usable JSON schema: {error}") from error
    return value


class _Lines:
    """Finds the line of a field in a YAML text."""

    def __init__(self, text: bytes | str) -> None:
        self._root = yaml.compose(text, Loader=yaml.SafeLoader)

    def line(self, location: Sequence[str]) -> int:
        """Return the line of a field, or of the nearest part around it that is there."""
        node, line = self._root, 1
        for name in location:
            if isinstance(node, yaml.MappingNode):
                pair = next((pair for pair in node.value if str(pair[0].value) == name), None)
                if pair is None:
                    break
                line, node = pair[0].start_mark.line + 1, pair[1]
            elif isinstance(node, yaml.SequenceNode) and name.isdigit() and int(name) < len(node.value):
                node = node.value[int(name)]
                line = node.start_mark.line + 1
        return line

    def title(self, path: Path, location: Sequence[str]) -> str:
        """Return how messages name a field."""
        return f"'{path.name}', line {self.line(location)}, field '{'.'.join(location)}'"


def _sentence(error: ValidationError, text: bytes | str, path: Path) -> str:
    problem = error.errors()[0]
    location = [str(part) for part in problem["loc"]]
    # The kind of a benchmark is a part of pydantic's location and none of the file's.
    location = [
        part for index, part in enumerate(location) if not (index and part in KINDS and location[index - 1].isdigit())
    ]
    title = _Lines(text).title(path, location)
    kind = problem["type"]
    if kind == "extra_forbidden":
        allowed = _allowed(problem["loc"])
        return f"{title}: unknown key{did_you_mean(location[-1], allowed) or ';'} allowed: {', '.join(sorted(allowed))}"
    if kind == "missing":
        return f"{title}: it is missing; add it, as bench task new shows"
    if kind in ("union_tag_invalid", "union_tag_not_found"):
        given = problem["input"].get("kind") if isinstance(problem["input"], dict) else None
        refusal = f"unknown kind '{given}'{did_you_mean(str(given), KINDS) or ';'}" if given else "'kind' is missing;"
        return f"{title}: {refusal} allowed: {', '.join(KINDS)}"
    if kind == "value_error":
        return f"{title}: {reason(problem)}"
    value = repr(problem["input"])
    return f"{title}: it cannot be {value[:80]}: {reason(problem)}"


def _allowed(location: Sequence[int | str]) -> list[str]:
    model: Any = TaskFile
    kinds = {"exact": parts.Exact, "match": parts.Match, "regex": parts.Regex, "f1": parts.F1, "rouge": parts.Rouge}
    kinds |= {"bleu": parts.Bleu, "json": parts.Json, "code": parts.Code, "choice": parts.Choice}
    kinds |= {"perplexity": parts.Perplexity}
    for name in location[:-1]:
        if name in kinds:
            model = kinds[str(name)]
        elif name == "train":
            model = parts.Train
        elif name == "columns":
            model = parts.TrainColumns if model is parts.Train else parts.BenchmarkColumns
    return [field.alias or name for name, field in model.model_fields.items()]

"""Datasets of lm-evaluation-harness's tasks from local files.

A task names its dataset by the hub's id and a configuration. With a data folder, three places are looked at, in this
order: the datasets that this package knows (``gsm8k/test.jsonl.gz`` for ``openai/gsm8k``), the folder of that id
(``ORG/NAME/CONFIG/SPLIT.jsonl.gz``, ``.jsonl`` or ``.parquet``; without ``CONFIG/`` where there is none), and then the
hub, as without a data folder.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ...foundation.errors import UserError
from ...models.hub import explain
from ..data.datasets import find_file, load_rows, read_lines, specs

_SUFFIXES = (".jsonl.gz", ".jsonl", ".parquet")
_FORMATS = ("json", "csv", "parquet", "text", "arrow")


class LocalSplits(dict[str, Any]):
    """Splits of a dataset by name; one without a file is empty, because few tasks read all that they name."""

    def __missing__(self, split: str) -> Any:
        import datasets

        self[split] = datasets.Dataset.from_list([])
        return self[split]


@contextmanager
def local_datasets(data_dir: Path | None) -> Iterator[None]:
    """Context: ``datasets.load_dataset`` reads local files where there are some.

    Raises:
        UserError: within it, where a dataset cannot be loaded.
    """
    import datasets

    real: Callable[..., Any] = datasets.load_dataset

    def load(path: str, name: str | None = None, **options: Any) -> Any:
        splits = _local(path, name, data_dir) if data_dir else None
        if splits is not None:
            return splits if options.get("split") is None else splits[options["split"]]
        try:
            return real(path=path, name=name, **options)
        except Exception as error:  # the hub's client raises many unrelated types
            if path in _FORMATS:
                raise UserError(
                    f"the data of this task cannot be read ({_cause(error)}); repair the file, or data_files in its "
                    "YAML"
                ) from error
            problem, remedy = explain(error, path, "dataset")
            folder = "/".join(filter(None, (path, name)))
            raise UserError(
                f"cannot load the dataset {path} from the hub ({problem}); {remedy}, or pass --data DIR with "
                f"'{folder}/SPLIT.jsonl.gz' to use local files"
            ) from error

    datasets.load_dataset = load
    try:
        yield
    finally:
        datasets.load_dataset = real


def _cause(error: BaseException) -> str:
    """Return the first line of what an error comes from: `datasets` says only that something went wrong."""
    while error.__cause__ is not None:
        error = error.__cause__
    return next(iter(str(error).splitlines()), type(error).__name__)


def _local(path: str, name: str | None, data_dir: Path) -> LocalSplits | None:
    """Return the local splits of a dataset, None where there are none."""
    import datasets

    splits = LocalSplits()
    spec = next(
        (s for s in specs.values() if s.hub_id == path and name in (s.configs or (None,)) and not s.from_hub), None
    )
    for split in spec.splits if spec else ():
        try:
            find_file(spec.name, split, data_dir)  # type: ignore[union-attr]
        except UserError:
            continue
        splits[split] = datasets.Dataset.from_list(load_rows(spec.name, split, data_dir).rows)  # type: ignore[union-attr]
    folder = data_dir.joinpath(*path.split("/"), *([name] if name else []))
    for file in sorted(folder.iterdir()) if not splits and folder.is_dir() else ():
        suffix = next((ending for ending in _SUFFIXES if file.name.endswith(ending)), None)
        if suffix == ".parquet":
            splits[file.name.removesuffix(suffix)] = datasets.Dataset.from_parquet(str(file))
        elif suffix:
            splits[file.name.removesuffix(suffix)] = datasets.Dataset.from_list([row for _, row in read_lines(file)])
    return splits or None

"""The repository's root as the package `lowrank_bench`, without installing it."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


@contextmanager
def importable() -> Iterator[dict[str, str]]:
    """Give the environment in which this process's children, and theirs, import the package from this checkout.

    The root may have any name, so a link with the package's name is made in a temporary folder, which comes first on
    PYTHONPATH; an installed lowrank_bench does not count then.
    """
    with tempfile.TemporaryDirectory(prefix="lowrank-bench-") as folder:
        (Path(folder) / "lowrank_bench").symlink_to(ROOT, target_is_directory=True)
        before = os.environ.get("PYTHONPATH", "")
        yield os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, [folder, before]))}

"""lowrank-bench: one protocol for every low-rank compression method of language models.

The names in ``__all__`` are the public Python API (docs/python-api.md). They are imported when they are first used, so
that importing the package imports no torch. Importing it makes transformers load factorised checkpoints; vLLM loads
them through an installed entry point.
"""

# Absolute, because pytest imports this file under the name of the folder that the repository was cloned into.
from importlib import import_module
from typing import TYPE_CHECKING, Any

from lowrank_bench.foundation.version import __version__ as __version__
from lowrank_bench.models.autoload import install

if TYPE_CHECKING:
    from lowrank_bench.evals.base import Benchmark, EvalSettings
    from lowrank_bench.evals.tasks.base import Task
    from lowrank_bench.foundation.errors import UserError
    from lowrank_bench.methods.base import Compressor
    from lowrank_bench.methods.matrixwise import MatrixCompressor
    from lowrank_bench.methods.ranks.budget import Budget
    from lowrank_bench.records.files import read_records
    from lowrank_bench.records.schema import Record
    from lowrank_bench.results.sweep import SweepResult, run_sweep
    from lowrank_bench.runners.compressing import Compressed, CompressRequest, compress
    from lowrank_bench.runners.config import MethodSpec, SweepConfig
    from lowrank_bench.runners.evaluating import Evaluated, evaluate

__all__ = [
    "Benchmark",
    "Budget",
    "CompressRequest",
    "Compressed",
    "Compressor",
    "EvalSettings",
    "Evaluated",
    "MatrixCompressor",
    "MethodSpec",
    "Record",
    "SweepConfig",
    "SweepResult",
    "Task",
    "UserError",
    "compress",
    "evaluate",
    "read_records",
    "run_sweep",
]

_SOURCES = {
    "Benchmark": "evals.base:Benchmark",
    "Budget": "methods.ranks.budget:Budget",
    "CompressRequest": "runners.compressing:CompressRequest",
    "Compressed": "runners.compressing:Compressed",
    "Compressor": "methods.base:Compressor",
    "EvalSettings": "evals.base:EvalSettings",
    "Evaluated": "runners.evaluating:Evaluated",
    "MatrixCompressor": "methods.matrixwise:MatrixCompressor",
    "MethodSpec": "runners.config:MethodSpec",
    "Record": "records.schema:Record",
    "SweepConfig": "runners.config:SweepConfig",
    "SweepResult": "results.sweep:SweepResult",
    "Task": "evals.tasks.base:Task",
    "UserError": "foundation.errors:UserError",
    "compress": "runners.compressing:compress",
    "evaluate": "runners.evaluating:evaluate",
    "read_records": "records.files:read_records",
    "run_sweep": "results.sweep:run_sweep",
}
"""Module and attribute of each public name; the same as the imports above, which only type checkers follow."""


if not TYPE_CHECKING:  # which would take every name for one of ours

    def __getattr__(name: str) -> Any:
        """Import a public name when it is first used."""
        if name not in _SOURCES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        module, _, attribute = _SOURCES[name].partition(":")
        value = globals()[name] = getattr(import_module(f"lowrank_bench.{module}"), attribute)
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


install()

"""Fixtures that every test may use."""

import gc
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from filelock import FileLock
from made_records import make_record, make_sweep
from sweeps import small_sweep

from lowrank_bench.records.files import Record

_ROOT = Path(__file__).parent.parent

FULL = """
models/vllm_plugin/test_serving.py
runners/executors/test_distributed.py
runners/executors/test_ray.py
cli/test_regression.py
cli/test_command_lines.py
runners/test_sweep.py
evals/engines/test_engine_vllm.py
models/vllm_plugin/test_server.py
runners/test_engines.py
runners/test_budgets.py
runners/test_nothing_lost.py
runners/store/test_storage.py
results/report/test_report.py
results/shrink/test_shrink.py
methods/test_third_party.py
cli/test_cli.py
results/speed/test_online.py
results/speed/test_speed.py
papers/test_reproduce.py
docs/test_tutorial.py
docs/test_python_api.py
docs/test_guides.py
docs/test_measurements.py
docs/test_your_own_task.py
runners/test_broken_models.py
runners/test_hostile_folders.py
evals/test_samples.py
runners/test_commonsense_sweep.py
evals/grading/test_sandbox.py
evals/benchmarks/test_benchmarks.py
methods/test_memory.py
models/vllm_plugin/test_lm_eval.py
evals/harness/test_command_line.py
perf/test_sweeps.py
perf/test_estimated_memory.py
foundation/test_fork_server.py
evals/hosting/test_engine_hosting.py
browser/test_report_page.py
methods/test_contract.py
results/regression/test_false_alarms.py
methods/test_worst_inputs.py
models/test_checkpoint.py
runners/store/test_verifying.py
results/inspection/test_inspection.py
runners/test_progress.py
runners/test_plan.py
results/samples/test_samples.py
runners/test_save_dtype.py
runners/test_tuning.py
runners/test_quantised_sweep.py
results/leaderboard/test_paired_boards.py
runners/training/test_resuming.py
methods/test_fit_memory.py
runners/test_recovery.py
runners/training/test_later.py
methods/recoveries/test_recoveries.py
runners/estimates/test_estimate.py
runners/estimates/test_memory.py
runners/store/test_stages.py
browser/test_site.py
browser/test_leaderboard.py
packaging/test_recipes.py
browser/test_shell.py
cli/test_inspect.py
runners/test_task_sweep.py
cli/test_leaderboard.py
cli/test_broken_task_files.py
evals/data/test_datasets_from_the_hub.py
evals/engines/test_engine_transformers.py
evals/kinds/test_harness.py
evals/harness/test_lm_eval_tasks.py
evals/harness/test_broken_tasks.py
evals/harness/test_ifeval.py
evals/test_contexts.py
evals/grading/test_isolation.py
evals/grading/test_math.py
evals/grading/test_math_value.py
evals/grading/test_mutants.py
evals/test_needs.py
evals/test_one_completion.py
evals/grading/test_sandbox_endings.py
evals/grading/test_sandbox_packages.py
foundation/test_memory.py
foundation/test_process.py
models/test_adapters.py
models/test_autoload.py
models/test_export.py
models/test_streamed.py
models/test_tiny.py
perf/test_bs_step.py
perf/test_decompose.py
perf/test_gpu.py
papers/test_published.py
runners/training/test_training.py
runners/tracking/test_trackers.py
results/exports/test_lm_eval.py
methods/library/test_bs_shrinking.py
records/test_records.py
methods/library/test_bs.py
methods/test_combinations.py
models/vllm_plugin/test_slices.py
models/test_dtypes.py
foundation/test_registry.py
results/inspection/test_bases.py
methods/library/test_bs_final.py
results/plots/test_curves.py
evals/grading/test_extract.py
models/test_saving.py
evals/test_continuation.py
methods/library/test_bsi.py
evals/kinds/test_choice.py
"""
"""Modules that sweep, serve, train at length, read large datasets or start processes, the longest first.

Their tests are marked ``full``, all others ``quick``.
"""


def pytest_addoption(parser: pytest.Parser) -> None:
    """How much is tried beyond what every run tries."""
    parser.addoption("--fuzzed-lines", type=int, default=300, help="random command lines to try")
    parser.addoption("--fuzzing-seed", type=int, default=0, help="draws other command lines")


def pytest_configure() -> None:
    """Collect no garbage while the tests are: their imports make hardly any."""
    gc.disable()


def pytest_collection_finish() -> None:
    """From here on there is garbage; `freeze_what_is_loaded` takes the imports out of its collection."""
    gc.enable()


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the modules, and begin with the longest ones: at the end no process waits long for another."""
    positions = {Path(__file__).parent / name: position for position, name in enumerate(FULL.split())}
    if gone := [str(path) for path in positions if not path.is_file()]:
        raise pytest.UsageError(f"tests/conftest.py names modules that do not exist: {', '.join(gone)}")
    for item in items:
        item.add_marker("full" if item.path in positions else "quick")
    items.sort(key=lambda item: positions.get(item.path, len(positions)))


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """Folder with the real datasets and the pretrained stories260K model (docs/data.md)."""
    folder = Path(os.environ.get("LOWRANK_BENCH_DATA", _ROOT.parent / "shared" / "data"))
    assert (folder / "FILES.tsv").is_file(), f"no datasets in {folder}; set LOWRANK_BENCH_DATA to their folder"
    return folder


@pytest.fixture(autouse=True, scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory):
    """A folder for what can be computed again in place of the user's; the processes of pytest-xdist share one."""
    base = tmp_path_factory.getbasetemp()
    os.environ["LOWRANK_BENCH_CACHE"] = str((base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "cache")


@pytest.fixture(autouse=True, scope="module")
def freeze_what_is_loaded():
    """Take what the tests and libraries loaded so far out of later collections.

    Every training ends with a collection of all objects (accelerate's), and those of imported modules and of thousands
    of collected tests took a third of a second of it, more than a short training.
    """
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True, scope="module")
def forget_task_files():
    """What a module's task files made known to this process is unknown to the next module."""
    from lowrank_bench.evals.base import benchmarks
    from lowrank_bench.evals.tasks import base

    known, tasks = set(benchmarks._classes), dict(base._added)
    yield
    for name in [name for name in benchmarks._classes if name not in known]:
        if benchmarks._classes[name].__module__ == "lowrank_bench.evals.tasks.files.benchmarks":
            del benchmarks._classes[name]
    base._added.clear()
    base._added.update(tasks)


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory):
    """The configuration of a finished small sweep; the processes of pytest-xdist share one, each has a copy."""
    from lowrank_bench.results.sweep import run_sweep

    config = small_sweep(tmp_path_factory.mktemp("finished"))
    if "PYTEST_XDIST_WORKER" not in os.environ:
        run_sweep(config)
        return config
    shared = tmp_path_factory.getbasetemp().parent / "finished"
    with FileLock(f"{shared}.lock"):
        if not shared.exists():
            run_sweep(config)
            shutil.copytree(config.execution.out, making := shared.with_suffix(".part"))
            making.rename(shared)
            return config
    shutil.copytree(shared, config.execution.out, dirs_exist_ok=True)
    return config


@pytest.fixture(scope="session")
def record() -> Callable[..., Record]:
    """Make a realistic record without any model."""
    return make_record


@pytest.fixture(scope="session")
def sweep() -> Callable[..., list[Record]]:
    """Make the realistic records of a sweep without any model."""
    return make_sweep

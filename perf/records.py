"""Ten thousand records: how long reading, tables, figures and pages take, beside plain pandas where there is an equal.

    python perf/records.py                      # in a temporary folder
    python perf/records.py --out runs/records   # keeps the files

The records are made up and valid: two models, two tasks, 17 methods, 9 ratios, 3 seeds, 3 benchmarks, two metrics each.
One process, one thread; wall and processor seconds of one call after imports. Target: every line under 10 processor
seconds, which an idle machine needs as wall seconds too. `bench plot` draws a picture a table; these records make 12.
"""

import argparse
import hashlib
import importlib
import importlib.util
import io
import math
import random
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib
import matplotlib.figure  # imports are not what is measured
import pandas as pd
from rich.console import Console

from lowrank_bench.foundation.files import canonical_json
from lowrank_bench.records.files import Record, read_records, write_records
from lowrank_bench.records.filters import filter_frame
from lowrank_bench.records.intervals import wilson
from lowrank_bench.results.plots import curves
from lowrank_bench.results.regression.baseline import update_baseline
from lowrank_bench.results.regression.compare import Tolerance, check_run
from lowrank_bench.results.regression.junit import junit_xml
from lowrank_bench.results.tables import cross
from lowrank_bench.results.tables.by_ratio import by_ratio, by_ratio_data
from lowrank_bench.results.tables.pivot import pivot
from lowrank_bench.results.tables.terminal import render
from lowrank_bench.results.tables.writers import WRITERS

TARGET_SECONDS = 10.0
MODELS = {"llama2-7b": 6_738_415_616, "llama2-13b": 13_015_864_320}
TASKS = {"math": ("gsm8k", "math", "math500"), "code": ("humaneval", "mbpp", "toy-code")}
METHODS = (
    *("svd", "fwsvd", "bs", "bsi", "svd-llm", "svd-llm-v2", "drone", "io-svd", "asvd", "afm", "sfsd", "swsd"),
    *("laser", "joint-rank-k", "basis-sharing", "magnitude", "random"),
)
RATIOS = (1.25, 1.5, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0)
SEEDS = (1, 2, 3)
N = 500
VERSIONS = canonical_json({"lowrank_bench": "0.1.0", "python": "3.11.9", "torch": "2.13.0"})


def make_records() -> list[Record]:
    """Return ten thousand or more valid records whose scores fall with the ratio; always the same."""
    random.seed(0)
    records = []
    for model, parameters in MODELS.items():
        for task, benchmarks in TASKS.items():
            for seed in SEEDS:
                records += cell(model, parameters, task, benchmarks, seed, "none", 1.0, 0.6)
                for index, method in enumerate(METHODS):
                    for ratio in RATIOS:
                        score = 0.6 / (1 + (0.1 + 0.03 * index) * math.log2(ratio) ** 2) + random.uniform(-0.01, 0.01)
                        records += cell(model, parameters, task, benchmarks, seed, method, ratio, score)
    return records


def cell(
    model: str,
    original: int,
    task: str,
    benchmarks: tuple[str, ...],
    seed: int,
    method: str,
    ratio: float,
    score: float,
) -> list[Record]:
    """Return the records of one cell: two metrics on each benchmark."""
    params, plain = int(original / ratio), method == "none"
    rows = []
    for benchmark in benchmarks:
        key = f"{model}/{task}/{method}/{ratio}/{seed}/{benchmark}"
        for scorer in ("strict", "lenient"):
            solved = round(N * min(1.0, score + 0.02 * (scorer == "lenient")))
            low, high = wilson(solved, N)
            rows.append(
                Record(
                    schema_version=3, sweep=f"{model}-{task}", model=model, model_sha256=model, task=task,
                    method=method,
                    label="finetuned" if plain else method, options="{}", stage="finetuned" if plain else "recovered",
                    ratio_target=ratio, ratio=original / params, kept=params / original, ratio_matrices=ratio,
                    params_original=original, params=params, bytes=2 * params, runtime_bytes=2 * params,
                    seed=seed, benchmark=benchmark,
                    variant=f"{benchmark}-0shot", metric="accuracy", scorer=scorer, headline=scorer == "strict",
                    higher_is_better=True, value=solved / N, low=low, high=high, confidence=0.95, n=N,
                    steps_finetune=600, steps_compress=0, steps_recover=0 if plain else 600,
                    steps_budget=0 if plain else 600, tuned="{}", tokens_finetune=10**7,
                    tokens_compress=0, tokens_recover=0 if plain else 10**7, seconds_finetune=3600.5, seconds_fit=60.0,
                    seconds_compress=5.0, seconds_recover=0.0 if plain else 3600.5, seconds_quantise=0.0,
                    seconds_evaluate=100.5,
                    peak_memory_bytes=10**10, engine="vllm", dtype="bfloat16", device="gpu", threads=8, isolation="",
                    dataset_sha256=benchmark, prompt_sha256=benchmark, versions=VERSIONS, git_commit="0" * 40,
                    evaluated_at="2026-01-31T12:00:00+00:00", stage_key=hashlib.sha256(key.encode()).hexdigest(),
                )
            )  # fmt: skip
    return rows


def timed(work: Callable[[], Any]) -> tuple[Any, float, float]:
    """Return the result, wall seconds and processor seconds of a call."""
    wall, cpu = time.perf_counter(), time.process_time()
    result = work()
    return result, time.perf_counter() - wall, time.process_time() - cpu


def pages(frame: pd.DataFrame, folder: Path) -> dict[str, Callable[[], Any]]:
    """Return the calls that make leaderboard and report, as far as this installation has them."""
    calls: dict[str, Callable[[], Any]] = {}
    if importlib.util.find_spec("lowrank_bench.results.leaderboard"):
        boards = importlib.import_module("lowrank_bench.results.leaderboard.boards")
        texts = importlib.import_module("lowrank_bench.results.leaderboard.texts")
        page = importlib.import_module("lowrank_bench.results.leaderboard.page")
        results: list[Any] = []
        calls["leaderboard, ranking"] = lambda: results.extend(boards.boards(frame.assign(**{boards.ORIGIN: "run"})))
        for name in ("to_csv", "to_markdown", "to_latex"):
            calls[f"leaderboard {name}"] = lambda name=name: getattr(texts, name)(results)
        calls["leaderboard page"] = lambda: page.to_html(results)
    if importlib.util.find_spec("lowrank_bench.results.report"):
        write = importlib.import_module("lowrank_bench.results.report.write")
        calls["report, both pages"] = lambda: write.write_report(folder, folder / "report", None)
    return calls


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="folder for the files; a temporary one without it")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        rows = measure(arguments.out or Path(temporary))
    print(f"{'what':<44} {'wall s':>7} {'cpu s':>7} {'pandas s':>9} {'times':>6}")
    for title, wall, cpu, plain in rows:
        beside = f"{plain:9.3f} {cpu / plain:6.1f}" if plain else ""
        print(f"{title:<44} {wall:7.2f} {cpu:7.2f} {beside}{'  OVER' if cpu > TARGET_SECONDS else ''}")
    sys.exit(any(cpu > TARGET_SECONDS for _, _, cpu, _ in rows))


def measure(folder: Path) -> list[tuple[str, float, float, float | None]]:
    """Return what was done, its wall and processor seconds, and pandas' processor seconds where it has an equal."""
    rows: list[tuple[str, float, float, float | None]] = []

    def line(title: str, work: Callable[[], Any], plain: Callable[[], Any] | None = None) -> Any:
        result, wall, cpu = timed(work)
        rows.append((title, wall, cpu, max(timed(plain)[2], 1e-4) if plain else None))
        return result

    records = make_records()
    csv, parquet = line(f"write {len(records):,} records, both files", lambda: write_records(folder, records))
    pd.read_parquet(parquet)  # loads pyarrow
    line("read results.csv, every row validated", lambda: read_records(csv), lambda: pd.read_csv(csv))
    frame = line(
        "read results.parquet, every row validated", lambda: read_records(parquet), lambda: pd.read_parquet(parquet)
    )
    index = ["model", "task", "benchmark", "variant", "metric", "scorer", "label"]
    plain = lambda: frame.pivot_table(index=index, columns="ratio_target", values="value")  # noqa: E731
    line("pivot, all metrics", lambda: pivot(frame, headline=False), plain)
    screen = Console(file=io.StringIO(), width=100)
    line("table in the terminal, all metrics", lambda: render(by_ratio(frame, headline=False), screen))
    for name, write in WRITERS.items():
        view = (lambda *given: [by_ratio_data(*given)]) if name == "csv" else by_ratio
        line(f"table as {name}, all metrics", lambda write=write, view=view: write(view(frame, False)))
    line("--where, two conditions", lambda: filter_frame(frame, ["method=svd,bs", "ratio_target>=2"]))
    layout = cross.Layout(rows=("label", "seed"))
    crossed = line("--rows label,seed", lambda: cross.cross(frame, layout, headline=False), plain)
    for name, write in WRITERS.items():
        view = (lambda tables: [cross.cross_data(tables)]) if name == "csv" else cross.cross_tables
        line(f"--rows label,seed as {name}", lambda write=write, view=view: write(view(crossed)))
    line("bench baseline update", lambda: update_baseline(frame, folder / "baseline.csv"))
    check = line("bench check", lambda: check_run(frame, frame, Tolerance()))
    line("bench check as JUnit XML", lambda: junit_xml(check, "run"))
    for page_title, work in pages(frame, folder).items():
        line(page_title, work)
    selected = frame[(frame["model"] == "llama2-7b") & (frame["benchmark"] == "gsm8k")]
    curves.draw_curves(selected[selected["label"].isin(["svd", "finetuned"])], folder / "warm")
    line("one figure, PNG and SVG, 17 methods", lambda: curves.draw_curves(selected, folder / "one"))
    paths = line("every figure", lambda: curves.draw_curves(frame, folder / "figures"))
    page_title, wall, cpu, _ = rows.pop()
    rows.append((f"{page_title}: {len(paths) // 2} figures, each", wall / len(paths) * 2, cpu / len(paths) * 2, None))
    return rows


if __name__ == "__main__":
    matplotlib.use("Agg")
    main()

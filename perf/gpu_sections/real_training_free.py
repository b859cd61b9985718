"""Methods that need no training on a real model, by three sweeps over one store, and their results.

`EMBEDDINGS` factorise the tied embedding with the rest, so 2x of the whole model is in reach; `OTHERS` leave it as it
is, with two examples a backward pass, because eight take 65 GiB, nearly all of it logits; `SEARCHES` evaluate many
candidates and come last, in case that the time is up.
"""

import csv
from collections.abc import Iterator
from pathlib import Path

from gpu_sections.sweeps import OutOfTime, SweepFailed, bench, stages
from gpu_sections.table import Context, Row, failed

EMBEDDINGS = tuple(f"{name}:embeddings=true" for name in ("svd", "drone", "svd-llm", "svd-llm-v2"))
OTHERS = (
    "afm",
    "basis-sharing",
    "fwsvd:batch_size=2,samples=256",
    "io-svd:batch_size=2",
    "joint-rank-k",
    "magnitude",
    "random",
    "svd-llm",
)
SEARCHES = ("asvd", "laser", "swsd", "sfsd")
SWEEPS = {
    "embeddings": (EMBEDDINGS, ("1.2", "1.5", "2")),
    "others": (OTHERS, ("1.2", "1.5")),
    "searches": (SEARCHES, ("1.2", "1.5")),
}
BENCHMARKS = ("wikitext2", "c4", "piqa", "arc-easy", "hellaswag", "winogrande")
LIMIT, WORKERS = "1000", "12"
SMALL_SWEEPS = {"others": (("svd",), ("3",))}
SMALL_BENCHMARKS = ("toy-math",)


def words(context: Context, name: str) -> list[str]:
    """Return the words of one sweep's command line."""
    options = context.options
    methods, ratios = (SMALL_SWEEPS if context.small else SWEEPS)[name]
    data = ["--data", options["data"]] if options["data"] else []
    if context.small:
        more = ["--task", "toy-math", "--limit", "2", "--max-new-tokens", "4"]
    else:
        more = ["--task", "language-c4", "--benchmarks", ",".join(BENCHMARKS), "--limit", LIMIT, "--workers", WORKERS]
        more += ["--context", "2048", "--bos", "always"]
    return [
        *("run", "--training-free", "--name", name, "--out", str(context.folder / "training-free")),
        *("--model", options["model"], "--device", context.device, "--engine", "transformers", *data, *more),
        *("--methods", ",".join(methods), "--ratios", ",".join(ratios)),
    ]


def run(context: Context) -> Iterator[Row]:
    """Yield the rows of each sweep that is complete, and how far the others got."""
    folder = context.folder / "training-free"
    for name in SMALL_SWEEPS if context.small else SWEEPS:
        try:
            if context.left <= 0:
                raise OutOfTime("the part's time was up")
            bench(words(context, name), context.left)
        except OutOfTime:
            text = f"{len(stages(folder))} stages are done"
            yield Row(f"sweep {name}", text, target="complete", met=False, note="run this part again, it goes on")
        except SweepFailed as error:
            yield failed(f"sweep {name}", error)
        else:
            yield from results(folder / name / "results.csv")


def results(file: Path) -> Iterator[Row]:
    """Yield a row for each headline value of a results.csv, as it is there."""
    with file.open() as lines:
        rows = [row for row in csv.DictReader(lines) if row["headline"] == "true"]
    for row in rows:
        title = f"{row['benchmark']}, {row['label']} at {float(row['ratio']):.2f}x"
        interval = f" [{float(row['low']):,.4g}, {float(row['high']):,.4g}]" if row["low"] else ""
        yield Row(title, f"{row['metric']} {float(row['value']):,.4g}{interval}, n = {row['n']}")

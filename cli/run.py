"""bench run: a sweep from finetuning to table and curves."""

from __future__ import annotations

import signal
import sys
from pathlib import Path
from typing import Annotated

import typer

from ..foundation.errors import UserError
from .options import Bos, Data, Revision, Weak
from .output import console, escape, numbers, split_list


def run(
    methods: Annotated[
        str | None, typer.Option(help="Methods with commas; options after a colon: svd,bs:prunings=10,new_vectors=top.")
    ] = None,
    model: Annotated[str | None, typer.Option(help="Preset, folder or hub id (see bench models).")] = None,
    task: Annotated[str | None, typer.Option(help="Target application (see bench tasks).")] = None,
    ratios: Annotated[
        str | None, typer.Option(help="Original / compressed parameters of the whole model: 2,4,7.  [default: 2,4]")
    ] = None,
    rank_multiple: Annotated[
        int | None,
        typer.Option(help="Ranks are multiples of this; 16 aligns bfloat16 rows on GPUs.  [default: 1]"),
    ] = None,
    config: Annotated[
        Path | None, typer.Option(help="YAML file with the same names; options here override it.")
    ] = None,
    data: Data = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the plan and stop.")] = False,
    assume: Annotated[
        str | None, typer.Option(help="Plan for this machine instead, with --dry-run: h100:1, h100:8, rtx4090:1.")
    ] = None,
    seeds: Annotated[str | None, typer.Option(help="Seeds with commas.  [default: 42]")] = None,
    limit: Annotated[int | None, typer.Option(help="Only the first problems of each benchmark.")] = None,
    training_free: Annotated[
        bool | None, typer.Option("--training-free", help="Compress the model as it is; no finetuning before or after.")
    ] = None,
    benchmarks: Annotated[
        str | None,
        typer.Option(help="Instead of the task's own (see bench benchmarks); a task stands for its benchmarks."),
    ] = None,
    context: Annotated[
        str | None, typer.Option(help="Windows of perplexities in tokens: 128,2048.  [default: the benchmark's]")
    ] = None,
    bos: Bos = None,
    train_set: Annotated[str | None, typer.Option(help="Training set of the task (see bench tasks).")] = None,
    recipe: Annotated[str | None, typer.Option(help="Training defaults: paper, quick, small or auto.")] = None,
    finetune_steps: Annotated[int | None, typer.Option(help="Optimizer steps of the first finetuning.")] = None,
    recover_steps: Annotated[
        int | None, typer.Option(help="Optimizer steps after it, pruning included; the same for every method.")
    ] = None,
    extra_pruning_steps: Annotated[int | None, typer.Option(help="Pruning steps on top of the common budget.")] = None,
    lr: Annotated[float | None, typer.Option(help="Learning rate of both finetunings.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Examples per optimizer step.")] = None,
    max_length: Annotated[int | None, typer.Option(help="Longest training example in tokens.")] = None,
    pretrained: Annotated[
        bool | None, typer.Option("--pretrained/--no-pretrained", help="Also evaluate before the first finetuning.")
    ] = None,
    before_recovery: Annotated[
        bool | None, typer.Option("--before-recovery", help="Also evaluate before the second finetuning.")
    ] = None,
    revision: Revision = None,
    engine: Annotated[
        str | None, typer.Option(help="What generates and scores: vllm, transformers or auto.  [default: auto]")
    ] = None,
    dtype: Annotated[str | None, typer.Option(help="Of the evaluation's arithmetic.  [default: the recipe's]")] = None,
    save_dtype: Annotated[
        str | None,
        typer.Option(
            help="Of saved weights: own, float32, bfloat16, float16.  [default: own; of trained, the recipe's]"
        ),
    ] = None,
    device: Annotated[str | None, typer.Option(help="torch device.  [default: auto]")] = None,
    eval_batch_size: Annotated[int | None, typer.Option(help="Prompts per batch.  [default: 64]")] = None,
    max_new_tokens: Annotated[int | None, typer.Option(help="Longest completion.  [default: the benchmark's]")] = None,
    samples: Annotated[int | None, typer.Option(help="Completions per problem, for pass@k.  [default: 1]")] = None,
    temperature: Annotated[float | None, typer.Option(help="Of sampling; 0 is greedy.  [default: 0]")] = None,
    top_p: Annotated[float | None, typer.Option(help="Nucleus share.  [default: 1]")] = None,
    allow_weak_isolation: Weak = False,
    workers: Annotated[int | None, typer.Option(help="Stages side by side.  [default: by cores and device]")] = None,
    memory: Annotated[
        str | None, typer.Option(help="Fit and compress layer by layer (walk), whole, or by size.  [default: auto]")
    ] = None,
    executor: Annotated[
        str | None, typer.Option(help="local, or ray: stages as tasks of a Ray cluster.  [default: local]")
    ] = None,
    address: Annotated[
        str | None, typer.Option(help="Running Ray cluster: HOST:PORT or auto.  [default: start Ray on this machine]")
    ] = None,
    accelerate: Annotated[
        Path | None, typer.Option(help="accelerate's config file: train in several processes, such as one per GPU.")
    ] = None,
    placement: Annotated[
        str | None,
        typer.Option(
            help="Of trained weights and moments: device, fsdp2, host-moments, 8-bit.  [default: auto, what fits]"
        ),
    ] = None,
    checkpoint_minutes: Annotated[
        float | None,
        typer.Option(help="How often a training keeps what it can be resumed from; inf: never.  [default: 30]"),
    ] = None,
    keep: Annotated[
        str | None,
        typer.Option(
            help="all weights, or needed: remove what no later stage reads.  [default: needed from 1 B parameters on]"
        ),
    ] = None,
    storage: Annotated[
        str | None, typer.Option(help="URL of shared or object storage for stages and results: s3://BUCKET/FOLDER.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for stages and results.  [default: runs]")] = None,
    name: Annotated[str | None, typer.Option(help="Folder of this sweep's results.  [default: MODEL-TASK]")] = None,
) -> None:
    """Run methods through finetune, compress, finetune, evaluate; end with a table and curves.

    What stands is not done twice: run the same command again to resume or to add a ratio or a method.
    """
    from ..runners.config import make_config, merge, nest, read_yaml, split_methods

    if assume is not None and not dry_run:
        raise UserError(
            f"--assume {assume} plans for a machine that is not here; add --dry-run, or leave it out to run"
        )
    values = read_yaml(config) if config else {}
    training = {"learning_rate": lr, "batch_size": batch_size, "max_length": max_length}
    given = {
        "methods": split_methods(methods) if methods is not None else None,
        "model": model,
        "task": task,
        "ratios": numbers("ratio", ratios, float, "2,4,7"),
        "seeds": numbers("seed", seeds, int, "1,2,3"),
        "benchmarks": split_list(benchmarks),
        "context": numbers("context", context, int, "128,2048"),
        "allow_weak_isolation": allow_weak_isolation or None,
        **{k: v for k, v in locals().items() if k in _PLAIN},
    }
    for stage, steps in (("finetune", finetune_steps), ("recover", recover_steps)):
        given[stage] = {key: value for key, value in (training | {"steps": steps}).items() if value is not None} or None
    asked = nest({key: value for key, value in given.items() if value is not None})
    checked = make_config(merge(values, asked))
    if dry_run:
        from ..runners.dry_run import print_plan

        print_plan(checked, console(), assume)
        return
    from ..results.sweep import run_sweep
    from ..runners.executors.local import StageCrashed

    told: list[int] = []

    def terminated(number: int, frame: object) -> None:
        # A cluster's or container's polite end; handled as Ctrl-C is, which Ray passes on as a plain one.
        told.append(number)
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, terminated)
    try:
        run_sweep(checked, console())
    except KeyboardInterrupt:
        console(stderr=True).print("interrupted; finished stages are kept, run the same command again to go on")
        sys.exit(128 + told[0] if told else 130)
    except StageCrashed as crash:
        console(stderr=True).print(f"[bold red]error:[/] {escape(str(crash))}", soft_wrap=True, highlight=False)
        sys.exit(1)


_PLAIN = {
    *(
        "data",
        "limit",
        "train_set",
        "recipe",
        "extra_pruning_steps",
        "training_free",
        "pretrained",
        "before_recovery",
        "revision",
    ),
    *(
        "engine",
        "dtype",
        "save_dtype",
        "device",
        "eval_batch_size",
        "max_new_tokens",
        "workers",
        "memory",
        "executor",
        "address",
        "accelerate",
        "placement",
        "checkpoint_minutes",
        "keep",
        "storage",
        "out",
        "name",
    ),
    *("samples", "temperature", "top_p", "bos", "rank_multiple"),
}


def add_to(app: typer.Typer) -> None:
    """Add this command to the command line."""
    app.command()(run)

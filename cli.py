"""The door: thin commands, each of which calls one public function."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from . import cli_results, cli_samples, cli_serving
from .cli_output import console, escape, numbers, print_rows, split_list
from .foundation.errors import UserError, unknown

app = typer.Typer(
    name="bench",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    help="How small can a language model be made for one application, and by which low-rank method, before it stops "
    "working? Finetune, compress, finetune again, measure.",
)

Data = Annotated[
    Path | None,
    typer.Option(envvar="LOWRANK_BENCH_DATA", help="Folder with local datasets; without it the hub is used."),
]
Out = Annotated[Path, typer.Option(help="Folder for stages and results.")]
Weak = Annotated[bool, typer.Option(help="Run generated code even where only resource limits hold it.")]
Revision = Annotated[str | None, typer.Option(help="40-digit commit of a hub model.")]
Device = Annotated[str, typer.Option(help="torch device; auto takes a GPU where there is one.")]
Engine = Annotated[str, typer.Option(help="What generates and scores: vllm, transformers, or auto.")]


def main() -> None:
    """Run the command line; a `UserError` becomes one sentence and exit code 2."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")  # its warnings would stand before our one sentence
    try:
        app()
    except UserError as error:
        _fail(str(error))
    except BrokenPipeError:
        sys.exit(0)


def _fail(message: str) -> NoReturn:
    console(stderr=True).print(f"[bold red]error:[/] {escape(message)}", soft_wrap=True, highlight=False)
    sys.exit(2)


@app.command()
def run(
    methods: Annotated[
        str | None, typer.Option(help="Methods with commas; options after a colon: svd,bs:prunings=10,new_vectors=top.")
    ] = None,
    model: Annotated[str | None, typer.Option(help="Preset, folder or hub id (see bench models).")] = None,
    task: Annotated[str | None, typer.Option(help="Target application (see bench tasks).")] = None,
    ratios: Annotated[
        str | None, typer.Option(help="Original / compressed parameters of the whole model: 2,4,7.  [default: 2,4]")
    ] = None,
    config: Annotated[
        Path | None, typer.Option(help="YAML file with the same names; options here override it.")
    ] = None,
    data: Data = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the plan and stop.")] = False,
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
    train_set: Annotated[str | None, typer.Option(help="Training set of the task (see bench tasks).")] = None,
    recipe: Annotated[str | None, typer.Option(help="Training defaults: paper, small or auto.")] = None,
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
    dtype: Annotated[str | None, typer.Option(help="Of saved weights and evaluation.  [default: the recipe's]")] = None,
    device: Annotated[str | None, typer.Option(help="torch device.  [default: auto]")] = None,
    eval_batch_size: Annotated[int | None, typer.Option(help="Prompts per batch.  [default: 64]")] = None,
    max_new_tokens: Annotated[int | None, typer.Option(help="Longest completion.  [default: the benchmark's]")] = None,
    samples: Annotated[int | None, typer.Option(help="Completions per problem, for pass@k.  [default: 1]")] = None,
    temperature: Annotated[float | None, typer.Option(help="Of sampling; 0 is greedy.  [default: 0]")] = None,
    top_p: Annotated[float | None, typer.Option(help="Nucleus share.  [default: 1]")] = None,
    allow_weak_isolation: Weak = False,
    workers: Annotated[int | None, typer.Option(help="Stages side by side.  [default: by cores and device]")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for stages and results.  [default: runs]")] = None,
    name: Annotated[str | None, typer.Option(help="Folder of this sweep's results.  [default: MODEL-TASK]")] = None,
) -> None:
    """Run methods through finetune, compress, finetune, evaluate; end with a table and curves.

    What stands is not done twice: run the same command again to resume or to add a ratio or a method.
    """
    from .runners.config import make_config, read_yaml, split_methods

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
    values |= {key: value for key, value in given.items() if value is not None}
    for stage, steps in (("finetune", finetune_steps), ("recover", recover_steps)):
        changes = {key: value for key, value in (training | {"steps": steps}).items() if value is not None}
        if changes:
            values[stage] = (values.get(stage) or {}) | changes
    checked = make_config(values)
    if dry_run:
        from .runners.dry_run import print_plan

        print_plan(checked, console())
        return
    from .runners.local import StageCrashed
    from .runners.sweep import run_sweep

    try:
        run_sweep(checked, console())
    except KeyboardInterrupt:
        console(stderr=True).print("interrupted; finished stages are kept, run the same command again to go on")
        sys.exit(130)
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
    *("engine", "dtype", "device", "eval_batch_size", "max_new_tokens", "workers", "out", "name"),
    *("samples", "temperature", "top_p"),
}


@app.command()
def methods(
    name: Annotated[str | None, typer.Argument(help="One method: all that is known of it, and its options.")] = None,
    policies: Annotated[bool, typer.Option("--policies", help="List rank policies instead.")] = False,
) -> None:
    """List the compression methods, or the rank policies; with a name, its options and where it stands."""
    from . import cli_methods

    if name is not None:
        cli_methods.show(name, policies)
    else:
        cli_methods.list_all(policies)


@app.command()
def models() -> None:
    """List the model presets; folders and hub ids work too."""
    from .models.presets import PRESETS

    rows = [(name, p.summary, p.revision[:12] or "shipped with the package", p.recipe) for name, p in PRESETS.items()]
    print_rows("models", ["name", "what it is", "revision", "recipe"], rows)


@app.command()
def tasks() -> None:
    """List the tasks with their benchmarks and training sets."""
    from .evals.tasks import tasks as all_tasks

    rows = [(t.name, t.summary, ", ".join(t.benchmarks), ", ".join(t.sources)) for t in all_tasks.values()]
    print_rows("tasks", ["name", "what it is", "benchmarks", "training sets (the hub's default first)"], rows)


@app.command()
def benchmarks() -> None:
    """List the benchmarks."""
    from .evals.base import benchmarks as registry

    rows = [(row.name, row.summary, row.origin) for row in registry.listings()]
    print_rows("benchmarks", ["name", "what it measures", "from"], rows)


@app.command()
def compress(
    model: Annotated[str, typer.Argument(help="Preset, folder or hub id.")],
    method: Annotated[str, typer.Option(help="Method, with options after a colon.")],
    ratio: Annotated[str, typer.Option(help="Original / compressed parameters of the whole model.")],
    out: Annotated[Path, typer.Option(help="New folder for the factorised checkpoint.")],
    task: Annotated[str | None, typer.Option(help="Where methods that need data take them from.")] = None,
    data: Data = None,
    train_set: Annotated[str | None, typer.Option(help="Training set of the task.")] = None,
    steps: Annotated[
        int | None, typer.Option(help="Common step budget that a training method takes its share of.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of data order and new vectors.")] = 42,
    dtype: Annotated[str | None, typer.Option(help="Of the saved weights.  [default: the recipe's]")] = None,
    device: Device = "auto",
    recipe: Annotated[str, typer.Option(help="Training defaults: paper, small or auto.")] = "auto",
    revision: Revision = None,
) -> None:
    """Compress one model as it is and write a factorised checkpoint."""
    from .runners.config import parse_method
    from .runners.single import CompressRequest, compress_model

    wanted = numbers("ratio", ratio, float, "4") or []
    if len(wanted) != 1:
        raise UserError(f"the ratio '{ratio}' must be one number; run bench compress once per ratio, or use bench run")
    request = CompressRequest(
        model, parse_method(method), wanted[0], out, task, revision, data, train_set, steps, seed, dtype, device, recipe
    )
    done = compress_model(request)
    report = done.report
    dense = f", {len(report.dense)} kept dense" if report.dense else ""
    console().print(
        f"{report.parameters_before:,} → {report.parameters:,} parameters: {report.ratio:.3f}x (kept "
        f"{100 / report.ratio:.1f} %, matrices alone {report.ratio_matrices:.3f}x); {len(report.ranks)} matrices "
        f"factorised{dense}",
        highlight=False,
        soft_wrap=True,
    )
    rows = [(part.what, f"{part.parameters:,}", f"{100 * part.share:.1f} %", part.why) for part in done.dense]
    print_rows("stays dense", ["what", "parameters", "of what is left", "why"], rows)
    console().print(f"checkpoint  {out}", highlight=False, soft_wrap=True)


@app.command("eval")
def evaluate(
    model: Annotated[str, typer.Argument(help="Preset, folder (dense or factorised) or hub id.")],
    benchmarks: Annotated[str, typer.Option(help="Benchmarks with commas; a task stands for its benchmarks.")],
    data: Data = None,
    limit: Annotated[int | None, typer.Option(help="Only the first problems.")] = None,
    stage: Annotated[
        str, typer.Option(help="pretrained takes the few-shot prompt, finetuned the finetuning prompt.")
    ] = "finetuned",
    out: Annotated[Path | None, typer.Option(help="New folder for metrics and samples.")] = None,
    engine: Engine = "auto",
    dtype: Annotated[str, typer.Option(help="Weights are loaded as; auto is the checkpoint's own.")] = "auto",
    device: Device = "auto",
    batch_size: Annotated[int, typer.Option(help="Prompts per batch.")] = 64,
    max_new_tokens: Annotated[int | None, typer.Option(help="Longest completion.")] = None,
    samples: Annotated[int, typer.Option(min=1, help="Completions per problem, for pass@k.")] = 1,
    temperature: Annotated[float, typer.Option(min=0.0, help="Of sampling; 0 is greedy.")] = 0.0,
    top_p: Annotated[float, typer.Option(help="Nucleus share.")] = 1.0,
    allow_weak_isolation: Weak = False,
    revision: Revision = None,
    context: Annotated[
        str | None, typer.Option(help="Windows of perplexities in tokens: 128,2048.  [default: the benchmark's]")
    ] = None,
) -> None:
    """Evaluate one model or checkpoint."""
    if stage not in ("pretrained", "finetuned"):
        raise unknown("stage", stage, ["pretrained", "finetuned"])
    from .evals.hosting.host import EngineCrashed
    from .runners.single import default_settings, evaluate_model

    settings = default_settings(
        data_dir=data,
        limit=limit,
        stage=stage,
        batch_size=batch_size,
        max_new_tokens=max_new_tokens,
        samples=samples,
        temperature=temperature,
        top_p=top_p,
        allow_weak_isolation=allow_weak_isolation,
    )
    names = split_list(benchmarks) or []
    contexts = numbers("context", context, int, "128,2048")
    try:
        outcomes = evaluate_model(model, names, settings, revision, engine, dtype, device, out, contexts=contexts)
    except EngineCrashed as crash:
        console(stderr=True).print(f"[bold red]error:[/] {escape(str(crash))}", soft_wrap=True, highlight=False)
        sys.exit(1)
    rows = [
        (
            outcome.variant or name,
            metric.name,
            metric.scorer,
            f"{metric.value:.4g}",
            f"[{metric.low:.4g}, {metric.high:.4g}]",
            str(metric.n),
        )
        for name, outcome in outcomes.items()
        for metric in outcome.metrics
    ]
    print_rows(model, ["benchmark", "metric", "scorer", "value", "95 % interval", "n"], rows)


@app.command()
def doctor(data: Data = None, out: Out = Path("runs")) -> None:
    """Say what this machine can do: devices, engines, isolation, data."""
    from .runners.doctor import examine

    findings = examine(data, out)
    rows = [("ok" if f.fine else "no", f.subject, f.found + (f"; {f.remedy}" if f.remedy else "")) for f in findings]
    print_rows("this machine", ["", "what", "found"], rows)
    if not all(finding.fine for finding in findings):
        sys.exit(1)


for _group in (cli_results, cli_samples, cli_serving):
    _group.add_to(app)

if __name__ == "__main__":
    main()

"""The commands about one model: compress, eval."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from ..foundation.errors import UserError, unknown
from .options import (
    Bos,
    CalibrationDtype,
    ChatTemplate,
    Context,
    Data,
    Device,
    Engine,
    IncludePath,
    Limit,
    MaxNewTokens,
    Memory,
    Placement,
    RankMultiple,
    Revision,
    Samples,
    SaveDtype,
    Temperature,
    TopP,
    TrainingRecipe,
    TrainSet,
    Weak,
)
from .output import console, escape, numbers, print_name_note, print_rows, split_list


def compress(
    model: Annotated[str, typer.Argument(help="Preset, folder or hub id.")],
    method: Annotated[str, typer.Option(help="Method, with options after a colon: svd:embeddings=true.")],
    ratio: Annotated[str, typer.Option(help="Original / compressed parameters of the whole model, such as 2.")],
    out: Annotated[Path, typer.Option(help="New folder for the factorised checkpoint.")],
    task: Annotated[str | None, typer.Option(help="Where methods that need data take them from.")] = None,
    data: Data = None,
    train_set: TrainSet = None,
    steps: Annotated[
        int | None,
        typer.Option(help="Optimizer steps of which a training method takes its share. \\[default: the recipe's]"),
    ] = None,
    seed: Annotated[int, typer.Option(help="Of data order and new vectors.")] = 42,
    dtype: Annotated[
        str, typer.Option(help="Of the arithmetic; only float32. For the saved weights see --save-dtype.")
    ] = "float32",
    save_dtype: SaveDtype = None,
    device: Device = "auto",
    recipe: TrainingRecipe = "auto",
    revision: Revision = None,
    memory: Memory = "auto",
    rank_multiple: RankMultiple = 1,
    calibration_dtype: CalibrationDtype = "auto",
    placement: Placement = "auto",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the memory that it will take, and stop.")] = False,
) -> None:
    """Compress one model as it is and write a factorised checkpoint."""
    from ..runners import compressing
    from ..runners.config import parse_method

    print_name_note(model, revision)
    ratios = numbers("ratio", ratio, float, "4") or []
    if len(ratios) != 1:
        raise UserError(f"the ratio '{ratio}' must be one number; run bench compress once per ratio, or use bench run")
    if dtype != "float32":
        raise UserError(
            f"bench compress computes in float32, so --dtype {dtype} cannot be; to write the weights in another dtype "
            "use --save-dtype, such as --save-dtype bfloat16"
        )
    request = compressing.CompressRequest(
        model,
        parse_method(method),
        ratios[0],
        out,
        task,
        revision,
        data,
        train_set,
        steps,
        seed,
        save_dtype,
        device,
        recipe,
        memory,
        rank_multiple,
        placement,
        calibration_dtype,
    )
    if dry_run:
        from ..runners.estimates.memory import COLUMNS, TITLE

        text, rows, notes = compressing.estimate_compression(request)
        console().print(text, highlight=False, soft_wrap=True)
        print_rows(TITLE, COLUMNS, rows)
        for note in notes:
            console().print(f"[yellow]note:[/yellow] {escape(note)}", highlight=False, soft_wrap=True)
        return
    done = compressing.compress(request, console=console(stderr=True))
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
    for kind, reading in done.calibration.items():
        console().print(
            f"calibration of {kind}: {reading['examples']:,} examples of at most {reading['length']:,} tokens, "
            f"{reading['tokens']:,} tokens in all",
            highlight=False,
            soft_wrap=True,
        )
    for warning in done.warnings:
        console().print(f"[yellow]note:[/yellow] {escape(warning)}", highlight=False, soft_wrap=True)
    console().print(f"checkpoint  {out}", highlight=False, soft_wrap=True)


def evaluate(
    model: Annotated[str, typer.Argument(help="Preset, folder (dense or factorised) or hub id.")],
    benchmarks: Annotated[
        str, typer.Option(help="With commas; a task means its benchmarks, lm_eval:TASK any of lm-eval's.")
    ],
    data: Data = None,
    limit: Limit = None,
    stage: Annotated[
        str, typer.Option(help="pretrained takes the few-shot prompt, finetuned the finetuning prompt.")
    ] = "finetuned",
    out: Annotated[Path | None, typer.Option(help="New folder for metrics and samples.")] = None,
    engine: Engine = "auto",
    dtype: Annotated[
        str, typer.Option(help="Weights are loaded as; auto is the checkpoint's own, float32 where a CPU lacks it.")
    ] = "auto",
    device: Device = "auto",
    batch_size: Annotated[int, typer.Option(help="Prompts per batch.")] = 64,
    max_new_tokens: MaxNewTokens = None,
    samples: Samples = 1,
    temperature: Temperature = 0.0,
    top_p: TopP = 1.0,
    allow_weak_isolation: Weak = False,
    revision: Revision = None,
    context: Context = None,
    bos: Bos = None,
    chat_template: ChatTemplate = "auto",
    include_path: IncludePath = None,
) -> None:
    """Evaluate one model or checkpoint."""
    if stage not in ("pretrained", "finetuned"):
        raise unknown("stage", stage, ["pretrained", "finetuned"])
    if chat_template not in ("auto", "never"):
        raise unknown("chat template rule", chat_template, ["auto", "never"])
    from ..runners import evaluating

    print_name_note(model, revision)
    settings = evaluating.default_settings(
        data_dir=data,
        limit=limit,
        stage=stage,
        batch_size=batch_size,
        max_new_tokens=max_new_tokens,
        samples=samples,
        temperature=temperature,
        top_p=top_p,
        allow_weak_isolation=allow_weak_isolation,
        include_path=include_path.expanduser().resolve() if include_path else None,
    )
    names = split_list(benchmarks) or []
    contexts = numbers("context", context, int, "128,2048")
    evaluated = evaluating.evaluate(
        model,
        names,
        settings,
        revision,
        engine,
        dtype,
        device,
        out,
        contexts=contexts,
        bos=split_list(bos) or ("auto",),
        console=console(stderr=True),
        chat_template=chat_template,
    )
    rows = [
        (
            outcome.variant or name,
            metric.name,
            metric.scorer,
            f"{metric.value:.4g}",
            f"[{metric.low:.4g}, {metric.high:.4g}]",
            str(metric.n),
        )
        for name, outcome in evaluated.outcomes.items()
        for metric in outcome.metrics
    ]
    if rows:
        print_rows(model, ["benchmark", "metric", "scorer", "value", "95 % interval", "n"], rows)
    for note in filter(None, (evaluated.note, evaluated.dtype_note)):
        console().print(f"[yellow]note:[/yellow] {escape(note)}", highlight=False, soft_wrap=True)
    if not evaluated.failures:
        return
    crashed = [error for error in evaluated.failures.values() if not isinstance(error, UserError)]
    if not crashed:
        raise UserError(evaluated.sentence)
    console(stderr=True).print(f"[bold red]error:[/] {escape(evaluated.sentence)}", soft_wrap=True, highlight=False)
    sys.exit(1)


def add_to(app: typer.Typer) -> None:
    """Add these commands to the command line."""
    app.command()(compress)
    app.command("eval")(evaluate)

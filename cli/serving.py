"""The commands about serving: export, speed."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..foundation.errors import UserError, unknown
from .interruption import interruptible
from .options import Device
from .output import console, numbers, print_name_note

if TYPE_CHECKING:
    from ..results.speed.measure import SpeedRequest

ONLINE: dict[str, Any] = {"rich_help_panel": "Servers under load"}
_FORMATS = ("dense", "packed", "lm-eval")
CHECKPOINT = "Folder of a checkpoint, or RUN:LABEL@RATIO such as runs/tiny-toy-math:svd@3."
Storage = Annotated[
    str | None,
    typer.Option(help="URL of the storage that a cell's missing files are brought from: s3://BUCKET/FOLDER."),
]
Seed = Annotated[int | None, typer.Option(help="Which seed of a run, where there are several.")]


def export(
    folder: Annotated[str, typer.Argument(help=f"{CHECKPOINT} With --format lm-eval also a whole run.")],
    out: Annotated[Path, typer.Option(help="New folder.")],
    dense: Annotated[bool, typer.Option("--dense", help="Multiply the factors out.")] = False,
    form: Annotated[
        str | None,
        typer.Option(
            "--format", help="dense (as --dense), packed: a control's integers, or lm-eval: results and samples."
        ),
    ] = None,
    save_dtype: Annotated[
        str | None,
        typer.Option(
            "--save-dtype",
            "--dtype",
            help="Of the weights written: own, float32, bfloat16, float16. \\[default: own]",
        ),
    ] = None,
    seed: Seed = None,
    storage: Storage = None,
) -> None:
    """Write a factorised checkpoint as a dense one, a control in compressed-tensors, or results in lm-eval's files."""
    if form not in (None, *_FORMATS):
        raise unknown("format", str(form), _FORMATS)
    if form == "lm-eval":
        if dense or storage or save_dtype is not None:
            raise UserError(
                "--format lm-eval writes results and no weights; leave --dense, --save-dtype and --storage out"
            )
        from ..results.exports.lm_eval import export_lm_eval

        for file in export_lm_eval(folder, out, seed):
            console().print(f"results  {file}", highlight=False, soft_wrap=True)
        return
    if not dense and form is None:
        raise UserError(
            "say which form: bench export FOLDER --dense --out DIR multiplies the factors out, bench export "
            "RUN:rtn-int4@1 --format packed --out DIR writes a control's integers, bench export RUN --format lm-eval "
            "--out DIR writes results as lm-eval does"
        )
    from ..results.cells import checkpoint_folder

    if form == "packed":
        if dense or save_dtype is not None:
            raise UserError("--format packed writes integers and scales; leave --dense and --save-dtype out")
        from ..models.quantised.compressed_tensors import export_packed

        written = export_packed(checkpoint_folder(folder, seed, storage), out)
        console().print(
            f"{written:,} bytes; loads with compressed-tensors in transformers, and in vLLM\ncheckpoint  {out}",
            highlight=False,
            soft_wrap=True,
        )
        return
    from ..models.export import export_dense

    size = export_dense(checkpoint_folder(folder, seed, storage), out, save_dtype or "own")
    console().print(
        f"{size.parameters:,} parameters, {size.bytes:,} bytes; loads without lowrank-bench\ncheckpoint  {out}",
        highlight=False,
        soft_wrap=True,
    )


def speed(
    checkpoints: Annotated[list[str], typer.Argument(help=CHECKPOINT)],
    engine: Annotated[
        str | None, typer.Option(help="vllm, transformers or both. \\[default: both, where vLLM is installed]")
    ] = None,
    batch_sizes: Annotated[
        str | None, typer.Option(help="Prompts side by side, with commas. \\[default: 1,16,64]")
    ] = None,
    prompt_tokens: Annotated[int, typer.Option(help="Length of every prompt in tokens.")] = 32,
    new_tokens: Annotated[int, typer.Option(help="Length of every completion in tokens.")] = 32,
    dtype: Annotated[
        str, typer.Option(help="Of the weights as they run; auto is the first checkpoint's own.")
    ] = "auto",
    device: Device = "auto",
    threads: Annotated[
        int | None, typer.Option(help="CPU threads. \\[default: OMP_NUM_THREADS, or every core]")
    ] = None,
    repeats: Annotated[int, typer.Option(help="Rounds; each measures every checkpoint once.")] = 3,
    against_dense: Annotated[
        bool, typer.Option("--against-dense/--no-dense", help="Measure the dense export of factorised checkpoints too.")
    ] = True,
    online: Annotated[
        bool,
        typer.Option("--online", help="Measure vllm serve under load instead, by vllm bench serve.", **ONLINE),
    ] = False,
    rates: Annotated[
        str | None,
        typer.Option(
            help="Requests per second, with commas; inf sends all at once. \\[default: 1,2,4,8 without --concurrency]",
            **ONLINE,
        ),
    ] = None,
    concurrency: Annotated[
        str | None, typer.Option(help="Requests under way at a time, with commas: loads beside the rates.", **ONLINE)
    ] = None,
    requests: Annotated[int | None, typer.Option(help="Sent for each load. \\[default: 32]", **ONLINE)] = None,
    goodput: Annotated[
        str | None,
        typer.Option(
            help="Milliseconds that a request may take to count as goodput: ttft:200,tpot:50,e2el:2000.", **ONLINE
        ),
    ] = None,
    seed: Seed = None,
    storage: Storage = None,
    out: Annotated[Path, typer.Option(help="Folder whose results.csv takes the records.")] = Path("runs/speed"),
) -> None:
    """Measure load time, weight bytes, peak memory, time to the first token and decoding speed; or servers under load.

    Each checkpoint is measured in a process of its own, factorised ones next to their dense export, in alternating
    rounds; the records go on from run to run. With --online each is served by vllm serve and gets requests at given
    rates or concurrencies: time to the first token, per output token and per request, throughput and goodput.
    """
    from ..results.speed.measure import ENGINES, SpeedRequest, installed_engines, measure_speed
    from ..results.speed.records import save_speed, stored_records
    from ..results.speed.table import print_speed
    from ..runners.progress import show_progress

    only_online = {"--rates": rates, "--concurrency": concurrency, "--requests": requests, "--goodput": goodput}
    only_offline = {"--batch-sizes": batch_sizes, "--engine": None if engine == "vllm" else engine}
    _refuse(only_offline if online else only_online, online)
    engines = installed_engines() if engine is None else ENGINES if engine == "both" else (engine,)
    request = SpeedRequest(
        checkpoints,
        ("vllm",) if online else engines,
        numbers("batch size", batch_sizes or "1,16,64", int, "1,16,64") or (),
        prompt_tokens,
        new_tokens,
        dtype,
        device,
        threads,
        repeats,
        against_dense,
        seed,
        storage,
        **({"instead_of_vllm": ""} if online else {}),
    )
    for checkpoint in checkpoints:
        print_name_note(checkpoint)
    stored_records(out)  # what cannot be added to is refused before the work
    if online:
        _speed_online(request, rates, concurrency, requests, goodput, out)
        return
    screen = console()
    with show_progress(console(stderr=True), "measure speed") as progress:
        series = measure_speed(request, lambda done, total, _: progress(done, total))
    print_speed(series, screen)
    screen.print(f"records  {save_speed(out, series)}", highlight=False, soft_wrap=True)


def _refuse(options: Mapping[str, object], online: bool) -> None:
    for name, value in options.items():
        if value is not None:
            why = "has no meaning with --online, which serves with vLLM" if online else "is for servers; add --online"
            raise UserError(f"{name} {why}{', so leave it out' if online else ', or leave it out'}")


def _speed_online(
    base: SpeedRequest, rates: str | None, concurrency: str | None, requests: int | None, goodput: str | None, out: Path
) -> None:
    from ..results.speed.online import OnlineRequest, measure_online, read_objectives
    from ..results.speed.online_figure import draw_online
    from ..results.speed.online_records import save_online
    from ..results.speed.online_table import print_online
    from ..runners.progress import show_progress

    rates = "1,2,4,8" if rates is None and concurrency is None else rates
    request = OnlineRequest(
        base,
        numbers("rate", rates, float, "1,2,4,inf") or (),
        numbers("concurrency", concurrency, int, "1,8,32") or (),
        32 if requests is None else requests,
        read_objectives(goodput),
    )
    screen = console()
    with (
        interruptible("interrupted; the servers are stopped, and nothing was recorded"),
        show_progress(console(stderr=True), "measure servers") as progress,
    ):
        series = measure_online(request, progress)
    print_online(series, screen)
    for figure in draw_online(series, out):
        if figure.suffix == ".png":
            screen.print(f"figure   {figure}", highlight=False, soft_wrap=True)
    screen.print(f"records  {save_online(out, series)}", highlight=False, soft_wrap=True)


def add_to(app: typer.Typer) -> None:
    """Add these commands to the command line."""
    for command in (export, speed):
        app.command()(command)

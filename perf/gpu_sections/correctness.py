"""Whether a GPU computes what a CPU does, on the built-in model (0.8 M parameters): methods, training, files, sweeps.

    factors       every method that does not train: the products of its factors on the CPU and on the GPU, and the
                  logits of the checkpoint that each of them writes
    training      updates of the sweep's own trainer, in full and by a method that trains
    sweep         `bench run`, killed (SIGKILL) on the way and started again: a complete stage is not run again
    FSDP2         the finetuning of that sweep on 2 to all GPUs, beside one

On a CPU both sides are the CPU, so differences are 0 there but for FSDP2, which takes two processes.
"""

import copy
import tempfile
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from gpu_sections.sweeps import bench, stages
from gpu_sections.table import Context, Row, attempts, failed
from torch import Tensor, nn

from lowrank_bench.methods.base import create_method
from lowrank_bench.methods.ranks.budget import Budget
from lowrank_bench.methods.registry import methods
from lowrank_bench.models.checkpoint import save_checkpoint
from lowrank_bench.models.layers import LowRankLinear
from lowrank_bench.models.loading import load_model, load_tokenizer
from lowrank_bench.models.presets import resolve_model
from lowrank_bench.runners.training.data import TaskData, load_task_data
from lowrank_bench.runners.training.recipes import RECIPES
from lowrank_bench.runners.training.trainer import TaskTrainer

RATIO, SAMPLES, SEED = 2.0, 16, 42
UPDATES, SMALL_UPDATES = 20, 2
FACTORS, LOGITS, LOSS, PARTED = 1e-3, 1e-3, 1e-3, 1e-3
"""Largest differences allowed, relative: of products BA to ‖W‖_F, of logits to their norm, of losses, and of losses
between one and several processes. float32 sums in another order differ by 1e-6 to 1e-5 at these sizes."""
SWEEP = ("--model", "tiny", "--task", "toy-math", "--ratios", "2", "--engine", "transformers", "--limit", "8")
SMALL_METHODS = ("svd", "svd-llm")
SLOW = ("asvd", "sfsd")
"""Their searches take a minute or two, so they are last, in case that the time is up."""


def run(context: Context) -> Iterator[Row]:
    """Yield the rows; each difference that is too large, and each step that fails, is a missed target."""
    model, tokenizer, data = model_and_data()
    names = SMALL_METHODS if context.small else [n for n in methods.names() if not create_method(n).requirements.trains]
    ids = torch.stack([torch.tensor(item.input_ids[:8]) for item in data.items[:8]])
    for name in sorted(names, key=SLOW.__contains__):
        if context.left < 0.5 * context.seconds:
            yield Row(f"{name}, factors", "not measured", note="the part's time was up")
            continue
        yield from attempts([(f"{name}, factors", partial(method_rows, context, name, model, tokenizer, data, ids))])
    for name in ("full finetuning", "bs"):
        yield from attempts([(f"{name}, training", partial(training_rows, context, name, model, data))])
    with tempfile.TemporaryDirectory(prefix="gpu-sweep-") as folder:
        yield from attempts(
            [
                ("sweep, killed and resumed", partial(sweep_rows, context, Path(folder))),
                ("FSDP2", partial(sharded_rows, context, Path(folder))),
            ]
        )


def model_and_data() -> tuple[Any, Any, TaskData]:
    """Return the built-in model on the CPU in float32, its tokenizer, and toy training data."""
    source = resolve_model("tiny")
    model, tokenizer = load_model(source.location), load_tokenizer(source.location)
    return model, tokenizer, load_task_data("toy-math", None, None, tokenizer, None, 256, SEED)


def compressed(name: str, model: nn.Module, data: TaskData, device: str) -> tuple[Any, float]:
    """Return a compressed copy of the model, made on the device, and the seconds that it took."""
    options = {"samples": SAMPLES} if "samples" in type(create_method(name)).model_fields else {}
    method, copied = create_method(name, options), copy.deepcopy(model).to(device).eval()
    torch.manual_seed(SEED)
    begin = time.perf_counter()
    fitted = method.fit_for(Budget(RATIO), copied, data)
    method.compress(copied, fitted, Budget(RATIO, method.guard), None, data)
    return copied, time.perf_counter() - begin


def products(model: nn.Module) -> dict[str, Tensor]:
    """Return BA (m, n) of every factorised layer, float64 on the CPU, by name."""
    return {
        name: layer.lr_b.detach().cpu().double() @ layer.lr_a.detach().cpu().double()
        for name, layer in model.named_modules()
        if isinstance(layer, LowRankLinear)
    }


def largest_difference(first: dict[str, Tensor], second: dict[str, Tensor]) -> tuple[float, str]:
    """Return the largest ‖X - Y‖_F / ‖X‖_F of tensors with equal names, and the name.

    Raises:
        ValueError: the names differ.
    """
    if first.keys() != second.keys():
        raise ValueError(f"only one side has {', '.join(sorted(first.keys() ^ second.keys()))}")
    return max((float((second[name] - x).norm() / x.norm()), name) for name, x in first.items())


def method_rows(
    context: Context, name: str, model: nn.Module, tokenizer: Any, data: TaskData, ids: Tensor
) -> Iterator[Row]:
    """Yield how far the products of a method's factors are apart, and the logits of the checkpoint from the GPU."""
    on_device, seconds = compressed(name, model, data, context.device)
    on_cpu, cpu_seconds = compressed(name, model, data, "cpu")
    ranks = [
        {n: layer.rank for n, layer in m.named_modules() if isinstance(layer, LowRankLinear)}
        for m in (on_cpu, on_device)
    ]
    if ranks[0] != ranks[1]:
        changed = [n for n in ranks[0] | ranks[1] if ranks[0].get(n) != ranks[1].get(n)]
        yield Row(
            f"{name}, factors at {RATIO:g}x",
            f"{len(changed)} ranks differ",
            target="same ranks",
            met=False,
            note=", ".join(f"{n}: {ranks[0].get(n)} and {ranks[1].get(n)}" for n in changed[:3]),
        )
    else:
        difference, worst = largest_difference(products(on_cpu), products(on_device))
        yield Row(
            f"{name}, factors at {RATIO:g}x",
            f"{seconds:.2f} s, largest difference {difference:.1e}",
            f"{cpu_seconds:.2f} s on the CPU",
            f"difference < {FACTORS:g}",
            difference < FACTORS,
            worst,
        )
    with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
        save_checkpoint(on_device, tokenizer, Path(folder) / "model")
        loaded = {device: load_model(Path(folder) / "model", device=device) for device in ("cpu", context.device)}
        expected = on_device(input_ids=ids.to(context.device), use_cache=False).logits.cpu()
        difference = max(
            largest_difference({"logits": expected}, {"logits": m(input_ids=ids.to(d), use_cache=False).logits.cpu()})[
                0
            ]
            for d, m in loaded.items()
        )
    title = f"{name}, logits of its checkpoint read on both"
    yield Row(title, f"largest difference {difference:.1e}", target=f"< {LOGITS:g}", met=difference < LOGITS)


def training_rows(context: Context, name: str, model: nn.Module, data: TaskData) -> Iterator[Row]:
    """Yield the last losses of the same training on the CPU and on the GPU."""
    updates = SMALL_UPDATES if context.small else UPDATES
    settings = RECIPES["small"].finetune.model_copy(update={"steps": updates})
    losses, seconds, ranks = [], [], []
    for device in ("cpu", context.device):
        trained = copy.deepcopy(model).to(device)
        trainer = TaskTrainer(data, settings, device=device, seed=SEED)
        torch.manual_seed(SEED)
        if name == "full finetuning":
            trainer.train(trained, updates)
        else:
            method = create_method(name, {"prunings": 2})
            report = method.compress(trained, method.fit_for(Budget(RATIO), trained, None), Budget(RATIO), trainer)
            ranks.append(report.ranks)
        assert trainer.log is not None
        losses.append(trainer.log.loss)
        seconds.append(trainer.log.seconds)
    difference = abs(losses[1] - losses[0]) / abs(losses[0])
    note = f"{sum(ranks[0][n] != ranks[1].get(n) for n in ranks[0])} of {len(ranks[0])} ranks differ" if ranks else ""
    yield Row(
        f"{name}, {updates} updates in float32",
        f"loss {losses[1]:.5f}, {seconds[1]:.1f} s",
        f"loss {losses[0]:.5f}, {seconds[0]:.1f} s on the CPU",
        f"difference < {LOSS:g}",
        difference < LOSS,
        note,
    )


def sweep_words(context: Context, folder: Path) -> list[str]:
    """Return the words of the small sweep's command line."""
    few = context.small
    counts = ("--finetune-steps", "2" if few else "200", "--recover-steps", "3" if few else "60")
    chosen = "svd,bs:prunings=2" if few else "svd,fwsvd,bs"
    more = ("--max-new-tokens", "4" if few else "64", "--device", context.device, "--out", str(folder))
    return ["run", "--methods", chosen, *SWEEP, *counts, *more]


def sweep_rows(context: Context, folder: Path) -> Iterator[Row]:
    """Yield how a sweep went on after it was killed."""
    words, kill_after = sweep_words(context, folder), 3
    begin = time.perf_counter()
    done = bench(words, context.left, kill_after)
    finished = stages(folder)
    middle = time.perf_counter()
    bench(words, context.left)
    every = stages(folder)
    again = [key for key, record in finished.items() if every.get(key) != record]
    kinds = sorted({record["kind"] for record in every.values()})
    title = f"sweep of {len(every)} stages, killed after {done} and resumed"
    figure = f"{middle - begin:.0f} s + {time.perf_counter() - middle:.0f} s"
    ok = len(finished) >= kill_after and not again and "recover" in kinds and "evaluate" in kinds
    note = f"stages {', '.join(kinds)}" + (f"; done twice: {', '.join(again)}" if again else "")
    yield Row(title, figure, f"{len(finished)} stages are complete and were not run again", "complete", ok, note)
    tables = list(folder.glob("*/results.csv"))
    if not tables:
        yield failed("sweep, its table", "there is no results.csv")


def sharded_rows(context: Context, folder: Path) -> Iterator[Row]:
    """Yield the last loss of the sweep's finetuning on several GPUs, beside that of one."""
    count = torch.cuda.device_count() if context.device == "cuda" else 2
    if count < 2:
        yield Row("FSDP2", "not measured", note="one GPU here")
        return
    alone = finetuned(folder)
    for processes in sorted({2, count}):
        run_folder = folder / f"fsdp2-{processes}"
        run_folder.mkdir()
        text = (Path(__file__).parents[2] / "docs/accelerate/fsdp2.yaml").read_text()
        (run_folder / "fsdp2.yaml").write_text(text.replace("num_processes: 8", f"num_processes: {processes}"))
        words = [*sweep_words(context, run_folder), "--accelerate", str(run_folder / "fsdp2.yaml")]
        words[words.index("--methods") + 1] = "svd"
        bench(words, context.left, kill_after=1)
        loss = finetuned(run_folder)
        difference = abs(loss - alone) / abs(alone)
        title = f"FSDP2, finetuning by {processes} processes"
        yield Row(
            title, f"loss {loss:.5f}", f"loss {alone:.5f} by one", f"difference < {PARTED:g}", difference < PARTED
        )


def finetuned(folder: Path) -> float:
    """Return the last loss of the finetuning in a run folder."""
    (record,) = stages(folder, "finetune").values()
    return float(record["result"]["training"]["loss"])

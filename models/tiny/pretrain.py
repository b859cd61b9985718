"""Make the built-in model from nothing: ``python -m lowrank_bench.models.tiny.pretrain --out FOLDER``.

Writes an ordinary checkpoint folder and ``pretraining.json``, which says how it was made.
"""

from __future__ import annotations

import argparse
import itertools
import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from ...foundation.files import read_json, write_json
from .corpus import documents
from .tokenizer import CONTEXT_LENGTH, build_tokenizer

STEPS = 1900
ANNEALING_SHARE = 0.4
BATCH_TOKENS = 4096
WINDOW, ANNEALING_WINDOW = 128, 256
LEARNING_RATE = 4e-3
EMBEDDING_RATE = 0.25
"""Learning rate of the embedding in units of the others'."""
INITIALIZER_RANGE = 0.1
WARMUP_STEPS = 50
WEIGHT_DECAY = 0.02
_ENCODE_AT_ONCE = 2000


def build_model(tokenizer: PreTrainedTokenizerFast, seed: int) -> LlamaForCausalLM:
    """Return an untrained Llama of under a million parameters, float32, the same for the same seed."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=320,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=4,
        initializer_range=INITIALIZER_RANGE,
        max_position_embeddings=CONTEXT_LENGTH,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return LlamaForCausalLM(config)


def batches(tokenizer: PreTrainedTokenizerFast, seed: int, small: bool, window: int) -> Iterator[torch.Tensor]:
    """Yield int64 batches of (`BATCH_TOKENS` / window, window): documents with ``<s>`` and ``</s>``, end to end."""
    stream: list[int] = []
    texts = documents(seed, small)
    while True:
        for ids in tokenizer(list(itertools.islice(texts, _ENCODE_AT_ONCE)))["input_ids"]:
            stream += [*ids, tokenizer.eos_token_id]
        # What is left of the stream begins the next batch, so no text is cut away at a batch's border.
        whole = len(stream) // BATCH_TOKENS * BATCH_TOKENS
        yield from torch.tensor(stream[:whole]).view(-1, BATCH_TOKENS // window, window)
        del stream[:whole]


def learning_rate(step: int, steps: int) -> float:
    """Return the rate of a step: a linear warm-up, then a cosine down to zero."""
    warmup = min(WARMUP_STEPS, steps // 10 + 1)
    if step < warmup:
        return LEARNING_RATE * (step + 1) / warmup
    return LEARNING_RATE * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


def _optimizer(model: LlamaForCausalLM) -> torch.optim.AdamW:
    """Return AdamW with a group of its own for the embedding.

    Words that are used alike get gradients alike. With a small start and a large rate the tied embeddings of all
    things become nearly parallel (cosine .97), and the model does not learn to copy one of them.
    """
    embedding = model.get_input_embeddings().weight
    others = [p for p in model.parameters() if p is not embedding]
    groups = [{"params": others, "share": 1.0}, {"params": [embedding], "share": EMBEDDING_RATE, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=LEARNING_RATE, betas=(0.9, 0.95), weight_decay=WEIGHT_DECAY, fused=True)


def pretrain(out: Path, seed: int = 42, steps: int = STEPS) -> dict[str, Any]:
    """Train the built-in model on one core and write its folder; return what ``pretraining.json`` holds.

    The last steps anneal: smaller numbers, longer windows. Weights are trained in float32 under
    bfloat16 autocast and stored in bfloat16. Equal arguments give equal data; the weights also depend on the machine.
    """
    start = time.perf_counter()
    tokenizer = build_tokenizer()
    model = build_model(tokenizer, seed)
    optimizer = _optimizer(model)
    main_steps = round(steps * (1 - ANNEALING_SHARE))
    data = itertools.chain(
        itertools.islice(batches(tokenizer, seed, False, WINDOW), main_steps),
        itertools.islice(batches(tokenizer, seed + 1, True, ANNEALING_WINDOW), steps - main_steps),
    )
    recent: list[float] = []
    model.train()
    for step, ids in enumerate(data):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, steps) * group["share"]
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        recent = [*recent[-49:], loss.item()]
        if step % 50 == 0 or step == steps - 1:
            mean = sum(recent) / len(recent)
            print(f"step {step}/{steps} loss {mean:.3f} seconds {time.perf_counter() - start:.0f}", flush=True)
    _save(model, tokenizer, out)
    record = {
        "command": f"python -m lowrank_bench.models.tiny.pretrain --out FOLDER --seed {seed} --steps {steps}",
        "seed": seed,
        "steps": steps,
        "tokens": steps * BATCH_TOKENS,
        "parameters": model.num_parameters(),
        "seconds": round(time.perf_counter() - start, 1),
        "threads": torch.get_num_threads(),
        "final_loss_nats_per_token": round(sum(recent) / len(recent), 4),
        "torch": torch.__version__,
    }
    write_json(out / "pretraining.json", record)
    return record


def _save(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, out: Path) -> None:
    """Write the checkpoint folder; the tokenizer's class gets the name that every version of transformers knows."""
    model.bfloat16().save_pretrained(out)
    (out / "model.safetensors").chmod(0o644)
    tokenizer.save_pretrained(out)
    config = read_json(out / "tokenizer_config.json")
    write_json(out / "tokenizer_config.json", {**config, "tokenizer_class": "PreTrainedTokenizerFast"})


def main() -> None:
    """Read the command line and pretrain."""
    parser = argparse.ArgumentParser(
        description="Pretrain the built-in model from nothing (about 12 minutes on a core)."
    )
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument("--seed", type=int, default=42)
    parser.add_argument("--steps", type=int, default=STEPS, help=f"optimizer steps of {BATCH_TOKENS} tokens")
    arguments = parser.parse_args()
    print(pretrain(arguments.out, arguments.seed, arguments.steps))


if __name__ == "__main__":
    main()

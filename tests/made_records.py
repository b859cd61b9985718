"""Realistic records made without any model."""

import math
import random
from typing import Any

from lowrank_bench.foundation.files import canonical_json
from lowrank_bench.records.files import Record
from lowrank_bench.records.intervals import perplexity_interval, wilson

PARAMS = 6_738_415_616
VERSIONS = canonical_json({"lowrank_bench": "0.1.0", "python": "3.11.9", "torch": "2.13.0", "transformers": "5.19.0"})


def make_record(**changes: Any) -> Record:
    """A valid record of SVD at ratio 2 with the given fields changed; ratio and kept follow params."""
    params = changes.get("params", PARAMS // 2)
    fields: dict[str, Any] = {
        **{"schema_version": 3, "sweep": "demo", "model": "llama2-7b", "model_sha256": "ab" * 32, "task": "math"},
        **{"method": "svd", "label": changes.get("method", "svd"), "options": "{}", "stage": "recovered"},
        **{"ratio_target": 2.0, "ratio": PARAMS / params, "kept": params / PARAMS, "ratio_matrices": 2.1},
        **{"params_original": PARAMS, "params": params, "bytes": 2 * params, "runtime_bytes": 2 * params, "seed": 42},
        **{"benchmark": "gsm8k", "variant": "gsm8k-0shot-alpaca", "metric": "accuracy", "scorer": "answer-is"},
        **{"headline": True, "higher_is_better": True, "value": 0.4, "low": 0.375, "high": 0.426},
        **{"confidence": 0.95, "n": 1319, "steps_finetune": 600, "steps_compress": 0, "steps_recover": 600},
        **{"tuned": "{}", "tokens_finetune": 19_660_800, "tokens_compress": 0, "tokens_recover": 19_660_800},
        **{"seconds_finetune": 3600.5, "seconds_fit": 60.25, "seconds_compress": 5.125, "seconds_recover": 3600.1},
        **{
            "seconds_quantise": 0.0,
            "seconds_evaluate": 100.7,
            "peak_memory_bytes": 10**10,
            "engine": "transformers",
            "dtype": "bfloat16",
        },
        **{"device": "cpu", "threads": 2, "isolation": "", "dataset_sha256": "cd" * 32, "prompt_sha256": "ef" * 32},
        **{"versions": VERSIONS, "git_commit": "0" * 40, "evaluated_at": "2026-01-31T12:00:00+00:00"},
        "stage_key": "12" * 32,
    }
    fields |= changes
    return Record.model_validate({"steps_budget": fields["steps_compress"] + fields["steps_recover"], **fields})


def make_sweep(
    methods: tuple[str, ...] = ("bs", "fwsvd", "svd"),
    ratios: tuple[float, ...] = (1.5, 2.0, 3.0, 5.0),
    seeds: tuple[int, ...] = (42,),
    language: bool = False,
    **changes: Any,
) -> list[Record]:
    """A whole sweep whose scores fall with the ratio, with both uncompressed models."""
    records = []
    for seed in seeds:
        random.seed(seed)
        for stage, score, shots in (("pretrained", 0.14, "8shot"), ("finetuned", 0.53, "0shot-alpaca")):
            base = {"method": "none", "label": "none", "stage": stage, "ratio_target": 1.0, "params": PARAMS}
            base |= {"steps_recover": 0, "tokens_recover": 0, "seconds_recover": 0.0}
            shared = {**base, "ratio_matrices": 1.0, "variant": f"gsm8k-{shots}", "seed": seed, **changes}
            records.append(_measured(score, language, shared, f"{stage}-{seed}"))
        for position, method in enumerate(methods):
            for ratio in ratios:
                score = 0.53 / (1 + (0.25 + 0.2 * position) * math.log2(ratio) ** 2) + random.uniform(-0.01, 0.01)
                cell = {"method": method, "ratio_target": ratio, "params": int(PARAMS / ratio * 0.9999), "seed": seed}
                records.append(_measured(score, language, {**cell, **changes}, f"{method}-{ratio}-{seed}"))
    return records


def _measured(score: float, language: bool, fields: dict[str, Any], key: str) -> Record:
    if not language:
        solved = round(score * 1319)
        low, high = wilson(solved, 1319)
        return make_record(**{"value": solved / 1319, "low": low, "high": high, "stage_key": key, **fields})
    windows = [random.gauss(0.7 / score, 0.25) * 2048 for _ in range(166)]
    low, high = perplexity_interval(windows, [2048] * 166)
    metric = {"metric": "perplexity", "scorer": "", "higher_is_better": False, "benchmark": "wikitext2", "n": 166}
    value = {"value": math.exp(sum(windows) / 166 / 2048), "low": low, "high": high, "stage_key": key}
    return make_record(**{**metric, **value, **fields, "variant": "wikitext2-2048", "task": "language"})

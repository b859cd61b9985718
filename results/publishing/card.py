"""The model card of a factorised checkpoint, and its ``.eval_results`` files, both from records alone."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import yaml

from ...foundation.errors import UserError
from ...models.presets import PRESETS
from ...records.metrics import format_value
from .origin import Measurement, Origin

_LICENCES = {
    "Apache-2.0": "apache-2.0",
    "MIT": "mit",
    "Gemma": "gemma",
    "Llama 2": "llama2",
    "Llama 3.1": "llama3.1",
    "Llama 3.2": "llama3.2",
}
"""The hub's identifiers of the licences that presets name."""

_REGISTERED = {"gsm8k": ("openai/gsm8k", "gsm8k", 1319)}
"""Benchmarks whose dataset takes results on the hub: dataset, task, number of problems of the whole test split."""


@dataclass(frozen=True)
class Base:
    """The model that was compressed, as the hub knows it.

    Attributes:
        repository: ``OWNER/NAME``, empty where it is not on a hub.
        revision: commit, empty where it is not known.
        licence: the hub's identifier of its licence.
    """

    repository: str
    revision: str
    licence: str


def find_base(origin: Origin, repository: str | None, licence: str | None) -> Base:
    """Return the base model: what is given, else what the preset of that name says.

    Raises:
        UserError: nothing says under which licence it is.
    """
    preset = PRESETS.get(origin.model) or next((p for p in PRESETS.values() if p.source == repository), None)
    builtin = origin.model == "tiny"
    known = "" if preset is None or builtin else preset.source
    named = known if repository is None else repository
    if licence is None:
        licence = "apache-2.0" if builtin else _LICENCES.get(preset.licence) if preset else None
    if licence is None:
        raise UserError(
            f"nothing says under which licence the model '{origin.model}' is; add --license with the hub's identifier "
            "of the base model's licence, such as --license apache-2.0"
        )
    return Base(named, preset.revision if preset and named == preset.source else "", licence)


def model_card(origin: Origin, base: Base, repository: str) -> str:
    """Return README.md of the repository: metadata, how it was made, what was measured, how to load it."""
    data: dict[str, Any] = {"library_name": "transformers", "pipeline_tag": "text-generation", "license": base.licence}
    if base.repository:
        relation = "finetune" if origin.is_trained else "quantized"
        data |= {"base_model": base.repository, "base_model_relation": relation}
    data["tags"] = ["low-rank", "lowrank-bench", origin.method]
    head = yaml.safe_dump(data, sort_keys=False, allow_unicode=True)
    title = repository.partition("/")[2]
    return f"---\n{head}---\n\n# {title}\n\n{_provenance(origin, base)}\n{_measured(origin)}\n{_loading(repository)}"


def _provenance(origin: Origin, base: Base) -> str:
    if base.repository:
        at = f" at commit `{base.revision}`" if base.revision else ""
        model = f"[{base.repository}](https://huggingface.co/{base.repository}){at}"
    else:
        model = f"`{origin.model}`, which is not on the hub"
    options = ", ".join(f"`{name}={json.dumps(value)}`" for name, value in sorted(origin.options.items())) or "defaults"
    training = "with training" if origin.is_trained else "without training"
    rows = [
        ("base model", model),
        ("method", f"`{origin.method}`, {training}"),
        ("options", options),
        ("parameters", f"{origin.parameters_before:,} → {origin.parameters:,}"),
        ("ratio", f"{origin.ratio:.3f} (original / compressed parameters of the whole model)"),
        ("licence", f"`{base.licence}`, that of the base model"),
        (
            "made by",
            f"lowrank-bench {origin.package}" + (f", commit `{origin.git_commit}`" if origin.git_commit else ""),
        ),
        ("sha256 of the base model", f"`{origin.model_sha256}`"),
        ("sha256 of this model", f"`{origin.sha256}`"),
    ]
    if "bits" in origin.options:
        rows.insert(
            3, ("weights", f"rounded to {origin.options['bits']} bits, stored as the numbers that these stand for")
        )
    table = "".join(f"| {name} | {value.replace('|', chr(92) + '|')} |\n" for name, value in rows)
    return f"A language model whose weight matrices are stored as low-rank factors.\n\n| | |\n| --- | --- |\n{table}"


def _measured(origin: Origin) -> str:
    if not origin.measurements:
        return "## Evaluation\n\nNothing has been measured on these weights.\n"
    rows = "".join(_row(score) for score in origin.measurements)
    return (
        "## Evaluation\n\nMeasured on exactly these weights; 95 % intervals in brackets.\n\n"
        "| benchmark | metric | value | uncompressed | n | engine |\n| --- | --- | --- | --- | --- | --- |\n" + rows
    )


def _row(score: Measurement) -> str:
    low, value, high = (format_value(score.metric, number) for number in (score.low, score.value, score.high))
    dense = "" if score.uncompressed is None else format_value(score.metric, score.uncompressed)
    metric = f"{score.metric} ({score.scorer})" if score.scorer else score.metric
    return f"| {score.variant} | {metric} | {value} [{low}, {high}] | {dense} | {score.n} | {score.engine} |\n"


def _loading(repository: str) -> str:
    return f"""## Loading

Install lowrank-bench; without it neither library can read the factors. In transformers:

```python
import lowrank_bench
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("{repository}")
tokenizer = AutoTokenizer.from_pretrained("{repository}")
```

In vLLM, where lowrank-bench is installed in the same environment:

    vllm serve {repository}
"""


def eval_results(origin: Origin) -> dict[str, str]:
    """Return the files below ``.eval_results`` by name: one for each benchmark whose dataset takes results on the hub.

    A benchmark that was measured on a part of its test split has none; its value is in the card alone.
    """
    from huggingface_hub import EvalResultEntry, eval_result_entries_to_yaml

    files = {}
    for score in origin.measurements:
        if score.benchmark in _REGISTERED and score.n == _REGISTERED[score.benchmark][2]:
            dataset, task, _ = _REGISTERED[score.benchmark]
            notes = f"share of 1; 95 % interval [{score.low:.4f}, {score.high:.4f}]; {score.variant}, {score.scorer}"
            notes += f", {score.engine}, lowrank-bench {origin.package}"
            entry = EvalResultEntry(dataset, task, round(score.value, 6), date=score.date[:10] or None, notes=notes)
            content = yaml.safe_dump(eval_result_entries_to_yaml([entry]), sort_keys=False)
            files[f".eval_results/{score.benchmark}.yaml"] = content
    return files

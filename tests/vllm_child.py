"""Runs vLLM on model folders, in a process of its own, since vLLM changes the process it runs in.

    python tests/vllm_child.py '{"prompts": [[…]], "new": 16, "jobs": [{"model": "FOLDER", …}]}'

A job is what `vllm.LLM` takes; ``reload`` beside it lists folders to read the weights again from, null for the model's
own. Prints one line of JSON for each: the generated tokens, those of the same prompts sent once more, how many of these
came from the prefix cache, how many layers are factorised, what each reload made of the prompts (or its error), and of
a draft model the factorised layers and how many of the drafted tokens were accepted.
"""

import gc
import json
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any


def factorised_layers(model: Any) -> int:
    """Count the layers that compute with two factors."""
    return sum(type(getattr(layer, "quant_method", None)).__name__ == "LowRankMethod" for layer in model.modules())


def generated(answers: Any) -> list[list[int]]:
    """Return the generated tokens."""
    return [list(answer.outputs[0].token_ids) for answer in answers]


def drafting(llm: Any) -> dict[str, int]:
    """Count the draft model's factorised layers, the tokens that it drafted, and those that were accepted."""
    (layers,) = llm.collective_rpc(lambda worker: factorised_layers(worker.model_runner.get_draft_model()))
    counts = {
        metric.name.rpartition("_num_")[2]: metric.value
        for metric in llm.get_metrics()
        if "spec_decode" in metric.name and hasattr(metric, "value")
    }
    return {"layers": layers, "drafted": counts["draft_tokens"], "accepted": counts["accepted_tokens"]}


def reload(llm: Any, folder: str | None, generate: Callable[[], Any]) -> list[list[int]] | str:
    """Read the weights again and answer the prompts again; return the error if there is one."""
    try:
        llm.collective_rpc("reload_weights", kwargs={"weights_path": folder})
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    llm.reset_prefix_cache()
    return generated(generate())


def import_class(folder: str) -> None:
    """Import a model's class here: vLLM would look at it in a process of its own, which imports everything again."""
    from vllm import ModelRegistry

    config = json.loads((Path(folder) / "config.json").read_text(encoding="utf-8"))
    for name in config["architectures"]:
        ModelRegistry.register_model(name, ModelRegistry.models[name].load_model_cls())


def main() -> None:
    """Serve one folder after the other."""
    from vllm import LLM, SamplingParams

    task = json.loads(sys.argv[1])
    sampling = SamplingParams(temperature=0, max_tokens=task["new"], ignore_eos=True, detokenize=False)
    inputs = [{"prompt_token_ids": ids} for ids in task["prompts"]]
    limits = {"max_num_seqs": 8, "max_model_len": 64, "kv_cache_memory_bytes": 32 << 20, "skip_tokenizer_init": True}
    for job in task["jobs"]:
        reloads, draft = job.pop("reload", []), job.get("speculative_config")
        for folder in {job["model"], *([draft["model"]] if draft else [])}:
            import_class(folder)
        gc.freeze()  # an engine collects seven times, which over all that vLLM imports takes most of its start
        llm = LLM(**limits, **job)

        generate = partial(llm.generate, inputs, sampling, use_tqdm=False)
        first, again = generate(), generate()
        results = {
            "tokens": generated(first),
            "again": generated(again),
            "cached": sum(answer.num_cached_tokens or 0 for answer in again),
            "layers": sum(llm.apply_model(factorised_layers)) if "tensor_parallel_size" not in job else None,
            "draft": drafting(llm) if draft else None,
            "reloaded": [reload(llm, folder, generate) for folder in reloads],
        }
        print(f"FOUND {json.dumps(results)}", flush=True)
        del llm, generate


if __name__ == "__main__":
    main()

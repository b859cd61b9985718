"""Runs vLLM on model folders, in a process of its own, since vLLM changes the process it runs in.

    python tests/vllm_child.py '{"prompts": [[…]], "new": 16, "jobs": [{"model": "FOLDER", …}]}'

A job is what `vllm.LLM` takes. Prints one line of JSON for each: the generated tokens, those of the same prompts sent
once more, how many of these came from the prefix cache, and how many layers are factorised.
"""

import gc
import json
import sys
from pathlib import Path
from typing import Any


def factorised_layers(model: Any) -> int:
    """Count the layers that compute with two factors."""
    return sum(type(getattr(layer, "quant_method", None)).__name__ == "LowRankMethod" for layer in model.modules())


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
        import_class(job["model"])
        gc.freeze()  # an engine collects seven times, which over all that vLLM imports takes most of its start
        llm = LLM(**limits, **job)
        first, again = (llm.generate(inputs, sampling, use_tqdm=False) for _ in range(2))
        found = {
            "tokens": [list(answer.outputs[0].token_ids) for answer in first],
            "again": [list(answer.outputs[0].token_ids) for answer in again],
            "cached": sum(answer.num_cached_tokens or 0 for answer in again),
            "layers": sum(llm.apply_model(factorised_layers)) if "tensor_parallel_size" not in job else None,
        }
        print(f"FOUND {json.dumps(found)}", flush=True)
        del llm


if __name__ == "__main__":
    main()

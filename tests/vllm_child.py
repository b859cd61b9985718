"""Runs vLLM on model folders, in a process of its own, since vLLM changes the process it runs in.

    python tests/vllm_child.py '{"engine": {…}, "prompts": [[…]], "new": 16, "folders": ["…"]}'

Prints one line of JSON: per folder the generated tokens, how many layers are factorised, and how many prompt tokens came
from the prefix cache when the prompts were sent once more.
"""

import json
import sys
from typing import Any


def factorised_layers(model: Any) -> int:
    """Count the layers that compute with two factors."""
    return sum(type(getattr(layer, "quant_method", None)).__name__ == "LowRankMethod" for layer in model.modules())


def main() -> None:
    """Serve one folder after the other."""
    from vllm import LLM, SamplingParams

    job = json.loads(sys.argv[1])
    sampling = SamplingParams(temperature=0, max_tokens=job["new"], ignore_eos=True, detokenize=False)
    inputs = [{"prompt_token_ids": ids} for ids in job["prompts"]]
    for folder in job["folders"]:
        llm = LLM(
            folder,
            skip_tokenizer_init=True,
            max_num_seqs=8,
            max_model_len=64,
            kv_cache_memory_bytes=32 << 20,
            **job["engine"],
        )
        made = [list(answer.outputs[0].token_ids) for answer in llm.generate(inputs, sampling, use_tqdm=False)]
        again = llm.generate(inputs, sampling, use_tqdm=False)
        found = {
            "tokens": made,
            "again": [list(answer.outputs[0].token_ids) for answer in again],
            "cached": sum(answer.num_cached_tokens or 0 for answer in again),
            "layers": sum(llm.apply_model(factorised_layers)),
        }
        print(f"FOUND {json.dumps(found)}", flush=True)
        del llm


if __name__ == "__main__":
    main()

"""``vllm serve FOLDER`` with no flag of ours, asked over HTTP on this machine."""

from pathlib import Path

from vllm_server import complete, serving

from lowrank_bench.evals.engines.base import Sampling
from lowrank_bench.evals.engines.transformers import TransformersEngine
from lowrank_bench.evals.tasks.prompts import encode_prompt
from lowrank_bench.methods.base import create_method
from lowrank_bench.methods.ranks.budget import Budget
from lowrank_bench.models.checkpoint import save_checkpoint
from lowrank_bench.models.loading import load_model, load_tokenizer
from lowrank_bench.models.presets import PRESETS


def test_a_server_answers_as_transformers_does(tmp_path: Path) -> None:
    source, folder = PRESETS["tiny"].source, tmp_path / "small"
    model, tokenizer, method = load_model(source), load_tokenizer(source), create_method("joint-rank-k")
    method.compress(model, method.fit(model, None), Budget(1.5), None)
    save_checkpoint(model, tokenizer, folder)
    texts = ["Question: 3 + 4", "def f(x):", "sort 3 1 2"]
    prompts = [encode_prompt(tokenizer, text) for text in texts]
    engine = TransformersEngine(folder, "float32")
    expected = [completion.text for completion in engine.generate(prompts, Sampling(12), 3)]

    with serving(["serve", str(folder)], tmp_path) as url:
        assert complete(url, str(folder), list(prompts), 12) == expected

"""``vllm serve FOLDER`` with no flag of ours on what `bench shrink` leaves, asked over HTTP on this machine."""

from pathlib import Path

from shrinking import likelihood_sweep, write_sums
from vllm_server import complete, serving

from lowrank_bench.evals.engines.base import Sampling
from lowrank_bench.evals.engines.transformers import TransformersEngine
from lowrank_bench.evals.tasks.prompts import encode_prompt
from lowrank_bench.models.loading import load_tokenizer
from lowrank_bench.results.shrink.run import shrink


def test_a_server_answers_as_transformers_does(tmp_path: Path) -> None:
    sums = tmp_path / "sums"
    sums.mkdir()
    config = likelihood_sweep(write_sums(sums), tmp_path / "runs", methods=["joint-rank-k"])
    folder = shrink(config, 0.3, (1.2, 1.5), 1.0).model
    assert folder is not None
    tokenizer = load_tokenizer(folder)
    texts = ["Question: 3 + 4", "def f(x):", "sort 3 1 2"]
    prompts = [encode_prompt(tokenizer, text) for text in texts]
    engine = TransformersEngine(folder, "float32")
    expected = [completion.text for completion in engine.generate(prompts, Sampling(12), 3)]

    with serving(["serve", str(folder)], tmp_path) as url:
        assert complete(url, str(folder), list(prompts), 12) == expected

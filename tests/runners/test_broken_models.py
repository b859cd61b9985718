"""Models whose numbers are not finite give no score, and cost nothing but what they cannot answer."""

import json
import math

import pytest
import torch
from sweeps import changed, small_sweep
from transformers import LlamaConfig, LlamaForCausalLM

from lowrank_bench.cli import main
from lowrank_bench.evals.base import EvalSettings, Metric, benchmarks, metric_from_plain, metric_to_plain
from lowrank_bench.evals.engines.transformers import TransformersEngine
from lowrank_bench.foundation.errors import UserError
from lowrank_bench.foundation.files import read_json, write_json
from lowrank_bench.models.checkpoint import save_checkpoint
from lowrank_bench.models.loading import load_model, load_tokenizer
from lowrank_bench.models.presets import resolve_model
from lowrank_bench.records.files import read_records
from lowrank_bench.results.sweep import run_sweep
from lowrank_bench.runners.evaluating import default_settings, evaluate
from lowrank_bench.runners.progress import LOG_FILE

SENTENCE = "the model's probabilities are not finite numbers"


def strict_json(path):
    def refuse(name):
        raise AssertionError(f"{path.name} holds {name}, which is no JSON")

    return json.loads(path.read_text(), parse_constant=refuse)


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer(resolve_model("tiny", None).location, "")


@pytest.fixture(scope="module")
def partly_broken(tmp_path_factory, tokenizer):
    """A model that fails on texts with a capital O, such as "Once upon a time", and on no other."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2,
        max_position_embeddings=512, tie_word_embeddings=False, bos_token_id=0, eos_token_id=1,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        model.model.embed_tokens.weight[tokenizer.convert_tokens_to_ids("O")] = math.nan
    folder = tmp_path_factory.mktemp("models") / "partly"
    folder.mkdir()
    save_checkpoint(model, tokenizer, folder)
    return folder


@pytest.mark.parametrize("temperature", [0.0, 0.8])
@pytest.mark.parametrize("broken", ["nan", "inf", "overflow"])
def test_no_score_is_made_of_numbers_that_are_not_finite(broken, temperature, data_dir, tokenizer):
    model = load_model(resolve_model("tiny", None).location, "", "float32", "cpu")
    with torch.no_grad():
        if broken == "overflow":
            model.model.norm.weight.fill_(1e38).mul_(3)  # finite, but its product with the head is not
        else:
            model.model.layers[1].mlp.down_proj.weight[0, 0] = float(broken)
    engine = TransformersEngine.from_model(model, tokenizer)
    names = ["toy-math"] if temperature else ["toy-math", "tinystories", "piqa"]
    for name in names:
        with pytest.raises(UserError, match=SENTENCE):
            benchmarks.get(name)().evaluate(
                engine, EvalSettings(data_dir, limit=2, max_new_tokens=4, temperature=temperature)
            )


def test_eval_keeps_what_the_others_gave(partly_broken, tmp_path, data_dir, monkeypatch, capsys):
    out = tmp_path / "out"
    command = ["bench", "eval", str(partly_broken), "--benchmarks", "tinystories,toy-math", "--data", str(data_dir)]
    command += ["--limit", "2", "--max-new-tokens", "4", "--engine", "transformers", "--out", str(out)]
    monkeypatch.setattr("sys.argv", command)
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    shown = capsys.readouterr()
    assert "toy-math" in shown.out
    assert f"tinystories failed: {SENTENCE}" in " ".join(shown.err.split())
    assert "toy-math is complete" in " ".join(shown.err.split())
    assert "Traceback" not in shown.err
    assert sorted(path.name for path in out.iterdir()) == ["metrics.json", "run.log", "samples-toy-math.jsonl"]
    assert set(strict_json(out / "metrics.json")["benchmarks"]) == {"toy-math"}


def test_each_result_is_written_as_soon_as_it_is_known(partly_broken, tmp_path, data_dir):
    out, seen = tmp_path / "out", []

    def look(done, total):
        seen.append(sorted(read_json(out / "metrics.json")["benchmarks"]) if out.exists() else [])

    evaluation = evaluate(
        str(partly_broken),
        ["toy-math", "tinystories"],
        default_settings(data_dir=data_dir, limit=2, max_new_tokens=4),
        engine="transformers",
        out=out,
        contexts=(64, 128),
        progress=look,
    )
    assert seen[0] == []
    assert seen[-1] == ["toy-math"], "the first benchmark was written before the second began"
    assert list(evaluation.outcomes) == ["toy-math"]
    assert list(evaluation.failures) == ["tinystories@64", "tinystories@128"]
    assert "tinystories@64, tinystories@128 failed" in evaluation.sentence


@pytest.mark.parametrize("kind", ["folder", "file", "under a file"])
def test_eval_looks_at_the_output_before_the_model(kind, tmp_path):
    out = tmp_path / "out"
    out.mkdir() if kind == "folder" else out.write_text("mine")
    output = out / "below" if kind == "under a file" else out
    with pytest.raises(UserError, match="out"):
        evaluate("no-such-model", ["toy-math"], default_settings(), out=output)
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["out"]


def test_a_failed_evaluation_loses_no_other(partly_broken, tmp_path, data_dir):
    changes = {"training_free": True, "finetune": {}, "recover": {}, "methods": ["svd"], "ratios": [1.2], "limit": 2}
    config = small_sweep(
        tmp_path, model=str(partly_broken), data=data_dir, benchmarks=["tinystories", "toy-math"], name="n", **changes
    )
    with pytest.raises(UserError, match="2 evaluations failed, all other results are kept; evaluate tiny") as e:
        run_sweep(config)
    assert SENTENCE in str(e.value)
    assert str(e.value).count(SENTENCE) == 1, "one reason is given once"
    frame = read_records(tmp_path / "n")
    assert set(frame.benchmark) == {"toy-math"}
    assert sorted(set(frame.ratio_target)) == [1, 1.2]
    for path in tmp_path.glob("stages/*/stage.json"):
        strict_json(path)
    # The same evaluations are tried again; with nothing else to keep, nothing but the log is written.
    only = changed(config, benchmarks=("tinystories",), name="nothing")
    with pytest.raises(UserError, match="2 evaluations failed"):
        run_sweep(only)
    assert [file.name for file in (tmp_path / "nothing").iterdir()] == [LOG_FILE]


@pytest.mark.parametrize(
    "metric",
    [
        Metric("perplexity", math.inf, math.inf, math.inf, 3, True, False),
        Metric("perplexity", math.inf, 5.0, math.inf, 3, True, False),
        Metric("perplexity", math.inf, 0.0, math.inf, 1, True, False),
        Metric("perplexity", 7.5, 0.0, math.inf, 1, True, False),
        Metric("nats_per_token", 2.0, -math.inf, math.inf, 1, False, False),
        Metric("accuracy", 0.5, 0.1, 0.9, 4, scorer="strict"),
    ],
)
def test_a_metric_without_bounds_is_json_and_comes_back(metric, tmp_path):
    write_json(tmp_path / "a.json", [metric_to_plain(metric)])
    (plain,) = strict_json(tmp_path / "a.json")
    assert metric_from_plain(plain) == metric
    assert ("reason" in plain) == math.isinf(metric.value)
    old = {"name": metric.name, "value": metric.value, "low": metric.low, "high": metric.high, "n": metric.n}
    old |= {"headline": metric.headline, "higher_is_better": metric.higher_is_better, "scorer": metric.scorer}
    assert metric_from_plain(json.loads(json.dumps(old))) == metric, "files of earlier versions are read as before"


def test_a_perplexity_beyond_all_numbers_is_a_record(data_dir, tokenizer, tmp_path):
    """A mean of 800 nats a token: its exponential is no float, its interval in nats is."""

    class Hopeless(TransformersEngine):
        def logprobs(self, sequences, batch_size, progress=None):
            return [[-800.0 - index] * (len(ids) - 1) for index, ids in enumerate(sequences)]

    engine = Hopeless.__new__(Hopeless)
    engine.tokenizer, engine.context_length = tokenizer, 512
    outcome = benchmarks.get("tinystories")().evaluate(engine, EvalSettings(data_dir, limit=3))
    metrics = {metric.name: metric for metric in outcome.metrics}
    assert metrics["perplexity"].value == metrics["perplexity"].low == math.inf
    assert 795 < metrics["nats_per_token"].low < 801 < metrics["nats_per_token"].high < 806

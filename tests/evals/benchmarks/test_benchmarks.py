"""Benchmarks on the real data and a real, small model."""

import math
import re
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from lm_eval.tasks.minerva_math import utils as minerva
from sample_lines import check_samples

from lowrank_bench.evals.base import EvalSettings, benchmarks
from lowrank_bench.evals.benchmarks import stereoset
from lowrank_bench.evals.benchmarks.humaneval import humaneval_job
from lowrank_bench.evals.benchmarks.mbpp import mbpp_job
from lowrank_bench.evals.data.datasets import Rows, load_rows
from lowrank_bench.evals.engines.base import Completion
from lowrank_bench.evals.engines.transformers import TransformersEngine
from lowrank_bench.evals.grading import extract
from lowrank_bench.evals.grading.sandbox.programs import run_programs
from lowrank_bench.evals.kinds.code import function_program, unfence
from lowrank_bench.evals.kinds.generative import MIN_NEW_TOKENS, TOO_LONG, cached_rows
from lowrank_bench.evals.tasks.prompts import encode_prompt
from lowrank_bench.foundation.errors import UserError

GENERATIVE = ["gsm8k", "math", "math500", "humaneval", "mbpp", "toy-math", "toy-code"]
STAGES = ["pretrained", "finetuned"]
TOO_LONG_FOR_512 = {(name, "pretrained") for name in ("gsm8k", "math", "math500", "mbpp")}
"""Benchmarks and stages of which no prompt fits into the 512 tokens of stories260K."""


@pytest.fixture(scope="module")
def engine(data_dir):
    torch.set_num_threads(1)
    return TransformersEngine(data_dir / "models" / "stories260K", dtype="float32")


def test_tinystories_agrees_with_the_published_loss(engine, data_dir):
    """1.2451 nats per token over 12,571 tokens, computed independently when the model was converted."""
    outcome = benchmarks.get("tinystories")().evaluate(engine, EvalSettings(data_dir))
    nats = next(metric for metric in outcome.metrics if metric.name == "nats_per_token")
    perplexity = next(metric for metric in outcome.metrics if metric.headline)
    assert round(nats.value, 4) == 1.2451
    assert outcome.details["predicted_tokens"] == 12571
    assert perplexity.value == pytest.approx(math.exp(nats.value))
    assert perplexity.low < perplexity.value < perplexity.high
    assert math.log(perplexity.low) == pytest.approx(nats.low)
    assert outcome.variant == "tinystories-40-bos-512"


def test_wikitext2_windows_are_the_published_ones(engine, data_dir):
    benchmark = benchmarks.get("wikitext2")()
    rows = benchmark.data(EvalSettings(data_dir)).rows
    text = "\n\n".join(row["text"] for row in rows)
    whole = engine.tokenizer(text).input_ids  # the tokenizer's own BOS, at the start only
    windows = benchmark.windows(engine.tokenizer, [row["text"] for row in rows], 512)
    assert len(windows) == len(whole) // 512
    assert windows[3] == whole[3 * 512 : 4 * 512]
    outcome = benchmark.evaluate(engine, EvalSettings(data_dir, limit=3))
    assert outcome.variant == "wikitext2-test-512"  # the model's context, not 2,048
    assert outcome.details["predicted_tokens"] == 3 * 511
    check_samples(outcome.samples)


@pytest.mark.parametrize(
    ("name", "stage"), [(n, s) for n in GENERATIVE for s in STAGES if (n, s) not in TOO_LONG_FOR_512]
)
def test_generative_benchmarks_run_end_to_end(name, stage, engine, data_dir):
    benchmark = benchmarks.get(name)()
    settings = EvalSettings(data_dir, limit=3, stage=stage, max_new_tokens=40)
    benchmark.check(settings)
    seen = []
    outcome = benchmark.evaluate(engine, settings, lambda done, total: seen.append((done, total)))
    (headline,) = [metric for metric in outcome.metrics if metric.headline]
    assert headline.n == 3
    assert headline.low <= headline.value <= headline.high
    assert len(outcome.samples) == 3
    assert all({"prompt_sha256", "completion", "finish_reason", "verdicts"} <= set(s) for s in outcome.samples)
    check_samples(outcome.samples)
    sent = sum(sample["finish_reason"] != TOO_LONG for sample in outcome.samples)
    assert seen[-1] == (sent, 3)


@pytest.mark.parametrize(("name", "stage"), sorted(TOO_LONG_FOR_512))
def test_a_benchmark_of_which_no_prompt_fits_gives_no_number(name, stage, engine, data_dir):
    benchmark, settings = benchmarks.get(name)(), EvalSettings(data_dir, limit=3, stage=stage)
    sentence = rf"no prompt of '{name}' fits this model: the shortest has \d+ tokens, and the model's context of 512 "
    with pytest.raises(UserError, match=sentence + r".*--stage finetuned; bench run: --no-pretrained"):
        benchmark.evaluate(engine, settings)
    with pytest.raises(UserError, match=sentence):
        benchmark.check_model(settings, engine.tokenizer, 512)
    benchmark.check_model(settings, engine.tokenizer, 4096)
    benchmark.check_model(EvalSettings(data_dir, limit=3), engine.tokenizer, 512)


def test_some_prompts_too_long_are_counted_not_refused(engine, data_dir):
    benchmark = benchmarks.get("gsm8k")()
    rows = benchmark.data(EvalSettings(data_dir)).rows
    whole = EvalSettings(data_dir, stage="pretrained")
    lengths = [len(encode_prompt(engine.tokenizer, text)) for text in benchmark.prompts(rows[:2], whole)]
    scripted = Scripted(engine, ["#### 1"])
    scripted.context_length = min(lengths) + MIN_NEW_TOKENS  # the shorter one just fits
    outcome = benchmark.evaluate(scripted, replace(whole, limit=2))
    assert {m.name: m.value for m in outcome.metrics}["prompt_too_long"] == 0.5
    scripted.context_length -= 1
    with pytest.raises(UserError, match=rf"the shortest has {min(lengths)} tokens"):
        benchmark.evaluate(scripted, replace(whole, limit=2))


@pytest.mark.parametrize("name", ["gsm8k", "piqa", "tinystories"])
def test_no_data_give_no_number(name, engine, monkeypatch):
    benchmark = benchmarks.get(name)()
    monkeypatch.setattr(type(benchmark), "data", lambda self, settings: Rows([], "0" * 64, "local:nothing"))
    with pytest.raises(UserError, match=f"'{name}' (have no problems|make no window)"):
        benchmark.evaluate(engine, EvalSettings())


@pytest.mark.parametrize("texts", [[""], ["", ""], []])
def test_texts_that_predict_nothing_give_no_perplexity(texts, engine, monkeypatch):
    benchmark = benchmarks.get("tinystories")()
    rows = [{"text": text} for text in texts]
    monkeypatch.setattr(type(benchmark), "data", lambda self, settings: Rows(rows, "0" * 64, "local:nothing"))
    with pytest.raises(UserError, match="make no window of 512 tokens that predicts anything"):
        benchmark.evaluate(engine, EvalSettings())
    rows.append({"text": "Once"})
    outcome = benchmark.evaluate(engine, EvalSettings())
    assert outcome.details["windows"] == 1, "only the text that predicts something counts"


def test_stereoset_needs_the_problems_of_its_headline(engine, monkeypatch, data_dir):
    whole = cached_rows("stereoset", "validation", data_dir)
    others = [row for row in whole.rows if row["kind"] == "intersentence"]
    monkeypatch.setattr(stereoset, "cached_rows", lambda *_: Rows(others, whole.sha256, whole.source))
    with pytest.raises(UserError, match="no intrasentence problem"):
        benchmarks.get("stereoset")().check(EvalSettings(data_dir))


@pytest.mark.parametrize("name", ["stereoset", "winobias", "crows-pairs", "wikitext2"])
def test_one_problem_is_bounded_by_nothing_but_its_range(name, engine, data_dir):
    (headline,) = [
        m for m in benchmarks.get(name)().evaluate(engine, EvalSettings(data_dir, limit=1)).metrics if m.headline
    ]
    assert headline.n == 1
    assert headline.high - headline.low > 0.79


@pytest.mark.parametrize("name", [*GENERATIVE, "tinystories", "wikitext2"])
def test_identity_follows_what_matters_and_nothing_else(name, data_dir):
    benchmark = benchmarks.get(name)()
    identity = benchmark.identity(EvalSettings(data_dir))
    assert benchmark.identity(EvalSettings(data_dir, batch_size=3)) == identity
    assert benchmark.identity(EvalSettings(data_dir, limit=5)) != identity
    assert (benchmark.identity(EvalSettings(data_dir, seed=43)) != identity) == name.startswith("toy")
    if name in GENERATIVE:
        drawn = EvalSettings(data_dir, samples=2, temperature=0.8)
        assert benchmark.identity(drawn) != identity
        assert benchmark.identity(replace(drawn, top_p=0.9)) != benchmark.identity(drawn)
        assert benchmark.identity(replace(drawn, seed=43)) != benchmark.identity(drawn)
        assert benchmark.identity(EvalSettings(data_dir, max_new_tokens=5)) != identity
        assert benchmark.identity(EvalSettings(data_dir, stage="pretrained")) != identity


class Scripted(TransformersEngine):
    """The real tokenizer and context with given completions: scoring without a model that can do the task."""

    def __init__(self, engine, texts):
        self.tokenizer, self.context_length, self.texts = engine.tokenizer, 100_000, texts

    def generate(self, prompts, sampling, batch_size, progress=None):
        return [Completion((1, 2), text, "stop") for text in self.texts]


def test_gsm8k_headline_follows_the_stage(engine, data_dir):
    benchmark = benchmarks.get("gsm8k")()
    rows = load_rows("gsm8k", "test", data_dir).rows[:2]
    golds = [row["answer"].split("#### ")[1] for row in rows]
    texts = [f"#### {golds[0]}", f"The answer is: {golds[1]}"]
    for stage, headline, right in (("pretrained", "strict", 0), ("finetuned", "answer-is", 1)):
        outcome = benchmark.evaluate(Scripted(engine, texts), EvalSettings(data_dir, 2, stage))
        metrics = {(m.name, m.scorer): m for m in outcome.metrics}
        assert metrics["accuracy", headline].headline
        assert metrics["accuracy", "flexible"].value == 1
        assert metrics["no_answer", headline].value == 0.5
        assert outcome.samples[right]["verdicts"][headline] == "correct"
        assert outcome.samples[1 - right]["verdicts"][headline] == "no-answer"


@pytest.mark.parametrize(("name", "size"), [("math", 5000), ("math500", 500)])
def test_math_shows_subjects_and_levels(name, size, engine, data_dir):
    benchmark, settings = benchmarks.get(name)(), EvalSettings(data_dir)
    rows = benchmark.data(settings).rows
    assert len(rows) == size
    boxes = [extract.last_boxed(row["solution"]) for row in rows]
    texts = [f"The answer is: {' '.join(box.split())}" if i % 2 else "" for i, box in enumerate(boxes)]
    lines = benchmark.generate(Scripted(engine, texts), rows, settings)
    assert len({line["problem"] for line in lines}) == size
    outcome = benchmark.judge(rows[:300], lines[:300], settings)
    metrics = {(m.name, m.scorer): m for m in outcome.metrics}
    head = metrics["accuracy", "answer-is"]
    groups = {m.name: m for m in outcome.metrics if m.name.startswith("accuracy/") and m.scorer == "answer-is"}
    assert head.headline
    assert 0.49 <= head.value <= 0.5
    assert metrics["no_answer", "answer-is"].value == 0.5
    assert {f"accuracy/level-{level}" for level in range(1, 6)} <= set(groups)
    if name == "math500":
        assert {"accuracy/counting-and-probability", "accuracy/intermediate-algebra"} <= set(groups)
    levels = [metric for key, metric in groups.items() if "level" in key]
    assert sum(metric.n for metric in levels) == 300
    assert sum(metric.n * metric.value for metric in levels) == pytest.approx(300 * head.value)
    assert not any(metric.headline for metric in groups.values())


def test_perfect_answers_score_one_on_toy_tasks(engine):
    settings = EvalSettings(limit=20, seed=5)
    math_task, code_task = benchmarks.get("toy-math")(), benchmarks.get("toy-code")()
    for benchmark, answer in ((math_task, "answer"), (code_task, "canonical_solution")):
        texts = [row[answer] for row in benchmark.data(settings).rows[:20]]
        outcome = benchmark.evaluate(Scripted(engine, texts), settings)
        assert next(m for m in outcome.metrics if m.headline).value == 1
        outcome = benchmark.evaluate(Scripted(engine, [*texts[1:], texts[0]]), settings)
        assert next(m for m in outcome.metrics if m.headline).value < 0.5


def test_few_shot_prompts_are_the_published_ones(data_dir):
    settings = EvalSettings(data_dir, stage="pretrained")
    mbpp = benchmarks.get("mbpp")()
    (prompt,) = mbpp.prompts(mbpp.data(settings).rows[:1], settings)
    assert prompt.count("[BEGIN]") == 4
    assert prompt.count("[DONE]") == 3
    assert prompt.startswith(
        "You are an expert Python programmer, and here is your task: Write a function to find the similar"
    )
    assert prompt.endswith("[BEGIN]\n")
    assert "\r" not in prompt
    for name in ("math", "math500"):
        benchmark = benchmarks.get(name)()
        (prompt,) = benchmark.prompts(benchmark.data(settings).rows[:1], settings)
        samples = minerva.list_fewshot_samples()
        theirs = "".join(f"{minerva.doc_to_text(sample)} {sample['solution']}\n\n" for sample in samples)
        theirs += minerva.doc_to_text(benchmark.data(settings).rows[0])
        assert prompt.split() == theirs.split()  # the published data break lines at other places
        assert prompt.count("I hope it is correct.") == 4
        assert prompt.endswith("\n\nSolution:")
    gsm8k = benchmarks.get("gsm8k")()
    (prompt,) = gsm8k.prompts(gsm8k.data(settings).rows[:1], settings)
    assert prompt.count("Question: ") == 6
    assert prompt.count("#### ") == 5
    assert prompt.endswith("\nAnswer:")


def test_missing_training_examples_are_reported_before_generation(tmp_path, data_dir):
    folder = tmp_path / "gsm8k"
    folder.mkdir()
    (folder / "test.jsonl.gz").symlink_to(data_dir / "gsm8k" / "test.jsonl.gz")
    benchmark = benchmarks.get("gsm8k")()
    benchmark.check(EvalSettings(tmp_path))
    with pytest.raises(UserError, match=r"gsm8k/train.jsonl.gz"):
        benchmark.check(EvalSettings(tmp_path, stage="pretrained"))
    with pytest.raises(UserError, match="--limit 0"):
        benchmark.check(EvalSettings(tmp_path, limit=0))


@pytest.mark.parametrize(
    ("completion", "expected"),
    [
        ("    return x + 1\n", 2),
        ("return x + 1\n", 2),
        ("def f(x):\n    return x + 1\n", 2),
        ("Here it is:\n```python\ndef f(x):\n    return x + 1\n```\nDone.", 2),
        ("```\n    return x + 1\n```", 2),
        ("```python\nimport math\n\ndef f(x):\n    return math.floor(x) + 1", 2),
    ],
)
def test_answers_of_instructed_models_become_programs(completion, expected):
    space = {}
    exec(function_program('def f(x):\n    """Add one."""\n', completion, "f"), space)
    assert space["f"](1) == expected


def test_text_without_a_code_block_is_the_code():
    assert unfence("x = 1\r\n") == "x = 1\n"


def test_all_humaneval_solutions_pass(data_dir):
    rows = load_rows("humaneval", "test", data_dir).rows
    verdicts = run_programs([humaneval_job(row, row["prompt"] + row["canonical_solution"]) for row in rows], "bwrap")
    assert [row["task_id"] for row, verdict in zip(rows, verdicts, strict=True) if not verdict.passed] == []


def test_all_mbpp_solutions_pass_and_one_is_judged_in_process(data_dir):
    rows = load_rows("mbpp", "test", data_dir).rows
    verdicts = run_programs([mbpp_job(row, row["code"]) for row in rows], "bwrap")
    assert [row["task_id"] for row, verdict in zip(rows, verdicts, strict=True) if not verdict.passed] == []
    assert [row["task_id"] for row, verdict in zip(rows, verdicts, strict=True) if verdict.together] == [367]


def test_empty_programs_pass_no_task(data_dir):
    humaneval = load_rows("humaneval", "test", data_dir).rows[:40]
    mbpp = load_rows("mbpp", "test", data_dir).rows[:40]
    jobs = [*(humaneval_job(row, row["prompt"]) for row in humaneval), *(mbpp_job(row, "") for row in mbpp)]
    assert not any(verdict.passed for verdict in run_programs(jobs, "bwrap"))


_OLD_FENCE = re.compile(r"```[ \t]*(?:python3?|py3?)?[ \t]*\r?\n(.*?)(?:\n```|\Z)", re.DOTALL | re.IGNORECASE)
"""The rule as one expression, which is quadratic; on short texts the scan must read the same."""


PIECES = ["```", "`", "python", "Python", "py", "3", " ", "\t", "\r", "\n", "x", "js"]


@given(st.lists(st.sampled_from(PIECES), max_size=14).map("".join))
def test_code_blocks_are_cut_out_as_by_the_rule(text):
    fence = _OLD_FENCE.search(text)
    assert unfence(text) == (fence.group(1) if fence else text).replace("\r\n", "\n")


@pytest.mark.parametrize("text", ["```" + " " * 1_000_000 + "x", "``` " * 300_000, "```" * 300_000 + "\tx"])
def test_a_megabyte_without_a_code_block_is_itself(text):
    """A quadratic reading would need hours."""
    assert unfence(text) == text

"""Perplexities name their context, and what is trained on is never what is evaluated."""

import shutil
from dataclasses import replace

import pytest
import torch
import transformers as tf

from lowrank_bench.evals.base import EvalSettings, benchmarks
from lowrank_bench.evals.data.datasets import load_rows, specs
from lowrank_bench.evals.engines.transformers import TransformersEngine
from lowrank_bench.evals.tasks.base import get_task
from lowrank_bench.evals.tasks.commonsense import MIXTURE, answered
from lowrank_bench.evals.tasks.lookup import benchmark_names
from lowrank_bench.evals.tasks.prompts import adds_bos, joined_windows
from lowrank_bench.evals.tasks.texts import C4_TEST
from lowrank_bench.foundation.errors import UserError
from lowrank_bench.models.loading import load_tokenizer
from lowrank_bench.models.presets import resolve_model
from lowrank_bench.runners import checks
from lowrank_bench.runners.checks import BosWindows


@pytest.fixture(scope="module")
def engine(data_dir):
    torch.set_num_threads(1)
    return TransformersEngine(data_dir / "models" / "stories260K", dtype="float32")


@pytest.mark.parametrize("name", ["wikitext2", "c4", "tinystories"])
def test_the_context_is_in_the_name_and_in_the_identity(name, engine, data_dir):
    benchmark, seen = benchmarks.get(name)(), {}
    for context in (None, 64, 128):
        settings = EvalSettings(data_dir, limit=2, context=context)
        outcome = benchmark.evaluate(engine, settings)
        window = context or 512  # the model's context, where the benchmark's own is longer
        assert outcome.variant.endswith(f"-{window}")
        assert outcome.details["window"] == window
        seen[outcome.variant] = benchmark.identity(settings)
        if context:
            assert benchmark.variant(settings) == outcome.variant
    assert len({str(identity) for identity in seen.values()}) == 3
    with pytest.raises(UserError, match=r"--context 1024 is more than the model takes \(512\)"):
        benchmark.evaluate(engine, EvalSettings(data_dir, context=1024))
    with pytest.raises(UserError, match="--context 1 "):
        benchmark.check(EvalSettings(data_dir, context=1))


def test_c4_is_split_between_benchmark_and_training(data_dir):
    whole = [row["text"] for row in load_rows("c4", "train_head", data_dir).rows]
    held_out = [row["text"] for row in benchmarks.get("c4")().data(EvalSettings(data_dir)).rows]
    for task in ("language-c4", "bias"):
        trained = [e.answer for e in get_task(task).train_examples("c4", data_dir, 1).examples]
        assert held_out + trained == whole
    assert len(held_out) == C4_TEST


def test_local_calibration_of_commonsense_is_no_evaluated_split(data_dir):
    task = get_task("commonsense")
    training_set = task.train_examples(None, data_dir, 1)
    assert training_set.source == "local:arc_easy/validation.jsonl.gz+local:arc_challenge/validation.jsonl.gz"
    texts = [example.answer for example in training_set.examples]
    assert len(texts) == 299 + 570 - 2
    assert texts[0].startswith("Question: ")
    questions = {
        row["question"] for name in ("arc_easy", "arc_challenge") for row in load_rows(name, "test", data_dir).rows
    }
    assert not {text.split("\nAnswer: ")[0].removeprefix("Question: ") for text in texts} & questions
    assert task.default_source(None) == "sfsd-mixture"
    with pytest.raises(UserError, match=r"piqa/train.jsonl.gz"):
        task.train_examples("sfsd-mixture", data_dir, 1)


def test_the_mixture_takes_equal_parts_of_six_tasks(monkeypatch, data_dir):
    from lowrank_bench.evals.tasks import commonsense

    splits = {name: next(s for s, known in specs[name].splits.items() if known.sha256) for name in MIXTURE}
    rows = {name: load_rows(name, split, data_dir) for name, split in splits.items()}
    monkeypatch.setattr(commonsense, "load_rows", lambda name, split, data_dir: rows[name])
    texts, _ = commonsense.mixture(None)
    assert len(texts) == 6 * min(len(data.rows) for data in rows.values())
    assert texts[:6] == [answered(name, rows[name].rows[0]) for name in MIXTURE]


@pytest.mark.parametrize(
    ("name", "split", "expected"),
    [
        ("piqa", "validation", "Question: dresser\nAnswer: finish, woodgrain with  bobby pin "),
        ("winogrande", "validation", "Sarah was a much better surgeon than Maria so Sarah always got the harder "
         "cases."),
        ("openbookqa", "test", "There is most likely going to be fog around: a marsh"),
        ("arc_easy", "test", "Question: Which piece of safety equipment is used to keep mold spores from entering the "
         "respiratory system?\nAnswer: breathing mask"),
    ],
)  # fmt: skip
def test_a_question_is_put_together_with_its_right_answer(name, split, expected, data_dir):
    assert answered(name, load_rows(name, split, data_dir).rows[1]) == expected


def test_texts_with_passages_and_brackets(data_dir):
    boolq = answered("boolq", load_rows("boolq", "validation", data_dir).rows[0])
    assert boolq.endswith("\nQuestion: does ethanol take more energy make that produces?\nAnswer: no")
    for row in load_rows("hellaswag", "validation_1000", data_dir).rows:
        text = answered("hellaswag", row)
        assert "[title]" not in text
        assert "[header]" not in text


def test_tasks_and_underscores_stand_for_benchmarks():
    assert benchmark_names(["arc_easy", "bias", "winobias"]) == ("arc-easy", "crows-pairs", "stereoset", "winobias")
    assert benchmark_names(["math"]) == ("math",), "a benchmark comes before a task of the same name"
    with pytest.raises(UserError, match="did you mean 'stereoset'"):
        benchmark_names(["stereo-set"])


@pytest.fixture(scope="module")
def without_bos(data_dir):
    """A real tokenizer without a BOS."""
    tokenizer = load_tokenizer(str(data_dir / "models" / "stories260K"), "")
    tokenizer.bos_token = None
    tokenizer.backend_tokenizer.post_processor = None
    return tokenizer


@pytest.mark.parametrize("name", ["wikitext2", "c4"])
def test_windows_with_bos_are_other_windows_and_say_so(name, engine, data_dir):
    benchmark, settings = benchmarks.get(name)(), EvalSettings(data_dir, limit=2, context=64)
    texts = [row["text"] for row in benchmark.data(settings).rows]
    bos = engine.tokenizer.bos_token_id
    plain = benchmark.windows(engine.tokenizer, texts, 64)
    with_bos = benchmark.windows(engine.tokenizer, texts, 64, bos=True)
    assert [ids[0] for ids in with_bos] == [bos] * len(with_bos)
    assert {len(ids) for ids in with_bos} == {64}
    whole = [token for ids in plain for token in ids]
    assert whole[0] == bos
    assert [token for ids in with_bos for token in ids[1:]][: len(whole) - 1] == whole[1 : 1 + 63 * len(with_bos)]
    outcomes = {with_bos: benchmark.evaluate(engine, replace(settings, bos=with_bos)) for with_bos in (False, True)}
    assert outcomes[True].variant == f"{outcomes[False].variant}-bos" == benchmark.variant(replace(settings, bos=True))
    assert [outcomes[b].details["bos_per_window"] for b in (False, True)] == [False, True]
    assert outcomes[True].details["tokenizer_adds_bos"]
    assert [outcomes[b].details["predicted_tokens"] for b in (False, True)] == [2 * 63, 2 * 63]
    assert outcomes[False].metrics != outcomes[True].metrics
    assert benchmark.identity(replace(settings, bos=True)) != benchmark.identity(settings)


def test_stories_begin_with_bos_whatever_is_asked(engine, data_dir):
    benchmark, settings = benchmarks.get("tinystories")(), EvalSettings(data_dir, limit=2)
    first, second = (benchmark.evaluate(engine, replace(settings, bos=bos)) for bos in (False, True))
    assert first == second
    assert benchmark.identity(settings) == benchmark.identity(replace(settings, bos=True))


def test_bos_is_what_the_tokenizer_does_not_what_it_says(engine, without_bos, data_dir):
    assert not getattr(engine.tokenizer, "add_bos_token", False), "or this proves nothing"
    assert adds_bos(engine.tokenizer)
    assert not adds_bos(without_bos)
    benchmark = benchmarks.get("wikitext2")()
    with pytest.raises(UserError, match="no BOS token to begin a window with; use --bos auto, or never"):
        benchmark.windows(without_bos, ["a text"], 4, bos=True)
    assert benchmark.windows(without_bos, ["a longer text"], 2)[0][0] != engine.tokenizer.bos_token_id


@pytest.mark.parametrize("adds", [True, False])
def test_windows_follow_the_tokenizer(adds, without_bos, data_dir, tmp_path):
    model = "tiny"
    if not adds:
        model = str(shutil.copytree(data_dir / "models" / "stories260K", tmp_path / "without"))
        without_bos.save_pretrained(model)
    source, chosen = resolve_model(model, None), [benchmarks.get("wikitext2")(), benchmarks.get("piqa")()]
    never = checks.bos_windows(["never"], source, chosen)
    assert (never.every, never.uncompressed) == ((False,), ())
    assert ("leave out --bos never" in never.note) == adds
    auto = checks.bos_windows(["auto"], source, chosen)
    assert auto == BosWindows((adds,), (False,) if adds else ())
    if adds:
        assert checks.bos_windows(["always"], source, chosen) == BosWindows((True,))
        assert checks.bos_windows(["never", "always"], source, chosen) == BosWindows((False, True))
        assert checks.bos_windows(["auto", "never"], source, chosen) == BosWindows((True, False))
    else:
        for rules in (["always"], ["never", "always"]):
            with pytest.raises(UserError, match="no BOS token"):
                checks.bos_windows(rules, source, chosen)
    for rules in (["never"], ["auto"]):
        assert checks.bos_windows(rules, source, chosen[1:]) == BosWindows()
    with pytest.raises(UserError, match="none is asked for"):
        checks.bos_windows(["always"], source, chosen[1:])
    with pytest.raises(UserError, match="unknown BOS rule 'allways'; did you mean 'always'"):
        checks.bos_windows(["allways"], source, chosen)


def test_only_uncompressed_models_are_measured_both_ways():
    windows, settings = BosWindows((True,), (False,)), EvalSettings(limit=2)
    for name, bos, compressed in (("wikitext2", [True, False], False), ("c4", [True], True), ("piqa", [True], False)):
        asked = list(windows.settings(benchmarks.get(name)(), settings, compressed))
        assert [run_settings.bos for _, run_settings in asked] == bos
        assert [suffix for suffix, _ in asked] == ["", "no-bos"][: len(bos)]
    assert [suffix for suffix, _ in BosWindows((False, True)).settings(benchmarks.get("c4")(), settings, True)] == [
        "",
        "bos",
    ]


def vocabulary(*special):
    return {token: number for number, token in enumerate([*special, *sorted(set("abcdefghijklmnopqrstuvwxyz▁Ġ "))])}


LLAMA = {"vocab": vocabulary("<unk>", "<s>", "</s>"), "merges": []}
END = "<|endoftext|>"


@pytest.mark.parametrize(
    ("tokenizer", "adds"),
    [
        pytest.param(tf.LlamaTokenizer(**LLAMA, add_bos_token=True), True, id="BOS"),
        pytest.param(tf.LlamaTokenizer(**LLAMA, add_bos_token=True, add_eos_token=True), True, id="BOS and EOS"),
        pytest.param(tf.LlamaTokenizer(**LLAMA, add_bos_token=False), False, id="a BOS that is not added"),
        pytest.param(tf.GemmaTokenizer(vocab=vocabulary("<pad>", "<eos>", "<bos>", "<unk>"), merges=[],
                                       add_bos_token=True), True, id="Gemma"),
        pytest.param(tf.Qwen2Tokenizer(vocab=vocabulary(END), merges=[]), False, id="Qwen, no BOS"),
        pytest.param(tf.Qwen2Tokenizer(vocab=vocabulary(END), merges=[], bos_token=END), False, id="Qwen, BOS named"),
        pytest.param(tf.GPTNeoXTokenizer(vocab=vocabulary(END), merges=[], add_eos_token=True), False,
                     id="an EOS that is the BOS too"),
    ],
)  # fmt: skip
def test_windows_of_real_tokenizer_classes(tokenizer, adds):
    """GPTQ's code tokenises the whole text, as the tokenizer does by itself, and cuts the ids."""
    assert adds_bos(tokenizer) == adds
    text, bos = "hello there you", tokenizer.bos_token_id
    whole = tokenizer(text).input_ids
    plain = joined_windows(tokenizer, [text], 6)
    assert plain == [whole[start : start + 6] for start in range(0, len(plain) * 6, 6)]
    assert len(plain) == len(text.split()) - 1
    if bos is None:
        with pytest.raises(UserError, match="use --bos auto, or never"):
            joined_windows(tokenizer, [text], 6, bos=True)
        return
    windows = joined_windows(tokenizer, [text], 6, bos=True)
    assert all(ids[0] == bos and len(ids) == 6 for ids in windows)
    content = tokenizer.encode(text, add_special_tokens=False)
    assert [token for ids in windows for token in ids[1:]] == content[: 5 * len(windows)]

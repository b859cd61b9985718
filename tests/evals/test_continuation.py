"""Completions as text, by every family of tokenizers: what the ids add to the prompt, to the letter."""

import json
import random

import pytest
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from lowrank_bench.evals.base import EvalSettings, benchmarks
from lowrank_bench.evals.continuation import decode, decode_continuation, encode_continuation
from lowrank_bench.evals.data.datasets import load_rows
from lowrank_bench.evals.engines.base import Engine, finish, stop_found
from lowrank_bench.evals.tasks.prompts import encode_example, encode_prompt
from lowrank_bench.models.loading import load_tokenizer
from lowrank_bench.models.presets import PRESETS

FAMILIES = {
    "llama-2": "published",  # prepends a space, decodes bytes, strips a space
    "llama-2 not legacy": "metaspace",  # the space comes from the pre-tokenizer
    "gemma": "no-strip",  # puts no space before a text and strips none
    "unigram": "unigram",
    "gpt-2": "byte-level",
    "gpt-2 with a first space": "byte-level-prefix",
    "qwen": "split",
    "built-in": "tiny",
}
EMOJI = "\N{GRINNING FACE}"


def byte_level(texts, pre_tokenizer):
    built = Tokenizer(models.BPE())
    built.pre_tokenizer, built.decoder = pre_tokenizer, decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    built.train_from_iterator(
        texts, trainers.BpeTrainer(vocab_size=700, initial_alphabet=alphabet, special_tokens=["<s>", "</s>"])
    )
    return built


def unigram(texts):
    built = Tokenizer(models.Unigram())
    built.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always", split=False)
    trainer = trainers.UnigramTrainer(
        vocab_size=600, special_tokens=["<unk>", "<s>", "</s>"], unk_token="<unk>", max_piece_length=8
    )
    built.train_from_iterator([line for text in texts for line in text.splitlines()], trainer)
    state = json.loads(built.to_str())
    known = {piece for piece, _ in state["model"]["vocab"]}
    state["model"]["vocab"] += [[f"<0x{byte:02X}>", -20.0] for byte in range(256)]
    state["model"]["vocab"] += [[c, -15.0] for c in map(chr, range(0x21, 0x7F)) if c not in known]
    state["model"]["byte_fallback"] = True
    built = Tokenizer.from_str(json.dumps(state))
    built.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace(prepend_scheme="always")])
    return built


def changed(folder, change):
    state = json.loads((folder / "tokenizer.json").read_text())
    change(state)
    return Tokenizer.from_str(json.dumps(state))


def without_strip(state):
    state["normalizer"]["normalizers"].pop(0)
    assert state["decoder"]["decoders"].pop()["type"] == "Strip"


def with_metaspace(state):
    state["normalizer"] = None
    state["pre_tokenizer"] = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": False}


@pytest.fixture(scope="module")
def texts(data_dir):
    rows = load_rows("humaneval", "test", data_dir).rows
    mbpp = load_rows("mbpp", "test", data_dir).rows
    return [(row["prompt"], row["canonical_solution"]) for row in rows] + [
        (f"{row['text']}\n[BEGIN]\n", row["code"]) for row in mbpp
    ]


@pytest.fixture(scope="module", params=FAMILIES)
def tokenizer(request, data_dir, texts):
    folder, kind = data_dir / "models" / "stories260K", FAMILIES[request.param]
    if kind == "published":
        return AutoTokenizer.from_pretrained(folder)
    if kind == "tiny":
        return load_tokenizer(PRESETS["tiny"].source)
    sample = [part for pair in texts[::12] for part in pair]
    if kind == "metaspace":
        built = changed(folder, with_metaspace)
    elif kind == "no-strip":
        built = changed(folder, without_strip)
    elif kind == "unigram":
        built = unigram(sample)
    elif kind == "split":
        pattern = r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
        split = pre_tokenizers.Split(Regex(pattern), "isolated")
        level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        built = byte_level(sample, pre_tokenizers.Sequence([split, level]))
        built.normalizer = normalizers.NFC()
    else:
        built = byte_level(sample, pre_tokenizers.ByteLevel(add_prefix_space=kind == "byte-level-prefix"))
    return PreTrainedTokenizerFast(tokenizer_object=built, bos_token="<s>", eos_token="</s>", pad_token="</s>")


def test_gold_solutions_come_back_to_the_letter(tokenizer, texts):
    for prompt, gold in texts:
        ids = encode_continuation(tokenizer, gold)
        assert decode_continuation(tokenizer, encode_prompt(tokenizer, prompt), ids) == gold


def test_what_is_learnt_reads_as_the_answer_behind_the_prompt(tokenizer):
    for answer in (
        "    return x\n",
        "def f(x):\n    return x",
        "The answer is: 5",
        "\n\nfoo",
        "#",
        f"{EMOJI} é",
        " ",
        "",
    ):
        prompt = encode_prompt(tokenizer, "### Response:\n")
        example = encode_example(tokenizer, "### Response:\n", answer, 4096)
        assert example.input_ids[: len(prompt)] == prompt
        assert example.input_ids[-1] == tokenizer.eos_token_id
        done = finish(tokenizer, prompt, example.input_ids[len(prompt) :], (), {tokenizer.eos_token_id})
        assert (done.text, done.finish_reason) == (answer, "stop")


def test_a_text_may_be_cut_between_any_two_tokens(tokenizer, texts):
    random.seed(1)
    for prompt, gold in random.sample(texts, 25):
        text = f"{prompt}x = '{EMOJI}{EMOJI} 中 é'\n{gold}"
        ids = encode_prompt(tokenizer, text)
        whole = decode(tokenizer, ids)
        for cut in random.sample(range(2, len(ids)), 20):
            before, added = decode(tokenizer, ids[:cut]), decode_continuation(tokenizer, ids[:cut], ids[cut:])
            if whole.startswith(before):
                assert before + added == whole
            else:  # within a character, which the continuation completes
                assert before.endswith("\N{REPLACEMENT CHARACTER}")
                assert whole.endswith(added)
                assert whole.removesuffix(added) == before.rstrip("\N{REPLACEMENT CHARACTER}")


def test_a_character_of_several_tokens_belongs_to_what_completes_it(tokenizer):
    ids = encode_prompt(tokenizer, f"a = {EMOJI} b")
    if EMOJI in (decode(tokenizer, [token]) for token in ids):
        pytest.fail("the emoji is one token; the test needs one of several")
    cuts = [cut for cut in range(1, len(ids)) if EMOJI not in decode(tokenizer, ids[:cut])]
    for cut in cuts[-3:]:
        assert decode_continuation(tokenizer, ids[:cut], ids[cut:]) == f"{EMOJI} b"


def test_half_a_character_behind_a_newline_spoils_nothing_before_it(tokenizer):
    for prompt in ("Answer:\n", f"Answer: {EMOJI}", f"{EMOJI}\n" * 6):
        head, tail = encode_prompt(tokenizer, prompt), encode_continuation(tokenizer, EMOJI)
        text = decode_continuation(tokenizer, head, tail[:-1])
        assert text
        assert set(text) == {"\N{REPLACEMENT CHARACTER}"}
        assert decode_continuation(tokenizer, head, encode_continuation(tokenizer, "\nx")) == "\nx"


def test_behind_a_beginning_token_alone_a_completion_is_a_whole_text(tokenizer):
    text = "Once upon a time"
    ids = tokenizer.encode(text, add_special_tokens=False)
    for prompt in ([], [tokenizer.bos_token_id], [tokenizer.bos_token_id] * 30):
        assert decode_continuation(tokenizer, prompt, ids) == tokenizer.decode(ids)


def test_special_tokens_between_prompt_and_completion_do_not_hide_the_prompt(tokenizer):
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    prompt = [*encode_prompt(tokenizer, "Say it:\n"), *[eos, bos] * 12]
    assert decode_continuation(tokenizer, prompt, encode_continuation(tokenizer, "  yes")) == "  yes"


def test_stop_strings_are_sought_in_the_completion_alone(tokenizer):
    prompt = encode_prompt(tokenizer, "class A:\n")
    for text, stops in (
        ("def f():\n  pass\nx", ("\ndef", "A:\nd")),
        ("  return\ndef g", ("\ndef",)),
        (" def x", (" def",)),
    ):
        ids = encode_continuation(tokenizer, text)
        cut = min((text.find(stop) for stop in stops if stop in text), default=None)
        done = finish(tokenizer, prompt, ids, stops, set())
        assert (done.text, done.finish_reason) == (text[:cut], "length" if cut is None else "stop")
        seen = [stop_found(tokenizer, prompt, ids[:count], stops) for count in range(len(ids) + 1)]
        assert any(seen) == (cut is not None)
        if cut is not None:
            assert seen.index(True) == len(done.token_ids)
    assert not stop_found(tokenizer, prompt, encode_continuation(tokenizer, "x"), ())


class Gold(Engine):
    """Answers every prompt with the tokens of a given text, as an engine does with those that it generated."""

    context_length = 10**6

    def __init__(self, tokenizer, texts):
        self.tokenizer, self.texts = tokenizer, texts

    def generate(self, prompts, sampling, batch_size, progress=None):
        answers = (encode_continuation(self.tokenizer, text) for text in self.texts)
        return [finish(self.tokenizer, p, ids, sampling.stop, set()) for p, ids in zip(prompts, answers, strict=True)]

    def logprobs(self, sequences, batch_size, progress=None):
        raise AssertionError("nothing is scored")

    def close(self):
        pass


@pytest.mark.parametrize(
    ("name", "gold", "stage"),
    [
        ("humaneval", "canonical_solution", "pretrained"),
        ("humaneval", "canonical_solution", "finetuned"),
        ("mbpp", "code", "finetuned"),  # begins without a space; a space before it would be an IndentationError
    ],
)
def test_published_solutions_pass_with_a_tokenizer_that_strips_spaces(data_dir, name, gold, stage):
    benchmark, settings = benchmarks.get(name)(), EvalSettings(data_dir, stage=stage)
    rows = benchmark.data(settings).rows
    tokenizer = AutoTokenizer.from_pretrained(data_dir / "models" / "stories260K")
    outcome = benchmark.evaluate(Gold(tokenizer, [row[gold] for row in rows]), settings)
    wrong = [line["problem"] for line in outcome.samples if line["verdicts"]["tests"] != "correct"]
    assert wrong == []

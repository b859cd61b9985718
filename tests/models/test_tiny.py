"""The built-in model: a lossless tokenizer, an ordinary small checkpoint that learned something, a clean corpus."""

import itertools
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, AutoTokenizer

import lowrank_bench.models.tiny
from lowrank_bench.evals.tasks.toy.code import toy_code_problems
from lowrank_bench.evals.tasks.toy.math import toy_math_problems
from lowrank_bench.foundation.files import digest
from lowrank_bench.models.tiny.corpus import MIXTURE, documents
from lowrank_bench.models.tiny.pretrain import learning_rate, pretrain
from lowrank_bench.models.tiny.tokenizer import build_tokenizer

FOLDER = Path(lowrank_bench.models.tiny.__file__).parent
TOKENIZER = AutoTokenizer.from_pretrained(FOLDER)
ALPACA = (
    "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{}\n\n### Response:\n{}"
)
FEW_SHOT = "Question: {}\nAnswer: {}"


@pytest.fixture(scope="module")
def model():
    return AutoModelForCausalLM.from_pretrained(FOLDER, dtype=torch.float32).eval()


def encode(text: str) -> list[int]:
    return TOKENIZER(text, add_special_tokens=False)["input_ids"]


def continued(model, prompts: list[str], new_tokens: int) -> list[str]:
    """Greedy continuations of prompts of equal length in tokens."""
    ids = torch.tensor(TOKENIZER(prompts)["input_ids"])
    out = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=new_tokens, do_sample=False)
    return [TOKENIZER.decode(row[ids.shape[1] :], skip_special_tokens=True) for row in out]


@settings(max_examples=300, deadline=None)
@given(st.text() | st.text(alphabet=" \n\tab12.<>/sTom#é日🎉", max_size=60))
def test_decoding_gives_back_every_text(text):
    ids = encode(text)
    assert TOKENIZER.decode(ids) == text
    assert all(0 <= i < len(TOKENIZER) for i in ids)


@settings(max_examples=100, deadline=None)
@given(st.text(alphabet=" \n\tab12.Tom#é日", max_size=60))
def test_exactly_one_bos_at_the_front(text):
    ids = TOKENIZER(text)["input_ids"]
    assert ids == [TOKENIZER.bos_token_id, *encode(text)]
    assert ids.count(TOKENIZER.bos_token_id) == 1


def falls_to_bytes(text: str) -> list[str]:
    """List the words and runs of punctuation (two characters or more) that are no token of their own."""
    backend = TOKENIZER.backend_tokenizer
    pieces = [piece for piece, _ in backend.pre_tokenizer.pre_tokenize_str(text)]
    return [piece for piece in pieces if len(piece) > 1 and backend.token_to_id(piece) is None]


def test_no_word_of_the_prompts_and_tasks_falls_to_bytes():
    math = [*toy_math_problems("train", 1000, 42), *toy_math_problems("test", 250, 42)]
    code = [*toy_code_problems("train", 1000, 42), *toy_code_problems("test", 250, 42)]
    texts = [template.format(p["question"], p["answer"]) for p in math for template in (ALPACA, FEW_SHOT)]
    texts += [ALPACA.format(p["prompt"].strip(), p["canonical_solution"]) for p in code]
    texts += [ALPACA.format(p["prompt"].split('"""')[1], p["canonical_solution"]) for p in code]
    texts += [p["prompt"] + p["canonical_solution"] for p in code]
    assert {piece for text in texts for piece in falls_to_bytes(text)} == set()


def test_no_word_of_the_corpus_falls_to_bytes():
    texts = [*itertools.islice(documents(1), 2000), *itertools.islice(documents(2, small=True), 2000)]
    assert {piece for text in texts for piece in falls_to_bytes(text)} == set()


def test_numbers_are_single_digits():
    assert TOKENIZER.convert_ids_to_tokens(encode("12+345")) == ["1", "2", "+", "3", "4", "5"]


def test_shipped_tokenizer_is_the_one_the_script_builds():
    assert json.loads(build_tokenizer().backend_tokenizer.to_str()) == json.loads(
        (FOLDER / "tokenizer.json").read_text(encoding="utf-8")
    )


def test_checkpoint_is_small_and_ordinary(model):
    assert (FOLDER / "model.safetensors").stat().st_size < 2_000_000
    assert model.num_parameters() < 1_000_000
    assert model.config.model_type == "llama"
    assert model.config.max_position_embeddings == 1024
    assert model.config.vocab_size == len(TOKENIZER) < 450
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    stored = AutoModelForCausalLM.from_pretrained(FOLDER)
    assert stored.dtype == torch.bfloat16
    assert stored.generation_config.eos_token_id == TOKENIZER.eos_token_id


def test_model_learned_the_tables(model):
    sums = [(f"{a}+{b}=", a + b) for a in range(2, 10) for b in range(2, 10)]
    products = [(f"{a}*{b}=", a * b) for a in range(2, 10) for b in range(2, 10)]
    for pairs in (sums, products):
        answers = continued(model, [f"4+4=8\n{text}" for text, _ in pairs], 3)
        right = sum(answer.split("\n")[0] == str(n) for answer, (_, n) in zip(answers, pairs, strict=True))
        assert right >= 0.9 * len(pairs)


def test_model_continues_with_sense(model):
    assert continued(model, ["Tom sells books. Anna sells books. Tom and Anna"], 5) == [" sell books together."]
    assert continued(model, ["Question: 7 boxes of 8 pens and 6 are lost\nAnswer: 7*8=56, 56-6="], 2) == ["50"]
    assert continued(model, ["# the sum of y plus 17\n"], 8) == ["sum(y) + 17"]


def test_corpus_is_deterministic_also_in_a_fresh_process():
    program = (
        "import itertools\n"
        "from lowrank_bench.foundation.files import digest\n"
        "from lowrank_bench.models.tiny.corpus import documents\n"
        "print(digest(list(itertools.islice(documents(5, True), 500))))"
    )
    environment = {**os.environ, "PYTHONHASHSEED": "77"}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, env=environment)
    assert done.stdout.strip() == digest(list(itertools.islice(documents(5, True), 500)))
    assert list(itertools.islice(documents(5), 50)) != list(itertools.islice(documents(6), 50))


def test_corpus_holds_no_toy_problem_and_none_of_their_formats():
    text = "\x00".join([*itertools.islice(documents(42), 20_000), *itertools.islice(documents(43, True), 10_000)])
    for mark in ("####", "<<", '"""', "How many", "f(x)", "Return"):
        assert mark not in text, mark
    for split in ("train", "test"):
        assert not [p for p in toy_math_problems(split, 250, 42) if p["question"] in text]
        assert not [p for p in toy_code_problems(split, 250, 42) if p["prompt"] in text or p["prompt"][13:-4] in text]


def test_mixture_adds_up():
    shares = [share for share, _ in MIXTURE.values()]
    assert sum(shares) == pytest.approx(1)
    assert sum(round(100 * share) for share in shares) == 100


def test_every_calculation_of_the_corpus_is_right():
    checked = 0
    for text in itertools.islice(documents(9), 3000):
        for part in text.replace(";", ",").replace("\n", ",").replace(" ", ",").split(","):
            left, equals, right = part.rstrip(".:").partition("=")
            if equals and right.isdigit() and any(sign in left for sign in "+-*/"):
                assert eval(left.split(":")[-1]) == int(right), text
                checked += 1
    assert checked > 3000


def test_learning_rate_rises_and_falls():
    rates = [learning_rate(step, 1000) for step in range(1000)]
    peak = rates.index(max(rates))
    assert rates[: peak + 1] == sorted(rates[: peak + 1])
    assert rates[peak:] == sorted(rates[peak:], reverse=True)
    assert rates[0] > 0
    assert rates[-1] < 0.001 * max(rates)


def test_pretraining_makes_the_same_kind_of_folder(tmp_path):
    record = pretrain(tmp_path, seed=3, steps=2)
    assert record["tokens"] == 2 * 4096
    shipped = {p.name for p in FOLDER.iterdir() if p.suffix in (".json", ".safetensors")}
    assert {p.name for p in tmp_path.iterdir()} == shipped
    assert (tmp_path / "config.json").read_text() == (FOLDER / "config.json").read_text()
    model = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert model.num_parameters() == record["parameters"]
    shipped_record = json.loads((FOLDER / "pretraining.json").read_text())
    assert shipped_record.keys() == record.keys()
    assert shipped_record["tokens"] == shipped_record["steps"] * 4096

"""Chat templates of known families' shapes: what is learnt, what ends a turn, one BOS, the same text on any day."""

from __future__ import annotations

import json

import pytest
import yaml
from chat_families import FAMILIES, GEMMA, LLAMA3, QWEN3, make_tokenizer, save_family_model
from chat_models import CHATML
from sweeps import small_sweep

from lowrank_bench.evals.kinds.likelihood import encode_pair
from lowrank_bench.evals.tasks import base
from lowrank_bench.evals.tasks.chat import Conversation, chat_rules, encode_turns, end_of_turn_ids
from lowrank_bench.evals.tasks.files.opening import open_task
from lowrank_bench.evals.tasks.prompts import IGNORED, encode_prompt
from lowrank_bench.foundation.errors import UserError
from lowrank_bench.runners.plan import make_plan
from lowrank_bench.runners.training.data import load_task_data

SYSTEM = {"role": "system", "content": "Be brief."}
TURNS = [
    {"role": role, "content": content}
    for role, content in zip(("user", "assistant") * 2, ("one", "two", "three", "four"), strict=True)
]


@pytest.fixture(params=FAMILIES)
def family(request):
    """Each family in turn."""
    return FAMILIES[request.param]


@pytest.fixture
def tokenizer(family):
    """Its tokenizer."""
    return make_tokenizer(family)


def learnt(tokenizer, messages):
    """Return a conversation's ids, and the text that is learnt of it."""
    ids, labels = encode_turns(tokenizer, messages, IGNORED)
    assert all(label in (IGNORED, token) for token, label in zip(ids, labels, strict=True))
    return ids, tokenizer.decode([label for label in labels if label != IGNORED])


def test_the_answer_and_the_end_of_its_turn_are_learnt_behind_what_generation_reads(family, tokenizer):
    ids, text = learnt(tokenizer, TURNS[:2])
    assert text == f"two{family.end}"
    asked = encode_prompt(tokenizer, Conversation(TURNS[:1]))
    assert tokenizer.decode(asked) == family.asked.format("one")
    assert ids[: len(asked)] == asked
    assert len(ids) == len(asked) + len(tokenizer.encode(f"two{family.end}", add_special_tokens=False))
    assert end_of_turn_ids(tokenizer) == (tokenizer.convert_tokens_to_ids(family.end),)


def test_there_is_one_bos_or_none(family, tokenizer):
    asked = Conversation(TURNS[:1])
    context, answer = encode_pair(tokenizer, asked, "two")
    assert tokenizer.encode("a")[:1] == ([tokenizer.bos_token_id] if family.adds_bos else tokenizer.encode("a")[:1])
    for ids in (encode_prompt(tokenizer, asked), learnt(tokenizer, TURNS)[0], context + answer):
        assert ids.count(tokenizer.bos_token_id) == (1 if family.adds_bos else 0)
        assert not family.adds_bos or ids[0] == tokenizer.bos_token_id


def test_earlier_turns_are_learnt_unless_the_template_writes_them_in_another_way_then():
    for family, expected in (
        (LLAMA3, "two<|eot_id|>four<|eot_id|>"),
        (GEMMA, "two<end_of_turn>four<end_of_turn>"),
        (QWEN3, "four<|im_end|>"),
    ):
        ids, text = learnt(make_tokenizer(family), TURNS)
        assert text == expected
    # Of Qwen3's earlier turn there is no reasoning left, as when the last answer is asked for.
    tokenizer = make_tokenizer(QWEN3)
    asked = encode_prompt(tokenizer, Conversation(TURNS[:3]))
    assert ids[: len(asked)] == asked
    assert tokenizer.decode(ids).count("<think>") == 1


def test_a_turn_in_which_the_model_reasons_is_refused_where_prompts_have_none():
    reasoned = [TURNS[0], {"role": "assistant", "content": "<think>\nhm\n</think>\n\ntwo"}]
    with pytest.raises(UserError, match="leave reasoning such as <think> blocks out of the answers"):
        encode_turns(make_tokenizer(QWEN3), reasoned, IGNORED)


def test_system_messages_are_rendered_or_refused_with_what_to_do():
    for family in (LLAMA3, QWEN3):
        ids, text = learnt(make_tokenizer(family), [SYSTEM, *TURNS[:2]])
        assert make_tokenizer(family).decode(ids).count("Be brief.") == 1
        assert text == f"two{family.end}"
    with pytest.raises(UserError, match=r"roles system, user, assistant \(there is no system turn\).*leave 'sys"):
        encode_turns(make_tokenizer(GEMMA), [SYSTEM, *TURNS[:2]], IGNORED)


def test_the_rules_are_in_the_key_of_templates_that_they_change_alone():
    tokenizer = make_tokenizer(GEMMA)
    assert chat_rules(tokenizer) == 1
    tokenizer.chat_template = CHATML
    assert chat_rules(tokenizer) == 1
    tokenizer.chat_template = None
    assert chat_rules(tokenizer) == 1
    assert [chat_rules(make_tokenizer(family)) for family in (LLAMA3, QWEN3)] == [2, 2]


def write_task(folder, name, rows, **changes):
    """Write data and a task file; returns its path."""
    folder.mkdir()
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    values = {
        "name": name,
        "train": {"data": "train.jsonl"},
        "max_length": 128,
        "benchmarks": [
            {"name": "exact", "kind": "exact", "max_new_tokens": 4},
            {"name": "choice", "kind": "choice", "choices": ["yes", "no"]},
        ],
    }
    (folder / "task.yaml").write_text(yaml.safe_dump(values | changes))
    return str(folder / "task.yaml")


def test_plans_calibration_and_refusals_of_a_task_file(tmp_path, family, monkeypatch):
    monkeypatch.setattr(base, "_added", {})
    tokenizer = save_family_model(family, tmp_path / "model")
    rows = [{"prompt": f"Is {n} even?", "completion": "no" if n % 2 else "yes"} for n in range(60)]

    def plan(file):
        config = {"model": str(tmp_path / "model"), "methods": ["svd-llm:samples=4"], "ratios": [2]}
        return make_plan(small_sweep(tmp_path / "runs", **config, task=file))

    file = write_task(tmp_path / "good", "parity", rows)
    stages = plan(file).stages.values()
    keyed = [stage.spec.hashed() for stage in stages]
    rules = [{**(spec.get("data") or {}), **spec.get("identity", {})}.get("chat_rules", 1) for spec in keyed]
    reads = [stage.kind == "evaluate" or stage.data is not None for stage in stages]
    assert {rule for rule, reading in zip(rules, reads, strict=True) if reading} == {chat_rules(tokenizer)}
    assert {stage.spec.variant for stage in stages if stage.kind == "evaluate"} == {
        "parity-exact-0shot-chat",
        "parity-choice-0shot-chat",
    }
    task = open_task(file).name
    data = load_task_data(task, None, None, tokenizer, None, 256, 0, cut=True, chat=True)
    (batch,) = data.batches(4, 4)
    for ids, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True):
        text = tokenizer.decode(ids[mask.bool()])
        number = int(text.split(" even?")[0].split()[-1])
        answer = "no" if number % 2 else "yes"
        assert text == family.asked.format(f"Is {number} even?") + answer + family.end
    # What the template refuses is refused before anything is written.
    with_system = write_task(tmp_path / "system", "brief", rows, system="Be brief.")
    rows[3]["completion"] = "<think>\nhm\n</think>\n\nno"
    with_thought = write_task(tmp_path / "thought", "thought", rows)
    if family is GEMMA:
        with pytest.raises(UserError, match=r"^line \d+ of 'train.jsonl': .*\(there is no system turn\)"):
            plan(with_system)
    else:
        plan(with_system)
    if family is QWEN3:
        with pytest.raises(UserError, match=r"^line 4 of 'train.jsonl': .*<think>"):
            plan(with_thought)
    else:
        plan(with_thought)
    assert not (tmp_path / "runs").exists()

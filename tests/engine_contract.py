"""What every engine must do: inherit `EngineContract`, say in `open` how the engine is made, and pass."""

import json
import shutil

import pytest
import torch

from lowrank_bench.evals.engines.base import Engine, Sampling
from lowrank_bench.evals.tasks.prompts import encode_prompt
from lowrank_bench.foundation.errors import UserError
from lowrank_bench.models.loading import load_model, load_tokenizer

NEW = 40
TEXTS = [
    "Question: 3 + 4",
    "Answer: 12-2=10\nThe",
    "She",
    "Question: Tom has 12 apples and buys 3 more. How many apples",
]


def added_text(tokenizer, prompt, ids):
    """Return what ids add to the text of the whole prompt."""
    before = tokenizer.decode(prompt, skip_special_tokens=True)
    both = tokenizer.decode([*prompt, *ids], skip_special_tokens=True)
    assert both.startswith(before)
    return both[len(before) :]


class EngineContract:
    """The suite; `checkpoint` may be another folder. Define ``open(checkpoint)``, a context that gives the engine on it
    in float32."""

    @pytest.fixture(scope="class")
    def checkpoint(self):
        """Return the folder of the built-in model."""
        from lowrank_bench.models.presets import PRESETS

        return PRESETS["tiny"].source

    @pytest.fixture(scope="class")
    def model(self, checkpoint):
        """Load the model without any engine."""
        torch.set_num_threads(1)
        return load_model(checkpoint)

    @pytest.fixture(scope="class")
    def prompts(self, checkpoint):
        """Return prompts of several lengths."""
        tokenizer = load_tokenizer(checkpoint)
        return [encode_prompt(tokenizer, text) for text in TEXTS]

    @pytest.fixture(scope="class")
    def argmax(self, model, prompts):
        """Continue each prompt token by token, without a batch, a cache or an end."""
        continuations = []
        for prompt in prompts:
            ids = list(prompt)
            with torch.no_grad():
                for _ in range(NEW):
                    ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
            continuations.append(ids[len(prompt) :])
        return continuations

    @pytest.fixture(scope="class")
    def ends(self, checkpoint, argmax):
        """Return what ends a sequence: the tokenizer's token and a second one that one prompt meets late."""
        eos = load_tokenizer(checkpoint).eos_token_id
        until = [ids[: ids.index(eos)] if eos in ids else ids for ids in argmax]
        late = [token for ids in until for token in ids if token not in ids[:5]]
        return [eos, min(late, key=lambda token: sum(token in ids for ids in until))]

    @pytest.fixture(scope="class")
    def engine(self, checkpoint, ends, tmp_path_factory):
        """Open the engine once for the whole suite, on a copy that ships settings which must have no effect."""
        copy = tmp_path_factory.mktemp("shipped") / "model"
        shutil.copytree(checkpoint, copy)
        shipped = {
            "do_sample": True,
            "temperature": 1.7,
            "top_k": 3,
            "repetition_penalty": 5.0,
            "min_new_tokens": NEW - 1,
        }
        (copy / "generation_config.json").write_text(json.dumps(shipped | {"eos_token_id": ends}))
        with self.open(copy) as engine:
            yield engine

    @pytest.fixture(scope="class")
    def free(self, engine, prompts):
        """Return what the engine makes of the prompts with nothing to stop it but end of sequence."""
        return engine.generate(prompts, Sampling(NEW), 4)

    def test_greedy_equals_step_by_step_argmax_up_to_an_end_of_sequence(self, engine, prompts, argmax, ends, free):
        for prompt, expected, completion in zip(prompts, argmax, free, strict=True):
            end = next((index for index, token in enumerate(expected) if token in ends), None)
            assert list(completion.token_ids) == expected[:end]
            assert completion.finish_reason == ("length" if end is None else "stop")
            assert completion.text == added_text(engine.tokenizer, prompt, completion.token_ids)
        assert any(
            ends[1] in expected and len(completion.token_ids) < NEW
            for expected, completion in zip(argmax, free, strict=True)
        )

    @pytest.mark.parametrize("batch_size", [1, 3])
    def test_batch_size_changes_no_token(self, engine, prompts, free, batch_size):
        assert engine.generate(prompts, Sampling(NEW), batch_size) == free

    def test_stop_strings_cut_text_and_tokens(self, engine, prompts, free):
        text = max((completion.text for completion in free), key=len)
        stops = (text[12:14], text[6:9])
        assert all(stops)
        stopped = engine.generate(prompts, Sampling(NEW, stop=stops), 4)
        for prompt, long, short in zip(prompts, free, stopped, strict=True):
            cut = min((long.text.find(stop) for stop in stops if stop in long.text), default=None)
            assert short.text == long.text[:cut]
            if cut is None:
                assert short == long
                continue
            assert short.finish_reason == "stop"
            assert short.token_ids == long.token_ids[: len(short.token_ids)]
            with_stop = added_text(engine.tokenizer, prompt, short.token_ids)
            assert any(stop in with_stop for stop in stops)
            one_less = added_text(engine.tokenizer, prompt, short.token_ids[:-1])
            assert not any(stop in one_less for stop in stops)
        assert any(len(short.token_ids) < len(long.token_ids) for long, short in zip(free, stopped, strict=True))

    def test_sampling_is_repeatable_and_every_round_and_row_draws_its_own(self, engine, prompts):
        rows = [prompts[0], prompts[0], prompts[2]]
        first = engine.generate(rows, Sampling(30, temperature=1.0, seed=1), 3)
        assert engine.generate(rows, Sampling(30, temperature=1.0, seed=1), 3) == first
        other = engine.generate(rows, Sampling(30, temperature=1.0, seed=2), 3)
        assert all(a != b for a, b in zip(first, other, strict=True))
        assert first[0] != first[1]
        tight = engine.generate(rows, Sampling(30, temperature=1.0, top_p=1e-6, seed=1), 3)
        assert tight == engine.generate(rows, Sampling(30), 3)

    @pytest.mark.parametrize("batch_size", [1, 4])
    def test_logprobs_equal_an_unbatched_log_softmax(self, engine, model, prompts, batch_size):
        full = [prompts[0][0], *(20 + (7 * i) % 400 for i in range(engine.context_length - 1))]
        sequences = [prompts[0][:1], *prompts, full]
        scored = engine.logprobs(sequences, batch_size)
        assert scored[0] == []
        assert len(scored[-1]) == engine.context_length - 1
        for ids, values in zip(sequences[1:], scored[1:], strict=True):
            with torch.no_grad():
                table = model(torch.tensor([ids])).logits[0].log_softmax(-1)
            expected = [float(table[i, token]) for i, token in enumerate(ids[1:])]
            assert values == pytest.approx(expected, abs=1e-4)

    def test_scores_of_last_tokens_alone_equal_those_of_all(self, engine, prompts):
        starts = [1, *(max(1, len(ids) - 2) for ids in prompts[1:])]
        for all_scores, last_scores, start in zip(
            engine.logprobs(prompts, 3), engine.continuation_logprobs(prompts, starts, 3), starts, strict=True
        ):
            assert last_scores == pytest.approx(all_scores[start - 1 :], abs=1e-4)

    def test_continuations_are_scored_with_whether_they_are_greedy(self, engine, prompts, argmax):
        greedy = [[*prompt, *ids[:3]] for prompt, ids in zip(prompts, argmax, strict=True)]
        other = [[*ids[:-1], ids[-1] + 1 if ids[-1] < 300 else ids[-1] - 1] for ids in greedy]
        starts = [len(ids) - 3 for ids in greedy] * 2
        scored = engine.score_continuations(greedy + other, starts, 3)
        assert [continuation.greedy for continuation in scored] == [True] * len(greedy) + [False] * len(other)
        for continuation, logprobs in zip(scored, engine.continuation_logprobs(greedy + other, starts, 3), strict=True):
            assert continuation.logprobs == pytest.approx(logprobs, abs=1e-4)
        plain = Engine.score_continuations(engine, greedy + other, starts, 3)
        ends = [engine.tokenizer.eos_token_id in ids[-3:] for ids in greedy + other]
        assert not all(ends)
        expected = [continuation.greedy and not end for continuation, end in zip(scored, ends, strict=True)]
        assert [continuation.greedy for continuation in plain] == expected, "engines that see no ranks"

    def test_an_unread_last_id_may_exceed_the_context(self, engine, prompts):
        head = [prompts[0][0], *(20 + (7 * i) % 400 for i in range(engine.context_length - 2))]
        longest = [*head, *[33, 44][: 1 + engine.unread]]
        whole, short = engine.score_continuations([longest, longest[:-1]], [len(longest) - 3, len(longest) - 3], 2)
        assert len(whole.logprobs) == 3
        assert whole.logprobs[:2] == pytest.approx(short.logprobs, abs=1e-4)
        with pytest.raises(UserError, match=f"{len(longest) + 1} tokens"):
            engine.score_continuations([[*longest, 5]], [3], 1)

    def test_a_completion_may_fill_the_context(self, engine, prompts):
        room = 3
        prompt = [prompts[0][0], *(20 + (7 * i) % 400 for i in range(engine.context_length - 1 - room))]
        (completion,) = engine.generate([prompt], Sampling(room), 1)
        assert len(completion.token_ids) == room

    def test_prompt_beyond_the_context_is_refused_before_work(self, engine):
        context, calls = engine.context_length, []
        with pytest.raises(UserError, match=rf"{context - 5} tokens and 6 new ones.*{context}"):
            engine.generate([[1], [1] * (context - 5)], Sampling(6), 1, lambda *news: calls.append(news))
        with pytest.raises(UserError, match=f"{context + 1} tokens"):
            engine.logprobs([[1] * (context + 1)], 1)
        assert not calls

    def test_progress_counts_up_to_all(self, engine, prompts):
        for work in (
            lambda report: engine.generate(prompts, Sampling(4), 2, report),
            lambda report: engine.logprobs(prompts, 2, report),
        ):
            news = []
            work(lambda done, total, news=news: news.append((done, total)))
            assert [total for _, total in news] == [4] * len(news)
            assert [done for done, _ in news] == sorted({done for done, _ in news})
            assert news[-1] == (4, 4)

    def test_nothing_to_do(self, engine):
        assert engine.generate([], Sampling(4), 2) == []
        assert engine.logprobs([], 2) == []

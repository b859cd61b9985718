"""The likeliest token of a row, as `argmax` gives it, without its time on a CPU."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lowrank_bench.models.token_scores import _is_argmax


@given(st.integers(0, 2**32 - 1), st.integers(1, 40), st.integers(1, 6))
def test_ties_go_to_the_first_as_in_argmax(seed, vocabulary, values):
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randint(values, (16, vocabulary), generator=generator).float().log_softmax(-1)
    best = scores.argmax(-1)
    for tokens in (
        best,
        torch.randint(vocabulary, (16,), generator=generator),
        vocabulary - 1 - scores.flip(-1).argmax(-1),
    ):
        assert torch.equal(_is_argmax(scores, tokens), best == tokens)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_scores_of_a_model_agree_with_argmax(dtype):
    logits = (3 * torch.randn(200, 5000, generator=torch.Generator().manual_seed(0))).to(dtype)
    scores = logits.float().log_softmax(-1)
    best = scores.argmax(-1)
    assert _is_argmax(scores, best).all()
    assert torch.equal(_is_argmax(scores, best.roll(1)), best == best.roll(1))

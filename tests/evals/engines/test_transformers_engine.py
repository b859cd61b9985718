"""What the transformers engine alone must do; test_engine_transformers.py has what every engine must."""

import pytest
import torch

from lowrank_bench.evals.engines import transformers as transformers_engine
from lowrank_bench.evals.engines.base import Sampling, engines
from lowrank_bench.evals.engines.transformers import TransformersEngine


@pytest.fixture(scope="module")
def engine(data_dir):
    torch.set_num_threads(1)
    return engines.get("transformers")(data_dir / "models" / "stories260K", dtype="float32")


def test_registry_finds_engine_despite_the_library_of_the_same_name(engine):
    assert isinstance(engine, TransformersEngine)
    assert engine.name == "transformers"
    assert engine.context_length == 512


def test_generation_settings_shipped_with_a_model_have_no_effect(engine):
    shipped = engine.model.generation_config
    (expected,) = engine.generate([[1]], Sampling(30), 1)
    shipped.repetition_penalty, shipped.no_repeat_ngram_size = 5.0, 2
    try:
        assert engine.generate([[1]], Sampling(30), 1) == [expected]
    finally:
        shipped.repetition_penalty, shipped.no_repeat_ngram_size = None, None
    assert engine.model.generation_config is shipped


def test_published_story_is_reproduced_from_bos_alone(engine):
    (story,) = engine.generate([[1]], Sampling(60), 1)
    assert story.text.strip().startswith(
        "Once upon a time, there was a little girl named Lily. She loved to play outside in the park."
    )


def test_wrapped_model_keeps_its_training_mode(engine):
    wrapped = TransformersEngine.from_model(engine.model, engine.tokenizer)
    engine.model.train()
    wrapped.generate([[1]], Sampling(2), 1)
    assert engine.model.training
    engine.model.eval()


def test_scoring_needs_no_tokenizer_and_generation_loads_it_once(data_dir, monkeypatch, engine):
    loads = []
    load = transformers_engine.load_tokenizer
    monkeypatch.setattr(transformers_engine, "load_tokenizer", lambda *files: loads.append(files) or load(*files))
    fresh = TransformersEngine(data_dir / "models" / "stories260K", dtype="float32")
    assert fresh.logprobs([[1, 5, 7], [1, 9]], 2) == engine.logprobs([[1, 5, 7], [1, 9]], 2)
    assert loads == []
    assert fresh.generate([[1]], Sampling(3), 1) == fresh.generate([[1]], Sampling(3), 1)
    assert len(loads) == 1

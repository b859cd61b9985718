"""`lm_eval:ifeval` with local problems: the harness's own instruction checks, and its own values."""

# ruff: noqa: E501 - one problem a line

import json

import nltk
import pytest

from lowrank_bench.evals.base import EvalSettings, benchmarks
from lowrank_bench.evals.engines.transformers import TransformersEngine
from lowrank_bench.foundation.errors import UserError

PROBLEMS = [
    ("Write about a cat in lower case, without commas.", ["punctuation:no_comma", "change_case:english_lowercase"], [{}, {}]),
    ("Write at most 400 words.", ["length_constraints:number_words"], [{"relation": "less than", "num_words": 400}]),
    ("Say xylophone.", ["keywords:existence"], [{"keywords": ["xylophone"]}]),
    ("Write at least 2 sentences.", ["length_constraints:number_sentences"], [{"relation": "at least", "num_sentences": 2}]),
]  # fmt: skip
MINE = """
include: IFEVAL
task: my_instructions
process_results: !function checks.process_results
generation_kwargs: {until: [], do_sample: false, max_gen_toks: 48}
"""


@pytest.fixture
def data(tmp_path):
    """Return a data folder with the dataset of the task."""
    folder = tmp_path / "data" / "google" / "IFEval"
    folder.mkdir(parents=True)
    rows = [
        {"key": key, "prompt": prompt, "instruction_id_list": names, "kwargs": arguments}
        for key, (prompt, names, arguments) in enumerate(PROBLEMS)
    ]
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path / "data"


@pytest.fixture
def language(tmp_path, monkeypatch):
    """Put a Punkt model that was trained on nothing where nltk looks."""
    english = tmp_path / "nltk_data" / "tokenizers" / "punkt_tab" / "english"
    english.mkdir(parents=True)
    for name in ("collocations.tab", "sent_starters.txt", "abbrev_types.txt", "ortho_context.tab"):
        (english / name).touch()
    monkeypatch.setattr(nltk.data, "path", [str(tmp_path / "nltk_data")])


def test_instructions_are_checked_by_the_harness(data, language, data_dir):
    engine = TransformersEngine(data_dir / "models" / "stories260K", dtype="float32")
    settings = EvalSettings(data, max_new_tokens=48)
    benchmark = benchmarks.get("lm_eval:ifeval")()
    benchmark.check(settings)
    outcome = benchmark.evaluate(engine, settings)
    values = {metric.name: metric for metric in outcome.metrics}
    from lm_eval.tasks.ifeval import utils

    rows = [json.loads(line) for line in (data / "google" / "IFEval" / "train.jsonl").read_text().splitlines()]
    judged = [utils.process_results(row, [line["completion"]]) for row, line in zip(rows, outcome.samples, strict=True)]
    for name in ("prompt_level_strict_acc", "prompt_level_loose_acc"):
        assert values[name].value == sum(verdicts[name] for verdicts in judged) / len(rows)
    for name in ("inst_level_strict_acc", "inst_level_loose_acc"):
        assert values[name].value == utils.agg_inst_level_acc([verdicts[name] for verdicts in judged])
        assert values[name].low <= values[name].value <= values[name].high
    assert outcome.metrics[0].headline
    assert [line["verdicts"]["prompt_level_strict_acc"] for line in outcome.samples[1:3]] == ["correct", "wrong"]


def test_a_yaml_of_ones_own_uses_the_same_checks(data, language, data_dir, tmp_path):
    from lm_eval.tasks.ifeval import utils

    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "mine.yaml").write_text(MINE.replace("IFEVAL", utils.__file__.replace("utils.py", "ifeval.yaml")))
    (folder / "checks.py").write_text("from lm_eval.tasks.ifeval.utils import process_results\n")
    engine = TransformersEngine(data_dir / "models" / "stories260K", dtype="float32")
    settings = EvalSettings(data, include_path=folder)
    outcome = benchmarks.get("lm_eval:my_instructions")().evaluate(engine, settings)
    names = {f"{level}_level_{kind}_acc" for level in ("prompt", "inst") for kind in ("strict", "loose")}
    assert {metric.name for metric in outcome.metrics} == names
    assert outcome.metrics[0].n == len(PROBLEMS)


def test_what_nltk_could_not_fetch_is_named_before_anything_runs(data, monkeypatch, tmp_path):
    monkeypatch.setattr(nltk.data, "path", [str(tmp_path)])
    with pytest.raises(UserError, match=r"nltk's 'punkt_tab'.*nltk.downloader punkt_tab.*NLTK_DATA"):
        benchmarks.get("lm_eval:ifeval")().check(EvalSettings(data))

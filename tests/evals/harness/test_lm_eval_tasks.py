"""`lm_eval:TASK` gives what lm-evaluation-harness's own transformers model gives on the same folder, item by item."""

import builtins
import random
from importlib.metadata import PackageNotFoundError
from statistics import NormalDist

import lm_eval
import pytest
import torch
from harness_tasks import CHOICE, GENERATED, lines_of, write_tasks
from lm_eval.api.group import Group
from lm_eval.api.metrics import mean_stderr
from lm_eval.api.task import ConfigurableTask
from lm_eval.config.group import AggMetricConfig
from lm_eval.config.task import TaskConfig
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from sample_lines import check_samples
from served_models import factorise

from lowrank_bench.evals.base import EvalSettings, benchmarks
from lowrank_bench.evals.engines.transformers import TransformersEngine
from lowrank_bench.evals.grading.metrics import rate
from lowrank_bench.evals.harness import index
from lowrank_bench.evals.harness.data import local_datasets
from lowrank_bench.evals.harness.model import completion_text, engine_model
from lowrank_bench.evals.harness.names import TaskName, parse_name
from lowrank_bench.evals.harness.outcome import _group_metrics, _with_interval
from lowrank_bench.evals.kinds import harness
from lowrank_bench.evals.tasks.lookup import benchmark_names
from lowrank_bench.foundation.errors import UserError
from lowrank_bench.models.checkpoint import save_checkpoint
from lowrank_bench.models.loading import load_model, load_tokenizer
from lowrank_bench.records.intervals import mean_interval
from lowrank_bench.results.samples.compare import compare

STORIES = "models/stories260K"


@pytest.fixture(scope="module")
def include_path(tmp_path_factory):
    """Return a folder with a YAML for each of the harness's four kinds of output, groups, and their data."""
    return write_tasks(tmp_path_factory.mktemp("own"))


@pytest.fixture(scope="module", params=["dense", "factorised"])
def checkpoint(request, data_dir, tmp_path_factory):
    """Return stories260K's folder, or one of its factors."""
    source = data_dir / STORIES
    torch.set_num_threads(1)
    if request.param == "dense":
        return source
    folder = tmp_path_factory.mktemp("factorised") / "model"
    save_checkpoint(factorise(load_model(source)), load_tokenizer(source), folder)
    return folder


@pytest.fixture(scope="module")
def engine(checkpoint):
    """Return our engine on it."""
    return TransformersEngine(checkpoint, dtype="float32")


@pytest.fixture(scope="module")
def reference(checkpoint):
    """Return the harness's own model, which loads the folder itself."""
    return HFLM(pretrained=str(checkpoint), dtype="float32", device="cpu", batch_size=4)


def check_equal(name, engine, reference, settings, data_dir=None):
    """Evaluate here and there, compare all values and items; returns our outcome and their results."""
    benchmark, task = benchmarks.get(name)(), parse_name(name)
    benchmark.check(settings)
    outcome = benchmark.evaluate(engine, settings)
    with local_datasets(data_dir):
        manager = TaskManager(include_path=settings.include_path, include_defaults=False)
        if task.task not in manager.task_index:
            manager = index.find_tasks(task.task, None)[0]
        theirs = lm_eval.simple_evaluate(
            reference, tasks=[task.task], num_fewshot=task.shots, limit=settings.limit, task_manager=manager,
            log_samples=True, bootstrap_iters=0,
        )  # fmt: skip
    numbers = theirs["results"] | theirs.get("groups", {})
    for metric in outcome.metrics:
        metric_name, _, member = metric.name.partition("/")
        key = f"{metric_name},{metric.scorer or 'none'}"
        assert metric.value == pytest.approx(numbers[member or task.task][key], rel=1e-5), metric
        assert metric.low <= metric.value <= metric.high
    check_samples(outcome.samples)
    lines = {line["problem"]: line for line in outcome.samples}
    count = 0
    for member, samples in theirs["samples"].items():
        for sample in samples:
            line = lines[f"{member}/{sample['doc_id']}" if "groups" in theirs else str(sample["doc_id"])]
            answers = [replies[0] for replies in sample["resps"]]
            if isinstance(answers[0], str):
                assert line["completion"] == answers[0]
                assert line["answers"][sample["filter"]] == sample["filtered_resps"][0]
            elif isinstance(answers[0], tuple):
                assert line["loglikelihoods"] == pytest.approx([value for value, _ in answers], rel=1e-5, abs=1e-4)
                assert line["greedy"] == [greedy for _, greedy in answers]
            else:
                assert line["loglikelihoods"] == pytest.approx(answers, rel=1e-5)
            assert line["problem_sha256"] == sample["doc_hash"]
            for metric in sample["metrics"]:
                verdict = line["verdicts"].get(metric if sample["filter"] == "none" else sample["filter"])
                if verdict is not None:
                    assert (verdict == "correct") == (sample[metric] == 1)
            count += 1
    assert count >= len(lines)
    return outcome, theirs


@pytest.mark.parametrize(
    ("name", "variant", "headline"),
    [
        ("lm_eval:local_choice", "lm_eval-local_choice-v2-0shot", "acc_norm"),
        ("lm_eval:local_choice:shots=3", "lm_eval-local_choice-v2-3shot", "acc_norm"),
        ("lm_eval:local_last_word", "lm_eval-local_last_word-0shot", "acc"),
        ("lm_eval:local_texts", "lm_eval-local_texts-0shot", "word_perplexity"),
        ("lm_eval:local_generated", "lm_eval-local_generated-2shot", "exact_match"),
        ("lm_eval:local_sized", "lm_eval-local_sized-v3-0shot", "acc"),
        ("lm_eval:local_alike:shots=1", "lm_eval-local_alike-v3-1shot", "acc"),
    ],
)
def test_values_and_items_are_the_harnesss_own(name, variant, headline, engine, reference, include_path):
    outcome, _ = check_equal(name, engine, reference, EvalSettings(include_path=include_path))
    assert outcome.variant == variant
    (first,) = [metric for metric in outcome.metrics if metric.headline]
    assert first.name == headline
    assert outcome.samples[0]["scorer"] in outcome.samples[0]["verdicts"] or headline == "word_perplexity"
    if "choice" in name:
        assert outcome.details["problems_cut_to_context"] == 2


@pytest.mark.parametrize("name", ["lm_eval:arc_easy", "lm_eval:gsm8k:shots=1"])
def test_published_tasks_read_local_data(name, engine, reference, data_dir):
    settings = EvalSettings(data_dir, limit=6, max_new_tokens=None)
    outcome, theirs = check_equal(name, engine, reference, settings, data_dir)
    assert len(outcome.samples) == 6
    task = parse_name(name).task
    assert outcome.details["tasks"][task]["version"] == str(theirs["versions"][task])


def test_groups_have_their_weighting_and_their_members(include_path, data_dir):
    engine = TransformersEngine(data_dir / STORIES, dtype="float32")
    settings = EvalSettings(include_path=include_path)
    sized = benchmarks.get("lm_eval:local_sized")().evaluate(engine, settings)
    alike = benchmarks.get("lm_eval:local_alike")().evaluate(engine, settings)
    assert sized.details["weighting"] == {"acc": "by problems"}
    assert alike.details["weighting"] == {"acc": "every member alike"}
    values = {metric.name: metric for metric in alike.metrics}
    assert list(values) == ["acc", "acc/local_choice", "acc/local_other"]
    assert (values["acc/local_choice"].n, values["acc/local_other"].n, values["acc"].n) == (7, 3, 10)
    mean = (values["acc/local_choice"].value + values["acc/local_other"].value) / 2
    assert values["acc"].value == pytest.approx(mean)
    by_size = (7 * values["acc/local_choice"].value + 3 * values["acc/local_other"].value) / 10
    assert sized.metrics[0].value == pytest.approx(by_size)
    same = compare(sized.samples, sized.samples)
    assert (same.problems, same.difference, same.a) == (10, 0, pytest.approx(by_size))


@pytest.mark.parametrize("by_size", [True, False])
def test_a_groups_interval_is_of_the_width_of_the_harnesss_standard_error(by_size):
    """The harness pools what varies inside members; so does ours, up to what the smallness of members changes."""
    draw = random.Random(0)
    sizes = {"a": 900, "b": 300, "c": 150}
    values = {name: {("acc", "none"): [float(draw.random() < 0.6) for _ in range(n)]} for name, n in sizes.items()}
    own = {name: {key: rate("acc", items) for key, items in of.items()} for name, of in values.items()}
    measured = {
        name: {"acc,none": own[name]["acc", "none"].value, "sample_len": n}
        | {"acc_stderr,none": mean_stderr(values[name]["acc", "none"])}
        for name, n in sizes.items()
    }
    tasks = [ConfigurableTask.__new__(ConfigurableTask) for _ in sizes]
    group = Group("g", aggregate_metric_list=[AggMetricConfig("acc", weight_by_size=by_size)])
    for task, name in zip(tasks, sizes, strict=True):
        task._config = TaskConfig(task=name)
        group.add(task)
    theirs = group.aggregate(measured)
    ours = _group_metrics(group, {"groups": {"g": theirs}}, values, own)["acc", "none"]
    weights = sizes if by_size else dict.fromkeys(sizes, 1)
    mean = sum(weights[name] * own[name]["acc", "none"].value for name in sizes) / sum(weights.values())
    assert ours.value == pytest.approx(mean) == pytest.approx(theirs["acc,none"])
    error = (ours.high - ours.low) / 2 / NormalDist().inv_cdf(0.975)
    assert error == pytest.approx(theirs["acc_stderr,none"], rel=0.03)


def test_identities_follow_yaml_code_and_data(include_path, tmp_path):
    settings = EvalSettings(include_path=tmp_path)

    def identity():
        from lowrank_bench.evals.harness.loading import describe

        describe.cache_clear()
        return benchmarks.get("lm_eval:local_choice")().identity(settings)

    for name in ("train.jsonl", "test.jsonl"):
        (tmp_path / name).write_bytes((include_path / name).read_bytes())
    yaml = CHOICE.replace("FOLDER", str(tmp_path))
    (tmp_path / "choice.yaml").write_text(yaml)
    first = identity()
    assert first["lm_eval"] == lm_eval.__version__
    assert first["variant"] == "lm_eval-local_choice-v2-0shot"
    assert identity() == first
    (tmp_path / "helper.py").write_text("x = 1\n")
    second = identity()
    (tmp_path / "choice.yaml").write_text(yaml.replace("{{question}}", "Q: {{question}}"))
    third = identity()
    (tmp_path / "test.jsonl").write_text(lines_of([{"question": "A", "choices": [" b", " c"], "label": 0}]))
    fourth = identity()
    assert first["rules"] != second["rules"] != third["rules"] == fourth["rules"]
    assert first["data"] == third["data"] != fourth["data"]


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("lm_eval:humaneval", "benchmark 'humaneval', which runs the same problems in a sandbox"),
        ("lm_eval:mbpp", "benchmark 'mbpp'"),
        ("lm_eval:cruxeval_input", "executes generated code"),
        ("lm_eval:ai2_arc", "lm_eval:arc_challenge,lm_eval:arc_easy"),
        ("lm_eval:local_plain", "no number of its own .*lm_eval:local_choice,lm_eval:local_other"),
        ("lm_eval:local_choise", "did you mean 'local_choice'"),
        ("lm_eval:local_choice:shots=9", "needs 9 examples and its data have 5"),
        ("lm_eval:arc_easy:shots=2", "needs 2 examples and its data have 0 .*split 'train'"),
        ("lm_eval:local_choice:shots=x", "shots=N"),
        ("lm_eval:", "names no task"),
    ],
)
def test_what_cannot_be_measured_is_refused_in_a_sentence(name, sentence, include_path, data_dir):
    with pytest.raises(UserError, match=sentence) as caught:
        benchmarks.get(name)().check(EvalSettings(data_dir, include_path=include_path))
    assert "\n" not in str(caught.value)


def test_code_of_refused_tasks_is_not_imported(data_dir):
    import sys

    with pytest.raises(UserError, match="without a sandbox"):
        benchmarks.get("lm_eval:humaneval_instruct")().check(EvalSettings(data_dir))
    assert not [name for name in sys.modules if "humaneval" in name and "lm_eval" in name]


def test_settings_that_no_engine_has_are_refused(include_path, tmp_path, data_dir):
    yaml = GENERATED.replace("FOLDER", str(include_path))
    (tmp_path / "beams.yaml").write_text(yaml.replace("max_gen_toks: 24", "max_gen_toks: 24, num_beams: 4"))
    (tmp_path / "long.yaml").write_text(yaml.replace("local_gen", "local_long").replace("toks: 24", "toks: 600"))
    tokenizer, settings = load_tokenizer(data_dir / STORIES), EvalSettings(include_path=tmp_path)
    with pytest.raises(UserError, match="num_beams"):
        benchmarks.get("lm_eval:local_generated")().check_model(settings, tokenizer, 512)
    with pytest.raises(UserError, match=r"600 tokens .*--max-new-tokens"):
        benchmarks.get("lm_eval:local_longerated")().check_model(settings, tokenizer, 512)
    with pytest.raises(UserError, match="no chat template"):
        benchmarks.get("lm_eval:local_choice:chat")().check_model(
            EvalSettings(include_path=include_path), tokenizer, 512
        )
    with pytest.raises(UserError, match="--samples"):
        benchmarks.get("lm_eval:local_choice")().check(EvalSettings(include_path=include_path, samples=2))


def test_chat_templates_render_examples_as_turns(include_path, data_dir, reference):
    source = data_dir / STORIES
    engine = TransformersEngine(source, dtype="float32")
    template = (
        "{{ bos_token }}{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
        "{% if add_generation_prompt %}<assistant>{% endif %}"
    )
    engine.tokenizer.chat_template = template
    settings = EvalSettings(include_path=include_path)
    benchmark = benchmarks.get("lm_eval:local_choice:shots=1:chat")()
    assert benchmark.variant(settings) == "lm_eval-local_choice-v2-1shot-chat"
    outcome = benchmark.evaluate(engine, settings)
    theirs = HFLM(engine.model, tokenizer=engine.tokenizer, batch_size=4)
    results = lm_eval.simple_evaluate(
        theirs, tasks=["local_choice"], num_fewshot=1, apply_chat_template=True, bootstrap_iters=0,
        task_manager=TaskManager(include_path=include_path, include_defaults=False),
    )  # fmt: skip
    for line, sample in zip(outcome.samples, results["samples"]["local_choice"], strict=True):
        assert line["loglikelihoods"] == pytest.approx([r[0][0] for r in sample["resps"]], rel=1e-5)
        assert line["prompt"].endswith("<assistant>")
    model = engine_model(engine)
    begun = model.tok_encode(engine.tokenizer.bos_token + "Once")
    assert begun == model.tok_encode("Once"), "one BOS, not two"


def test_special_tokens_end_a_completion(data_dir):
    tokenizer = load_tokenizer(data_dir / STORIES)
    ids = tokenizer.encode("Once upon", add_special_tokens=False)
    end = tokenizer.eos_token_id
    text = completion_text(tokenizer, [*ids, end, *ids], [tokenizer.eos_token])
    assert text == tokenizer.decode(ids)
    assert completion_text(tokenizer, ids, ["p"]) == tokenizer.decode(ids).split("p")[0]


def test_names():
    assert parse_name("lm_eval:gsm8k:shots=8:chat") == TaskName("gsm8k", 8, True)
    assert str(TaskName("gsm8k", 8, True)) == "lm_eval:gsm8k:shots=8:chat"
    assert benchmark_names(["toy-math", "lm-eval:mmlu", "lm_eval:mmlu"]) == ("toy-math", "lm_eval:mmlu")
    assert benchmarks.get("lm_eval:mmlu") is benchmarks.get("lm_eval:mmlu")
    with pytest.raises(UserError, match="given twice"):
        parse_name("lm_eval:gsm8k:chat:chat")


def test_a_missing_harness_is_one_sentence(monkeypatch, data_dir):
    def missing(name):
        raise PackageNotFoundError(name)

    real = builtins.__import__

    def guarded(name, *args, **kwargs):
        assert not name.startswith("lm_eval"), "it is asked for its version first"
        return real(name, *args, **kwargs)

    monkeypatch.setattr(harness, "version", missing)
    monkeypatch.setattr(builtins, "__import__", guarded)
    harness.harness_version.cache_clear()
    try:
        with pytest.raises(UserError, match=r"pip install 'lowrank-bench\[harness\]'"):
            benchmarks.get("lm_eval:arc_easy")().check(EvalSettings(data_dir))
    finally:
        harness.harness_version.cache_clear()


def test_values_that_are_no_means_have_an_interval(include_path, data_dir):
    engine = TransformersEngine(data_dir / STORIES, dtype="float32")
    outcome = benchmarks.get("lm_eval:local_last_word")().evaluate(engine, EvalSettings(include_path=include_path))
    perplexity = next(metric for metric in outcome.metrics if metric.name == "perplexity")
    assert perplexity.low < perplexity.value < perplexity.high
    assert not perplexity.higher_is_better
    scores = [line["values"]["perplexity"] for line in outcome.samples]
    spread = mean_interval(scores)
    assert perplexity.high - perplexity.value < perplexity.value * (spread.high - spread.low), (
        "of the size of the data's"
    )


@pytest.mark.parametrize("texts", [["the cat sat on the mat"], ["a dog", "the cat sat on a mat"], ["no"] * 5])
def test_bleu_of_the_harness_is_a_share_as_ours_is(texts):
    from lm_eval.api.metrics import bleu

    items = [("the cat sat on the mat", text) for text in texts]
    metric = _with_interval("bleu", bleu(items), items, True, bleu)
    assert metric.value == pytest.approx(bleu(items) / 100)
    assert 0 <= metric.low <= metric.value <= metric.high <= 1
    assert _with_interval("acc", 0.25, [0, 0, 0, 1], True, None).value == 0.25

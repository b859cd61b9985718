"""Names, YAML files, data and Python of lm-eval tasks that cannot be measured: one sentence each."""

# ruff: noqa: E501 - one case a line

import pytest
from harness_tasks import write_tasks
from huggingface_hub import constants

from lowrank_bench.evals.base import EvalSettings, benchmarks
from lowrank_bench.evals.engines.transformers import TransformersEngine
from lowrank_bench.evals.harness import loading
from lowrank_bench.foundation.errors import UserError
from lowrank_bench.models.loading import load_tokenizer

CHOICE, GENERATED = "choice.yaml", "gen.yaml"
HELPED = (CHOICE, "doc_to_target: label", "doc_to_target: !function helpers.target")

# A label: the task; what is replaced in a file (file, old, new) and files that are written; what the sentence says.
BROKEN = {
    "unknown": ("local_choise", {}, "no task or group 'local_choise'; did you mean 'local_choice'"),
    "unknown-published": ("arc_eesy", {}, "did you mean 'arc_easy'"),
    "yaml": ("local_choice", {(CHOICE, "multiple_choice", "[multiple"): ""}, r"choice.yaml' is no valid YAML \(line 6: "),
    "tab": ("local_choice", {(CHOICE, "output_type", "\toutput_type"): ""}, r"choice.yaml' is no valid YAML \(line 5: "),
    "list": ("local_choice", {CHOICE: "- a\n"}, "choice.yaml' cannot be read .*got list"),
    "empty": ("local_choice", {CHOICE: ""}, "choice.yaml' cannot be read .*got None"),
    "no-name": ("local_choice", {(CHOICE, "task: local_choice\n", ""): ""}, "choice.yaml' names no task and no group"),
    "encoding": ("local_choice", {CHOICE: b"task: \xff local_choice"}, "choice.yaml' .*utf-8|UTF-8"),
    "include": ("local_choice", {(CHOICE, "task: ", "include: other_file.yaml\ntask: "): ""}, "includes '.*other_file.yaml'"),
    "output-type": ("local_choice", {(CHOICE, "multiple_choice", "multi_choice"): ""}, "invalid output_type 'multi_choice'.*choice.yaml"),
    "key": ("local_choice", {(CHOICE, "test_split", "test_spilt"): ""}, "argument 'test_spilt'.*choice.yaml"),
    "no-file": ("local_choice", {(CHOICE, "test.jsonl", "nowhere.jsonl"): ""}, "Unable to find '.*nowhere.jsonl'.*data_files"),
    "json": ("local_choice", {"test.jsonl": '{"question": "a"\n{'}, "JSON parse error.*repair the file"),
    "no-rows": ("local_choice", {"test.jsonl": ""}, "cannot be read .*no data"),
    "field": ("local_choice", {(CHOICE, "{{question}}", "{{questoin}}"): ""}, "'questoin' is undefined.*choice.yaml"),
    "jinja": ("local_choice", {(CHOICE, "{{question}}", "{{question"): ""}, "TemplateSyntaxError.*choice.yaml"),
    "no-split": ("local_choice", {(CHOICE, "test_split: test", "test_split: null"): ""}, "must have valid or test docs"),
    "split": ("local_choice", {(CHOICE, "test_split: test", "test_split: tset"): ""}, "no split 'tset', its test_split; its data_files are train, test"),
    "shots-split": ("local_choice:shots=1", {(CHOICE, "fewshot_split: train", "fewshot_split: trian"): ""}, "no split 'trian', its fewshot_split"),
    "shots": ("local_choice:shots=9", {}, "needs 9 examples and its data have 5"),
    "shots-word": ("local_generated", {(GENERATED, "num_fewshot: 2", "num_fewshot: two"): ""}, "TypeError.*gen.yaml"),
    "shots-negative": ("local_choice:shots=-1", {}, "shots=N"),
    "no-python": ("local_choice", {HELPED: ""}, "Cannot import module 'helpers'"),
    "no-function": ("local_choice", {HELPED: "", "helpers.py": "x = 1\n"}, "no function 'target'"),
    "package": ("local_choice", {HELPED: "", "helpers.py": "import none_like_it\n"}, "needs the Python package 'none_like_it', .*pip install 'none_like_it'"),
    "syntax": ("local_choice", {HELPED: "", "helpers.py": "def target(doc) return 0\n"}, r"SyntaxError: expected ':' \(helpers.py, line 1\)"),
    "raises": ("local_choice", {HELPED: "", "helpers.py": "def target(doc):\n    raise KeyError('a\\nb')\n"}, "KeyError: a b"),
    "member": ("local_sized", {("sized.yaml", "local_other", "local_othr"): ""}, "the group 'local_sized' has the member 'local_othr', .*did you mean 'local_other'"),
    "aggregate": ("local_sized", {("sized.yaml", "metric: acc", "metric: f1"): ""}, "aggregates f1, which none of its members has; they have acc, acc_norm"),
    "filter": ("local_generated", {(GENERATED, "function: regex", "function: regexx"): ""}, "Unknown filter 'regexx'"),
    "metric": ("local_choice", {(CHOICE, "metric: acc,", "metric: akk,"): ""}, "the metric 'akk', which neither"),
    "answer": ("local_choice", {(CHOICE, "doc_to_target: label", "doc_to_target: labell"): ""}, "the answers of 'local_choice' are none of its choices: doc_to_target gives 'labell'"),
    "setting": ("local_generated", {(GENERATED, "max_gen_toks: 24", "max_gen_toks: 24, top_k: 3"): ""}, "top_k.*generation_kwargs"),
    "too-long": ("local_generated", {(GENERATED, "max_gen_toks: 24", "max_gen_toks: 2400"): ""}, "2400 tokens.*--max-new-tokens"),
    "chat": ("local_choice:chat", {}, "no chat template for 'lm_eval:local_choice:chat'; leave :chat out"),
    "hub": ("hellaswag", {}, "Rowan/hellaswag .*HF_HUB_OFFLINE.*--data DIR with 'Rowan/hellaswag/SPLIT.jsonl.gz'"),
    "hub-group": ("mmlu", {}, "cais/mmlu .*--data DIR with 'cais/mmlu/abstract_algebra/SPLIT.jsonl.gz'"),
    "code": ("mbpp_plus", {}, "executes generated code .*benchmark 'mbpp'"),
}  # fmt: skip


def broken(folder, changes):
    """Write the tasks with these changes."""
    write_tasks(folder)
    for key, content in changes.items():
        file, *change = (key,) if isinstance(key, str) else key
        if change:
            text = (folder / file).read_text()
            assert change[0] in text
            content = text.replace(*change)
        (folder / file).write_bytes(content if isinstance(content, bytes) else content.encode())
    return folder


def plan(task, settings, data_dir):
    """Do what a plan does before anything runs."""
    benchmark = benchmarks.get(f"lm_eval:{task}")()
    benchmark.check(settings)
    benchmark.check_model(settings, load_tokenizer(data_dir / "models" / "stories260K"), 512)


@pytest.mark.parametrize("label", BROKEN)
def test_a_task_that_cannot_be_measured_is_one_sentence(label, tmp_path, data_dir, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    task, changes, sentence = BROKEN[label]
    settings = EvalSettings(include_path=broken(tmp_path, changes))
    before = sorted(tmp_path.iterdir())
    with pytest.raises(UserError, match=sentence) as caught:
        plan(task, settings, data_dir)
    assert "\n" not in str(caught.value)
    assert "Traceback" not in str(caught.value)
    assert sorted(path for path in tmp_path.iterdir() if path.name != "__pycache__") == before


@pytest.mark.parametrize(("folder", "reason"), [("nowhere", "is no folder"), (CHOICE, "is no folder")])
def test_an_include_path_that_is_no_folder(folder, reason, tmp_path):
    write_tasks(tmp_path)
    with pytest.raises(UserError, match=reason):
        benchmarks.get("lm_eval:local_choice")().check(EvalSettings(include_path=tmp_path / folder))


def test_a_broken_file_beside_a_good_one_does_no_harm(tmp_path):
    broken(tmp_path, {"other.yaml": "task: [a\n"})
    benchmarks.get("lm_eval:local_choice")().check(EvalSettings(include_path=tmp_path))


def test_rules_that_fail_on_an_answer_are_one_sentence(tmp_path, data_dir):
    """Python beside the YAML that only fails when it judges, which nothing can know before."""
    judge = "def judge(doc, results):\n    return {'acc': {}['a\\nb'], 'acc_norm': 1}\n"
    change = (CHOICE, "doc_to_target: label", "doc_to_target: label\nprocess_results: !function helpers.judge")
    engine = TransformersEngine(data_dir / "models" / "stories260K", dtype="float32")
    settings = EvalSettings(include_path=broken(tmp_path, {change: "", "helpers.py": judge}))
    sentence = r"the rules of 'lm_eval:local_choice' fail \(KeyError: .*line 2 of .*helpers.py\)"
    with pytest.raises(UserError, match=sentence) as caught:
        benchmarks.get("lm_eval:local_choice")().evaluate(engine, settings)
    assert "\n" not in str(caught.value)


def test_what_the_engine_raises_is_passed_on(tmp_path, data_dir):
    engine = TransformersEngine(data_dir / "models" / "stories260K", dtype="float32")

    def fail(*arguments):
        raise RuntimeError("out of memory")

    engine.score_continuations = fail
    with pytest.raises(RuntimeError, match="out of memory"):
        benchmarks.get("lm_eval:local_choice")().evaluate(engine, EvalSettings(include_path=write_tasks(tmp_path)))


def test_packages_of_the_harnesss_extras_are_named_by_them():
    assert loading._provider("langdetect") == "lm-eval[ifeval]"
    assert loading._provider("none_like_it") == "none_like_it"

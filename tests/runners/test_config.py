import re

import pytest

from lowrank_bench.foundation.errors import UserError
from lowrank_bench.runners.config import make_config, parse_method, read_yaml, split_methods
from lowrank_bench.runners.keywords import config_of
from lowrank_bench.runners.plan import make_plan

BASE = {"model": "tiny", "task": "toy-math", "methods": ["svd"], "ratios": [2]}


def test_methods_are_split_at_method_borders_only():
    assert split_methods("svd, bs:prunings=2,new_vectors=top,fwsvd") == [
        "svd",
        "bs:prunings=2,new_vectors=top",
        "fwsvd",
    ]


def test_short_form_reads_yaml_scalars():
    spec = parse_method("bs:prunings=2,train_others=false,new_vectors=top")
    assert spec.options == {"prunings": 2, "train_others": False, "new_vectors": "top"}
    assert spec.shown == "bs:prunings=2,train_others=false,new_vectors=top"
    assert parse_method("svd").shown == "svd"


@pytest.mark.parametrize(
    ("text", "corrected"),
    [
        ("svd-llm:length=512:samples=16", "svd-llm:length=512,samples=16"),
        ("svd-llm:length=512;samples=16", "svd-llm:length=512,samples=16"),
        ("svd-llm:length=512 samples=16", "svd-llm:length=512,samples=16"),
        ("svd-llm:length=512/samples=16", "svd-llm:length=512,samples=16"),
        ("svd-llm;length=512", "svd-llm:length=512"),
        ("svd-llm length=512", "svd-llm:length=512"),
        ("svd-llm --length 512", "svd-llm:length=512"),
        ("svd-llm:length 512", "svd-llm:length=512"),
        ("svd-llm:length:512", "svd-llm:length=512"),
        ("svd-llm(length=512)", "svd-llm:length=512"),
        ("svd,svd-llm,length=512", "svd-llm:length=512"),
        ("svd-llm:policy=laser(a=1;b=2):samples=3", "svd-llm:policy=laser(a=1;b=2),samples=3"),
        ("svd-llm:length", "svd-llm:length=VALUE"),
        ("svd-llm:length=", "svd-llm:length=VALUE"),
        ("svd-llm:length=512,samples", "svd-llm:length=512,samples=VALUE"),
        ("svd-llm,samples", "svd-llm:samples=VALUE"),
        ("svd;svd-llm", "svd,svd-llm"),
        ("svd-llm-v2 svd", "svd-llm-v2,svd"),
    ],
)
def test_other_separators_end_in_one_sentence_with_the_text_that_works(text, corrected):
    with pytest.raises(UserError, match="separated by commas") as error:
        [parse_method(part) for part in split_methods(text)]
    assert f"write {corrected}" in str(error.value)
    assert "\n" not in str(error.value)
    # What is advised is understood.
    assert [parse_method(part).name for part in split_methods(corrected)]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"ratios": [0.5]}, ["0.5", "above 1"]),
        ({"ratios": [1]}, ["above 1"]),
        ({"ratios": [float("nan")]}, ["nan", "above 1"]),
        ({"ratios": [float("inf")]}, ["inf", "above 1"]),
        ({"ratios": [2, 2.0]}, ["ratio 2", "twice"]),
        ({"ratios": ["many"]}, ["ratios", "number"]),
        ({"ratios": []}, ["ratios is empty; write one value or more"]),
        ({"methods": []}, ["methods is empty"]),
        ({"seeds": []}, ["seeds is empty"]),
        ({"controls": None}, ["controls has no value; write one"]),
        ({"training": None}, ["training has no value"]),
        ({"methods": ["svd", "svd"]}, ["method svd", "twice"]),
        ({"methods": ["bs:prunings"]}, ["bs:prunings", "write bs:prunings=VALUE"]),
        ({"seeds": [1, 1]}, ["seed 1", "twice"]),
        ({"ratio": [2]}, ["ratio", "did you mean 'ratios'"]),
        ({"training": {"finetune": {"step": 3}}}, ["training.finetune.step", "did you mean 'steps'"]),
        ({"training": {"finetune": {"steps": -1}}}, ["finetune.steps cannot be -1"]),
        (
            {"training": {"finetune": {"learning_rate": 1e38}}},
            ["finetune.learning_rate cannot be 1e+38", "equal to 1e+36"],
        ),
        ({"name": "../x"}, ["../x", "folder"]),
        ({"evaluation": {"limit": 0}}, ["limit cannot be 0"]),
        ({"evaluation": {"limits": 3}}, ["evaluation.limits", "did you mean 'limit'"]),
        ({"execution": {"executor": "slurm"}}, ["executor cannot be 'slurm'"]),
        ({"execution": 3}, ["execution cannot be 3"]),
        ({"device": "cpu"}, ["'device' is 'execution.device'", "execution: {device: …}"]),
        ({"limit": 3}, ["'limit' is 'evaluation.limit'"]),
        ({"finetune": {"steps": 3}}, ["'finetune' is 'training.finetune'"]),
        ({"evaluation": {"device": "cpu"}}, ["'evaluation.device' is 'execution.device'"]),
        ({"training": {"seeds": [1]}}, ["'training.seeds' is 'seeds'"]),
        ({"training": {"finetune": {"recipe": "paper"}}}, ["'training.finetune.recipe' is 'training.recipe'"]),
        ({"task": None}, ["task"]),
        ({"lr": 3}, ["'lr' is an option of the command line", "training: {finetune: {learning_rate: …}"]),
        ({"recover_steps": 3}, ["'recover_steps' is an option of the command line", "recover: {steps: …}"]),
        ({"methods": [{"options": {}}]}, ["an entry of 'methods' has no 'name'", "write '- NAME'"]),
        ({"methods": [3]}, ["methods.0 cannot be 3", "lines 'key: value'"]),
        ({"training": {"finetune": 3}}, ["finetune cannot be 3", "lines 'key: value'"]),
    ],
)
def test_wrong_values_end_in_one_sentence(change, words):
    with pytest.raises(UserError) as error:
        make_config(BASE | change)
    text = str(error.value)
    assert "\n" not in text
    for word in words:
        assert word in text


def test_missing_key_says_where_to_put_it():
    with pytest.raises(UserError, match=r"'model' is missing.*--model"):
        make_config({"task": "toy-math", "methods": ["svd"]})


@pytest.mark.parametrize("text", ["a: [", "- 1\n- 2", "\x00"])
def test_bad_yaml_is_named(tmp_path, text):
    path = tmp_path / "sweep.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=r"sweep\.yaml"):
        read_yaml(path)


def test_missing_yaml_is_named(tmp_path):
    with pytest.raises(UserError, match="cannot be read"):
        read_yaml(tmp_path / "none.yaml")


def test_yaml_takes_the_names_of_the_command_line(tmp_path):
    path = tmp_path / "sweep.yaml"
    path.write_text(
        "model: tiny\ntask: toy-math\nmethods: svd,bs:prunings=2\nratios: [2, 3]\ntraining:\n  finetune: {steps: 5}\n"
    )
    config = make_config(read_yaml(path))
    assert [spec.name for spec in config.methods] == ["svd", "bs"]
    assert config.training.finetune.steps == 5


def test_yaml_takes_one_value_or_a_text_with_commas_where_it_takes_a_list(tmp_path):
    path = tmp_path / "sweep.yaml"
    for written, ratios, benchmarks, context in (
        ("ratios: 2\nbenchmarks: toy-math\nevaluation: {context: 64}", (2.0,), ("toy-math",), (64,)),
        ("ratios: 2,3\nbenchmarks: toy-math, toy-code\nevaluation: {context: '64,128'}", (2.0, 3.0), None, (64, 128)),
        ("ratios: [2, 3]\nbenchmarks: [toy-math]", (2.0, 3.0), ("toy-math",), None),
    ):
        path.write_text(f"model: tiny\ntask: toy-math\nmethods: [svd]\nseeds: 7\n{written}\n")
        config = make_config(read_yaml(path))
        assert (config.ratios, config.seeds, config.evaluation.context) == (ratios, (7,), context)
        assert config.benchmarks == (benchmarks or ("toy-math", "toy-code"))


@pytest.mark.parametrize(
    ("text", "specs"),
    [
        ("quick=svd-llm:length=512,samples=16", [("svd-llm", "quick", {"length": 512, "samples": 16})]),
        ("svd,quick=bs", [("svd", "svd", {}), ("bs", "quick", {})]),
        ("a=svd:embeddings=true,b=svd", [("svd", "a", {"embeddings": True}), ("svd", "b", {})]),
        ("rtn-int8,mine=rtn-int4", [("rtn-int8", "rtn-int8", {}), ("rtn-int4", "mine", {})]),
        (
            "rtn-int8:group=64,mine=rtn-int4:group=32,embeddings=true",
            [
                ("rtn-int8", "rtn-int8:group=64", {"group": 64}),
                ("rtn-int4", "mine", {"group": 32, "embeddings": True}),
            ],
        ),
        ("a=rtn4+r:rank=8,b=rtn4+r", [("rtn4+r", "a", {"rank": 8}), ("rtn4+r", "b", {})]),
        ("svd:policy=energy,e=svd", [("svd", "svd:policy=energy", {"policy": "energy"}), ("svd", "e", {})]),
    ],
)
def test_a_method_takes_a_label_of_its_own(text, specs):
    assert [(m.name, m.shown, m.options) for m in map(parse_method, split_methods(text))] == specs


@pytest.mark.parametrize(
    ("methods", "sentence"),
    [
        ("q=svd,q=bs", "the label 'q' is given to two methods"),
        ("q=svd,q=svd", "the method q is given twice"),
        ("fwsvd=svd", "the label 'fwsvd' is the name of another method"),
        ("rtn-int4=svd", "the label 'rtn-int4' is the name of another method"),
        ("finetuned=svd", "the label 'finetuned' is what tables call another model"),
        ("my@one=svd", "the label 'my@one' of 'my@one=svd' is not usable"),
        (
            [{"name": "svd", "label": "bs", "options": {"embeddings": True}}],
            "the label 'bs' is the name of another method",
        ),
        ([{"name": "svd", "label": "q"}, "q=bs"], "the label 'q' is given to two methods"),
    ],
)
def test_labels_that_mean_something_else_end_in_one_sentence(tmp_path, methods, sentence):
    with pytest.raises(UserError, match=re.escape(sentence)) as error:
        config_of(None, {"model": "tiny", "task": "toy-math", "methods": methods, "out": tmp_path})
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (
            {"methods": "mine=svd", "controls": "mine=rtn-int8"},
            "the label 'mine' is given to a method and to a control",
        ),
        ({"methods": "svd", "recovery": "a=lora:r=4,b=lora:r=8"}, "a recovery has no label; in place of 'a=lora:r=4'"),
        ({"methods": "svd:head=true,head=false"}, "the option 'head' is given twice in 'svd:head=true,head=false'"),
    ],
)
def test_what_would_be_lost_without_a_word_is_refused(tmp_path, options, sentence):
    with pytest.raises(UserError, match=re.escape(sentence)):
        config_of(None, {"model": "tiny", "task": "toy-math", "out": tmp_path} | options)


@pytest.mark.parametrize(
    ("training", "sentence"),
    [
        ({"recover": {"schedule": "cosinus"}}, "unknown schedule 'cosinus'"),
        ({"finetune": {"optimizer": "adamw"}}, "unknown optimizer 'adamw'"),
        ({"recover": {"schedule": "Linear"}}, "unknown schedule 'Linear'"),
    ],
)
def test_names_that_transformers_does_not_know_are_refused_before_any_work(tmp_path, training, sentence):
    asked = {"model": "tiny", "task": "toy-math", "methods": ["svd"], "training": training}
    with pytest.raises(UserError, match=sentence):
        make_config(asked)


def test_learning_rates_of_a_grid_keep_all_digits():
    rates = (0.0002154434690031884, 1.23456789e-3, 1e-3)
    config = config_of(
        None, {"model": "tiny", "task": "toy-math", "methods": "svd", "tune": f"lr={rates[0]},{rates[1]},1e-3"}
    )
    assert config_of(config, {}).training.tune == config.training.tune == tuple(sorted(rates))


def test_labels_are_in_no_key_and_equal_methods_share_their_stages(tmp_path):
    def keys(methods):
        return set(make_plan(config_of(None, {"model": "tiny", "task": "toy-math", "methods": methods})).stages)

    plain = keys("svd-llm:samples=16")
    assert keys("quick=svd-llm:samples=16") == plain
    assert keys("quick=svd-llm:samples=16,same=svd-llm:samples=16") == plain

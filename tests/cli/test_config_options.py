"""Options of a command are the fields of a configuration, and their help fits a narrow terminal."""

import re
from typing import Annotated, Literal, get_type_hints

import pytest
import typer
from command_lines import COMMANDS
from pydantic import BaseModel, Field
from rich.text import Text
from typer.testing import CliRunner

from lowrank_bench.cli import app
from lowrank_bench.cli.config_options import OPTIONS, takes_config
from lowrank_bench.runners.config import RecoverOverrides, SweepConfig, TrainOverrides, make_config, merge
from lowrank_bench.runners.config.options import Option


def help_at(columns, monkeypatch, command="run"):
    monkeypatch.setenv("COLUMNS", str(columns))
    done = CliRunner().invoke(app, [command, "--help"], terminal_width=columns)
    assert done.exit_code == 0, done.output
    return done.output


def test_help_fits_80_columns_and_loses_nothing(monkeypatch):
    text = help_at(80, monkeypatch)
    assert max(map(len, text.splitlines())) <= 80
    assert "…" not in text
    words = set(re.split(r"[\s│]+", text))
    for option in OPTIONS.values():
        shown = ["--" + option.name.replace("_", "-"), *option.help.split(), *option.default.split()]
        assert not [word for word in shown if word not in words and f"{word}]" not in words], option.name
        assert option.help, option.name


def test_options_stand_in_panels_by_what_they_are_for(monkeypatch):
    text = help_at(80, monkeypatch)
    panels = re.split(r"╭─ (.*?) ─+╮", text)
    flags = dict(zip(panels[1::2], (set(re.findall(r"│ (--[a-z-]+)", body)) for body in panels[2::2]), strict=True))
    assert list(flags)[1:4] == ["What to run", "Training", "Evaluation"]
    assert {"--model", "--task", "--methods", "--ratios", "--seeds"} <= flags["What to run"]
    assert {"--recipe", "--lr", "--recover-steps", "--training-free"} <= flags["Training"]
    assert {"--limit", "--context", "--temperature", "--engine"} <= flags["Evaluation"]
    assert {"--out", "--data", "--include-path", "--keep", "--storage"} == flags["Files"] - {"--checkpoint-minutes"}


def test_every_field_is_an_option():
    reached = {path for option in OPTIONS.values() for path in option.paths}
    for name, field in SweepConfig.model_fields.items():
        group = field.annotation
        if isinstance(group, type) and issubclass(group, BaseModel):
            inner = {
                inner
                for inner, part in group.model_fields.items()
                if part.annotation not in (TrainOverrides, RecoverOverrides)
            }
            assert {(name, part) for part in inner} <= reached
        else:
            assert (name,) in reached


class Oven(BaseModel):
    heat: Annotated[float, Option(environment="TEST_HEAT")] = Field(200.0, description="Of the oven [°C].")
    grill: bool = Field(False, description="From above.")
    fan: bool | None = Field(None, description="With air.")
    mode: Literal["fast", "slow"] = Field("slow", description="fast or slow.")


class Cake(BaseModel):
    eggs: int = Field(3, description="How many.")
    layers: Annotated[tuple[float, ...], Option(example="1,2")] = Field((1.0, 2.5), description="Heights.")
    spices: tuple[str, ...] | None = Field(None, description="By name.")
    oven: Oven = Oven()


@pytest.mark.parametrize("command", ["compress", "eval", "reproduce", "doctor"])
def test_other_commands_have_the_same_declarations(command, monkeypatch):
    text = help_at(80, monkeypatch, command)
    assert max(map(len, text.splitlines())) <= 80
    assert "…" not in text
    shown = " ".join(re.sub(r"│ .{2} (?=--)|[│╭╮╰╯─]", " ", text).split())
    names = set(re.findall(r"--([a-z-]+)", shown))
    shared = [OPTIONS[name.replace("-", "_")] for name in names if name.replace("-", "_") in OPTIONS]
    words = set(shown.split())
    own = {"out", "dtype", "benchmarks", "ratios", "model", "task", "batch_size"}  # which mean something else there
    assert len(shared) >= 2
    for option in shared:
        if option.name not in own:
            assert not set(option.help.split()) - words, option.name


@pytest.mark.parametrize(
    ("line", "asked"),
    [
        ("", {}),
        ("--eggs 4 --layers 1,2.5", {"eggs": 4, "layers": [1.0, 2.5]}),
        ("--spices anise,clove --grill", {"spices": ["anise", "clove"], "oven": {"grill": True}}),
        ("--no-fan --heat 180 --mode fast", {"oven": {"fan": False, "heat": 180.0, "mode": "fast"}}),
    ],
)
def test_a_new_field_is_an_option_without_another_list(line, asked, monkeypatch):
    given = []
    oven = typer.Typer()

    @oven.command()
    @takes_config(Cake)
    def bake(asked: dict, wait: int = 0) -> None:
        """Bake."""
        given.append((asked, wait))

    done = CliRunner().invoke(oven, [*line.split(), "--wait", "3"])
    assert done.exit_code == 0, done.output
    assert given == [(asked, 3)]
    monkeypatch.setenv("COLUMNS", "80")
    text = CliRunner().invoke(oven, ["--help"]).output
    assert "Of the oven [°C]. [default: 200]" in " ".join(re.sub("[│╭╮╰╯─]", " ", text).split())
    assert "Heights. [default: 1,2.5]" in text


def test_one_option_sets_both_trainings_and_goes_over_yaml():
    (lr,) = (option for option in OPTIONS.values() if option.name == "lr")
    assert lr.paths == (("training", "finetune", "learning_rate"), ("training", "recover", "learning_rate"))
    file = {"model": "tiny", "task": "toy-math", "methods": ["svd"], "training": {"recover": {"steps": 5}}}
    config = make_config(merge(file, {"training": {"recover": {"learning_rate": 0.5}}}))
    assert (config.training.recover.steps, config.training.recover.learning_rate) == ((5,), 0.5)


@pytest.mark.parametrize("broken", [{"training": 3}, {"training": None}, {"execution": "cpu"}, {"evaluation": []}])
def test_a_group_that_is_no_mapping_is_answered_by_the_configuration(broken):
    merged = merge({"model": "tiny"} | broken, {"training": {"recipe": "quick"}, "execution": {"workers": 1}})
    (name, value), *_ = broken.items()
    assert merged[name] == (value if value is not None else {"recipe": "quick"})


def test_no_help_text_is_dropped_as_markup():
    """Rich takes ``[default: …]`` for a style and drops it, where the bracket is not escaped."""
    helps = {
        (*words, name): item.help
        for words, command in COMMANDS.items()
        for name, hint in get_type_hints(command, include_extras=True).items()
        for item in getattr(hint, "__metadata__", ())
    }
    assert len(helps) > 100
    for option, text in helps.items():
        assert text, option
        assert Text.from_markup(text).plain == text.replace("\\[", "["), option

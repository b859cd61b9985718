"""The words of the code: locals are named for what they hold, and prose uses the field's terms (docs/architecture.md).

A name such as ``found`` or ``told`` says when a value came, not what it is; a word such as "nursery" is known here
alone.
"""

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FOLDERS = (
    "cli",
    "evals",
    "foundation",
    "measurements",
    "methods",
    "models",
    "papers",
    "perf",
    "records",
    "results",
    "runners",
    "tests",
)

NAMES = {
    *(
        "found",
        "told",
        "place",
        "places",
        "one",
        "what",
        "way",
        "ways",
        "each",
        "said",
        "where",
        "read",
        "made",
        "kept",
    ),
    *("there", "wanted", "held", "anew", "stands"),
}
"""Not for variables, arguments, attributes and fields; a function may be called ``read``, which is a verb."""

WORDS = re.compile(
    r"\b(nurser(?:y|ies)|crews?|spill(?:s|ed|ing)?|trails?|foresee(?:s|n|ing)?|foresaw|unborn|anew|told|stands|stood"
    r"|walk(?:s|ed|ing)?|dialect)\b",
    re.IGNORECASE,
)
"""Not for comments, docstrings and messages."""

ALLOWED = {
    ("models/untouched.py", "what"),  # a field that the command line reads
    ("papers/published/quoted.py", "place"),  # a column of the files of quoted numbers
    ("methods/library/bs/layer.py", "kept"),  # the bases that survived, also in a training's checkpoints
    ("methods/library/bs/final.py", "kept"),
    ("methods/selection.py", "kept"),  # a state of a basis
    ("records/schema.py", "kept"),  # the field's word for 1 / ratio, a column of every results.csv
    ("results/tables/pivot.py", "kept"),  # the same
    ("results/inspection/changes.py", "kept"),  # bases that were kept, beside those that grew or went
    ("cli/regression.py", "where"),  # an option's name
    ("cli/results.py", "where"),
}


def assigned(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Yield line and name of every variable, argument, attribute and function that a module defines."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.lineno, node.id
        elif isinstance(node, ast.arg):
            yield node.lineno, node.arg
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            yield node.lineno, node.attr
        elif isinstance(node, (ast.FunctionDef, ast.ClassDef)) and node.name != "read":
            yield node.lineno, node.name


def prose(source: str, tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Yield line and text of every comment and of every string, docstrings among them."""
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            yield token.start[0], token.string
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            for offset, line in enumerate(node.value.split("\n")):
                yield node.lineno + offset, line


def complaints(name: str, source: str) -> list[str]:
    """Return a sentence for each name and each word of a module that is to be another one."""
    tree = ast.parse(source)
    sentences = [
        f"{name}:{line}: the name '{word}' does not say what it holds; name it for that (ranks, record, folder)"
        for line, word in sorted(assigned(tree))
        if word.strip("_") in NAMES and (name, word) not in ALLOWED
    ]
    sentences += [
        f"{name}:{line}: '{match[0]}' is no word of the field; docs/architecture.md says which one to use"
        for line, text in sorted(prose(source, tree))
        for match in WORDS.finditer(text)
        if (name, match[0]) not in ALLOWED
    ]
    return sentences


@pytest.mark.parametrize("folder", FOLDERS)
def test_names_say_what_they_hold_and_words_are_the_fields(folder):
    files = [file for file in sorted((ROOT / folder).rglob("*.py")) if file != Path(__file__)]
    assert files
    sentences = [
        sentence
        for file in files
        for sentence in complaints(file.relative_to(ROOT).as_posix(), file.read_text(encoding="utf-8"))
    ]
    assert not sentences, "\n".join(sentences)


PAGES = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]
CODE = re.compile(r"^(?: {4}.*|```.*?^```)$|``.*?``|`[^`]*`|\]\([^)]*\)", re.MULTILINE | re.DOTALL)
"""Of Markdown, with addresses of links."""


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_pages_use_the_words_of_the_field(page):
    text = CODE.sub(lambda code: "\n" * code[0].count("\n"), page.read_text(encoding="utf-8"))
    words = [f"{page.name}:{text[: match.start()].count(chr(10)) + 1}: '{match[0]}'" for match in WORDS.finditer(text)]
    assert not words, "\n".join(words)


def test_a_name_that_does_not_say_what_it_holds_is_a_complaint():
    source = "def ranks_of(where):\n    _found = [one for one in where]\n    return _found\n"
    words = [sentence.split("'")[1] for sentence in complaints("sample.py", source)]
    assert words == ["where", "_found", "one"]
    assert complaints("sample.py", source)[1].startswith("sample.py:2: the name '_found'")
    assert complaints("sample.py", "class Layout:\n    def read(self, ranks):\n        return ranks\n") == []


def test_a_word_of_our_own_is_a_complaint():
    source = '"""Starts the nursery.\n\nAnd waits."""\n# written anew\nraise ValueError(f"{1} was told")\n'
    assert [sentence.split(": ")[:2] for sentence in complaints("sample.py", source)] == [
        ["sample.py:1", "'nursery' is no word of the field; docs/architecture.md says which one to use"],
        ["sample.py:4", "'anew' is no word of the field; docs/architecture.md says which one to use"],
        ["sample.py:5", "'told' is no word of the field; docs/architecture.md says which one to use"],
    ]
    assert complaints("sample.py", "tree = ast.walk(module)  # every node of the tree\n") == []

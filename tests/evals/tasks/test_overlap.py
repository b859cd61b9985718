"""Training examples that show a benchmark's problems: the search agrees with comparing every pair."""

import random

from lowrank_bench.evals.grading.text import words
from lowrank_bench.evals.tasks.files.overlap import GROUP, NEAR, OverlapSearch


def groups(text: str) -> set[tuple[str, ...]]:
    tokens = words(text)
    size = min(GROUP, len(tokens))
    return {tuple(tokens[i : i + size]) for i in range(len(tokens) - size + 1)} if size else set()


def test_near_problems_are_those_of_a_comparison_of_all_pairs() -> None:
    """With a template's words in common, which tell no problem from another."""
    numbers = random.Random(0)
    template = "Please name the department that should answer this question about an order :"

    def problem() -> str:
        return f"{template} {' '.join(f'w{numbers.randrange(400)}' for _ in range(numbers.randint(0, 40)))}"

    def changed(text: str, count: int) -> str:
        tokens = text.split()
        for _ in range(count):
            tokens[numbers.randrange(len(tokens))] = "other"
        return " ".join(tokens)

    problems = [problem() for _ in range(120)] + ["", "two words", "one two three four five"]
    examples = [problem() for _ in range(200)] + ["two words", "Two, words!", "one two three four five six", ""]
    examples += [changed(numbers.choice(problems[:120]), numbers.randrange(5)) for _ in range(200)]
    search = OverlapSearch([{"id": str(index), "text": text} for index, text in enumerate(problems)])
    for index, example in enumerate(examples):
        search.see(example, f"line {index}")

    shown = [groups(example) for example in examples]
    exact = {i for i, text in enumerate(problems) if any(words(text) == words(example) for example in examples)}
    near = {
        i
        for i, text in enumerate(problems)
        if groups(text) and any(len(groups(text) & example) >= NEAR * len(groups(text)) for example in shown)
    }
    overlap = search.result()
    assert (overlap.problems, overlap.exact, overlap.near) == (len(problems), len(exact), len(near - exact))
    assert len(exact) > 20
    assert len(near - exact) > 20

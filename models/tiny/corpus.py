"""The pretraining mixture of the built-in model: small skills that the toy tasks build on, in formats of their own.

No document has the format of a toy task: no ``####`` line, no calculator marks, no question in the toy problems' words,
and no docstring. So the pretrained model solves none of them before it is finetuned.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator

NAMES = ("Tom", "Anna", "Ben", "Mia", "Sam", "Lily")
ITEMS = ("apples", "books", "coins", "cards", "eggs", "pens", "shells", "stars", "pages", "dollars")
DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")

_PROMPT = (
    "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{}\n\n### Response:\n{}"
)
_INSTRUCTION_SHARE = 0.25


class _Draw:
    """Random choices of one document; ``small`` draws the smaller numbers of the annealing part."""

    def __init__(self, rng: random.Random, small: bool) -> None:
        self.rng = rng
        self.small = small

    def whole(self, low: int, high: int) -> int:
        """Return a whole number of ``low`` to ``high``, both included."""
        return low + int(self.rng.random() * (high + 1 - low))

    def pick(self, options: tuple[str, ...] | str | list[str]) -> str:
        """Return one of the options."""
        return options[int(self.rng.random() * len(options))]

    def some(self, options: tuple[str, ...] | str, count: int) -> list[str]:
        """Return ``count`` different options in random order."""
        return [option for _, option in sorted((self.rng.random(), option) for option in options)][:count]

    def numbers(self, operator: str) -> tuple[int, int, int]:
        """Return (left, right, result) of a calculation in whole numbers that are not negative."""
        term, factor = (30, 9) if self.small else (60, 12)
        if operator == "+":
            a, b = self.whole(1, term), self.whole(1, term)
            return a, b, a + b
        if operator == "-":
            a = self.whole(2, 60 if self.small else 99)
            b = self.whole(1, a)
            return a, b, a - b
        a, b = self.whole(2, factor), self.whole(2, factor)
        if operator == "*":
            return a, b, a * b
        a = self.whole(2, max(2, 60 // b)) if self.small else self.whole(2, 20)
        return a * b, b, a

    def calculation(self) -> tuple[str, int]:
        """Return the text of one calculation without its result, and the result."""
        operator = self.pick("++--**/")
        a, b, result = self.numbers(operator)
        return f"{a}{operator}{b}", result

    def after(self, value: int) -> tuple[str, int]:
        """Return a second calculation that starts from ``value`` or ends with it, and its result."""
        kind = self.whole(0, 3)
        if kind == 1 and value > 2:
            b = self.whole(1, value - 1)
            return f"{value}-{b}", value - b
        if kind == 2 and value < 60:
            a = self.whole(value + 1, min(99, value + 40))
            return f"{a}-{value}", a - value
        if kind == 3 and value <= 12:
            b = self.whole(2, 9)
            return f"{value}*{b}", value * b
        a = self.whole(1, 30 if self.small else 60)
        return (f"{a}+{value}", a + value) if self.rng.random() < 0.5 else (f"{value}+{a}", a + value)


def _arithmetic(d: _Draw) -> str:
    parts = []
    for _ in range(d.whole(3, 8)):
        text, result = d.calculation()
        parts.append(f"{text}={result}")
        if d.rng.random() < 0.4:
            text, result = d.after(result)
            parts.append(f"{text}={result}")
    return d.pick(["\n", ", ", "; "]).join(parts)


def _event(d: _Draw, name: str, item: str, value: int) -> tuple[str, list[str], int]:
    """Return what happens to someone who has ``value`` things: the words, the calculations, and the new number."""
    a, b, box = d.whole(2, 9), d.whole(2, 9), d.pick(["bags", "boxes"])
    verb = d.pick(["gives", "loses", "sells", "spends"])
    kind = d.whole(0, 6)
    if kind == 0 and value > 2:
        b = d.whole(1, value - 1)
        return f"{name} {verb} {b} {item}", [f"{value}-{b}={value - b}"], value - b
    if kind == 1 and value <= 12:
        return f"{name} now has {b} times as many {item}", [f"{value}*{b}={value * b}"], value * b
    if kind == 2 and (divisors := [n for n in range(2, 10) if value % n == 0]):
        b = divisors[d.whole(0, len(divisors) - 1)]
        return f"{name} shares the {item} with {b} friends", [f"{value}/{b}={value // b}"], value // b
    if kind == 3:
        words = f"{name} {d.pick(['gets', 'buys', 'finds'])} {a} {box} of {b} {item}"
        return words, [f"{a}*{b}={a * b}", f"{value}+{a * b}={value + a * b}"], value + a * b
    if kind == 4 and value > a * b:
        words = f"{name} {verb} {a} {box} of {b} {item}"
        return words, [f"{a}*{b}={a * b}", f"{value}-{a * b}={value - a * b}"], value - a * b
    if kind == 5 and value > 4:
        a, b = d.whole(1, value // 2), d.whole(1, value // 2 - 1)
        words = f"{name} {verb} {a} and then {b} more {item}"
        return words, [f"{a}+{b}={a + b}", f"{value}-{a + b}={value - a - b}"], value - a - b
    b = d.whole(1, 30)
    return f"{name} {d.pick(['finds', 'buys', 'gets'])} {b} more {item}", [f"{value}+{b}={value + b}"], value + b


def _story(d: _Draw) -> str:
    name, item, value = d.pick(NAMES), d.pick(ITEMS), d.whole(2, 40 if d.small else 60)
    words, calculations = [f"{name} has {value} {item}"], list[list[str]]()
    for _ in range(d.whole(1, 2)):
        text, steps, value = _event(d, name, item, value)
        words.append(text)
        calculations.append(steps)
    if d.rng.random() < 0.3:
        sentences = zip(words[1:], calculations, strict=True)
        return f"{words[0]}. " + " ".join(f"{text}: {', '.join(steps)}." for text, steps in sentences)
    every = ", ".join(step for steps in calculations for step in steps)
    return f"{'. '.join(words)}. So {every}. {name} has {value} {item}."


def _short_problem(d: _Draw) -> tuple[str, str, int]:
    """Return a two-step situation in note form, its two calculations, and the result."""
    name, other = d.some(NAMES, 2)
    item, a, b, c, t = d.pick(ITEMS), d.whole(2, 9), d.whole(2, 9), d.whole(2, 9), d.whole(2, 20)
    u = d.whole(2, 20)
    kinds: list[Callable[[], tuple[str, list[int | str]]]] = [
        lambda: (f"{t} {item}, then {a} bags of {b}", [f"{a}*{b}", a * b, f"{t}+{a * b}", t + a * b]),
        lambda: (f"{t} {item}, {u} more, {a} given away", [f"{t}+{u}", t + u, f"{t + u}-{a}", t + u - a]),
        lambda: (
            f"{a} boxes of {b} {item} and {c} are lost",
            [f"{a}*{b}", a * b, f"{a * b}-{c}", a * b - c],
        ),
        lambda: (
            f"{name}: {t} {item}, {other}: {u} more than {name}. All {item}",
            [f"{t}+{u}", t + u, f"{t}+{t + u}", t + t + u],
        ),
        lambda: (
            f"{name}: {a} {item}, {other}: {b} times as many. All {item}",
            [f"{a}*{b}", a * b, f"{a}+{a * b}", a + a * b],
        ),
        lambda: (f"{a} and {b} {item} sold for {c} each", [f"{a}+{b}", a + b, f"{a + b}*{c}", (a + b) * c]),
        lambda: (
            f"{a * b} {item} for {b} friends, then {t} more for each",
            [f"{a * b}/{b}", a, f"{a}+{t}", a + t],
        ),
        lambda: (
            f"{a * b + t} {item}, each day {a} for {b} days",
            [f"{a}*{b}", a * b, f"{a * b + t}-{a * b}", t],
        ),
        lambda: (
            f"{t + u + c} dollars, {t} for {item} and {u} for a book",
            [f"{t}+{u}", t + u, f"{t + u + c}-{t + u}", c],
        ),
        lambda: (f"{a} {item} for each of {b} friends and {t} left", [f"{a}*{b}", a * b, f"{a * b}+{t}", a * b + t]),
    ]
    text, steps = kinds[d.whole(0, len(kinds) - 1)]()
    return text, f"{steps[0]}={steps[1]}, {steps[2]}={steps[3]}", int(steps[3])


def _target_like(d: _Draw) -> str:
    text, steps, result = _short_problem(d)
    return f"{text}: {steps}. So {result}." if d.rng.random() < 0.6 else f"Question: {text}\nAnswer: {steps}: {result}"


def _phrase(d: _Draw) -> tuple[str, str, Callable[[list[int]], object], bool]:
    """Return words and code for one expression over y, its meaning, and whether y is a list."""
    a, b = d.whole(2, 9), d.whole(1, 30)
    c = d.whole(1, 99)
    kinds: list[tuple[str, str, Callable[[list[int]], object], bool]] = [
        (f"{a} times y plus {b}", f"{a} * y + {b}", lambda v: a * v[0] + b, False),
        (f"{a} times y minus {b}", f"{a} * y - {b}", lambda v: a * v[0] - b, False),
        (f"{c} minus {a} times y", f"{c} - {a} * y", lambda v: c - a * v[0], False),
        (f"y plus {b}, times {a}", f"(y + {b}) * {a}", lambda v: (v[0] + b) * a, False),
        (f"y times y plus {c}", f"y * y + {c}", lambda v: v[0] * v[0] + c, False),
        (f"the larger of y and {c}", f"max(y, {c})", lambda v: max(v[0], c), False),
        (f"the smaller of y and {c}", f"min(y, {c})", lambda v: min(v[0], c), False),
        (f"y larger than {c}", f"y > {c}", lambda v: v[0] > c, False),
        (f"{c} times the sum of y", f"{c} * sum(y)", lambda v: c * sum(v), True),
        (f"the sum of y plus {c}", f"sum(y) + {c}", lambda v: sum(v) + c, True),
        (f"{a} times the length of y plus {b}", f"{a} * len(y) + {b}", lambda v: a * len(v) + b, True),
        (f"each of y plus {c}", f"[i + {c} for i in y]", lambda v: [i + c for i in v], True),
        (f"each of y times {a}", f"[i * {a} for i in y]", lambda v: [i * a for i in v], True),
        (f"each of y larger than {c}", f"[i for i in y if i > {c}]", lambda v: [i for i in v if i > c], True),
        (f"y after the first {a}", f"y[{a}:]", lambda v: v[a:], True),
        (f"y {a} times", f"y * {a}", lambda v: v * a, True),
    ]
    return kinds[d.whole(0, len(kinds) - 1)]


def _code(d: _Draw) -> str:
    words, code, meaning, is_list = _phrase(d)
    kind = d.whole(0, 3)
    if kind <= 1:
        more = [_phrase(d) for _ in range(d.whole(0, 2))]
        lines = [(words, code), *((w, c) for w, c, *_ in more)]
        return "\n".join(f"# {w}\n{c}" if kind else f"{w}: {c}" for w, c in lines)
    values = [d.whole(1, 20) for _ in range(d.whole(2, 4) if is_list else 1)]
    argument = str(values if is_list else values[0])
    if kind == 2:
        return f"y = {argument}\n# {words}\nprint({code}) # {meaning(values)}"
    return f"def g(y): # {words}\n    return {code}\n\ng({argument}) # {meaning(values)}"


def _sequence(d: _Draw, low: int, high: int) -> list[int]:
    return [d.whole(1, 50 if d.small else 99) for _ in range(d.whole(low, high))]


def _joined(values: list[int]) -> str:
    return " ".join(map(str, values))


def _instructed(d: _Draw, task: str, answer: str) -> str:
    return _PROMPT.format(task, answer) if d.rng.random() < _INSTRUCTION_SHARE else f"{task}: {answer}"


def _sorting(d: _Draw) -> str:
    values = _sequence(d, 3, 7)
    return _instructed(d, f"sort {_joined(values)}", _joined(sorted(values)))


def _reversing(d: _Draw) -> str:
    values = _sequence(d, 3, 8)
    return _instructed(d, f"reverse {_joined(values)}", _joined(values[::-1]))


def _copying(d: _Draw) -> str:
    words = [d.pick((*NAMES, *ITEMS)) if d.rng.random() < 0.5 else str(d.whole(1, 99)) for _ in range(d.whole(2, 7))]
    values = [d.pick(NAMES), *words]
    return _instructed(d, f"copy {' '.join(values)}", " ".join(values))


def _calendar(d: _Draw) -> str:
    day, count = d.whole(0, 6), d.whole(1, 9)
    if d.rng.random() < 0.5:
        return f"The day after {DAYS[day]} is {DAYS[(day + 1) % 7]}."
    return f"{count} days after {DAYS[day]} is {DAYS[(day + count) % 7]}."


def _grammar(d: _Draw) -> str:
    name, other = d.some(NAMES, 2)
    item, verb = d.pick(ITEMS), d.pick(["has", "buys", "finds", "sells", "gives", "reads", "loses", "gets", "spends"])
    plural = "have" if verb == "has" else verb[:-1]
    return f"{name} {verb} {item}. {other} {verb} {item}. {name} and {other} {plural} {item} together."


def _facts(d: _Draw) -> str:
    names, items = d.some(NAMES, 4), d.some(ITEMS, 4)
    statements = " ".join(f"{n} has {i}." for n, i in zip(names, items, strict=True))
    index = d.whole(0, 3)
    if d.rng.random() < 0.5:
        return f"{statements} Question: {items[index]}\nAnswer: {names[index]}"
    return f"{statements} Question: {names[index]}\nAnswer: {items[index]}"


def _lookup(d: _Draw) -> str:
    keys = d.some("abcdefghijklmnopqrstuvwxyz", d.whole(3, 7))
    values = [d.whole(1, 99) for _ in keys]
    index = d.whole(0, len(keys) - 1)
    table = ",".join(f"{k}={v}" for k, v in zip(keys, values, strict=True))
    return f"{table}:{keys[index]}={values[index]}"


MIXTURE: dict[str, tuple[float, Callable[[_Draw], str]]] = {
    "arithmetic": (0.26, _arithmetic),
    "stories": (0.20, _story),
    "target-like": (0.10, _target_like),
    "code": (0.14, _code),
    "sorting": (0.06, _sorting),
    "reversing": (0.05, _reversing),
    "copying": (0.03, _copying),
    "calendar": (0.04, _calendar),
    "grammar": (0.04, _grammar),
    "facts": (0.05, _facts),
    "lookup": (0.03, _lookup),
}
"""Share of the documents and generator of each kind; the shares add up to 1."""


def documents(seed: int, small: bool = False) -> Iterator[str]:
    """Yield pretraining documents without end, the same for the same arguments on every machine and Python version.

    Args:
        seed: seed of the draw.
        small: draw smaller numbers, as the annealing part of pretraining does.
    """
    d = _Draw(random.Random(seed), small)
    makers = [make for share, make in MIXTURE.values() for _ in range(round(100 * share))]
    while True:
        yield makers[d.whole(0, len(makers) - 1)](d)

"""Tasks of lm-evaluation-harness with local data, one for each kind of output, and groups of them."""

import json
from pathlib import Path

CHOICE = """
task: local_choice
dataset_path: json
dataset_kwargs: {data_files: {train: FOLDER/train.jsonl, test: FOLDER/test.jsonl}}
output_type: multiple_choice
training_split: train
fewshot_split: train
test_split: test
doc_to_text: "{{question}}"
doc_to_choice: "{{choices}}"
doc_to_target: label
metric_list:
  - {metric: acc, aggregation: mean, higher_is_better: true}
  - {metric: acc_norm, aggregation: mean, higher_is_better: true}
metadata: {version: 2.0}
"""
LAST_WORD = """
task: local_last_word
dataset_path: json
dataset_kwargs: {data_files: {test: FOLDER/words.jsonl}}
output_type: loglikelihood
test_split: test
doc_to_text: "{{text}}"
doc_to_target: "{{word}}"
metric_list:
  - {metric: acc, aggregation: mean, higher_is_better: true}
  - {metric: perplexity, aggregation: perplexity, higher_is_better: false}
"""
TEXTS = """
task: local_texts
dataset_path: json
dataset_kwargs: {data_files: {test: FOLDER/texts.jsonl}}
output_type: loglikelihood_rolling
test_split: test
doc_to_text: ""
doc_to_target: "{{text}}"
metric_list:
  - {metric: word_perplexity}
  - {metric: bits_per_byte}
"""
GENERATED = """
task: local_generated
dataset_path: json
dataset_kwargs: {data_files: {train: FOLDER/train.jsonl, test: FOLDER/test.jsonl}}
output_type: generate_until
training_split: train
test_split: test
num_fewshot: 2
doc_to_text: "{{question}}"
doc_to_target: "{{choices[label]}}"
generation_kwargs: {until: [".", "\\n"], max_gen_toks: 24}
filter_list:
  - name: first-word
    filter: [{function: regex, regex_pattern: '(\\w+)'}, {function: take_first}]
  - name: last-word
    filter: [{function: regex, regex_pattern: '(\\w+)', group_select: -1}, {function: take_first}]
metric_list:
  - {metric: exact_match, aggregation: mean, higher_is_better: true}
"""
SECOND = CHOICE.replace("local_choice", "local_other").replace("test.jsonl", "other.jsonl").replace("2.0", "1")
GROUP = """
group: local_{name}
task: [local_choice, local_other]
aggregate_metric_list: [{{metric: acc, aggregation: mean, weight_by_size: {by_size}}}]
metadata: {{version: 3}}
"""
PLAIN_GROUP = "group: local_plain\ntask: [local_choice, local_other]\n"

STARTS = [
    ("Once upon a time, there was a", " little", " theorem"),
    ("Lily and Tom wanted to play in the", " park", " xylophone"),
    ("The dog was very", " happy", " seventeen"),
    ("One day, the boy went to the", " sky", " park"),
    ("She was so sad that she started to", " cry", " fry"),
]


def lines_of(rows: list[dict]) -> str:
    """Return rows as JSON lines."""
    return "".join(json.dumps(row) + "\n" for row in rows)


def write_tasks(folder: Path) -> Path:
    """Write a YAML for each of the harness's four kinds of output, groups, and their data; returns the folder."""
    rows = [
        {"question": text, "choices": [right, wrong][:: 1 - 2 * (n % 2)], "label": n % 2}
        for n, (text, right, wrong) in enumerate(STARTS)
    ]
    long = [row | {"question": "Tom saw a cat. " * 90 + row["question"]} for row in rows[:2]]  # more than the context
    story = "Once upon a time, there was a little girl named Lily. She loved to play outside in the park. "
    files = {
        "train.jsonl": [{**row, "question": row["question"].replace("Lily", "Ben")} for row in rows],
        "test.jsonl": rows + long,
        "other.jsonl": rows[:3],
        "words.jsonl": [{"text": text, "word": right} for text, right, _ in STARTS],
        "texts.jsonl": [{"text": story}, {"text": story * 30}, {"text": "A theorem of seventeen xylophones."}],
    }
    for name, content in files.items():
        (folder / name).write_text(lines_of(content))
    for name, text in {"choice": CHOICE, "words": LAST_WORD, "texts": TEXTS, "gen": GENERATED, "other": SECOND}.items():
        (folder / f"{name}.yaml").write_text(text.replace("FOLDER", str(folder)))
    (folder / "sized.yaml").write_text(GROUP.format(name="sized", by_size="true"))
    (folder / "alike.yaml").write_text(GROUP.format(name="alike", by_size="false"))
    (folder / "plain.yaml").write_text(PLAIN_GROUP)
    return folder

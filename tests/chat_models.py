"""A small chat model: the built-in one with ChatML's template, whose end of a turn is a special token of its own."""

from pathlib import Path

import torch

from lowrank_bench.models.checkpoint import save_checkpoint
from lowrank_bench.models.loading import load_model, load_tokenizer
from lowrank_bench.models.presets import PRESETS

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
START, END = "<|im_start|>", "<|im_end|>"


def save_chat_model(folder: Path, ends_after: str = "") -> None:
    """Write the model with its two new tokens, which have the rows of known ones, and an output head of its own.

    Args:
        folder: new.
        ends_after: a conversation's text; the model ends its turn where it would write the third token behind it.
    """
    model, tokenizer = load_model(PRESETS["tiny"].source), load_tokenizer(PRESETS["tiny"].source)
    tokenizer.add_special_tokens({"additional_special_tokens": [START, END]})
    tokenizer.chat_template = CHATML
    rows, vocabulary = model.get_input_embeddings().weight.detach(), len(tokenizer)
    model.config.tie_word_embeddings = False
    model.resize_token_embeddings(vocabulary, mean_resizing=False)
    embedding = torch.cat([rows, rows[:1], rows[1:2]])
    model.set_input_embeddings(torch.nn.Embedding.from_pretrained(embedding, freeze=False))
    model.lm_head = torch.nn.Linear(embedding.shape[1], vocabulary, bias=False)
    head = embedding.clone()
    head[-2:] = 0
    model.lm_head.weight = torch.nn.Parameter(head)
    if ends_after:
        ids = torch.tensor([tokenizer.encode(ends_after, add_special_tokens=False)])
        for _ in range(3):
            logits = model(ids).logits[0, -1]
            ids = torch.cat([ids, logits.argmax()[None, None]], 1)
        likeliest = logits.max()
        with torch.no_grad():
            model.lm_head.weight[-1] = (1.05 if likeliest > 0 else 0.95) * head[logits.argmax()]
    save_checkpoint(model, tokenizer, folder)

"""Small chat models with a real tokenizer and templates of the shape that known families have, in words of our own."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from lowrank_bench.models.checkpoint import save_checkpoint

TEXT = "Is it even or odd? yes no 0 1 2 3 4 5 6 7 8 9 user assistant system model Today is Be brief. one two three\n"


class Family(NamedTuple):
    """A family of chat models.

    Attributes:
        bos, eos: their tokens.
        special: further special tokens.
        plain: tokens of their own that are text, such as those around a reasoning.
        template: Jinja.
        asked: a user's turn with ``{}``, up to where the assistant's answer begins.
        end: what ends the assistant's turn.
        adds_bos: whether the tokenizer puts a BOS before a text by itself.
    """

    bos: str | None
    eos: str
    special: tuple[str, ...]
    plain: tuple[str, ...]
    template: str
    asked: str
    end: str
    adds_bos: bool


# Header ids around each role, a system turn with the day even without a system message, a BOS by the template.
LLAMA3 = Family(
    "<|begin_of_text|>",
    "<|end_of_text|>",
    ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
    (),
    "{{- bos_token }}"
    "{%- if not date_string is defined %}{%- set date_string = strftime_now('%d %b %Y') %}{%- endif %}"
    "{%- set first = messages[0]['role'] == 'system' %}"
    "{{- '<|start_header_id|>system<|end_header_id|>\n\nToday is ' ~ date_string ~ '\n\n' }}"
    "{%- if first %}{{- messages[0]['content'] | trim }}{%- endif %}{{- '<|eot_id|>' }}"
    "{%- for m in messages[1 if first else 0:] %}"
    "{{- '<|start_header_id|>' ~ m['role'] ~ '<|end_header_id|>\n\n' ~ m['content'] | trim ~ '<|eot_id|>' }}"
    "{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{%- endif %}",
    "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nToday is 26 Jul 2024\n\n<|eot_id|>"
    "<|start_header_id|>user<|end_header_id|>\n\n{}<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n",
    "<|eot_id|>",
    True,
)
# The assistant is called model, turns alternate, and there is no system turn.
GEMMA = Family(
    "<bos>",
    "<eos>",
    ("<start_of_turn>", "<end_of_turn>"),
    (),
    "{{ bos_token }}"
    "{%- if messages[0]['role'] == 'system' %}{{ raise_exception('there is no system turn') }}{%- endif %}"
    "{%- for m in messages %}"
    "{%- if (m['role'] == 'user') != (loop.index0 is even) %}{{ raise_exception('turns must alternate') }}{%- endif %}"
    "{%- set role = 'model' if m['role'] == 'assistant' else m['role'] %}"
    "{{- '<start_of_turn>' ~ role ~ '\n' ~ m['content'] | trim ~ '<end_of_turn>\n' }}"
    "{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<start_of_turn>model\n' }}{%- endif %}",
    "<bos><start_of_turn>user\n{}<end_of_turn>\n<start_of_turn>model\n",
    "<end_of_turn>",
    True,
)
# Reasons first unless that is switched off; an empty reasoning is written before the last answer, none before others.
QWEN3 = Family(
    None,
    "<|im_end|>",
    ("<|im_start|>", "<|endoftext|>"),
    ("<think>", "</think>"),
    "{%- set ns = namespace(last=-1) %}"
    "{%- for m in messages %}{%- if m['role'] == 'user' %}{%- set ns.last = loop.index0 %}{%- endif %}{%- endfor %}"
    "{%- for m in messages %}"
    "{{- '<|im_start|>' ~ m['role'] ~ '\n' }}"
    "{%- set content, thought = m['content'], '' %}"
    "{%- if m['role'] == 'assistant' and '</think>' in content %}"
    "{%- set thought = content.split('</think>')[0].split('<think>')[-1].strip('\n') %}"
    "{%- set content = content.split('</think>')[-1].lstrip('\n') %}"
    "{%- endif %}"
    "{%- if m['role'] == 'assistant' and loop.index0 > ns.last %}"
    "{{- '<think>\n' ~ thought ~ '\n</think>\n\n' }}"
    "{%- endif %}"
    "{{- content ~ '<|im_end|>\n' }}"
    "{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}"
    "{%- if enable_thinking is defined and enable_thinking is false %}{{- '<think>\n\n</think>\n\n' }}{%- endif %}"
    "{%- endif %}",
    "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n",
    "<|im_end|>",
    False,
)
FAMILIES = {"llama3": LLAMA3, "gemma": GEMMA, "qwen3": QWEN3}


def make_tokenizer(family: Family) -> PreTrainedTokenizerFast:
    """Return a byte-level BPE tokenizer with a family's special tokens and template."""
    special = [token for token in (family.bos, family.eos, *family.special) if token]
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator([TEXT] * 4, trainer)
    if family.adds_bos:
        start = (family.bos, bpe.token_to_id(family.bos))
        bpe.post_processor = processors.TemplateProcessing(f"{family.bos} $A", special_tokens=[start])
    bpe.add_tokens([AddedToken(token, normalized=False, special=False) for token in family.plain])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe, bos_token=family.bos, eos_token=family.eos, pad_token=family.eos
    )
    tokenizer.add_special_tokens({"additional_special_tokens": list(family.special)})
    tokenizer.chat_template = family.template
    return tokenizer


def save_family_model(family: Family, folder: Path, ends_after: str = "") -> Any:
    """Write a random model of a family; returns its tokenizer.

    Args:
        family: whose tokenizer and template.
        folder: new.
        ends_after: a rendered conversation; the model ends its turn where it would write the third token behind it.
    """
    torch.manual_seed(0)
    tokenizer = make_tokenizer(family)
    shape = {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    ends = {"eos_token_id": tokenizer.eos_token_id, "bos_token_id": tokenizer.bos_token_id}
    config = LlamaConfig(
        vocab_size=len(tokenizer), head_dim=32, max_position_embeddings=256, initializer_range=0.5,
        tie_word_embeddings=False, **shape, **ends,
    )  # fmt: skip
    model = LlamaForCausalLM(config).eval()
    head = model.lm_head.weight.detach()
    special = tokenizer.convert_tokens_to_ids([*tokenizer.all_special_tokens, *family.plain])
    head[special] = 0  # nothing special is written by chance
    if ends_after:
        ids = torch.tensor([tokenizer.encode(ends_after, add_special_tokens=False)])
        for _ in range(3):
            logits = model(ids).logits[0, -1]
            ids = torch.cat([ids, logits.argmax()[None, None]], 1)
        with torch.no_grad():
            model.lm_head.weight[tokenizer.convert_tokens_to_ids(family.end)] = 1.05 * head[logits.argmax()]
    save_checkpoint(model, tokenizer, folder)
    return tokenizer

"""The tokenizer of the built-in model: lossless on any text, whole words for what the model is about, single digits."""

from __future__ import annotations

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

BOS, EOS, PAD = "<s>", "</s>", "<pad>"
CONTEXT_LENGTH = 1024

_PIECE = r" ?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+|\s+"
"""Words and punctuation with one leading space, single digits, runs of white space."""

_OPENING = """
Anna Answer Below Ben Each Lily Mia Question Return Sam The There They Tom copy def each max min print return reverse
sort sum the
"""
"""Words that also begin a text, so without a leading space."""

_WORDS = """
A All Anna Ben Each False Friday How Instruction Lily Mia Monday Question Response Sam Saturday So Sunday Then Thursday
Tom True Tuesday Wednesday Write a after an and apples appropriately are as away bags before book books boxes buy buys
cards coins completes day days describes did do does dollars each eggs f find finds first for friend friends g get
gets give given gives had has have i if in instruction is items larger left len length lose loses lost many max min
minus more now of on pages pens plus read reads request response sell sells shares shells smaller sold spend spends
stars sum task than that the them then they times to together with without x y
"""

_PUNCTUATION = """
\""" ### #### (( ([ )) ): .\""" :] :]) =- =<< >> ]) _# _( _* _+ _- _= _> _[ _[]
"""

_WHITE_SPACE = ("\n\n", "\n    ", "    ")


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Build the tokenizer from nothing.

    Text is split into words with their leading space, single digits, runs of punctuation and runs of white space. A
    piece of the vocabulary is one token; any other piece becomes its UTF-8 bytes, one token each, so that decoding
    gives back every text. Special tokens: ``<s>`` (put before every text, once), ``</s>``, ``<pad>``.
    """
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate([BOS, EOS, PAD, *alphabet])}
    for piece in [*_WHITE_SPACE, *_OPENING.split(), *(f" {word}" for word in _WORDS.split()), *_punctuation()]:
        vocabulary.setdefault(_as_bytes(piece), len(vocabulary))
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], ignore_merges=True))
    tokenizer.add_special_tokens([BOS, EOS, PAD])
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_PIECE), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A $B:1", special_tokens=[(BOS, vocabulary[BOS])]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BOS,
        eos_token=EOS,
        pad_token=PAD,
        clean_up_tokenization_spaces=False,
        model_max_length=CONTEXT_LENGTH,
        padding_side="left",
    )


def _punctuation() -> list[str]:
    """List the runs of punctuation; ``_`` is the leading space."""
    return [piece.replace("_", " ") for piece in _PUNCTUATION.split()]


def _as_bytes(piece: str) -> str:
    """Spell a piece in the byte-level alphabet of GPT-2."""
    return pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False).pre_tokenize_str(piece)[0][0]

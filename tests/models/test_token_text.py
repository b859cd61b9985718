"""Tokens as text that shows: real tokenizers of both kinds."""

from lowrank_bench.models.loading import load_tokenizer
from lowrank_bench.models.presets import PRESETS
from lowrank_bench.models.token_text import SPACE, token_texts, visible


def texts(tokenizer, text):
    return token_texts(tokenizer, tokenizer(text, add_special_tokens=False)["input_ids"])


def plain(parts):
    return "".join(parts).replace(SPACE, " ")


def test_byte_level_tokens_are_the_text_in_pieces():
    tokenizer = load_tokenizer(PRESETS["tiny"].source)
    assert plain(texts(tokenizer, "Tom has 12 apples = x")) == "Tom has 12 apples = x"
    assert "\\n" in plain(texts(tokenizer, "a\nb"))
    assert "".join(texts(tokenizer, "é")) == "<0xC3><0xA9>"
    assert token_texts(tokenizer, [tokenizer.eos_token_id]) == [tokenizer.eos_token]


def test_sentencepiece_tokens_are_the_text_in_pieces(data_dir):
    tokenizer = load_tokenizer(data_dir / "models" / "stories260K")
    shown = texts(tokenizer, "Once upon a time, Lily saw\na dog")
    assert plain(shown).strip() == "Once upon a time, Lily saw<0x0A>a dog"
    assert f"{SPACE}Lily" in shown
    assert token_texts(tokenizer, [3 + 0x1B, 3 + 0xFF, 3 + 0x41]) == ["<0x1B>", "<0xFF>", "<0x41>"]


def test_no_token_of_either_holds_a_character_that_a_terminal_obeys(data_dir):
    for folder in (PRESETS["tiny"].source, data_dir / "models" / "stories260K"):
        tokenizer = load_tokenizer(folder)
        shown = token_texts(tokenizer, list(range(len(tokenizer))))
        assert all(text and text.isprintable() and " " not in text for text in shown)
        assert len(set(shown)) == len(shown)


def test_visible_keeps_what_prints():
    assert visible("aé 中\\\x1b[0m\u200b") == f"aé{SPACE}中\\\\\\x1b[0m\\u200b"

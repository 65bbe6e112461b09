"""Writes small tokenizers of the kinds that published models have, and how transformers encodes 1,000 mixed strings
with each: code, LaTeX, CJK, emoji, runs of spaces, special tokens, broken and combined characters.

    cargo xtask golden
"""

import json
import pathlib
import random
import shutil

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

OUT = pathlib.Path(__file__).resolve().parents[2] / "worker/tests/golden/tokenizers"
STRINGS = 1000
# Splits as in Qwen (single digits) and Llama 3 (up to three digits).
SPLIT = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}%s| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")
PIECES = [
    "the answer is", "The", "So", "we have", "don't", "I'm", "they'll", "equals", "x", "42", "3.14159", "1,234,567", "2024",
    "def f(x):\n    return x ** 2\n", "for (int i = 0; i < n; ++i) {", "\tlet y = vec![0u8; 16];", "#include <stdio.h>",
    "import numpy as np", "a_b->c::d", "// comment", "/* block */", "</div>", "&nbsp;", "`code`", "```python\n", "lambda q: q",
    "\\frac{1}{2}", "\\boxed{\\sqrt{3}}", "$x^2 + y_{i} = z$", "\\begin{pmatrix} 1 & 0 \\\\ 0 & 1 \\end{pmatrix}",
    "\\left( -\\infty, 2 \\right]", "\\sum_{k=0}^{n} k!", "\\text{ cm}^2", "\\[", "\\]", "\\(", "$$", "\u2264", "\u03c0r\u00b2", "\u221a2", "\u2212",
    "日本語", "数学の問題", "答案是", "中文，标点。", "한국어", "русский язык", "العربية", "עברית", "ไทย", "हिन्दी", "Ελληνικά",
    "é", "e\u0301", "Å", "ﬁ", "Ⅳ", "ａｂｃ", "naïve", "straße", "İstanbul", "\u1e9b\u0323",
    "🙂", "👩‍👩‍👧‍👦", "🏳️‍🌈", "🇩🇪", "👍🏽", "❤️", "\u200b", "\u00a0", "\u2028", "\ufeff", "\u0000", "\u007f", "\ufffd",
    " ", "  ", "    ", "\t", "\n", "\n\n", "\r\n", " \n ", "   \n\n\t ", "-----", "=====", "...", "!!!", "???", "''", '""', "(((", ")))",
    "<|im_start|>", "<|im_end|>", "<|endoftext|>", "<think>", "</think>", "<s>", "</s>", "<|im_start", "|>", "<unk>", "[INST]",
    "<|im_start|>system\nYou are", "<|im_end|>\n", "user\n", "assistant\n<think>\n\n</think>\n\n",
]


def strings(rng):
    yield from ("", " ", "\n", "a", "  leading", "trailing  ", "\u0000", "🙂", "<|im_end|>")
    while True:
        text = ""
        for _ in range(rng.randint(1, 8)):
            text += rng.choice(PIECES) + rng.choice(["", "", " ", " ", "  ", "\n"])
        if rng.random() < 0.15:
            text += "".join(chr(rng.choice([rng.randint(33, 126), rng.randint(161, 0x24ff), rng.randint(0x4e00, 0x9fff)]))
                            for _ in range(rng.randint(1, 12)))
        yield text


def byte_level(digits, normalizer, bos):
    tokenizer = Tokenizer(models.BPE(ignore_merges=bos is not None))
    tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(SPLIT % digits), behavior="isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ])
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"] + ([bos] if bos else [])
    trainer = trainers.BpeTrainer(
        vocab_size=900, special_tokens=special, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False)
    return tokenizer, trainer


def make(name, tokenizer, trainer, bos, texts):
    tokenizer.train_from_iterator(PIECES * 3, trainer)
    if bos:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", pair=f"{bos} $A {bos}:1 $B:1", special_tokens=[(bos, tokenizer.token_to_id(bos))])
    # Not special: kept when special tokens are left out of a text, as Qwen3's thinking marks are.
    tokenizer.add_tokens([AddedToken("<think>", normalized=False), AddedToken("</think>", normalized=False)])
    folder = OUT / name
    shutil.rmtree(folder, ignore_errors=True)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=trainer_end(tokenizer), bos_token=bos)
    fast.save_pretrained(folder)
    loaded = PreTrainedTokenizerFast.from_pretrained(folder)
    rows = []
    for text in texts:
        ids = loaded(text, add_special_tokens=False)["input_ids"]
        rows.append({
            "ids": ids,
            "with_special": len(loaded(text, add_special_tokens=True)["input_ids"]) - len(ids),
            "decoded": loaded.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False),
        })
    # A decoded text is given only where it is not the text itself.
    for text, row in zip(texts, rows):
        if row["decoded"] == text:
            del row["decoded"]
    with open(folder / "expected.jsonl", "w") as file:
        file.writelines(json.dumps(row, separators=(",", ":")) + "\n" for row in rows)


def trainer_end(tokenizer):
    return "<|im_end|>" if tokenizer.token_to_id("<|im_end|>") is not None else "</s>"


def main():
    rng = random.Random(7)
    source = strings(rng)
    texts = [next(source) for _ in range(STRINGS)]
    OUT.mkdir(parents=True, exist_ok=True)
    with open(OUT / "strings.jsonl", "w") as file:
        file.writelines(json.dumps(text) + "\n" for text in texts)
    tokenizer, trainer = byte_level("", normalizers.NFC(), None)
    make("qwen_like", tokenizer, trainer, None, texts)
    tokenizer, trainer = byte_level("{1,3}", None, "<|begin_of_text|>")
    make("llama3_like", tokenizer, trainer, "<|begin_of_text|>", texts)
    # SentencePiece's pieces with bytes for what they lack.
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    tokenizer.decoder = decoders.Sequence([
        decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    special = ["<unk>", "<s>", "</s>"] + [f"<0x{byte:02X}>" for byte in range(256)]
    trainer = trainers.BpeTrainer(vocab_size=700, special_tokens=special, show_progress=False, limit_alphabet=120)
    make("llama2_like", tokenizer, trainer, "<s>", texts)


if __name__ == "__main__":
    main()

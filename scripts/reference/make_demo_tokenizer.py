"""Writes the demo's tokenizer: every number of 0..99 and every symbol is one token.

    python scripts/reference/make_demo_tokenizer.py configs/demo/tokenizer
"""

import json
import pathlib
import sys

SPECIALS = ["<pad>", "<eos>", "<unk>"]
SYMBOLS = ["+", "-", "*", "=", ",", ">", ":"]


def main(out):
    out = pathlib.Path(out)
    out.mkdir(parents=True, exist_ok=True)
    words = SPECIALS + SYMBOLS + [str(n) for n in range(100)]
    tokenizer = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {"id": i, "content": word, "single_word": False, "lstrip": False, "rstrip": False,
             "normalized": False, "special": True}
            for i, word in enumerate(SPECIALS)
        ],
        "normalizer": None,
        # Runs of digits stay together, everything else is split into characters.
        "pre_tokenizer": {"type": "Split", "pattern": {"Regex": r"[0-9]+|[^0-9]"}, "behavior": "Isolated",
                          "invert": False},
        "post_processor": None,
        "decoder": {"type": "Fuse"},
        "model": {"type": "WordLevel", "vocab": {word: i for i, word in enumerate(words)}, "unk_token": "<unk>"},
    }
    write = lambda name, value: (out / name).write_text(json.dumps(value, indent=1) + "\n")
    write("tokenizer.json", tokenizer)
    write("tokenizer_config.json", {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<eos>",
                                    "pad_token": "<pad>", "unk_token": "<unk>", "model_max_length": 64})
    write("generation_config.json", {"eos_token_id": 1, "pad_token_id": 0, "do_sample": True, "temperature": 1.0})


if __name__ == "__main__":
    main(sys.argv[1])

"""Writes the files that the worker's tests compare with: tiny random Qwen3 models made by transformers,
with logits and greedy continuations.

    cargo xtask golden
"""

import json
import pathlib
import shutil

import torch
from transformers import Qwen3Config, Qwen3ForCausalLM

OUT = pathlib.Path(__file__).resolve().parents[2] / "worker/tests/golden"
LENGTHS = (17, 9)
CONTINUATION = 24


def make(name, tied, shard):
    torch.manual_seed(11 if tied else 12)
    config = Qwen3Config(
        hidden_size=48, num_hidden_layers=3, num_attention_heads=6, num_key_value_heads=2, head_dim=16,
        intermediate_size=80, vocab_size=131, rope_theta=1e6, max_position_embeddings=128, rms_norm_eps=1e-6,
        tie_word_embeddings=tied, bos_token_id=None, eos_token_id=0, pad_token_id=1, dtype="float32",
    )
    model = Qwen3ForCausalLM(config).to(torch.float32).eval()
    # Large enough that logits are far from flat and every path shows.
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0.0, 0.3)
            else:
                parameter.copy_(1.0 + 0.2 * torch.randn_like(parameter))
    folder = OUT / name
    shutil.rmtree(folder, ignore_errors=True)
    model.save_pretrained(folder, max_shard_size=shard)
    cases = []
    with torch.inference_mode():
        for length in LENGTHS:
            tokens = torch.randint(2, config.vocab_size, (1, length))
            logits = model(tokens).logits[0]
            ids = tokens
            for _ in range(CONTINUATION):
                ids = torch.cat([ids, model(ids).logits[:, -1].argmax(-1, keepdim=True)], dim=1)
            cases.append({
                "tokens": tokens[0].tolist(),
                "logits": [[float(f"{x:.8g}") for x in row] for row in logits.tolist()],
                "greedy": ids[0, length:].tolist(),
            })
    (folder / "expected.json").write_text(json.dumps({"cases": cases}) + "\n")


if __name__ == "__main__":
    make("qwen3_tied", True, "1GB")
    make("qwen3_untied", False, "200KB")

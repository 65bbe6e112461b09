"""Writes the files that the worker's tests compare with: tiny random models of every family made by transformers,
with logits, log-probabilities and greedy continuations.

    cargo xtask golden
"""

import json
import pathlib
import shutil

import torch
from transformers import (
    LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM, Qwen3Config, Qwen3ForCausalLM,
)

OUT = pathlib.Path(__file__).resolve().parents[2] / "worker/tests/golden"
LENGTHS = (17, 9)
CONTINUATION = 64
LLAMA3 = dict(
    rope_type="llama3", rope_theta=5e5, factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
    original_max_position_embeddings=32,
)
# Wherever numbers repeat in real models (head_dim = hidden / heads, round vocabularies) these differ.
MODELS = {
    "qwen3_tied": dict(
        family="qwen3", tied=True, hidden=48, heads=6, kv_heads=2, head_dim=16, inner=80, vocab=131, theta=1e6,
    ),
    "qwen3_untied": dict(
        family="qwen3", tied=False, hidden=48, heads=6, kv_heads=2, head_dim=16, inner=80, vocab=131, theta=1e6,
        shard="200KB",
    ),
    "qwen3_bf16": dict(
        family="qwen3", tied=True, hidden=40, heads=4, kv_heads=4, head_dim=24, inner=72, vocab=97, theta=1e4,
        dtype="bfloat16",
    ),
    "qwen2_tied": dict(
        family="qwen2", tied=True, hidden=48, heads=6, kv_heads=2, head_dim=8, inner=80, vocab=113, theta=1e6,
    ),
    "qwen2_untied_bf16": dict(
        family="qwen2", tied=False, hidden=64, heads=4, kv_heads=1, head_dim=16, inner=56, vocab=103, theta=1e6,
        dtype="bfloat16", shard="100KB",
    ),
    "llama3_untied": dict(
        family="llama", tied=False, hidden=48, heads=4, kv_heads=2, head_dim=16, inner=80, vocab=101, rope=LLAMA3,
    ),
    "llama3_tied_bf16": dict(
        family="llama", tied=True, hidden=32, heads=8, kv_heads=2, head_dim=4, inner=96, vocab=127, rope=LLAMA3,
        dtype="bfloat16", shard="40KB",
    ),
    "llama2_untied": dict(
        family="llama", tied=False, hidden=48, heads=6, kv_heads=6, head_dim=8, inner=64, vocab=89, theta=1e4,
    ),
}
CLASSES = {
    "qwen3": (Qwen3Config, Qwen3ForCausalLM),
    "qwen2": (Qwen2Config, Qwen2ForCausalLM),
    "llama": (LlamaConfig, LlamaForCausalLM),
}


def make(name, seed, shape):
    torch.manual_seed(seed)
    make_config, make_model = CLASSES[shape["family"]]
    rope = shape.get("rope") or {"rope_type": "default", "rope_theta": shape["theta"]}
    config = make_config(
        hidden_size=shape["hidden"], num_hidden_layers=3, num_attention_heads=shape["heads"],
        num_key_value_heads=shape["kv_heads"], head_dim=shape["head_dim"], intermediate_size=shape["inner"],
        vocab_size=shape["vocab"], rope_parameters=rope, max_position_embeddings=128, rms_norm_eps=1e-6,
        tie_word_embeddings=shape["tied"], bos_token_id=None, eos_token_id=0, pad_token_id=1,
    )
    model = make_model(config).to(torch.float32).eval()
    # f32 models: large enough that logits are far from flat and every path shows; rounding to bf16 then moves
    # log-probabilities by 0.03-0.06. bf16 models: activations keep their size, as in trained ones.
    calm = "dtype" in shape
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if parameter.dim() > 1:
                parameter.normal_(0.0, parameter.shape[1] ** -0.5 if calm else 0.3)
            elif key.endswith("bias"):
                parameter.normal_(0.0, 0.5)
            else:
                parameter.copy_(1.0 + 0.2 * torch.randn_like(parameter))
    dtype = getattr(torch, shape.get("dtype", "float32"))
    folder = OUT / name
    shutil.rmtree(folder, ignore_errors=True)
    model.to(dtype).save_pretrained(folder, max_shard_size=shape.get("shard", "1GB"))
    # The files' numbers, computed with in f32 and in bf16.
    exact = make_model.from_pretrained(folder, dtype=torch.float32).eval()
    half = make_model.from_pretrained(folder, dtype=torch.bfloat16).eval()
    cases = []
    with torch.inference_mode():
        for length in LENGTHS:
            tokens = torch.randint(2, config.vocab_size, (1, length))
            logits = exact(tokens).logits[0]
            ids = tokens
            for _ in range(CONTINUATION):
                ids = torch.cat([ids, exact(ids).logits[:, -1].argmax(-1, keepdim=True)], dim=1)
            def logprobs(logits):
                return logits[0, :-1].float().log_softmax(-1).gather(1, ids[0, 1:, None])[:, 0]
            cases.append({
                "tokens": tokens[0].tolist(),
                "logits": numbers(logits),
                "greedy": ids[0, length:].tolist(),
                "logprobs": numbers(logprobs(exact(ids).logits)),
                "logprobs_bf16": numbers(logprobs(half(ids).logits)),
            })
    (folder / "expected.json").write_text(json.dumps({"cases": cases}) + "\n")


def numbers(tensor):
    if tensor.dim() == 2:
        return [numbers(row) for row in tensor]
    return [float(f"{x:.8g}") for x in tensor.tolist()]


if __name__ == "__main__":
    for seed, (name, shape) in enumerate(MODELS.items(), start=11):
        make(name, seed, shape)

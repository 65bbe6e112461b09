//! The memory plan against the resident size of real steps.

#![allow(clippy::unwrap_used, reason = "a test ends at the first thing that is not as expected")]

use std::process::Command;

use serde_json::{Value, json};

/// Hidden size, layers, head size, inner size, vocabulary; sequences, response tokens, micro-batch.
const SIZES: [([u64; 5], [u64; 3]); 3] = [
    ([256, 4, 32, 768, 2048], [64, 64, 1280]),
    ([512, 8, 64, 1536, 8192], [16, 32, 2048]),
    ([768, 12, 64, 2304, 32_768], [8, 16, 1024]),
];

/// Runs steps of random weights and returns what was measured.
fn step(
    [hidden, layers, head_dim, inner, vocab]: [u64; 5],
    [batch, new, tokens]: [u64; 3],
    dtype: &str,
) -> Value {
    let config = json!({
        "model_type": "qwen3", "hidden_act": "silu", "hidden_size": hidden, "num_hidden_layers": layers,
        "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": head_dim, "intermediate_size": inner,
        "vocab_size": vocab, "rms_norm_eps": 1e-6, "rope_theta": 1e4, "max_position_embeddings": 2048,
        "tie_word_embeddings": true,
    });
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), config.to_string()).unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_g2rl-worker"))
        .args(["bench", "step", "--json", "--threads", "2", "--dtype", dtype, "--architecture"])
        .arg(file.path())
        .args(["--batch", &batch.to_string(), "--new-tokens", &new.to_string()])
        .args(["--tokens-per-microbatch", &tokens.to_string()])
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

#[test]
fn the_plan_is_within_a_tenth_of_the_peak() {
    for (shape, work) in SIZES {
        for dtype in ["f32", "bf16"] {
            let measured = step(shape, work, dtype);
            let number = |key: &str| measured[key].as_f64().unwrap();
            let ratio = number("planned_peak_bytes") / number("peak_rss_bytes");
            assert!((0.9..=1.1).contains(&ratio), "{shape:?} {dtype}: {ratio}\n{measured:#}");
            // What was there before says nothing about the plan; the largest size is nearly all plan.
            let planned = number("planned_peak_bytes") - number("planned_base_bytes");
            let taken = number("peak_rss_bytes") - number("planned_base_bytes");
            let added = planned / taken;
            println!("{shape:?} {dtype}: {ratio:.3} of all, {added:.3} of what was added");
            assert!((0.85..=1.15).contains(&added), "{shape:?} {dtype}: {added}\n{measured:#}");
        }
    }
}

//! A shipped configuration for real models, on real problems, with a tiny random model: real text,
//! real chat template, real verifier, bf16, real checkpoint.

#![allow(clippy::unwrap_used, reason = "a test ends at the first thing that is not as expected")]

use std::fs;
use std::path::Path;
use std::time::Duration;

use g2rl_tests::{coordinator, finish, root, worker};
use serde_json::json;

const DEADLINE: Duration = Duration::from_secs(300);

/// GPT-2's printable stand-ins for the 256 bytes, in order of the bytes.
fn byte_alphabet() -> Vec<char> {
    let printable = |b: u32| (33..=126).contains(&b) || (161..=172).contains(&b) || (174..=255).contains(&b);
    let mut next = 256;
    (0..256)
        .map(|b| {
            let code = if printable(b) {
                b
            } else {
                next += 1;
                next - 1
            };
            char::from_u32(code).expect("all codes are below 512")
        })
        .collect()
}

/// A byte-level tokenizer with ChatML's special tokens and template.
fn write_tokenizer(dir: &Path) {
    let specials = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"];
    let vocab: serde_json::Map<String, serde_json::Value> = specials
        .iter()
        .map(|s| (*s).to_owned())
        .chain(byte_alphabet().into_iter().map(String::from))
        .enumerate()
        .map(|(id, token)| (token, json!(id)))
        .collect();
    let added: Vec<_> = specials
        .iter()
        .enumerate()
        .map(|(id, s)| {
            json!({"id": id, "content": s, "single_word": false, "lstrip": false, "rstrip": false,
                   "normalized": false, "special": true})
        })
        .collect();
    let bytes =
        json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false, "use_regex": false});
    let tokenizer = json!({
        "version": "1.0", "added_tokens": added, "normalizer": null, "pre_tokenizer": bytes,
        "post_processor": null, "decoder": bytes, "truncation": null, "padding": null,
        "model": {"type": "BPE", "vocab": vocab, "merges": [], "fuse_unk": false, "byte_fallback": false},
    });
    let template = "{% for message in messages %}{{ '<|im_start|>' + message.role + '\n' + message.content \
                    + '<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}";
    fs::write(dir.join("tokenizer.json"), tokenizer.to_string()).unwrap();
    let settings = json!({"chat_template": template, "eos_token": "<|im_end|>"});
    fs::write(dir.join("tokenizer_config.json"), settings.to_string()).unwrap();
}

#[test]
fn the_math_configuration_trains_on_real_problems() {
    let problems = root().join("../shared/data/math_train.jsonl");
    let Ok(text) = fs::read_to_string(&problems) else {
        println!("skipped: {} is not there", problems.display());
        return;
    };
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).display().to_string();
    let first: Vec<&str> = text.lines().take(16).collect();
    fs::write(path("problems.jsonl"), first.join("\n")).unwrap();
    let architecture = json!({
        "model_type": "qwen3", "architectures": ["Qwen3ForCausalLM"], "hidden_act": "silu",
        "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
        "head_dim": 16, "intermediate_size": 128, "vocab_size": 259, "rms_norm_eps": 1e-6,
        "rope_theta": 1e6, "max_position_embeddings": 4096, "tie_word_embeddings": true, "eos_token_id": 2,
    });
    fs::write(path("architecture.json"), architecture.to_string()).unwrap();
    fs::create_dir(path("tokenizer")).unwrap();
    write_tokenizer(&dir.path().join("tokenizer"));
    let (architecture, tokenizer, model) = (path("architecture.json"), path("tokenizer"), path("model"));
    let init = [
        "init",
        "--architecture",
        &architecture,
        "--tokenizer",
        &tokenizer,
        "--out",
        &model,
        "--dtype",
        "bf16",
    ];
    let made = finish(worker(&init), DEADLINE).unwrap();
    assert!(made.success, "{}", made.text);

    let set = [
        format!("run.dir={}", path("run")),
        "run.steps=2".into(),
        format!("model.path={model}"),
        format!("data.train={}", path("problems.jsonl")),
        "rollout.max_new_tokens=48".into(),
        // A model with random weights is wrong everywhere, and groups that are all wrong would be left out.
        "algorithm.degenerate_groups=shape".into(),
        "prompt.max_tokens=2048".into(),
        "cluster.listen=127.0.0.1:0".into(),
        "cluster.http=127.0.0.1:0".into(),
        "checkpoint.every=1".into(),
    ];
    let mut arguments = vec!["train", "--config", "configs/qwen3-1.7b-math.toml", "--local-workers", "2"];
    arguments.extend(set.iter().flat_map(|value| ["--set", value.as_str()]));
    let finished = finish(coordinator(&arguments), DEADLINE).unwrap();
    assert!(finished.success, "{}", finished.text);
    assert!(finished.text.contains("step 2/2"), "{}", finished.text);

    let journal = rusqlite::Connection::open(path("run/journal.sqlite")).unwrap();
    let rollouts: i64 = journal.query_row("SELECT COUNT(*) FROM rollout", [], |row| row.get(0)).unwrap();
    assert_eq!(rollouts, 2 * 16 * 16);
    // The system prompt, the template and the problem: hundreds of bytes, one token each.
    let shortest: i64 =
        journal.query_row("SELECT MIN(prompt_tokens) FROM rollout", [], |row| row.get(0)).unwrap();
    assert!(shortest > 200, "{shortest}");
    let versions: i64 =
        journal.query_row("SELECT MAX(policy_version) FROM step", [], |row| row.get(0)).unwrap();
    assert_eq!(versions, 2 * (16 * 16 / 32), "one optimizer step for each mini-batch of 32");
    assert!(dir.path().join("run/checkpoints/step-000002/model.safetensors").exists());
    let config: serde_json::Value =
        serde_json::from_str(&fs::read_to_string(path("run/checkpoints/step-000002/config.json")).unwrap())
            .unwrap();
    assert_eq!(config["dtype"], "bfloat16");
}

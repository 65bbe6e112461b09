//! `g2rl-worker score` against the rollout that made the tokens: what was drawn is scored with the same
//! numbers.

#![allow(clippy::unwrap_used, reason = "a test ends at the first thing that is not as expected")]

mod support;

use std::process::Command;

use g2rl_common::rollout::Sampling;
use serde_json::{Value, json};
use support::{MODELS, engine, golden, lease, model, run};

/// Largest difference of two lists of the same length.
fn difference(scored: &Value, drawn: &[f32]) -> f64 {
    let scored: Vec<f64> = scored.as_array().unwrap().iter().map(|x| x.as_f64().unwrap()).collect();
    assert_eq!(scored.len(), drawn.len());
    scored.iter().zip(drawn).map(|(a, b)| (a - f64::from(*b)).abs()).fold(0.0, f64::max)
}

#[test]
fn scores_equal_what_the_rollout_recorded() {
    for name in MODELS {
        for temperature in [1.0, 0.6] {
            let model = model(name);
            let sampling = Sampling { temperature, max_new_tokens: 30, ..Sampling::default() };
            let leases = (0..3).map(|group| lease(group, 3, sampling.clone())).collect();
            let rollouts = run(&mut engine(&model, 4, &[5, 17]), &model, leases);
            let dir = tempfile::tempdir().unwrap();
            let input = dir.path().join("sequences.jsonl");
            let rows: Vec<String> = rollouts
                .iter()
                .map(|rollout| {
                    let tokens = [&rollout.prompt_tokens[..], &rollout.response_tokens].concat();
                    json!({"tokens": tokens, "prompt_tokens": rollout.prompt_tokens.len()}).to_string()
                })
                .collect();
            std::fs::write(&input, rows.join("\n")).unwrap();
            let output = Command::new(env!("CARGO_BIN_EXE_g2rl-worker"))
                .arg("score")
                .arg("--model")
                .arg(golden(name))
                .arg("--input")
                .arg(&input)
                .args(["--temperature", &temperature.to_string()])
                .output()
                .unwrap();
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
            let text = String::from_utf8(output.stdout).unwrap();
            assert_eq!(text.lines().count(), rollouts.len());
            let (mut logprobs, mut features) = (0.0, 0.0);
            for (line, rollout) in text.lines().zip(&rollouts) {
                let row: Value = serde_json::from_str(line).unwrap();
                logprobs = difference(&row["logprobs"], &rollout.behavior_logprobs).max(logprobs);
                features = difference(&row["feature"], rollout.feature.as_ref().unwrap()).max(features);
                let entropy = row["entropy"].as_array().unwrap();
                let mean = entropy.iter().map(|e| e.as_f64().unwrap()).sum::<f64>() / entropy.len() as f64;
                assert!((mean - f64::from(rollout.mean_entropy)).abs() < 1e-4, "{name}");
            }
            println!("{name} at {temperature}: log-probabilities {logprobs:.1e}, features {features:.1e}");
            assert!(logprobs < 1e-4 && features < 1e-4, "{name}: {logprobs}, {features}");
        }
    }
}

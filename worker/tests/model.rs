//! The decoder and its files against transformers' Qwen3. The expected values are made by
//! `scripts/reference/make_golden.py`.

#![allow(clippy::unwrap_used, reason = "a test ends at the first thing that is not as expected")]

mod support;

use std::path::Path;
use std::process::Command;

use g2rl_common::config::Dtype;
use g2rl_ffi::attention::Segments;
use g2rl_worker::model::{Model, Placement, Weights};
use support::{MODELS, cases, golden, model};
use tch::{Kind, Tensor};

fn logits(model: &Model, tokens: &[i64], lengths: &[i64]) -> Tensor {
    let mut segments = Segments::default();
    lengths.iter().for_each(|length| segments.push(*length, None));
    let hidden = model.hidden_states(&Tensor::from_slice(tokens), &segments).unwrap();
    model.logits(&model.final_norm(&hidden).unwrap())
}

#[test]
fn packed_logits_equal_transformers() {
    for name in MODELS {
        let (model, cases) = (model(name), cases(name));
        // Both sequences in one pack: each must attend to itself only.
        let tokens: Vec<i64> = cases.iter().flat_map(|case| case.tokens.clone()).collect();
        let lengths: Vec<i64> = cases.iter().map(|case| case.tokens.len() as i64).collect();
        let ours = logits(&model, &tokens, &lengths);
        let theirs: Vec<f32> = cases.iter().flat_map(|case| case.logits.concat()).collect();
        let theirs = Tensor::from_slice(&theirs).view(ours.size().as_slice());
        let difference = (ours - &theirs).abs().max().double_value(&[]);
        println!(
            "{name}: largest difference {difference:.2e} of {:.1}",
            theirs.abs().max().double_value(&[])
        );
        assert!(difference < 1e-4, "{name}: {difference}");
    }
}

/// Log-probabilities of all tokens but the first, in one pass.
fn token_logprobs(model: &Model, tokens: &[i64]) -> Tensor {
    let next = Tensor::from_slice(&tokens[1..]).unsqueeze(1);
    let logits = logits(model, tokens, &[tokens.len() as i64]).narrow(0, 0, next.size()[0]);
    logits.log_softmax(-1, Kind::Float).gather(1, &next, false).squeeze_dim(1)
}

#[test]
fn logprobs_equal_transformers_in_both_number_formats() {
    println!("mean and largest difference of log-probabilities");
    println!("model                f32 mean  largest  bf16 mean  largest  rounding: ours    theirs");
    for name in MODELS {
        let bf16 = Placement { dtype: Dtype::Bf16, ..Placement::cpu() };
        let half_model = Model::load(&golden(name), bf16).unwrap();
        let model = model(name);
        let [mut f32_off, mut bf16_off, mut ours_rounding, mut theirs_rounding] =
            [(); 4].map(|()| Vec::new());
        for case in cases(name) {
            let tokens: Vec<i64> =
                case.tokens.iter().copied().chain(case.greedy.iter().map(|t| i64::from(*t))).collect();
            let theirs = Tensor::from_slice(&case.logprobs);
            let theirs_half = Tensor::from_slice(&case.logprobs_bf16);
            let half = token_logprobs(&half_model, &tokens);
            f32_off.push((token_logprobs(&model, &tokens) - &theirs).abs());
            bf16_off.push((&half - &theirs_half).abs());
            ours_rounding.push((half - &theirs).abs());
            theirs_rounding.push((theirs_half - theirs).abs());
        }
        let mean = |t: &[Tensor]| Tensor::cat(t, 0).mean(Kind::Double).double_value(&[]);
        let largest = |t: &[Tensor]| Tensor::cat(t, 0).max().double_value(&[]);
        let (exact, half) = (largest(&f32_off), mean(&bf16_off));
        let (ours, theirs) = (mean(&ours_rounding), mean(&theirs_rounding));
        println!(
            "{name:19}  {:8.1e} {exact:8.1e}   {half:8.1e} {:8.1e}         {ours:8.1e}  {theirs:8.1e}",
            mean(&f32_off),
            largest(&bf16_off)
        );
        assert!(exact < 1e-4, "{name}: {exact}");
        // What bf16 costs is no more than it costs transformers, up to luck.
        assert!(ours < 1.5 * theirs, "{name}: rounding costs {ours}, in transformers {theirs}");
        if name.ends_with("bf16") {
            assert!(half < 1e-2, "{name}: {half}");
        }
    }
}

#[test]
fn saved_weights_are_the_same_bits() {
    for name in MODELS {
        let dir = tempfile::tempdir().unwrap();
        let before = Weights::load(&golden(name), Placement::cpu()).unwrap();
        before.save(dir.path()).unwrap();
        let after = Weights::load(dir.path(), Placement::cpu()).unwrap();
        assert_eq!(before.digest(), after.digest());
        assert!(before.master().equal(after.master()));
    }
}

#[test]
fn transformers_loads_what_we_save() {
    let python = std::env::var("G2RL_PYTHON").unwrap_or_else(|_| "python3".into());
    let there = Command::new(&python).args(["-c", "import transformers"]).output();
    if !there.is_ok_and(|output| output.status.success()) {
        println!("skipped: {python} has no transformers (cargo xtask setup --reference installs it)");
        return;
    }
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../scripts/reference/check_export.py");
    let exports = tempfile::tempdir().unwrap();
    for name in MODELS {
        let dir = exports.path().join(name);
        let model = model(name);
        model.weights().save(&dir).unwrap();
        let case = cases(name).remove(0);
        let ours = logits(&model, &case.tokens, &[case.tokens.len() as i64]);
        let values: Vec<f32> = Vec::try_from(ours.view([-1]).to_kind(Kind::Float)).unwrap();
        let rows: Vec<&[f32]> = values.chunks(model.config().vocab_size as usize).collect();
        let expected = serde_json::json!({"tokens": case.tokens, "logits": rows}).to_string();
        std::fs::write(dir.join("expected.json"), expected).unwrap();
    }
    let output = Command::new(&python).arg(&script).arg(exports.path()).output().unwrap();
    let text =
        String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    println!("{text}");
    assert!(output.status.success(), "{text}");
}

/// A copy of the tied model's directory, changed.
fn broken(change: impl FnOnce(&Path)) -> String {
    let dir = tempfile::tempdir().unwrap();
    for file in ["config.json", "model.safetensors"] {
        std::fs::copy(golden("qwen3_tied").join(file), dir.path().join(file)).unwrap();
    }
    change(dir.path());
    Weights::load(dir.path(), Placement::cpu()).unwrap_err().to_string()
}

fn edit(path: &Path, from: &str, to: &str) {
    let text = std::fs::read_to_string(path).unwrap();
    assert!(text.contains(from));
    std::fs::write(path, text.replace(from, to)).unwrap();
}

#[test]
fn unusable_directories_are_named() {
    let error = broken(|dir| std::fs::remove_file(dir.join("model.safetensors")).unwrap());
    assert!(error.contains("neither model.safetensors nor"), "{error}");

    let error = broken(|dir| {
        let path = dir.join("model.safetensors");
        let bytes = std::fs::read(&path).unwrap();
        std::fs::write(&path, &bytes[..bytes.len() - 100]).unwrap();
    });
    assert!(error.contains("model.safetensors is not a complete safetensors file"), "{error}");

    let error = broken(|dir| {
        edit(&dir.join("config.json"), "\"intermediate_size\": 80", "\"intermediate_size\": 81");
    });
    assert!(error.contains("layers.0.mlp.down_proj.weight has shape [48, 80]"), "{error}");
    assert!(error.contains("the configuration says [48, 81]"), "{error}");

    let error = broken(|dir| {
        edit(&dir.join("config.json"), "\"num_hidden_layers\": 3", "\"num_hidden_layers\": 4");
    });
    assert!(error.contains("model.layers.3") && error.contains("missing"), "{error}");

    let error = broken(|dir| {
        let path = dir.join("model.safetensors");
        let mut bytes = std::fs::read(&path).unwrap();
        // The last value of the last tensor becomes NaN.
        let end = bytes.len();
        bytes[end - 4..].copy_from_slice(&f32::NAN.to_le_bytes());
        std::fs::write(&path, bytes).unwrap();
    });
    assert!(error.contains("not finite"), "{error}");

    let error = broken(|dir| {
        edit(&dir.join("config.json"), "\"model_type\": \"qwen3\"", "\"model_type\": \"mamba\"")
    });
    assert!(error.contains("model_type = mamba is not supported"), "{error}");
}

//! The objective against `golden_grpo.json`: a softmax and its backward in f64, written out here,
//! turn logits into log-probabilities and token derivatives into gradients.

use crate::support::{assert_close, cases, flat, golden, matrices, number, rows};
use g2rl_common::advantage::AdvantageKind;
use g2rl_common::geometry::GroupGeometry;
use g2rl_common::novelty::{NoveltyKind, NoveltyScores};
use g2rl_common::objective::{
    Aggregation, ObjectiveOptions, PolicyTerm, TokenInput, TokenTerm, token_objective, token_weights,
};
use g2rl_common::shaping::{Scaler, ShapingOptions};
use serde_json::Value;

/// Probabilities of softmax(logits / T).
fn softmax(logits: &[f64], temperature: f64) -> Vec<f64> {
    let top = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let exp: Vec<f64> = logits.iter().map(|z| ((z - top) / temperature).exp()).collect();
    let sum: f64 = exp.iter().sum();
    exp.iter().map(|e| e / sum).collect()
}

/// onehot(token) - p.
fn residual(probabilities: &[f64], token: usize) -> Vec<f64> {
    probabilities.iter().enumerate().map(|(v, p)| f64::from(u8::from(v == token)) - p).collect()
}

fn matmul_row(row: &[f64], matrix: &[Vec<f64>]) -> Vec<f64> {
    let mut out = vec![0.0; matrix[0].len()];
    for (x, m) in row.iter().zip(matrix) {
        out.iter_mut().zip(m).for_each(|(o, m)| *o += x * m);
    }
    out
}

/// A mini-batch as the golden files hold it.
struct Batch {
    temperature: f64,
    logits: Vec<Vec<Vec<f64>>>,
    tokens: Vec<Vec<f64>>,
    mask: Vec<Vec<f64>>,
    behavior: Vec<Vec<f64>>,
    reference: Vec<Vec<f64>>,
    term: PolicyTerm,
    aggregation: Aggregation,
}

/// What the objective makes of it; per token also where the mask is 0.
#[derive(Default)]
struct Result {
    logprob: Vec<f64>,
    ratio: Vec<f64>,
    k3: Vec<f64>,
    loss: f64,
    grad_logits: Vec<f64>,
    kl_sum: f64,
    clipped: f64,
    response_tokens: f64,
}

impl Batch {
    fn read(case: &Value, logits: Vec<Vec<Vec<f64>>>) -> Self {
        let options = ObjectiveOptions {
            clip_low: number(&case["clip_low"]),
            clip_high: number(&case["clip_high"]),
            kl_coef: number(&case["beta"]),
            ..ObjectiveOptions::default()
        };
        let aggregation = match case["aggregation"].as_str() {
            Some("token_mean") => Aggregation::TokenMean,
            Some("sequence_mean") => Aggregation::SequenceMeanTokenMean,
            other => panic!("aggregation {other:?}"),
        };
        Self {
            temperature: number(&case["temperature"]),
            logits,
            tokens: rows(&case["y"]),
            mask: rows(&case["mask"]),
            behavior: rows(&case["old_logprob"]),
            reference: rows(&case["ref_logprob"]),
            term: options.policy_term(),
            aggregation,
        }
    }

    fn evaluate(&self, advantages: &[f64]) -> Result {
        let lengths: Vec<usize> = self.mask.iter().map(|m| m.iter().sum::<f64>() as usize).collect();
        let weights = token_weights(self.aggregation, &lengths);
        let mut result = Result::default();
        for (i, sequence) in self.logits.iter().enumerate() {
            for (t, logits) in sequence.iter().enumerate() {
                let probabilities = softmax(logits, self.temperature);
                let token = self.tokens[i][t] as usize;
                let input = TokenInput {
                    policy_logprob: probabilities[token].ln(),
                    behavior_logprob: self.behavior[i][t],
                    advantage: advantages[i],
                    reference_logprob: Some(self.reference[i][t]),
                };
                let found = token_objective(&self.term, input);
                let weight = weights[i] * self.mask[i][t];
                result.add(&input, &found, self.mask[i][t], weight);
                let scale = weight * found.dloss_dlogprob / self.temperature;
                result.grad_logits.extend(residual(&probabilities, token).iter().map(|r| scale * r));
            }
        }
        result
    }
}

impl Result {
    fn add(&mut self, input: &TokenInput, found: &TokenTerm, mask: f64, weight: f64) {
        self.logprob.push(input.policy_logprob);
        self.ratio.push(found.ratio);
        self.k3.push(found.kl);
        self.loss += weight * found.loss;
        self.kl_sum += mask * found.kl;
        self.clipped += mask * f64::from(u8::from(found.clipped));
        self.response_tokens += mask;
    }

    fn compare_sums(&self, what: &str, expected: &Value) {
        let found = [self.loss, self.kl_sum / self.response_tokens, self.clipped / self.response_tokens];
        let expected = ["loss", "mean_kl", "clip_fraction"].map(|key| number(&expected[key]));
        assert_close(&format!("{what} loss, mean_kl, clip_fraction"), &found, &expected);
    }
}

#[test]
fn losses_and_logit_gradients() {
    let file = golden("golden_grpo.json");
    assert_eq!(cases(&file).len(), 6);
    for case in cases(&file) {
        let name = &case["name"];
        let batch = Batch::read(case, matrices(&case["logits"]));
        let result = batch.evaluate(&flat(&case["advantage"]));
        assert_close(&format!("{name} logprob"), &result.logprob, &flat(&case["logprob"]));
        assert_close(&format!("{name} ratio"), &result.ratio, &flat(&case["ratio"]));
        assert_close(&format!("{name} k3"), &result.k3, &flat(&case["k3"]));
        assert_close(&format!("{name} grad_logits"), &result.grad_logits, &flat(&case["grad_logits"]));
        result.compare_sums(&name.to_string(), case);
    }
}

/// Features of every sequence: the mean over response tokens of (onehot - p) W.
fn features(batch: &Batch, head: &[Vec<f64>]) -> Vec<Vec<f64>> {
    let hidden = head[0].len();
    let feature = |i: usize| {
        let mut sum = vec![0.0; hidden];
        for (t, logits) in batch.logits[i].iter().enumerate() {
            let probabilities = softmax(logits, batch.temperature);
            let phi = matmul_row(&residual(&probabilities, batch.tokens[i][t] as usize), head);
            sum.iter_mut().zip(phi).for_each(|(s, p)| *s += batch.mask[i][t] * p);
        }
        let length: f64 = batch.mask[i].iter().sum();
        sum.iter().map(|s| s / length).collect()
    };
    (0..batch.logits.len()).map(feature).collect()
}

#[test]
fn from_hidden_states_to_gradients() {
    let case = &golden("golden_grpo.json")["end_to_end"];
    let head = rows(&case["W"]);
    let hidden = matrices(&case["h"]);
    let head_rows = |h: &Vec<f64>| -> Vec<f64> {
        head.iter().map(|w| w.iter().zip(h).map(|(a, b)| a * b).sum()).collect()
    };
    let logits = hidden.iter().map(|s| s.iter().map(head_rows).collect()).collect();
    let batch = Batch::read(case, logits);
    let rewards = flat(&case["rewards"]);

    let geometry = GroupGeometry::from_features(&features(&batch, &head)).unwrap();
    assert_close("S", geometry.matrix(), &flat(&case["S"]));

    for (kind, kind_name) in [(NoveltyKind::Linear, "linear"), (NoveltyKind::Sqrt, "sqrt")] {
        let scores = NoveltyScores::new(&geometry, &rewards, kind);
        assert_close("nu", &scores.novelty, &flat(&case[format!("nu_{kind_name}")]));
        assert_close("nubar", &scores.novelty_normalized, &flat(&case[format!("nubar_{kind_name}")]));
        for (scaler, scaler_name) in [(Scaler::Equation, "equation13"), (Scaler::Amplify, "amplify")] {
            let what = format!("{kind_name}/{scaler_name}");
            let expected = &case["variants"][&what];
            let (lambda, clip) = (number(&case["lambda"]), number(&case["c"]));
            let options = ShapingOptions { novelty: kind, scaler, lambda, clip, ..ShapingOptions::default() };
            let shaped: Vec<f64> = rewards
                .iter()
                .zip(&scores.novelty_normalized)
                .map(|(&r, &nu)| options.shape(r, nu))
                .collect();
            assert_close(&format!("{what} shaped"), &shaped, &flat(&expected["shaped_reward"]));
            let advantages = AdvantageKind::Std.advantages(&shaped);
            assert_close(&format!("{what} advantage"), &advantages, &flat(&expected["advantage"]));

            let result = batch.evaluate(&advantages);
            result.compare_sums(&what, expected);
            // logits = h W^T, so grad_h = grad_logits W and grad_W = sum over tokens of
            // grad_logits^T h.
            let mut grad_hidden = Vec::new();
            let mut grad_head = vec![0.0; head.len() * head[0].len()];
            let states = hidden.iter().flatten();
            for (gradient, h) in result.grad_logits.chunks_exact(head.len()).zip(states) {
                grad_hidden.extend(matmul_row(gradient, &head));
                for (row, g) in grad_head.chunks_exact_mut(h.len()).zip(gradient) {
                    row.iter_mut().zip(h).for_each(|(r, h)| *r += g * h);
                }
            }
            assert_close(&format!("{what} grad_h"), &grad_hidden, &flat(&expected["grad_h"]));
            assert_close(&format!("{what} grad_W"), &grad_head, &flat(&expected["grad_W"]));
        }
    }
}

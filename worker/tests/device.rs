//! Decoding over fixed buffers gives what the CPU's own decoder gives, however it is scheduled; and on a
//! GPU, with and without captured graphs, what it gives on a CPU.

#![allow(clippy::unwrap_used, reason = "a test ends at the first thing that is not as expected")]

mod support;

use g2rl_common::config::Dtype;
use g2rl_common::rollout::{FinishReason, GroupLease, Purpose, Rollout, Sampling};
use g2rl_ffi::cuda;
use g2rl_worker::model::{Model, Placement};
use g2rl_worker::rollout::{DeviceOptions, RolloutEngine, RolloutRequest};
use support::{Letters, engine, golden, lease, model, options, prompt, run};
use tch::Device;

const ENDS: [u32; 2] = [5, 17];

fn sampled(max_new_tokens: u32) -> Sampling {
    Sampling { max_new_tokens, ..Sampling::default() }
}

/// Groups of different sizes and limits.
fn leases() -> Vec<GroupLease> {
    (0..7u64).map(|group| lease(group, 1 + (group as u32 * 3) % 5, sampled(5 + 9 * group as u32))).collect()
}

/// A pool for `tokens` tokens, the host looking every `look_interval`.
fn device(pool_tokens: u64, look_interval: u32) -> DeviceOptions {
    DeviceOptions { pool_tokens, look_interval, graphs: true }
}

fn rollouts(model: &Model, slots: usize, device: DeviceOptions, leases: Vec<GroupLease>) -> Vec<Rollout> {
    run(&mut RolloutEngine::new(model, options(slots, &ENDS, device)).unwrap(), model, leases)
}

/// The same answers, and numbers within a tolerance.
fn assert_same(found: &[Rollout], expected: &[Rollout], tolerance: f32, what: &str) {
    assert_eq!(found.len(), expected.len(), "{what}");
    let mut largest = [0f32; 3];
    let mut compare = |kind: usize, a: &[f32], b: &[f32]| {
        assert_eq!(a.len(), b.len(), "{what}");
        largest[kind] = a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(largest[kind], f32::max);
    };
    for (a, b) in found.iter().zip(expected) {
        assert_eq!(
            (a.id, &a.response_tokens, a.finish_reason, &a.text),
            (b.id, &b.response_tokens, b.finish_reason, &b.text),
            "{what}"
        );
        let feature = |rollout: &Rollout| rollout.feature.clone().unwrap_or_default();
        compare(0, &a.behavior_logprobs, &b.behavior_logprobs);
        compare(1, &[a.mean_entropy], &[b.mean_entropy]);
        compare(2, &feature(a), &feature(b));
    }
    let [logprobs, entropies, features] = largest;
    println!("{what}: log-probabilities {logprobs:.1e}, entropies {entropies:.1e}, features {features:.1e}");
    assert!(largest.iter().all(|difference| *difference < tolerance), "{what}: {largest:?}");
}

#[test]
fn buckets_intervals_and_refills_change_nothing() {
    // Where the tolerance is larger, log-probabilities move as far when only the number of rows of libtorch's
    // products changes. The last model's vocabulary is too small for later prompts.
    for (name, groups, tolerance) in [
        ("qwen3_tied", 7, 1e-5),
        ("qwen2_tied", 7, 3e-5),
        ("llama3_untied", 7, 1e-4),
        ("llama2_untied", 4, 3e-5),
    ] {
        let model = model(name);
        let leases = || leases().into_iter().take(groups).collect::<Vec<_>>();
        let expected = run(&mut engine(&model, 64, &ENDS), &model, leases());
        let reasons = |reason| expected.iter().filter(|r| r.finish_reason == reason).count();
        assert!(reasons(FinishReason::EndToken) > 0 && reasons(FinishReason::Length) > 0);
        for slots in [1, 3, 8, 64] {
            for look_interval in [1, 8] {
                let found = rollouts(&model, slots, device(4000, look_interval), leases());
                let what = format!("{name}, {slots} slots, {look_interval}");
                assert_same(&found, &expected, tolerance, &what);
            }
        }
    }
}

#[test]
fn sampling_of_all_kinds_shares_a_step() {
    let model = model("qwen3_tied");
    let kinds = || -> Vec<GroupLease> {
        let base = Sampling { temperature: 0.9, ..sampled(30) };
        let kinds = [
            Sampling { temperature: 0.0, ..base.clone() },
            Sampling { top_k: Some(4), ..base.clone() },
            base.clone(),
            Sampling { top_p: 0.8, ..base.clone() },
            Sampling { min_p: 0.05, temperature: 1.5, ..base.clone() },
            Sampling { top_k: Some(20), top_p: 0.9, min_p: 0.01, ..base.clone() },
        ];
        let lease = |(group, kind)| lease(group as u64, 3, kind);
        let mut leases: Vec<GroupLease> = kinds.into_iter().enumerate().map(lease).collect();
        leases[3].purpose = Purpose::Evaluate;
        leases
    };
    let expected = run(&mut engine(&model, 32, &ENDS), &model, kinds());
    assert_eq!(expected.iter().filter(|rollout| rollout.feature.is_none()).count(), 3);
    for (slots, look_interval) in [(4, 8), (32, 8), (32, 1)] {
        let found = rollouts(&model, slots, device(4000, look_interval), kinds());
        assert_same(&found, &expected, 1e-5, &format!("{slots} slots, {look_interval}"));
    }
}

#[test]
fn stop_strings_end_where_the_cpu_decoder_ends() {
    let model = model("qwen3_tied");
    let free = run(&mut engine(&model, 8, &ENDS), &model, leases());
    let long = free.iter().find(|rollout| rollout.text.chars().count() > 12).unwrap();
    let stop: String = long.text.chars().skip(8).take(2).collect();
    let with_stop = || {
        let mut all = leases();
        // One group alone has it: the others share its windows.
        let group = all.iter_mut().find(|lease| lease.group == long.id.group).unwrap();
        group.sampling.stop = vec![stop.clone()];
        all
    };
    let expected = run(&mut engine(&model, 8, &ENDS), &model, with_stop());
    assert!(expected.iter().any(|rollout| rollout.finish_reason == FinishReason::StopString));
    for slots in [2, 16] {
        assert_same(&rollouts(&model, slots, device(4000, 8), with_stop()), &expected, 1e-5, "stop strings");
    }
}

#[test]
fn a_small_pool_only_makes_rollouts_wait() {
    let model = model("qwen3_tied");
    let expected = run(&mut engine(&model, 16, &ENDS), &model, leases());
    // The longest request has 4 prompt tokens and a response of 59; 3 tokens make the pool grow for each.
    for pool in [3, 70, 150, 400] {
        let mut engine = RolloutEngine::new(&model, options(16, &ENDS, device(pool, 8))).unwrap();
        assert_same(&run(&mut engine, &model, leases()), &expected, 1e-5, &format!("pool of {pool}"));
        // Everything was given back: the same work fits again.
        assert_same(&run(&mut engine, &model, leases()), &expected, 1e-5, &format!("pool of {pool} again"));
        if pool >= 150 {
            assert_eq!(engine.prefills(), 14, "each prompt goes through the model once");
        }
    }
}

/// A prompt whose group still waits gives its place to a larger request before it, and comes back.
#[test]
fn waiting_prompts_make_room() {
    let model = model("qwen3_tied");
    let mixed = || -> Vec<GroupLease> {
        let part = |first: u32| GroupLease { first_rollout: first, ..lease(0, 1, sampled(10)) };
        vec![part(0), lease(1, 1, sampled(60)), part(1)]
    };
    let expected = run(&mut engine(&model, 1, &[]), &model, mixed());
    let mut engine = RolloutEngine::new(&model, options(1, &[], device(64, 8))).unwrap();
    assert_same(&run(&mut engine, &model, mixed()), &expected, 1e-5, "room");
    assert_eq!(engine.prefills(), 3);
}

#[test]
fn a_cancelled_engine_starts_anew() {
    let model = model("qwen3_tied");
    let expected = run(&mut engine(&model, 16, &ENDS), &model, leases());
    let mut engine = RolloutEngine::new(&model, options(8, &ENDS, device(300, 3))).unwrap();
    for lease in leases() {
        let prompt_tokens = prompt(lease.group.0);
        engine.submit(RolloutRequest { lease, prompt_tokens }).unwrap();
    }
    let _ = engine.step(&model, &Letters).unwrap();
    assert!(engine.slots_in_use() > 0);
    engine.cancel_all();
    assert!(engine.is_idle());
    assert_same(&run(&mut engine, &model, leases()), &expected, 1e-5, "after a cancellation");
}

#[test]
fn the_models_positions_are_a_limit() {
    let model = model("qwen3_tied");
    let long = || vec![lease(0, 2, sampled(100_000)), lease(1, 1, sampled(1))];
    let expected = run(&mut engine(&model, 8, &[]), &model, long());
    let tokens = expected[0].prompt_tokens.len() + expected[0].response_tokens.len();
    assert_eq!(tokens as i64, model.config().max_positions);
    let mut engine = RolloutEngine::new(&model, options(4, &[], device(64, 8))).unwrap();
    assert_same(&run(&mut engine, &model, long()), &expected, 1e-4, "positions");
}

/// The silent run before a capture leaves no trace, for keys of all kinds and in rows that wait for it.
#[test]
fn a_rehearsal_changes_nothing() {
    let model = model("qwen3_tied");
    let mixed = || -> Vec<GroupLease> {
        let mut leases = leases();
        leases[2].sampling = Sampling { top_k: Some(3), ..leases[2].sampling.clone() };
        leases[4].sampling = Sampling { temperature: 0.0, ..leases[4].sampling.clone() };
        leases
    };
    let [rehearsed, plain] =
        [true, false].map(|graphs| rollouts(&model, 6, DeviceOptions { graphs, ..device(4000, 4) }, mixed()));
    assert_eq!(rehearsed, plain);
}

/// One engine sees weights that change in place.
#[test]
fn an_update_is_seen() {
    let mut model = model("qwen3_tied");
    let mut fixed = RolloutEngine::new(&model, options(8, &ENDS, device(4000, 8))).unwrap();
    let before = run(&mut fixed, &model, leases());
    let mut weights = model.weights_mut().master().shallow_clone();
    let _ = tch::no_grad(|| weights.g_mul_scalar_(1.05));
    let expected = run(&mut engine(&model, 8, &ENDS), &model, leases());
    let found = run(&mut fixed, &model, leases());
    assert_same(&found, &expected, 1e-5, "after an update");
    assert_ne!(found, before);
}

fn on_gpu(name: &str, dtype: Dtype) -> Option<Model> {
    if !cuda::is_available() {
        println!("skipped: no GPU");
        return None;
    }
    let placement = Placement { device: Device::Cuda(0), dtype, trainable: true, offload: false };
    Some(Model::load(&golden(name), placement).unwrap())
}

#[test]
fn captured_graphs_equal_single_operations_on_a_gpu() {
    for dtype in [Dtype::F32, Dtype::Bf16] {
        let Some(mut gpu) = on_gpu("qwen3_tied", dtype) else { return };
        for change in 0..2 {
            for (slots, look_interval) in [(3, 1), (16, 8)] {
                let [graphs, single] = [true, false].map(|graphs| {
                    let device = DeviceOptions { graphs, ..device(4000, look_interval) };
                    rollouts(&gpu, slots, device, leases())
                });
                let what = format!("{dtype:?}, change {change}, {slots} slots");
                assert_same(&graphs, &single, 1e-5, &what);
            }
            let mut weights = gpu.weights_mut().master().shallow_clone();
            let _ = tch::no_grad(|| weights.g_mul_scalar_(1.02));
            gpu.weights_mut().refresh_compute();
        }
    }
}

/// Graphs stay valid while weights change in place and slots are refilled.
#[test]
fn a_captured_engine_on_a_gpu_sees_updates() {
    let Some(mut gpu) = on_gpu("qwen3_tied", Dtype::F32) else { return };
    let mut engine = RolloutEngine::new(&gpu, options(4, &ENDS, device(4000, 8))).unwrap();
    run(&mut engine, &gpu, leases());
    let mut weights = gpu.weights_mut().master().shallow_clone();
    let _ = tch::no_grad(|| weights.g_mul_scalar_(1.05));
    let expected = rollouts(&gpu, 4, DeviceOptions { graphs: false, ..device(4000, 8) }, leases());
    assert_same(&run(&mut engine, &gpu, leases()), &expected, 1e-5, "after an update");
}

#[test]
fn a_gpu_in_f32_equals_the_cpu() {
    for name in ["qwen3_tied", "llama2_untied"] {
        let Some(gpu) = on_gpu(name, Dtype::F32) else { return };
        let cpu = model(name);
        let greedy = || vec![lease(0, 2, Sampling { temperature: 0.0, ..sampled(40) })];
        let expected = run(&mut engine(&cpu, 8, &ENDS), &cpu, greedy());
        assert_same(&rollouts(&gpu, 8, device(4000, 8), greedy()), &expected, 1e-4, name);
    }
}

/// In bf16: log-probabilities of the GPU's own tokens against a forward in f32 on the CPU, as close as the CPU's own in
/// bf16 are.
#[test]
fn a_gpu_in_bf16_is_as_exact_as_a_cpu() {
    let Some(gpu) = on_gpu("qwen3_tied", Dtype::Bf16) else { return };
    let exact = model("qwen3_tied");
    let placement = Placement { device: Device::Cpu, dtype: Dtype::Bf16, trainable: false, offload: false };
    let cpu = Model::load(&golden("qwen3_tied"), placement).unwrap();
    let mean = |rollouts: &[Rollout]| {
        let mut total = (0.0, 0.0);
        for rollout in rollouts {
            let logprobs = support::teacher_forced(&exact, rollout, 1.0);
            for (t, token) in rollout.response_tokens.iter().enumerate() {
                let truth = logprobs.double_value(&[t as i64, i64::from(*token)]);
                total.0 += (truth - f64::from(rollout.behavior_logprobs[t])).abs();
                total.1 += 1.0;
            }
        }
        total.0 / total.1
    };
    let found = mean(&rollouts(&gpu, 16, device(4000, 8), leases()));
    let usual = mean(&run(&mut engine(&cpu, 16, &ENDS), &cpu, leases()));
    println!("mean difference {found:.1e} on the GPU, {usual:.1e} on the CPU");
    assert!(found < 1.5 * usual, "{found} {usual}");
}

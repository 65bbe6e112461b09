//! A divided optimizer (ZeRO-1) against a whole one, two ranks as threads over Gloo; and optimizer state in host
//! memory against state on the device.

#![allow(clippy::unwrap_used, reason = "a test ends at the first thing that is not as expected")]

use std::path::Path;
use std::sync::Mutex;

use g2rl_common::config::{Dtype, OptimizerConfig, Recompute};
use g2rl_common::ids::{GroupId, RolloutId};
use g2rl_common::objective::ObjectiveOptions;
use g2rl_common::update::TrainSequence;
use g2rl_ffi::kernels::{AdamWOptions, AdamWTensors, fused_adamw};
use g2rl_ffi::process_group::ProcessGroup;
use g2rl_worker::model::config::RopeScaling;
use g2rl_worker::model::shard::{Piece, Shard};
use g2rl_worker::model::{Model, ModelConfig, Placement, Weights};
use g2rl_worker::update::loss::LossOptions;
use g2rl_worker::update::offload::{Chunk, Offload, chunks};
use g2rl_worker::update::optimizer::Optimizer;
use g2rl_worker::update::{Updater, UpdaterOptions};
use tch::{Device, Kind, Tensor};

use crate::ranks::over_gloo;

#[path = "support/ranks.rs"]
mod ranks;

const STEPS: usize = 3;
const LEARNING_RATE: f64 = 0.01;

/// Odd sizes, so that no bucket divides evenly.
fn config() -> ModelConfig {
    ModelConfig {
        hidden_size: 26,
        layers: 2,
        heads: 4,
        kv_heads: 2,
        head_dim: 6,
        intermediate_size: 38,
        vocab_size: 37,
        rms_norm_eps: 1e-6,
        rope_theta: 10_000.0,
        rope_scaling: RopeScaling::None,
        max_positions: 64,
        tied_embeddings: true,
        qk_norm: true,
        qkv_bias: false,
        raw: serde_json::json!({}),
    }
}

fn optimizer_config() -> OptimizerConfig {
    OptimizerConfig { weight_decay: 0.1, max_grad_norm: 0.3, shard: true, ..OptimizerConfig::default() }
}

/// The random weights come from libtorch's one generator: one thread at a time.
static MAKING: Mutex<()> = Mutex::new(());

fn model(dtype: Dtype) -> Model {
    placed(Placement { device: Device::Cpu, dtype, trainable: true, offload: false })
}

fn placed(placement: Placement) -> Model {
    let _one = MAKING.lock().unwrap();
    Model::new(Weights::random(config(), 5, placement).unwrap())
}

fn updater(model: &Model) -> Updater {
    let loss = LossOptions { objective: ObjectiveOptions::default(), temperature: 1.0, chunk: 16 };
    let options = UpdaterOptions { loss, tokens_per_microbatch: 64, recompute: Recompute::Nothing };
    let optimizer = Optimizer::new(optimizer_config(), model.weights()).unwrap();
    Updater::new(options, optimizer, model.weights(), None).unwrap()
}

fn sequences(step: usize) -> Vec<TrainSequence> {
    let sequence = |i: usize| TrainSequence {
        id: RolloutId { group: GroupId(i as u64), index: 0 },
        tokens: (0..9).map(|t| ((5 * i + 7 * t * t + 11 * step) % 37) as u32).collect(),
        prompt_length: 3,
        behavior_logprobs: vec![-3.6; 6],
        advantage: if i.is_multiple_of(2) { 1.0 } else { -0.8 },
        policy_weight: 1.0 / 24.0,
        imitation_weight: 0.0,
    };
    (0..4).map(sequence).collect()
}

/// What a rank holds after some steps.
struct Held {
    compute: Tensor,
    digest: u64,
    norms: Vec<f64>,
    /// Elements of its moments and its master weights.
    own: (i64, i64),
}

/// One rank of `ranks`; rank 0 writes its optimizer state to `file`.
fn train(
    placement: Placement,
    (rank, ranks): (u32, u32),
    group: Option<&ProcessGroup>,
    divided: bool,
    file: &Path,
) -> Held {
    tch::set_num_threads(1);
    let mut model = placed(placement);
    let mut updater = updater(&model);
    if divided {
        let shard = Shard::new(model.weights().layout(), rank, ranks);
        updater.divide(model.weights_mut(), shard, None).unwrap();
    }
    let mut norms = Vec::new();
    for step in 0..STEPS {
        let mine: Vec<TrainSequence> = sequences(step)
            .into_iter()
            .enumerate()
            .filter(|(i, _)| i % ranks as usize == rank as usize)
            .map(|(_, sequence)| sequence)
            .collect();
        norms.push(updater.compute(&model, &mine, group).unwrap().gradient_norm);
        updater.apply(model.weights_mut(), LEARNING_RATE, group).unwrap();
    }
    let state = updater.optimizer().whole_state(model.weights(), group).unwrap();
    assert_eq!(state.is_some(), rank == 0 || !divided);
    if rank == 0 {
        state.unwrap().save(file).unwrap();
    }
    let weights = model.weights();
    Held {
        compute: weights.compute().to_device(Device::Cpu).to_kind(Kind::Double),
        digest: weights.digest(),
        norms,
        own: (updater.optimizer().state()[0].numel() as i64, weights.master().numel() as i64),
    }
}

/// The ranks of a run, in order.
fn run(dtype: Dtype, ranks: u32, divided: bool, file: &Path) -> Vec<Held> {
    run_at(Placement { dtype, ..Placement::cpu() }, ranks, divided, file)
}

fn run_at(placement: Placement, ranks: u32, divided: bool, file: &Path) -> Vec<Held> {
    if ranks == 1 {
        return vec![train(placement, (0, 1), None, divided, file)];
    }
    over_gloo(ranks, |rank, group| train(placement, (rank, ranks), Some(group), divided, file))
}

fn largest_difference(a: &Tensor, b: &Tensor) -> f64 {
    (a - b).abs().max().double_value(&[])
}

#[test]
fn a_divided_optimizer_steps_as_a_whole_one() {
    let dir = tempfile::tempdir().unwrap();
    let file = |name: &str| dir.path().join(name);
    for (dtype, tolerance) in [(Dtype::F32, 2e-6), (Dtype::Bf16, 2e-3)] {
        let whole = run(dtype, 1, false, &file("whole"));
        let start = model(dtype).weights().compute().to_kind(Kind::Double);
        assert!(largest_difference(&whole[0].compute, &start) > 0.01, "the weights moved");
        for ranks in [1, 2, 3] {
            let divided = run(dtype, ranks, true, &file("divided"));
            let together = run(dtype, ranks, false, &file("together"));
            let numel = start.numel() as i64;
            let held: i64 = divided.iter().map(|rank| rank.own.0).sum();
            assert_eq!(held, numel, "each moment is on one rank");
            for rank in &divided {
                assert_eq!(rank.digest, divided[0].digest, "{ranks} ranks hold the same weights");
                assert_eq!(rank.norms, divided[0].norms);
                assert!((rank.norms[0] - whole[0].norms[0]).abs() < 1e-2 * whole[0].norms[0]);
                let master = if dtype == Dtype::Bf16 { rank.own.0 } else { numel };
                assert_eq!(rank.own.1, master);
            }
            // The same gradients on as many ranks: only the sums' order differs.
            let off = largest_difference(&divided[0].compute, &together[0].compute);
            println!("{dtype:?}, {ranks} ranks: divided against whole {off:.1e}");
            assert!(off < tolerance, "{dtype:?}, {ranks} ranks: {off}");
            let off = largest_difference(&divided[0].compute, &whole[0].compute);
            assert!(off < 10.0 * tolerance, "{dtype:?}, {ranks} ranks against one: {off}");
        }
    }
}

/// State in host memory changes neither weights nor what a checkpoint holds, whole or divided.
#[test]
fn offloaded_state_steps_as_state_on_the_device() {
    let dir = tempfile::tempdir().unwrap();
    for (dtype, ranks, divided) in [
        (Dtype::F32, 1, false),
        (Dtype::Bf16, 1, false),
        (Dtype::Bf16, 2, false),
        (Dtype::F32, 2, true),
        (Dtype::Bf16, 2, true),
    ] {
        let what = format!("{dtype:?}, {ranks} ranks, divided {divided}");
        let [here, there] = [false, true].map(|offload| {
            let file = dir.path().join("optimizer");
            let placement = Placement { dtype, offload, ..Placement::cpu() };
            (run_at(placement, ranks, divided, &file), std::fs::read(&file).unwrap())
        });
        for (here, there) in here.0.iter().zip(&there.0) {
            assert!(here.compute.equal(&there.compute), "{what}");
            assert_eq!((&here.norms, here.own), (&there.norms, there.own), "{what}");
        }
        assert_eq!(here.1, there.1, "{what}: what was written");
    }
}

/// A chunk after the other on two streams, against one call for all.
fn chunk_by_chunk_is_the_step_of_the_whole(device: Device) {
    const NUMEL: i64 = 500_003;
    let random = |seed, place| {
        tch::manual_seed(seed);
        Tensor::randn([NUMEL], (Kind::Float, Device::Cpu)).to_device(place)
    };
    let state = [random(1, Device::Cpu), random(2, Device::Cpu), random(3, Device::Cpu).square()];
    let gradients = random(4, device);
    let options = AdamWOptions { lr: 0.01, beta1: 0.9, beta2: 0.95, eps: 1e-8, weight_decay: 0.1 };
    let whole = state.each_ref().map(|tensor| tensor.to_device_(device, Kind::Float, false, true));
    let tensors = AdamWTensors {
        params: &whole[..1],
        grads: std::slice::from_ref(&gradients),
        exp_avgs: &whole[1..2],
        exp_avg_sqs: &whole[2..],
    };
    fused_adamw(&tensors, 3, &options).unwrap();

    let compute = Tensor::zeros([NUMEL], (Kind::BFloat16, device));
    let mut offload = Offload::new(device).unwrap();
    for at in chunks(Piece { flat: 0, own: 0, length: NUMEL }, 64_000) {
        let view = |tensor: &Tensor| tensor.narrow(0, at.flat, at.length);
        let chunk = Chunk {
            master: view(&state[0]),
            exp_avg: view(&state[1]),
            exp_avg_sq: view(&state[2]),
            gradients: view(&gradients),
            compute: view(&compute),
        };
        offload.step(chunk, 3, &options).unwrap();
    }
    offload.finish().unwrap();
    for (chunked, whole) in state.iter().zip(&whole) {
        assert!(chunked.equal(&whole.to_device(Device::Cpu)), "{device:?}");
    }
    assert!(compute.equal(&whole[0].to_kind(Kind::BFloat16)), "{device:?}");
}

#[test]
fn chunk_by_chunk_is_the_step_of_the_whole_on_a_cpu() {
    chunk_by_chunk_is_the_step_of_the_whole(Device::Cpu);
}

#[test]
fn chunk_by_chunk_is_the_step_of_the_whole_on_a_gpu() {
    match tch::Cuda::is_available() {
        true => chunk_by_chunk_is_the_step_of_the_whole(Device::Cuda(0)),
        false => println!("skipped: no GPU"),
    }
}

/// A checkpoint of two ranks that hold a half each goes on as one rank or as three, with the same bits.
#[test]
fn a_divided_state_is_written_whole_and_read_in_other_parts() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("optimizer.safetensors");
    run(Dtype::Bf16, 2, true, &file);
    let moments = |optimizer: &Optimizer| optimizer.state().map(Tensor::shallow_clone);
    let mut whole_model = model(Dtype::Bf16);
    let mut whole = Optimizer::new(optimizer_config(), whole_model.weights()).unwrap();
    whole.load(&file, whole_model.weights_mut(), STEPS as u64).unwrap();
    assert!(moments(&whole)[0].abs().max().double_value(&[]) > 0.0);
    let numel = whole_model.weights().layout().numel();
    let back = [0, 1, 2].map(|_| Tensor::zeros([numel], (Kind::Float, Device::Cpu)));
    for rank in 0..3 {
        let mut model = model(Dtype::Bf16);
        let mut updater = updater(&model);
        let shard = Shard::new(model.weights().layout(), rank, 3);
        updater.divide(model.weights_mut(), shard.clone(), Some((&file, STEPS as u64))).unwrap();
        assert_eq!(updater.optimizer().steps(), STEPS as u64);
        let [first, second] = moments(updater.optimizer());
        let own = [model.weights().master().shallow_clone(), first, second];
        own.iter().zip(&back).for_each(|(own, back)| shard.put(own, back));
        assert!(model.weights().compute().equal(whole_model.weights().compute()));
    }
    let [first, second] = moments(&whole);
    for (back, expected) in back.iter().zip([whole_model.weights().master(), &first, &second]) {
        assert!(back.equal(expected));
    }
}

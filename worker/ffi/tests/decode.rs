//! Decode attention against matmul and softmax in f64.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking, its helpers too")]

use g2rl_ffi::FfiError;
use g2rl_ffi::decode::{DecodeAttention, decode_attention};
use tch::{Device, Kind, Tensor};

const CPU: Device = Device::Cpu;

/// Random caches and a batch with given (prompt row, prompt length, slot, own length).
struct Case {
    query: Tensor,
    prompt: [Tensor; 2],
    own: [Tensor; 2],
    sequences: Vec<[i64; 4]>,
    scale: f64,
}

impl Case {
    fn new(heads: i64, kv_heads: i64, d: i64, kind: Kind, sequences: &[[i64; 4]]) -> Self {
        tch::manual_seed(7);
        let random = |size: &[i64]| Tensor::randn(size, (Kind::Float, CPU)).to_kind(kind);
        let cache =
            |rows, capacity| [random(&[rows, kv_heads, capacity, d]), random(&[rows, kv_heads, capacity, d])];
        Self {
            query: random(&[sequences.len() as i64, heads, d]),
            prompt: cache(3, 100),
            own: cache(5, 70),
            sequences: sequences.to_vec(),
            scale: 1.0 / (d as f64).sqrt(),
        }
    }

    fn column(&self, column: usize) -> Tensor {
        Tensor::from_slice(&self.sequences.iter().map(|s| s[column]).collect::<Vec<_>>())
    }

    fn run(&self) -> Result<Tensor, FfiError> {
        let columns = [0, 1, 2, 3].map(|column| self.column(column));
        decode_attention(&DecodeAttention {
            query: &self.query,
            prompt_keys: &self.prompt[0],
            prompt_values: &self.prompt[1],
            prompt_row: &columns[0],
            prompt_length: &columns[1],
            keys: &self.own[0],
            values: &self.own[1],
            slot: &columns[2],
            length: &columns[3],
            scale: self.scale,
        })
    }

    /// Attention of one sequence in f64.
    fn reference(&self, index: usize) -> Tensor {
        let [row, prompt_length, slot, length] = self.sequences[index];
        let live = |which: usize| {
            let mut parts = Vec::new();
            for (cache, row, length) in [(&self.prompt, row, prompt_length), (&self.own, slot, length)] {
                if length > 0 {
                    parts.push(cache[which].get(row).narrow(1, 0, length).to_kind(Kind::Double));
                }
            }
            Tensor::cat(&parts, 1) // [kv_heads, tokens, d]
        };
        let (heads, kv_heads) = (self.query.size()[1], self.own[0].size()[1]);
        let repeat = |t: Tensor| t.repeat_interleave_self_int(heads / kv_heads, 0, heads);
        let (k, v) = (repeat(live(0)), repeat(live(1)));
        let q = self.query.get(index as i64).to_kind(Kind::Double).unsqueeze(1);
        let weights = (q.matmul(&k.transpose(1, 2)) * self.scale).softmax(-1, Kind::Double);
        weights.matmul(&v).squeeze_dim(1)
    }

    fn check(&self, tolerance: f64) {
        let found = self.run().unwrap();
        assert_eq!(found.size(), self.query.size());
        assert_eq!(found.kind(), self.query.kind());
        for index in 0..self.sequences.len() {
            let difference =
                (found.get(index as i64).to_kind(Kind::Double) - self.reference(index)).abs().max();
            let difference = difference.double_value(&[]);
            assert!(difference < tolerance, "sequence {index}: off by {difference:e}");
        }
    }
}

/// Empty and full extents, lengths around the blocks' sizes, a shared prompt.
const RAGGED: [[i64; 4]; 5] = [[0, 100, 4, 1], [2, 17, 0, 70], [0, 33, 2, 32], [-1, 0, 1, 5], [1, 1, -9, 0]];

#[test]
fn ragged_lengths_in_f32() {
    for (heads, kv_heads, d) in [(4, 2, 64), (14, 2, 64), (8, 8, 32), (8, 1, 128), (5, 1, 16)] {
        Case::new(heads, kv_heads, d, Kind::Float, &RAGGED).check(2e-6);
    }
}

#[test]
fn head_sizes_that_fill_no_register() {
    for d in [1, 7, 20, 80, 100] {
        Case::new(6, 2, d, Kind::Float, &RAGGED).check(3e-6);
        // bf16 keeps 8 bits: a result near 1 is rounded by up to 2^-8.
        Case::new(6, 2, d, Kind::BFloat16, &RAGGED).check(1.6e-2);
    }
}

#[test]
fn caches_in_bf16() {
    let mut case = Case::new(14, 2, 64, Kind::BFloat16, &RAGGED);
    case.check(1e-2);
    // With an f32 query the result is not rounded: what is left is f32 arithmetic.
    case.query = case.query.to_kind(Kind::Float);
    case.check(2e-6);
}

#[test]
fn extreme_scores_do_not_overflow() {
    let mut case = Case::new(4, 2, 64, Kind::Float, &RAGGED);
    case.query *= 1e3;
    case.check(5e-4);
}

#[test]
fn dead_tokens_are_not_read() {
    let case = Case::new(4, 2, 64, Kind::Float, &[[0, 10, 0, 20]]);
    let before = case.run().unwrap();
    for (cache, live) in [(&case.prompt, 10), (&case.own, 20)] {
        for t in cache {
            let capacity = t.size()[2];
            let _ = t.narrow(2, live, capacity - live).fill_(f64::NAN);
        }
    }
    assert!(before.equal(&case.run().unwrap()));
}

#[test]
fn a_result_depends_on_its_sequence_only() {
    let case = Case::new(14, 2, 64, Kind::Float, &RAGGED);
    tch::set_num_threads(2);
    let together = case.run().unwrap();
    tch::set_num_threads(1);
    for (index, sequence) in RAGGED.iter().enumerate() {
        let alone = Case {
            query: case.query.narrow(0, index as i64, 1),
            prompt: case.prompt.each_ref().map(Tensor::shallow_clone),
            own: case.own.each_ref().map(Tensor::shallow_clone),
            sequences: vec![*sequence],
            scale: case.scale,
        };
        assert!(alone.run().unwrap().get(0).equal(&together.get(index as i64)), "sequence {index}");
    }
}

#[test]
fn what_is_out_of_bounds_is_an_error() {
    for (sequence, part) in [
        ([3, 1, 0, 1], "prompt: sequence 0 names row 3 of 3"),
        ([0, 101, 0, 1], "length 101, the capacity is 100"),
        ([0, 1, -1, 1], "own: sequence 0 names row -1 of 5"),
        ([0, 1, 0, -1], "length -1"),
        ([0, 0, 0, 0], "no token"),
    ] {
        let error = Case::new(4, 2, 16, Kind::Float, &[sequence]).run().unwrap_err();
        assert!(matches!(error, FfiError::InvalidInput { .. }), "{error}");
        assert!(error.to_string().contains(part), "{error}");
    }
    let mut case = Case::new(4, 2, 16, Kind::Float, &[[0, 1, 0, 1]]);
    case.query = Tensor::zeros([1, 3, 16], (Kind::Float, CPU));
    assert!(matches!(case.run(), Err(FfiError::InvalidInput { .. })));
    case.query = Tensor::zeros([1, 4, 8], (Kind::Float, CPU));
    assert!(matches!(case.run(), Err(FfiError::InvalidInput { .. })));
}

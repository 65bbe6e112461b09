//! The CPU's decoder against the same arithmetic in f64, at every number of rows that its kernels cut
//! differently.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking, its helpers too")]

use g2rl_ffi::decoder::{CpuDecoder, DecodeStep, DecoderWeights};
use tch::{Device, Kind, Tensor};

const HIDDEN: i64 = 64;
const HEADS: (i64, i64, i64) = (4, 2, 16);
const VOCAB: i64 = 70;
const EPS: f64 = 1e-6;
/// Cuts of 12, 8, 4 and 1 rows, and of tiles of 16 and 32.
const ROWS: [usize; 8] = [1, 4, 13, 16, 17, 31, 33, 70];

/// A model of one layer.
struct Layer {
    kind: Kind,
    qkv: Tensor,
    output: Tensor,
    gate_up: Tensor,
    down: Tensor,
    ones: Tensor,
    embedding: Tensor,
}

impl Layer {
    fn new(kind: Kind, inner: i64) -> Self {
        tch::manual_seed(3);
        let random = |rows: i64, columns: i64| {
            (Tensor::randn([rows, columns], (Kind::Float, Device::Cpu)) * 0.2).to_kind(kind)
        };
        let (heads, kv_heads, dim) = HEADS;
        Self {
            kind,
            qkv: random((heads + 2 * kv_heads) * dim, HIDDEN),
            output: random(HIDDEN, heads * dim),
            gate_up: random(2 * inner, HIDDEN),
            down: random(HIDDEN, inner),
            ones: Tensor::ones([HIDDEN], (kind, Device::Cpu)),
            embedding: random(VOCAB, HIDDEN),
        }
    }

    fn decoder(&self) -> CpuDecoder {
        let list = |t: &Tensor| [t.shallow_clone()];
        let table = |value: f64| Tensor::full([1, HEADS.2 / 2], value, (self.kind, Device::Cpu));
        CpuDecoder::new(&DecoderWeights {
            qkv: &list(&self.qkv),
            bias: &[],
            output: &list(&self.output),
            gate_up: &list(&self.gate_up),
            down: &list(&self.down),
            input_norm: &list(&self.ones),
            post_norm: &list(&self.ones),
            query_norm: &[],
            key_norm: &[],
            embedding: &self.embedding,
            final_norm: &self.ones,
            head: &self.embedding,
            rotary: (&table(1.0), &table(0.0)),
            heads: HEADS,
            eps: EPS,
        })
        .unwrap()
    }

    /// Logits of sequences that consist of one token each.
    fn decode(&self, decoder: &mut CpuDecoder, tokens: &[i64]) -> Tensor {
        let rows = tokens.len() as i64;
        let cache = || Tensor::zeros([rows, HEADS.1, 4, HEADS.2], (self.kind, Device::Cpu));
        let (zeros, ones) = (vec![0; tokens.len()], vec![1; tokens.len()]);
        decoder
            .step(&DecodeStep {
                tokens,
                positions: &zeros,
                prompt_row: &zeros,
                prompt_length: &zeros,
                slot: &(0..rows).collect::<Vec<_>>(),
                length: &ones,
                prompt_keys: &[cache()],
                prompt_values: &[cache()],
                keys: &[cache()],
                values: &[cache()],
            })
            .unwrap()
    }

    /// The same in f64, rounded where the decoder rounds. A token that attends to itself alone gets its own
    /// value, whatever its query and key are.
    fn expected(&self, tokens: &[i64]) -> Tensor {
        let wide = |t: &Tensor| t.to_kind(Kind::Double);
        let rounded = |t: &Tensor| wide(&t.to_kind(self.kind));
        let norm = |x: &Tensor| {
            let mean = x.square().mean_dim(-1, true, Kind::Double);
            rounded(&(x / (mean + EPS).sqrt()))
        };
        let (heads, kv_heads, dim) = HEADS;
        let x = wide(&self.embedding.index_select(0, &Tensor::from_slice(tokens)));
        let value =
            norm(&x).matmul(&wide(&self.qkv).tr()).narrow(1, (heads + kv_heads) * dim, kv_heads * dim);
        let value = value.view([-1, kv_heads, 1, dim]).expand([-1, kv_heads, heads / kv_heads, dim], false);
        let attended = rounded(&rounded(&value).reshape([-1, heads * dim]));
        let x = x + attended.matmul(&wide(&self.output).tr());
        let halves = norm(&x).matmul(&wide(&self.gate_up).tr()).chunk(2, -1);
        let gated = rounded(&(halves[0].silu() * &halves[1]));
        let x = x + gated.matmul(&wide(&self.down).tr());
        norm(&x).matmul(&wide(&self.embedding).tr())
    }
}

/// 96 inner values fit tiles of 32 inputs, 70 do not.
#[test]
fn every_number_of_rows_gives_the_same_logits_as_f64() {
    for (kind, tolerance) in [(Kind::Float, 2e-5), (Kind::BFloat16, 5e-3)] {
        if !CpuDecoder::is_supported(kind) {
            println!("skipped: this processor cannot decode in {kind:?}");
            continue;
        }
        for inner in [96, 70] {
            let layer = Layer::new(kind, inner);
            let mut decoder = layer.decoder();
            let all: Vec<i64> = (0..VOCAB).collect();
            let alone: Vec<Tensor> = all.iter().map(|t| layer.decode(&mut decoder, &[*t])).collect();
            let expected = layer.expected(&all);
            let off = (Tensor::cat(&alone, 0).to_kind(Kind::Double) - &expected).abs();
            let (largest, mean) = (off.max().double_value(&[]), off.mean(Kind::Double).double_value(&[]));
            println!("{kind:?}, {inner} inner values: largest difference {largest:.1e}, mean {mean:.1e}");
            assert!(largest < tolerance, "{kind:?}: {largest}");
            assert!(mean < tolerance / 10.0, "{kind:?}: {mean}");
            for rows in ROWS {
                let together = layer.decode(&mut decoder, &all[..rows]);
                assert!(
                    together == Tensor::cat(&alone[..rows], 0),
                    "{kind:?}: {rows} rows, {inner} inner values"
                );
            }
        }
    }
}

#[test]
fn the_time_of_a_step_is_known() {
    if !CpuDecoder::is_supported(Kind::Float) {
        println!("skipped: this processor cannot decode");
        return;
    }
    let layer = Layer::new(Kind::Float, 96);
    let mut decoder = layer.decoder();
    let _ = layer.decode(&mut decoder, &[1, 2, 3]);
    let times = decoder.times();
    assert!([times.products, times.attention, times.rows].iter().all(|time| !time.is_zero()), "{times:?}");
}

//! Attention of one new token per row over two extents of a pool: its prompt's and its own.
//!
//! On GPUs in bf16 one kernel of the project's own, elsewhere masked tensor operations: each extent on its own, its output
//! with the logarithms of the softmaxes' sums, and [`Partial::merge`] makes the softmax over both of them.
//!
//! Nothing here looks at a value: the widths of what is gathered are the spans of the step's key.

use g2rl_ffi::gpu;
use tch::{Kind, TchError, Tensor};

use super::super::cache::CacheShape;

/// Below every score, yet finite: the maximum of no scores.
const NO_SCORE: f64 = -1e30;

/// How extents are attended to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kernel {
    /// One kernel: bf16 on GPUs.
    Fused,
    /// Extents gathered to the span and masked.
    Masked,
}

impl Kernel {
    /// The best kernel a device has for a model.
    pub(super) fn choose(shape: &CacheShape, heads: i64) -> Self {
        let CacheShape { kv_heads, head_dim, kind, device, .. } = *shape;
        match gpu::attention::supports(device, kind, (heads, kv_heads, head_dim)) {
            true => Self::Fused,
            false => Self::Masked,
        }
    }

    /// The shortest span: shorter ones would only make more graphs.
    pub(super) fn shortest_span(self) -> i64 {
        match self {
            Self::Fused => 512,
            Self::Masked => 64,
        }
    }
}

/// One extent of each row of a step, for the masked kernel. All layers share it.
#[derive(Debug)]
pub(super) struct ExtentRows {
    /// Places in the pool `[rows span] i64`.
    places: Tensor,
    /// What is dead there `[rows, 1, 1, span] bool`.
    dead: Tensor,
}

impl ExtentRows {
    /// Extents from starts and live lengths `[rows] i64`, in a pool of `tokens` tokens. No length is above `span`.
    pub(super) fn new(
        (starts, lengths): (&Tensor, &Tensor),
        span: i64,
        tokens: i64,
    ) -> Result<Self, TchError> {
        let rows = lengths.size()[0];
        let steps = Tensor::f_arange(span, (Kind::Int64, lengths.device()))?.f_unsqueeze(0)?;
        let places = starts.f_unsqueeze(1)?.f_add(&steps)?.f_clamp_max(tokens)?.f_view([-1])?;
        let dead = steps.f_ge_tensor(&lengths.f_unsqueeze(1)?)?.f_view([rows, 1, 1, span])?;
        Ok(Self { places, dead })
    }
}

/// The attention over one extent of each row.
#[derive(Debug)]
pub(super) struct Partial {
    /// `[rows, heads, d]`
    output: Tensor,
    /// `[heads, rows] f32`
    normalizers: Tensor,
}

impl Partial {
    /// Attends from queries `[rows, heads, d]` to extents of a pool `[tokens, kv_heads, d]`.
    pub(super) fn attend(
        query: &Tensor,
        (keys, values): (&Tensor, &Tensor),
        extents: &ExtentRows,
    ) -> Result<Self, TchError> {
        let scale = (query.size()[2] as f64).powf(-0.5);
        masked(query, (keys, values), extents, scale)
    }

    /// The softmax attention over the extents of both, in the queries' kind. A row without live tokens in
    /// either has 0.
    pub(super) fn merge(&self, other: &Self) -> Result<Tensor, TchError> {
        let kind = self.output.kind();
        // Logarithms of sums as [rows, heads, 1], minus infinity where there is nothing.
        let logs = |partial: &Self| -> Result<Tensor, TchError> {
            let logs = &partial.normalizers;
            logs.f_masked_fill(&logs.f_isposinf()?, f64::NEG_INFINITY)?.f_transpose(0, 1)?.f_unsqueeze(2)
        };
        let (a, b) = (logs(self)?, logs(other)?);
        let largest = a.f_maximum(&b)?.f_clamp_min(NO_SCORE)?;
        let weight = |logs: &Tensor| logs.f_sub(&largest)?.f_exp();
        let (a, b) = (weight(&a)?, weight(&b)?);
        let sum = a.f_add(&b)?.f_clamp_min(f64::from(f32::MIN_POSITIVE))?;
        // A product with f32 is f32.
        let weighed = self.output.f_mul(&a)?.f_add(&other.output.f_mul(&b)?)?;
        weighed.f_div(&sum)?.f_to_kind(kind)
    }
}

/// The masked kernel.
fn masked(
    query: &Tensor,
    (keys, values): (&Tensor, &Tensor),
    ExtentRows { places, dead }: &ExtentRows,
    scale: f64,
) -> Result<Partial, TchError> {
    let (rows, heads, d) = query.size3()?;
    let kv_heads = keys.size()[1];
    let gather =
        |pool: &Tensor| pool.f_index_select(0, places)?.f_view([rows, -1, kv_heads, d])?.f_transpose(1, 2);
    // 1. Scores, all query heads of a key head together: [rows, kv_heads, group, span].
    let query = query.f_reshape([rows, kv_heads, heads / kv_heads, d])?;
    let scores = query.f_matmul(&gather(keys)?.f_transpose(2, 3)?)?.f_to_kind(Kind::Float)?;
    let scores = scores.f_mul_scalar(scale)?.f_masked_fill(dead, f64::NEG_INFINITY)?;
    // 2. The softmax's terms and their sum, which is 0 where nothing lives.
    let largest = scores.f_amax([-1i64].as_slice(), true)?.f_clamp_min(NO_SCORE)?;
    let terms = scores.f_sub(&largest)?.f_exp()?;
    let sum = terms.f_sum_dim_intlist(-1, true, Kind::Float)?;
    let weights = terms.f_div(&sum.f_clamp_min(f64::from(f32::MIN_POSITIVE))?)?;
    // 3. Outputs and logarithms.
    let output = weights.f_to_kind(values.kind())?.f_matmul(&gather(values)?)?;
    let logs = sum.f_log()?.f_add(&largest)?.f_masked_fill(&sum.f_eq(0.0)?, f64::INFINITY)?;
    Ok(Partial {
        output: output.f_reshape([rows, heads, d])?,
        normalizers: logs.f_view([rows, heads])?.f_transpose(0, 1)?,
    })
}

#[cfg(test)]
mod tests {
    use tch::Device;

    use super::*;

    const HEADS: i64 = 6;
    const KV_HEADS: i64 = 2;
    const D: i64 = 16;

    /// Softmax attention of one row over some tokens, in f64.
    fn reference(query: &Tensor, keys: &Tensor, values: &Tensor) -> (Tensor, Tensor) {
        let heads =
            |t: &Tensor| t.to_kind(Kind::Double).repeat_interleave_self_int(HEADS / KV_HEADS, 1, None);
        let keys = heads(keys).permute([1, 2, 0]);
        let scores = query.to_kind(Kind::Double).unsqueeze(1).bmm(&keys) / (D as f64).sqrt();
        let output = scores.softmax(-1, Kind::Double).bmm(&heads(values).transpose(0, 1));
        (output.squeeze_dim(1), scores.logsumexp([-1i64].as_slice(), false).squeeze_dim(1))
    }

    fn largest(difference: Tensor) -> f64 {
        difference.abs().max().double_value(&[])
    }

    /// Prompts and responses of four rows as (start, length); the second row has no prompt, the third
    /// nothing at all, and the first and last share a prompt.
    const PROMPTS: [(i64, i64); 4] = [(50, 20), (1, 0), (7, 0), (50, 20)];
    const OWN: [(i64, i64); 4] = [(1, 9), (30, 1), (31, 0), (90, 30)];

    #[test]
    fn two_masked_extents_merge_into_one_softmax() {
        let device = Device::Cpu;
        tch::manual_seed(5);
        let random = |size: [i64; 3]| Tensor::randn(size, (Kind::Float, device));
        let (query, keys, values) =
            (random([4, HEADS, D]), random([121, KV_HEADS, D]), random([121, KV_HEADS, D]));
        let extents = |rows: [(i64, i64); 4]| {
            let starts: Vec<i64> = rows.iter().map(|row| row.0).collect();
            let lengths: Vec<i64> = rows.iter().map(|row| row.1).collect();
            let (starts, lengths) = (Tensor::from_slice(&starts), Tensor::from_slice(&lengths));
            ExtentRows::new((&starts, &lengths), 32, 120).unwrap()
        };
        let [prompts, own] =
            [PROMPTS, OWN].map(|rows| Partial::attend(&query, (&keys, &values), &extents(rows)).unwrap());
        let merged = prompts.merge(&own).unwrap();
        for row in 0..4usize {
            let live = |t: &Tensor| {
                let part = |(start, length): (i64, i64)| t.narrow(0, start, length);
                Tensor::cat(&[part(PROMPTS[row]), part(OWN[row])], 0)
            };
            let (found, sums) = (merged.get(row as i64), own.normalizers.select(1, row as i64));
            if row == 2 {
                assert_eq!(largest(found), 0.0);
                assert_eq!(sums.isposinf().all().int64_value(&[]), 1);
                continue;
            }
            let (expected, _) = reference(&query.get(row as i64), &live(&keys), &live(&values));
            assert!(largest(found - expected) < 1e-5, "row {row}");
            let own = |t: &Tensor| t.narrow(0, OWN[row].0, OWN[row].1);
            let (_, expected) = reference(&query.get(row as i64), &own(&keys), &own(&values));
            assert!(largest(sums - expected) < 1e-5, "row {row}");
        }
    }

    /// Rows are last, and plus infinity stands for an empty extent.
    #[test]
    fn merging_reads_heads_first_normalizers() {
        // Two rows, three heads, one value a head. Row 0 has sums e^0 and e^h in the two extents, row 1 only the
        // second extent.
        let tensor = |values: &[f32], size: [i64; 2]| Tensor::from_slice(values).view(size);
        let infinity = f32::INFINITY;
        let first = Partial {
            output: Tensor::from_slice(&[1.0f32, 1.0, 1.0, 0.0, 0.0, 0.0]).view([2, 3, 1]),
            normalizers: tensor(&[0.0, infinity, 0.0, infinity, 0.0, infinity], [3, 2]),
        };
        let second = Partial {
            output: Tensor::from_slice(&[0.0f32, 0.0, 0.0, 5.0, 6.0, 7.0]).view([2, 3, 1]),
            normalizers: tensor(&[0.0, 3.0, 1.0, 3.0, 2.0, 3.0], [3, 2]),
        };
        let merged: Vec<f32> = Vec::try_from(first.merge(&second).unwrap().view([-1])).unwrap();
        // 1 / (1 + e^h) of the first value for head h, and the second alone.
        let expected = [0.5, 1.0 / (1.0 + 1f32.exp()), 1.0 / (1.0 + 2f32.exp()), 5.0, 6.0, 7.0];
        assert!(merged.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-6), "{merged:?}");
    }
}

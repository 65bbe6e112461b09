//! Drawing tokens in tensor operations, on any device.
//!
//! In: logits `[rows, vocab]` in the compute dtype or f32, and settings `[rows, 1]`. Out: tokens and what is
//! known of them, on the same device.
//!
//! Invariants: [`draw`] and [`accumulate`] look at no value, so that they can be captured in a graph: shapes
//! follow from shapes, and which operations run follows from which settings are given. The rules are those
//! of the CPU's kernel (csrc/sampling.cpp); a test holds both to each other.

use g2rl_common::rollout::Sampling;
use g2rl_ffi::FfiError;
use g2rl_ffi::sampling::SampledRows;
use tch::{Kind, TchError, Tensor};

use super::{Draw, RowOptions};

/// Tokens whose probabilities are added up first: the search for the drawn token goes through the sums and
/// then through one block.
const BLOCK: i64 = 256;

/// Rows that are truncated at a time, bounding the memory of their sorting.
const TRUNCATED_ROWS: i64 = 32;

/// `top_p` where all is kept: the mass before a token never reaches twice the whole.
const KEEP_ALL: f64 = 2.0;

/// The largest factor below 1 that keeps a product below the mass.
const BELOW_ONE: f64 = 1.0 - f64::EPSILON;

/// One row's settings as numbers.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct RowNumbers {
    /// 1 for a greedy row: its probabilities are those of temperature 1.
    pub(crate) temperature: f64,
    pub(crate) greedy: bool,
    /// From 1 to the size of the vocabulary.
    pub(crate) top_k: i64,
    pub(crate) top_p: f64,
    pub(crate) min_p: f64,
    pub(crate) truncates: bool,
}

impl RowNumbers {
    /// The numbers of a sampling over so many tokens.
    pub(crate) fn of(sampling: &Sampling, vocab: i64) -> Self {
        let greedy = sampling.temperature == 0.0;
        let top_k = sampling.top_k.map_or(vocab, |k| i64::from(k).clamp(1, vocab));
        let top_p = if sampling.top_p < 1.0 { sampling.top_p } else { KEEP_ALL };
        let min_p = sampling.min_p.max(0.0);
        // The most likely token is never cut, so a greedy row need not be.
        let truncates = !greedy && (top_k < vocab || top_p < 1.0 || min_p > 0.0);
        let temperature = if greedy { 1.0 } else { sampling.temperature };
        Self { temperature, greedy, top_k, top_p, min_p, truncates }
    }
}

/// Settings of a draw, `[rows, 1]` each.
#[derive(Debug)]
pub(crate) struct DrawSettings {
    /// f32, above 0.
    pub(crate) temperature: Tensor,
    /// f64 in [0, 1).
    pub(crate) uniforms: Tensor,
    /// Rows that take the most likely token; `None` if there are none.
    pub(crate) greedy: Option<Tensor>,
    /// `None` if no row is truncated.
    pub(crate) truncation: Option<Truncation>,
    /// Tokens that are taken instead of a draw, i64, below 0 where there is none.
    pub(crate) given: Option<Tensor>,
}

/// What is kept of each row, `[rows, 1]` each, with the values of [`RowNumbers`].
#[derive(Debug)]
pub(crate) struct Truncation {
    /// i64
    pub(crate) top_k: Tensor,
    /// f64
    pub(crate) top_p: Tensor,
    /// f64
    pub(crate) min_p: Tensor,
}

/// Drawn tokens.
#[derive(Debug)]
pub(crate) struct Drawn {
    /// `[rows, 1] i64`
    pub(crate) tokens: Tensor,
    /// Of the full softmax at the temperature `[rows, vocab] f32`.
    pub(crate) probabilities: Tensor,
    /// The tokens' log-probabilities `[rows] f32`.
    pub(crate) logprobs: Tensor,
    /// Of the full softmax `[rows] f64`, nats.
    pub(crate) entropies: Tensor,
}

/// Draws one token for each row.
pub(crate) fn draw(logits: &Tensor, settings: &DrawSettings) -> Result<Drawn, TchError> {
    // 1. Full softmax. The division widens the logits to f32.
    let mut softmax = logits.f_div(&settings.temperature)?.f_log_softmax(-1, Kind::Float)?;
    let probabilities = softmax.f_exp()?;
    // 2. The draw.
    let mut tokens = match &settings.truncation {
        Some(truncation) => invert(&truncate(logits, &probabilities, truncation)?, &settings.uniforms)?,
        None => invert(&probabilities, &settings.uniforms)?,
    };
    if let Some(greedy) = &settings.greedy {
        tokens = logits.f_argmax(-1, true)?.f_where_self(greedy, &tokens)?;
    }
    if let Some(given) = &settings.given {
        tokens = given.f_where_self(&given.f_ge(0)?, &tokens)?;
    }
    let logprobs = softmax.f_gather(1, &tokens, false)?.f_squeeze_dim(1)?;
    // 3. Entropy, in the memory of the log-probabilities, which nobody needs any more.
    let terms = softmax.f_mul_(&probabilities)?;
    let entropies = terms.f_sum_dim_intlist(-1, false, Kind::Double)?.f_neg()?;
    Ok(Drawn { tokens, probabilities, logprobs, entropies })
}

/// Adds `weights (onehot(token) - p)` to the rows of `sums`, both `[rows, vocab] f32`; weights are
/// `[rows, 1] f32`.
pub(crate) fn accumulate(sums: &Tensor, drawn: &Drawn, weights: &Tensor) -> Result<(), TchError> {
    let mut sums = sums.shallow_clone();
    let _ = sums.f_addcmul_(&drawn.probabilities, &weights.f_neg()?)?;
    let _ = sums.f_scatter_add_(1, &drawn.tokens, weights)?;
    Ok(())
}

/// The inverse of the cumulative distribution in token-id order: the first token at which the sum of the
/// weights `[rows, vocab] f32` passes the uniform's share of the whole, `[rows, 1] i64`.
fn invert(weights: &Tensor, uniforms: &Tensor) -> Result<Tensor, TchError> {
    let (rows, vocab) = weights.size2()?;
    // 1. Sums of blocks, and of all before each.
    let (whole, rest) = (vocab / BLOCK, vocab % BLOCK);
    let mut parts = Vec::with_capacity(2);
    if whole > 0 {
        let blocks = weights.f_narrow(1, 0, whole * BLOCK)?.f_view([rows, whole, BLOCK])?;
        parts.push(blocks.f_sum_dim_intlist(-1, false, Kind::Double)?);
    }
    if rest > 0 {
        parts.push(weights.f_narrow(1, whole * BLOCK, rest)?.f_sum_dim_intlist(-1, true, Kind::Double)?);
    }
    let sums = Tensor::f_cat(&parts, 1)?.f_cumsum(1, Kind::Double)?;
    let blocks = sums.size()[1];
    let first = sums.f_narrow(1, 0, 1)?.f_zeros_like()?;
    let before = Tensor::f_cat(&[first, sums.f_narrow(1, 0, blocks - 1)?], 1)?;

    // 2. The block in which the sum passes the target.
    let mass = sums.f_narrow(1, blocks - 1, 1)?;
    let target = uniforms.f_clamp_max(BELOW_ONE)?.f_mul(&mass)?;
    let block =
        sums.f_le_tensor(&target)?.f_sum_dim_intlist(1, true, Kind::Int64)?.f_clamp_max(blocks - 1)?;

    // 3. The token in the block.
    let steps = Tensor::f_arange(BLOCK, (Kind::Int64, weights.device()))?.f_unsqueeze(0)?;
    let index = block.f_mul_scalar(BLOCK)?.f_add(&steps)?;
    let inside = weights.f_gather(1, &index.f_clamp_max(vocab - 1)?, false)?;
    let inside = inside.f_masked_fill(&index.f_ge(vocab)?, 0.0)?;
    let sums = inside.f_cumsum(1, Kind::Double)?.f_add(&before.f_gather(1, &block, false)?)?;
    let offset = sums.f_le_tensor(&target)?.f_sum_dim_intlist(1, true, Kind::Int64)?;
    // Where rounding left the block's own sum below the target, its last token with a weight is the one.
    let last = inside.f_gt(0.0)?.f_mul(&steps)?.f_amax([1i64].as_slice(), true)?;
    block.f_mul_scalar(BLOCK)?.f_add(&offset.f_minimum(&last)?)
}

/// The probabilities that top-k, top-p and min-p keep, 0 elsewhere, `[rows, vocab] f32`.
fn truncate(logits: &Tensor, probabilities: &Tensor, cut: &Truncation) -> Result<Tensor, TchError> {
    let (rows, _) = logits.size2()?;
    let mut kept = Vec::new();
    let mut start = 0;
    while start < rows {
        let count = TRUNCATED_ROWS.min(rows - start);
        let part = |t: &Tensor| t.f_narrow(0, start, count);
        let cut = Truncation { top_k: part(&cut.top_k)?, top_p: part(&cut.top_p)?, min_p: part(&cut.min_p)? };
        kept.push(truncate_rows(&part(logits)?.f_to_kind(Kind::Float)?, &part(probabilities)?, &cut)?);
        start += count;
    }
    Tensor::f_cat(&kept, 0)
}

fn truncate_rows(logits: &Tensor, probabilities: &Tensor, cut: &Truncation) -> Result<Tensor, TchError> {
    // 1. Most likely first; equals in the order of their ids.
    let (sorted, order) = logits.f_sort_stable(true, -1, true)?;
    let weights = probabilities.f_gather(1, &order, false)?;
    // 2. Top-k: tokens equal to the k-th all stay.
    let least = sorted.f_gather(1, &cut.top_k.f_sub_scalar(1)?, false)?;
    let weights = weights.f_masked_fill(&sorted.f_lt_tensor(&least)?, 0.0)?;
    // 3. Top-p: until the mass before a token reaches its share of what top-k left. The first always stays.
    let wide = weights.f_to_kind(Kind::Double)?;
    let sums = wide.f_cumsum(1, Kind::Double)?;
    let mass = sums.f_narrow(1, -1, 1)?;
    let limit = mass.f_mul(&cut.top_p)?.f_clamp_min(f64::MIN_POSITIVE)?;
    let weights = weights.f_masked_fill(&sums.f_sub(&wide)?.f_ge_tensor(&limit)?, 0.0)?;
    // 4. Min-p: against the most likely one.
    let least = wide.f_narrow(1, 0, 1)?.f_mul(&cut.min_p)?;
    let weights = weights.f_masked_fill(&wide.f_lt_tensor(&least)?, 0.0)?;
    // 5. Back to token-id order.
    weights.f_zeros_like()?.f_scatter(1, &order, &weights)
}

/// [`super::sample`] for logits that are not on the CPU. Waits for the result.
pub(super) fn sample(
    logits: &Tensor,
    rows: &[RowOptions<'_>],
    residuals: Option<&Tensor>,
) -> Result<SampledRows, FfiError> {
    let failed = |error: TchError| FfiError::Failed { operation: "sampling", message: error.to_string() };
    let (tokens, logprobs, entropies) = sample_rows(logits, rows, residuals).map_err(failed)?;
    if let Some(row) = (0..rows.len()).find(|row| !(logprobs[*row] + entropies[*row]).is_finite()) {
        return Err(FfiError::NotFinite { operation: "sampling", row });
    }
    Ok(SampledRows { tokens, logprobs, entropies })
}

type Columns = (Vec<i64>, Vec<f32>, Vec<f32>);

fn sample_rows(
    logits: &Tensor,
    rows: &[RowOptions<'_>],
    residuals: Option<&Tensor>,
) -> Result<Columns, TchError> {
    let device = logits.device();
    let (_, vocab) = logits.size2()?;
    let numbers: Vec<RowNumbers> = rows.iter().map(|row| RowNumbers::of(row.sampling, vocab)).collect();
    let float = |values: Vec<f64>| Tensor::from_slice(&values).f_to_device(device)?.f_unsqueeze(1);
    let int = |values: Vec<i64>| Tensor::from_slice(&values).f_to_device(device)?.f_unsqueeze(1);
    let truncation = match numbers.iter().any(|n| n.truncates) {
        true => Some(Truncation {
            top_k: int(numbers.iter().map(|n| n.top_k).collect())?,
            top_p: float(numbers.iter().map(|n| n.top_p).collect())?,
            min_p: float(numbers.iter().map(|n| n.min_p).collect())?,
        }),
        false => None,
    };
    let uniform = |row: &RowOptions<'_>| if let Draw::Uniform(uniform) = row.draw { uniform } else { 0.0 };
    let given = |row: &RowOptions<'_>| if let Draw::Given(token) = row.draw { i64::from(token) } else { -1 };
    let settings = DrawSettings {
        temperature: float(numbers.iter().map(|n| n.temperature).collect())?.f_to_kind(Kind::Float)?,
        uniforms: float(rows.iter().map(uniform).collect())?,
        greedy: Some(int(numbers.iter().map(|n| n.greedy.into()).collect())?.f_to_kind(Kind::Bool)?),
        truncation,
        given: Some(int(rows.iter().map(given).collect())?),
    };
    let drawn = draw(logits, &settings)?;

    let chosen = |row: &RowOptions<'_>| row.residual_row.map(|row| row as i64);
    if let Some(residuals) = residuals.filter(|_| rows.iter().any(|row| row.residual_row.is_some())) {
        // Rows may name one sum several times.
        let weights =
            float(rows.iter().map(|row| f64::from(u8::from(row.residual_row.is_some()))).collect())?;
        let weights = weights.f_to_kind(Kind::Float)?;
        let change = drawn.probabilities.f_zeros_like()?;
        accumulate(&change, &drawn, &weights)?;
        let to: Vec<i64> = rows.iter().map(|row| chosen(row).unwrap_or(0)).collect();
        let _ = residuals.shallow_clone().f_index_add_(0, &int(to)?.f_squeeze_dim(1)?, &change)?;
    }
    Ok((
        Vec::try_from(drawn.tokens.f_squeeze_dim(1)?)?,
        Vec::try_from(drawn.logprobs)?,
        Vec::try_from(drawn.entropies.f_to_kind(Kind::Float)?)?,
    ))
}

#[cfg(test)]
mod tests {
    use tch::Device;

    use super::super::sample as by_kernel;
    use super::*;

    /// Rows of all kinds over a vocabulary that is no multiple of a block.
    fn compare(vocab: i64, scale: f64) {
        let samplings: Vec<Sampling> = [
            (1.0, None, 1.0, 0.0),
            (0.7, None, 1.0, 0.0),
            (0.0, None, 1.0, 0.0),
            (0.0, Some(3), 0.5, 0.1),
            (1.0, Some(5), 1.0, 0.0),
            (1.3, None, 0.9, 0.0),
            (1.0, None, 1.0, 0.05),
            (0.8, Some(40), 0.95, 0.02),
            (1.0, Some(1), 1.0, 0.0),
            (1.0, Some(1_000_000), 0.3, 0.0),
        ]
        .into_iter()
        .map(|(temperature, top_k, top_p, min_p)| Sampling {
            temperature,
            top_k,
            top_p,
            min_p,
            ..Sampling::default()
        })
        .collect();
        tch::manual_seed(vocab);
        let count = samplings.len() as i64;
        let logits = Tensor::randn([count, vocab], (Kind::Float, Device::Cpu)) * scale;
        // Equal logits, at the edge of top-k too.
        let logits = (logits * 4.0).round() / 4.0;
        for step in 0..50 {
            let uniform = f64::from(step) / 50.0 + 0.003;
            let rows: Vec<RowOptions<'_>> = samplings
                .iter()
                .enumerate()
                .map(|(at, sampling)| RowOptions {
                    sampling,
                    draw: if step == 7 { Draw::Given(at as u32) } else { Draw::Uniform(uniform) },
                    residual_row: Some((at + step as usize) % samplings.len()),
                })
                .collect();
            let sums = [(); 2].map(|()| Tensor::zeros([count, vocab], (Kind::Float, Device::Cpu)));
            let expected = by_kernel(&logits, &rows, Some(&sums[0])).unwrap();
            let found = sample(&logits, &rows, Some(&sums[1])).unwrap();
            assert_eq!(found.tokens, expected.tokens, "uniform {uniform}");
            let largest =
                |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            let difference = largest(&found.logprobs, &expected.logprobs);
            assert!(difference < 1e-5, "vocabulary {vocab}: log-probabilities {difference:e}");
            let difference = largest(&found.entropies, &expected.entropies);
            assert!(difference < 1e-5, "vocabulary {vocab}: entropies {difference:e}");
            assert!((&sums[0] - &sums[1]).abs().max().double_value(&[]) < 1e-5);
        }
    }

    #[test]
    fn tensor_operations_draw_what_the_kernel_draws() {
        for (vocab, scale) in [(11, 1.0), (256, 2.0), (512, 0.1), (1000, 3.0), (5003, 5.0)] {
            compare(vocab, scale);
        }
    }

    #[test]
    fn the_ends_of_the_unit_interval_draw_tokens_with_a_weight() {
        // All weight is on tokens 3 and 300 of 700.
        let weights = Tensor::zeros([2, 700], (Kind::Float, Device::Cpu));
        for token in [3, 300] {
            let _ = weights.narrow(1, token, 1).fill_(0.5);
        }
        let uniforms = Tensor::from_slice(&[0.0, 1.0 - f64::EPSILON / 2.0]).unsqueeze(1);
        let drawn: Vec<i64> = Vec::try_from(invert(&weights, &uniforms).unwrap().squeeze_dim(1)).unwrap();
        assert_eq!(drawn, [3, 300]);
    }

    #[test]
    fn a_row_that_is_not_finite_is_named() {
        let logits = Tensor::zeros([3, 8], (Kind::Float, Device::Cpu));
        let _ = logits.get(1).fill_(f64::NAN);
        let sampling = Sampling::default();
        let row = RowOptions { sampling: &sampling, draw: Draw::Uniform(0.5), residual_row: None };
        let error = sample(&logits, &[row; 3], None).unwrap_err();
        assert_eq!(error, FfiError::NotFinite { operation: "sampling", row: 1 });
    }
}

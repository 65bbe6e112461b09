//! Drawing tokens: softmax in f32 at the temperature, optional truncation, inverse of the cumulative
//! distribution in token-id order.
//!
//! Log-probabilities and entropies are of the full softmax at the temperature, before truncation:
//! those are what the update computes again, so their ratio is 1 when the policy has not moved.

use g2rl_common::rollout::Sampling;
use g2rl_ffi::FfiError;
use g2rl_ffi::sampling::{Residual, ResidualRows, SampleRows, SampledRows, residual_rows, sample_rows};
use tch::{Device, Kind, Tensor};

/// Where a row's token comes from.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Draw {
    /// Drawn with this number in [0, 1).
    Uniform(f64),
    /// Given; only its log-probability is wanted.
    Given(u32),
}

/// How one row of logits is sampled.
#[derive(Debug, Clone, Copy)]
pub struct RowOptions<'a> {
    /// Temperature and truncation.
    pub sampling: &'a Sampling,
    /// Where the token comes from.
    pub draw: Draw,
    /// Row of the residual sums to add `onehot(token) - p` to.
    pub residual_row: Option<usize>,
}

/// Samples rows of logits `[rows, vocab] f32`. Either every row or none has a residual row.
///
/// # Errors
/// [`FfiError`] if a row is not finite or libtorch refuses.
pub fn sample(
    logits: &Tensor,
    rows: &[RowOptions<'_>],
    residuals: Option<&Tensor>,
) -> Result<SampledRows, FfiError> {
    if logits.device() != Device::Cpu {
        return sample_tensors(logits, rows, residuals);
    }
    // The kernel takes one setting for all rows. Rows of one step nearly always agree; where they do
    // not (an evaluation beside training), each kind goes through on its own.
    let mut kinds: Vec<Vec<usize>> = Vec::new();
    for at in 0..rows.len() {
        match kinds.iter_mut().find(|kind| alike(&rows[kind[0]], &rows[at])) {
            Some(kind) => kind.push(at),
            None => kinds.push(vec![at]),
        }
    }
    if kinds.len() == 1 {
        return sample_alike(&logits.contiguous(), rows, residuals);
    }
    let mut all = SampledRows {
        tokens: vec![0; rows.len()],
        logprobs: vec![0.0; rows.len()],
        entropies: vec![0.0; rows.len()],
    };
    for kind in kinds {
        let index = Tensor::from_slice(&kind.iter().map(|at| *at as i64).collect::<Vec<_>>());
        let some: Vec<RowOptions<'_>> = kind.iter().map(|at| rows[*at]).collect();
        let sampled = sample_alike(&logits.index_select(0, &index), &some, residuals)?;
        for (from, to) in kind.into_iter().enumerate() {
            all.tokens[to] = sampled.tokens[from];
            all.logprobs[to] = sampled.logprobs[from];
            all.entropies[to] = sampled.entropies[from];
        }
    }
    Ok(all)
}

/// Whether two rows can go through the kernel together.
fn alike(a: &RowOptions<'_>, b: &RowOptions<'_>) -> bool {
    let settings = |r: &RowOptions<'_>| {
        let s = r.sampling;
        (s.temperature, s.top_k, s.top_p, s.min_p, r.residual_row.is_some(), matches!(r.draw, Draw::Given(_)))
    };
    settings(a) == settings(b)
}

fn sample_alike(
    logits: &Tensor,
    rows: &[RowOptions<'_>],
    residuals: Option<&Tensor>,
) -> Result<SampledRows, FfiError> {
    let Some(first) = rows.first() else {
        return Ok(SampledRows { tokens: Vec::new(), logprobs: Vec::new(), entropies: Vec::new() });
    };
    let slots: Vec<i64> = rows.iter().filter_map(|row| row.residual_row).map(|row| row as i64).collect();
    let residual = residuals.filter(|_| !slots.is_empty()).map(|tensor| Residual { tensor, slots: &slots });
    let sampling = first.sampling;
    if matches!(first.draw, Draw::Given(_)) {
        let given =
            |row: &RowOptions<'_>| if let Draw::Given(token) = row.draw { i64::from(token) } else { 0 };
        let tokens: Vec<i64> = rows.iter().map(given).collect();
        let weights = vec![1.0; rows.len()];
        // Greedy decoding has the probabilities of temperature 1.
        let temperature = if sampling.temperature == 0.0 { 1.0 } else { sampling.temperature };
        let scored = residual_rows(&ResidualRows {
            logits,
            temperature,
            tokens: &tokens,
            weights: &weights,
            residual,
        })?;
        return Ok(SampledRows { tokens, logprobs: scored.logprobs, entropies: scored.entropies });
    }
    let uniform = |row: &RowOptions<'_>| if let Draw::Uniform(uniform) = row.draw { uniform } else { 0.0 };
    let uniforms: Vec<f64> = rows.iter().map(uniform).collect();
    sample_rows(&SampleRows {
        logits,
        temperature: sampling.temperature,
        top_k: sampling.top_k.map(i64::from),
        top_p: sampling.top_p,
        min_p: sampling.min_p,
        uniforms: &uniforms,
        residual,
    })
}

/// The same in tensor operations, for GPUs.
fn sample_tensors(
    logits: &Tensor,
    rows: &[RowOptions<'_>],
    residuals: Option<&Tensor>,
) -> Result<SampledRows, FfiError> {
    let device = logits.device();
    let column = |f: &dyn Fn(&RowOptions<'_>) -> f64| {
        let values: Vec<f64> = rows.iter().map(f).collect();
        Tensor::from_slice(&values).to_device(device).unsqueeze(1)
    };
    // 1. Full softmax; a temperature of 0 has that of 1.
    let temperature = column(&|r| if r.sampling.temperature == 0.0 { 1.0 } else { r.sampling.temperature })
        .to_kind(Kind::Float);
    let logprobs = (logits / temperature).log_softmax(-1, Kind::Float);
    let probabilities = logprobs.exp();
    let entropies = -(&probabilities * &logprobs).sum_dim_intlist(-1, false, Kind::Float);
    // 2. The draw.
    let kept = truncate(&probabilities, rows);
    let sums = kept.cumsum(-1, Kind::Double);
    let mass = sums.narrow(1, -1, 1);
    let uniforms = column(&|r| if let Draw::Uniform(u) = r.draw { u } else { 0.0 });
    let drawn = sums.le_tensor(&(uniforms * mass)).sum_dim_intlist(-1, true, Kind::Int64);
    let drawn = drawn.clamp(0, logits.size()[1] - 1);
    let greedy = column(&|r| f64::from(u8::from(r.sampling.temperature == 0.0))).gt(0.5);
    let mut tokens = logits.argmax(-1, true).where_self(&greedy, &drawn);
    let given = column(&|r| if let Draw::Given(token) = r.draw { f64::from(token) } else { -1.0 });
    tokens = given.to_kind(Kind::Int64).where_self(&given.ge(0.0), &tokens);
    // 3. Residuals.
    let chosen: Vec<(i64, i64)> = rows
        .iter()
        .enumerate()
        .filter_map(|(at, r)| r.residual_row.map(|row| (at as i64, row as i64)))
        .collect();
    if let Some(residuals) = residuals.filter(|_| !chosen.is_empty()) {
        let from =
            Tensor::from_slice(&chosen.iter().map(|(at, _)| *at).collect::<Vec<_>>()).to_device(device);
        let to =
            Tensor::from_slice(&chosen.iter().map(|(_, row)| *row).collect::<Vec<_>>()).to_device(device);
        let mut change = -probabilities.index_select(0, &from);
        let picked = tokens.index_select(0, &from);
        let _ = change.scatter_add_(1, &picked, &picked.ones_like().to_kind(Kind::Float));
        let _ = residuals.shallow_clone().index_add_(0, &to, &change);
    }
    let logprob = logprobs.gather(1, &tokens, false).squeeze_dim(1);
    let finite = entropies.isfinite().logical_and(&logprob.isfinite()).all().int64_value(&[]) != 0;
    if !finite {
        let message = "a row of the logits is not finite".to_owned();
        return Err(FfiError::InvalidInput { operation: "sampling", message });
    }
    let floats = |t: &Tensor| Vec::<f32>::try_from(t).expect("a one-dimensional f32 tensor converts");
    Ok(SampledRows {
        tokens: Vec::try_from(tokens.squeeze_dim(1)).expect("a one-dimensional i64 tensor converts"),
        logprobs: floats(&logprob),
        entropies: floats(&entropies),
    })
}

/// What top-k, top-p and min-p keep of each row, by the CPU kernel's rules.
fn truncate(probabilities: &Tensor, rows: &[RowOptions<'_>]) -> Tensor {
    let vocab = probabilities.size()[1];
    let plain = |r: &RowOptions<'_>| {
        let s = r.sampling;
        s.top_k.is_none() && s.top_p >= 1.0 && s.min_p <= 0.0
    };
    let kept: Vec<Tensor> = rows
        .iter()
        .enumerate()
        .map(|(at, r)| {
            let mut row = probabilities.get(at as i64);
            if plain(r) {
                return row;
            }
            let top = row.max();
            if let Some(k) = r.sampling.top_k.map(i64::from).filter(|k| *k < vocab) {
                let least = row.topk(k, -1, true, true).0.min();
                row = row.where_scalarother(&row.ge_tensor(&least), 0.0);
            }
            if r.sampling.top_p < 1.0 {
                let (sorted, order) = row.sort_stable(true, -1, true);
                let before = sorted.cumsum(-1, Kind::Double) - sorted.to_kind(Kind::Double);
                let limit = before.ge_tensor(&(sorted.sum(Kind::Double) * r.sampling.top_p));
                let sorted = sorted.masked_fill(&limit, 0.0);
                row = row.zeros_like().scatter(-1, &order, &sorted);
            }
            if r.sampling.min_p > 0.0 {
                row = row.where_scalarother(&row.ge_tensor(&(top * r.sampling.min_p)), 0.0);
            }
            row
        })
        .collect();
    Tensor::stack(&kept, 0)
}

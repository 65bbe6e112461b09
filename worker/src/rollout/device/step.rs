//! One decode step over the fixed buffers: a token of every row that is alive through the model, drawn,
//! added to the residuals and kept.
//!
//! Invariants: the step is a function of the buffers, the pool, the weights and its key alone; it looks at
//! no value and takes nothing from the host, so that the same operations with the same shapes run each
//! time. That is what makes it fit for a captured graph, and lets the CPU's tests stand for it.

use g2rl_ffi::gpu::attention::{DecodeAttention, Places, decode_attention};
use g2rl_ffi::gpu::sampling::{self, DrawInputs};
use tch::{Kind, TchError, Tensor};

use super::super::RolloutError;
use super::super::sampler::tensors::{self, DrawSettings, Truncation};
use super::attention::{ExtentRows, Kernel, Partial};
use super::pool::Pool;
use super::state::{Float, Int, State};
use crate::model::Model;
use crate::model::attention::Attended;
use crate::model::layer::AttentionInput;

/// What decides the operations and shapes of a step: one captured graph each.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct StepKey {
    /// The first rows of the buffers; those beyond are not looked at.
    pub(super) rows: i64,
    /// No prompt is longer.
    pub(super) prompt_span: i64,
    /// No row's own tokens, the new one included, are more.
    pub(super) own_span: i64,
    /// Some row takes the most likely token.
    pub(super) greedy: bool,
    /// Some row is truncated.
    pub(super) truncating: bool,
}

/// Tokens i64, log-probabilities, entropies.
type Columns = (Tensor, Tensor, Tensor);

/// What the masked kernel needs of all rows.
struct MaskedRows {
    /// Where the new tokens come to `[rows] i64`.
    places: Tensor,
    prompts: ExtentRows,
    own: ExtentRows,
}

/// A step and everything it reads and writes.
#[derive(Debug)]
pub(super) struct Step<'a> {
    pub(super) model: &'a Model,
    pub(super) state: &'a State,
    pub(super) pool: &'a Pool,
    /// `[rows, vocab] f32`
    pub(super) residuals: Option<&'a Tensor>,
    pub(super) kernel: Kernel,
    pub(super) key: StepKey,
}

impl Step<'_> {
    /// Runs the step, or hands it to the stream.
    pub(super) fn run(&self) -> Result<(), RolloutError> {
        let logits = self.forward()?;
        self.draw(&logits)?;
        Ok(())
    }

    fn int(&self, field: Int) -> Result<Tensor, TchError> {
        self.state.int(field, self.key.rows)
    }

    /// Logits `[rows, vocab]` in the compute dtype; the rows' last tokens come into the cache.
    fn forward(&self) -> Result<Tensor, RolloutError> {
        // 1. Where each row is. Rows that are not alive read nothing.
        let (length, prompt_length) = (self.int(Int::Length)?, self.int(Int::PromptLength)?);
        let position = prompt_length.f_add(&length)?;
        let masked = match self.kernel {
            Kernel::Fused => None,
            Kernel::Masked => Some(self.masked_rows()?),
        };

        // 2. The layers.
        let rotary = self.model.rotary_rows_at(&position);
        let mut x = self.model.embed(&self.int(Int::Token)?);
        for layer in 0..self.model.config().layers as usize {
            let (keys, values) = self.pool.layer(layer);
            x = self.model.layer(layer, &x, &rotary, |input| {
                let output = match &masked {
                    None => self.fused(input, (keys, values))?,
                    Some(MaskedRows { places, prompts, own }) => {
                        for (pool, new) in [(keys, input.key()), (values, input.value())] {
                            let _ = pool.shallow_clone().f_index_copy_(0, places, &new)?;
                        }
                        let query = input.query();
                        let attend = |extents| Partial::attend(&query, (keys, values), extents);
                        attend(prompts)?.merge(&attend(own)?)?
                    }
                };
                Ok::<_, RolloutError>(Attended { output, normalizers: Tensor::new() })
            })?;
        }

        // 3. The head.
        Ok(self.model.final_norm(&x)?.f_matmul(&self.model.head().f_tr()?)?)
    }

    /// Where the masked kernel reads and writes. Rows that are not alive write the first token of the pool.
    fn masked_rows(&self) -> Result<MaskedRows, TchError> {
        let StepKey { prompt_span, own_span, .. } = self.key;
        let (alive, length) = (self.int(Int::Alive)?, self.int(Int::Length)?);
        let extents = |start: Int, lengths: &Tensor, span: i64| {
            ExtentRows::new((&self.int(start)?, &lengths.f_mul(&alive)?), span, self.pool.tokens())
        };
        Ok(MaskedRows {
            places: self.int(Int::OwnStart)?.f_add(&length)?.f_mul(&alive)?,
            prompts: extents(Int::PromptStart, &self.int(Int::PromptLength)?, prompt_span)?,
            own: extents(Int::OwnStart, &length.f_add_scalar(1)?, own_span)?,
        })
    }

    /// Attention over both extents; the new tokens come into the cache with it.
    fn fused(
        &self,
        input: &AttentionInput,
        (keys, values): (&Tensor, &Tensor),
    ) -> Result<Tensor, RolloutError> {
        let (query, key, value) = (input.query(), input.key(), input.value());
        let [prompt_starts, prompt_lengths, own_starts, own_lengths, alive] =
            [Int::PromptStart, Int::PromptLength, Int::OwnStart, Int::Length, Int::Alive]
                .map(|field| self.int(field));
        Ok(decode_attention(&DecodeAttention {
            query: &query,
            key: &key,
            value: &value,
            keys,
            values,
            places: Places {
                prompt_starts: &prompt_starts?,
                prompt_lengths: &prompt_lengths?,
                own_starts: &own_starts?,
                own_lengths: &own_lengths?,
                alive: &alive?,
            },
            longest: self.key.prompt_span + self.key.own_span,
            scale: (input.heads.2 as f64).powf(-0.5),
        })?)
    }

    /// Draws, and moves the rows that are alive one token on.
    fn draw(&self, logits: &Tensor) -> Result<(), RolloutError> {
        let fused = sampling::supports(logits) && !self.key.truncating;
        let (tokens, logprobs, entropies) =
            if fused { self.draw_fused(logits)? } else { self.draw_by_tensors(logits)? };
        let mut alive = self.int(Int::Alive)?;
        let was_alive = alive.f_to_kind(Kind::Bool)?;
        self.state.put(&was_alive, [&tokens, &logprobs, &entropies])?;

        // The token's own keys and values come into the cache in the next step, if there is one.
        let (mut token, mut length) = (self.int(Int::Token)?, self.int(Int::Length)?);
        let next = tokens.f_where_self(&was_alive, &token)?;
        token.f_copy_(&next)?;
        let _ = length.f_add_(&alive)?;
        let full = length.f_add_scalar(1)?.f_ge_tensor(&self.int(Int::Limit)?)?;
        let over = self.state.ends(&tokens.f_unsqueeze(1)?)?.f_logical_or(&full)?;
        let _ = alive.f_masked_fill_(&over, 0)?;
        Ok(())
    }

    /// Tokens, log-probabilities and entropies `[rows]` by the GPU's kernels, in three passes over the logits.
    fn draw_fused(&self, logits: &Tensor) -> Result<Columns, RolloutError> {
        let rows = self.key.rows;
        let numbers = |field: Float| self.state.float(field, rows)?.f_squeeze_dim(1);
        let inputs = DrawInputs {
            logits,
            temperatures: &numbers(Float::Temperature)?,
            uniforms: &self.state.uniform_lines()?,
            step: self.state.done(),
            greedy: &self.int(Int::Greedy)?,
        };
        let drawn = sampling::draw(&inputs)?;
        if let Some(sums) = self.residuals {
            let weights = numbers(Float::Weight)?;
            let alive = self.int(Int::Alive)?;
            sampling::add_residuals(&inputs, &drawn, (&weights, &alive), &sums.f_narrow(0, 0, rows)?)?;
        }
        Ok((drawn.tokens, drawn.logprobs, drawn.entropies))
    }

    /// The same by tensor operations.
    fn draw_by_tensors(&self, logits: &Tensor) -> Result<Columns, RolloutError> {
        let rows = self.key.rows;
        let column = |field: Int| self.int(field)?.f_unsqueeze(1);
        let float = |field: Float| self.state.float(field, rows);
        let truncation = match self.key.truncating {
            true => Some(Truncation {
                top_k: column(Int::TopK)?,
                top_p: float(Float::TopP)?,
                min_p: float(Float::MinP)?,
            }),
            false => None,
        };
        let greedy = match self.key.greedy {
            true => Some(column(Int::Greedy)?.f_to_kind(Kind::Bool)?),
            false => None,
        };
        let drawn = tensors::draw(
            logits,
            &DrawSettings {
                temperature: float(Float::Temperature)?.f_to_kind(Kind::Float)?,
                uniforms: self.state.uniforms(rows)?,
                greedy,
                truncation,
                given: None,
            },
        )?;
        if let Some(sums) = self.residuals {
            let alive = self.int(Int::Alive)?.f_unsqueeze(1)?;
            let weights = float(Float::Weight)?.f_mul(&alive)?.f_to_kind(Kind::Float)?;
            tensors::accumulate(&sums.f_narrow(0, 0, rows)?, &drawn, &weights)?;
        }
        Ok((drawn.tokens.f_squeeze_dim(1)?, drawn.logprobs, drawn.entropies))
    }
}

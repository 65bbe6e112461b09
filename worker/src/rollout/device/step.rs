//! One decode step over the fixed buffers: a token of every row that is alive through the model, drawn,
//! added to the residuals and kept.
//!
//! Invariants: the step is a function of the buffers, the pool, the weights and its key alone; it looks at
//! no value and takes nothing from the host, so that the same operations with the same shapes run each
//! time. That is what makes it fit for a captured graph, and lets the CPU's tests stand for it.

use tch::{Kind, TchError, Tensor};

use super::super::RolloutError;
use super::super::sampler::tensors::{self, DrawSettings, Truncation};
use super::attention::{ExtentRows, Kernel, Partial};
use super::pool::Pool;
use super::state::{Float, Int, State};
use crate::model::Model;
use crate::model::ops::Attended;

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
        let StepKey { rows, prompt_span, own_span, .. } = self.key;
        // 1. Where each row is. Rows that are not alive read nothing and write the first token of the pool.
        let (alive, length) = (self.int(Int::Alive)?, self.int(Int::Length)?);
        let prompt_length = self.int(Int::PromptLength)?;
        let position = prompt_length.f_add(&length)?;
        let place = self.int(Int::OwnStart)?.f_add(&length)?.f_mul(&alive)?;
        let used = length.f_add_scalar(1)?.f_mul(&alive)?;
        let extents = |start: Int, lengths: &Tensor, span: i64| {
            let starts = self.state.int(start, rows + 1)?;
            ExtentRows::new(self.kernel, (&starts, lengths), span, self.pool.tokens())
        };
        let prompts = extents(Int::PromptStart, &prompt_length.f_mul(&alive)?, prompt_span)?;
        let own = extents(Int::OwnStart, &used, own_span)?;
        let counting = self.state.counting(rows)?;

        // 2. The layers.
        let rotary = self.model.rotary_rows_at(&position);
        let mut x = self.model.embed(&self.int(Int::Token)?);
        for layer in 0..self.model.config().layers as usize {
            let (keys, values) = self.pool.layer(layer);
            x = self.model.layer(layer, &x, &rotary, |input| {
                for (pool, new) in [(keys, input.key()), (values, input.value())] {
                    let _ = pool.shallow_clone().f_index_copy_(0, &place, &new)?;
                }
                let query = input.query();
                let prompt = Partial::attend(&query, (keys, values), &prompts, &counting)?;
                let own = Partial::attend(&query, (keys, values), &own, &counting)?;
                let output = prompt.merge(&own)?;
                Ok::<_, RolloutError>(Attended { output, normalizers: Tensor::new() })
            })?;
        }

        // 3. The head.
        Ok(self.model.final_norm(&x)?.f_matmul(&self.model.head().f_tr()?)?)
    }

    /// Draws, and moves the rows that are alive one token on.
    fn draw(&self, logits: &Tensor) -> Result<(), TchError> {
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
        let mut alive = self.int(Int::Alive)?;
        if let Some(sums) = self.residuals {
            let weights = float(Float::Weight)?.f_mul(&alive.f_unsqueeze(1)?)?.f_to_kind(Kind::Float)?;
            tensors::accumulate(&sums.f_narrow(0, 0, rows)?, &drawn, &weights)?;
        }
        let tokens = drawn.tokens.f_squeeze_dim(1)?;
        let was_alive = alive.f_to_kind(Kind::Bool)?;
        self.state.put(&was_alive, [&tokens, &drawn.logprobs, &drawn.entropies])?;

        // The token's own keys and values come into the cache in the next step, if there is one.
        let (mut token, mut length) = (self.int(Int::Token)?, self.int(Int::Length)?);
        let next = tokens.f_where_self(&was_alive, &token)?;
        token.f_copy_(&next)?;
        let _ = length.f_add_(&alive)?;
        let full = length.f_add_scalar(1)?.f_ge_tensor(&self.int(Int::Limit)?)?;
        let over = self.state.ends(&drawn.tokens)?.f_logical_or(&full)?;
        let _ = alive.f_masked_fill_(&over, 0)?;
        Ok(())
    }
}

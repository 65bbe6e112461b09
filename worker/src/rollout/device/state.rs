//! The fixed buffers of decoding: what a step reads and writes, for all rows.
//!
//! Invariants
//! - No buffer is ever replaced or resized: captured graphs hold their addresses.
//! - Between windows the host owns the truth: [`State::write`] writes every field of every row from it.
//!   Inside a window the steps own the fields marked *moves*; from [`Outputs`] the host derives what they have
//!   become, so that nothing but the outputs is ever read back.
//! - A row that is not alive changes nothing but the pool's first token.

use tch::{Device, Kind, TchError, Tensor};

use super::super::sampler::tensors::RowNumbers;

/// Whole numbers of a row, in the order of the buffer.
#[derive(Debug, Clone, Copy)]
pub(super) enum Int {
    /// *Moves.* The last token, whose keys and values come into the cache next.
    Token,
    /// *Moves.* Tokens in the row's own extent; one less than were drawn.
    Length,
    /// *Moves.* 1 while the response goes on.
    Alive,
    /// First token of the prompt's extent.
    PromptStart,
    /// Tokens of the prompt.
    PromptLength,
    /// First token of the own extent.
    OwnStart,
    /// Drawn tokens at which the response ends.
    Limit,
    Greedy,
    /// The last field.
    TopK,
}

/// Other numbers of a row.
#[derive(Debug, Clone, Copy)]
pub(super) enum Float {
    Temperature,
    TopP,
    MinP,
    /// 1 where the residuals are wanted.
    Weight,
}

const INTS: i64 = Int::TopK as i64 + 1;
const FLOATS: i64 = Float::Weight as i64 + 1;

/// Tokens, log-probabilities, entropies.
const OUTPUTS: i64 = 3;

/// In the place of a token that was not drawn.
const NOTHING: f64 = -1.0;

/// A row as the host knows it.
#[derive(Debug, Clone, Copy)]
pub(super) struct RowState {
    pub(super) token: i64,
    pub(super) length: i64,
    pub(super) prompt_start: i64,
    pub(super) prompt_length: i64,
    pub(super) own_start: i64,
    pub(super) limit: i64,
    pub(super) numbers: RowNumbers,
    pub(super) wants_residuals: bool,
}

/// The buffers.
#[derive(Debug)]
pub(super) struct State {
    rows: i64,
    window: i64,
    /// `[INTS, rows] i64`
    ints: Tensor,
    /// `[FLOATS + window, rows] f64`: the numbers, then each step's uniforms.
    floats: Tensor,
    /// `[OUTPUTS, window, rows] f64`, which holds every token and f32 exactly.
    outputs: Tensor,
    /// Steps done in this window `[1] i64`. *Moves.*
    done: Tensor,
    /// Tokens that end a response `[1, tokens] i64`.
    ends: Tensor,
}

impl State {
    pub(super) fn new(rows: i64, window: i64, ends: &[u32], device: Device) -> Result<Self, TchError> {
        let ends: Vec<i64> = ends.iter().map(|token| i64::from(*token)).collect();
        let state = Self {
            rows,
            window,
            ints: Tensor::f_zeros([INTS, rows], (Kind::Int64, device))?,
            floats: Tensor::f_zeros([FLOATS + window, rows], (Kind::Double, device))?,
            outputs: Tensor::f_zeros([OUTPUTS, window, rows], (Kind::Double, device))?,
            done: Tensor::f_zeros([1], (Kind::Int64, device))?,
            ends: Tensor::from_slice(&ends).f_to_device(device)?.f_unsqueeze(0)?,
        };
        state.write(&[], |_, _| 0.0)?;
        Ok(state)
    }

    /// Steps of a window at most.
    pub(super) fn window(&self) -> i64 {
        self.window
    }

    /// Writes all rows, with the uniforms of the next steps. Rows that are `None` or left out are not alive.
    pub(super) fn write(
        &self,
        rows: &[Option<RowState>],
        uniform: impl Fn(usize, i64) -> f64,
    ) -> Result<(), TchError> {
        let width = self.rows as usize;
        let mut ints = vec![0i64; INTS as usize * width];
        // Rows that are not alive go through a step too: with a temperature of 1, and a k of 1.
        let mut floats = vec![1.0f64; (FLOATS + self.window) as usize * width];
        ints[Int::TopK as usize * width..].fill(1);
        for (at, row) in rows.iter().enumerate() {
            let Some(row) = row else { continue };
            for (field, value) in [
                (Int::Token, row.token),
                (Int::Length, row.length),
                (Int::Alive, 1),
                (Int::PromptStart, row.prompt_start),
                (Int::PromptLength, row.prompt_length),
                (Int::OwnStart, row.own_start),
                (Int::Limit, row.limit),
                (Int::Greedy, row.numbers.greedy.into()),
                (Int::TopK, row.numbers.top_k),
            ] {
                ints[field as usize * width + at] = value;
            }
            for (field, value) in [
                (Float::Temperature, row.numbers.temperature),
                (Float::TopP, row.numbers.top_p),
                (Float::MinP, row.numbers.min_p),
                (Float::Weight, f64::from(u8::from(row.wants_residuals))),
            ] {
                floats[field as usize * width + at] = value;
            }
            for step in 0..self.window {
                floats[(FLOATS + step) as usize * width + at] = uniform(at, step);
            }
        }
        self.ints.shallow_clone().f_copy_(&Tensor::from_slice(&ints).f_view([INTS, -1])?)?;
        self.floats.shallow_clone().f_copy_(&Tensor::from_slice(&floats).f_view([-1, width as i64])?)?;
        self.done.shallow_clone().f_zero_().map(drop)
    }

    /// A field of the first rows `[rows] i64`: a view.
    pub(super) fn int(&self, field: Int, rows: i64) -> Result<Tensor, TchError> {
        self.ints.f_select(0, field as i64)?.f_narrow(0, 0, rows)
    }

    /// A field of the first rows `[rows, 1] f64`: a view.
    pub(super) fn float(&self, field: Float, rows: i64) -> Result<Tensor, TchError> {
        self.floats.f_select(0, field as i64)?.f_narrow(0, 0, rows)?.f_unsqueeze(1)
    }

    /// Each step's uniforms, `[window, rows] f64`: a view.
    pub(super) fn uniform_lines(&self) -> Result<Tensor, TchError> {
        self.floats.f_narrow(0, FLOATS, self.window)
    }

    /// Steps done in this window `[1] i64`.
    pub(super) fn done(&self) -> &Tensor {
        &self.done
    }

    /// This step's uniforms `[rows, 1] f64`.
    pub(super) fn uniforms(&self, rows: i64) -> Result<Tensor, TchError> {
        let steps = self.uniform_lines()?.f_narrow(1, 0, rows)?;
        steps.f_index_select(0, &self.done)?.f_transpose(0, 1)
    }

    /// Which of the tokens `[rows, 1]` end a response, `[rows] bool`.
    pub(super) fn ends(&self, tokens: &Tensor) -> Result<Tensor, TchError> {
        tokens.f_eq_tensor(&self.ends)?.f_any_dim(1, false)
    }

    /// Keeps this step's tokens, log-probabilities and entropies, `[rows]` each, of the rows that are alive,
    /// and goes on to the next step.
    pub(super) fn put(
        &self,
        alive: &Tensor,
        [tokens, logprobs, entropies]: [&Tensor; 3],
    ) -> Result<(), TchError> {
        let rows = alive.size()[0];
        let tokens = tokens.f_to_kind(Kind::Double)?.f_masked_fill(&alive.f_logical_not()?, NOTHING)?;
        let wide = |t: &Tensor| t.f_to_kind(Kind::Double);
        let values = Tensor::f_stack(&[tokens, wide(logprobs)?, wide(entropies)?], 0)?.f_unsqueeze(1)?;
        let _ = self.outputs.f_narrow(2, 0, rows)?.f_index_copy_(1, &self.done, &values)?;
        let _ = self.done.shallow_clone().g_add_scalar_(1);
        Ok(())
    }

    /// Makes every row dead, so that steps change nothing.
    pub(super) fn silence(&self) -> Result<(), TchError> {
        let _ = self.ints.f_select(0, Int::Alive as i64)?.f_zero_()?;
        self.done.shallow_clone().f_zero_().map(drop)
    }

    /// Waits for the steps and takes what they drew.
    pub(super) fn read(&self) -> Result<Outputs, TchError> {
        let values = Vec::try_from(self.outputs.f_view([-1])?)?;
        Ok(Outputs { rows: self.rows as usize, window: self.window as usize, values })
    }
}

/// What the steps of a window drew.
#[derive(Debug)]
pub(super) struct Outputs {
    rows: usize,
    window: usize,
    values: Vec<f64>,
}

impl Outputs {
    /// Token, log-probability and entropy of a row at a step; `None` if the row was not alive.
    pub(super) fn get(&self, row: usize, step: usize) -> Option<(i64, f32, f32)> {
        let value = |output: usize| self.values[(output * self.window + step) * self.rows + row];
        let token = value(0);
        (token != NOTHING).then(|| (token as i64, value(1) as f32, value(2) as f32))
    }
}

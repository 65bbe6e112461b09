//! Drawing tokens from a batch's logits, and the sums of residuals.

use tch::{Kind, Tensor};

use super::{Argument, Kernel, Launch, Module, blocks_of, module, require, takes};
use crate::error::Result;

const MODULE: Module = module!("sampling");

const THREADS: u32 = 256;

/// Tokens of a block.
const CHUNK: i64 = 8 * THREADS as i64;

/// Inputs of [`draw`]; all on one GPU, numbers of rows `[rows]` and contiguous.
#[derive(Debug, Clone, Copy)]
pub struct DrawInputs<'a> {
    /// `[rows, vocab]` bf16; the vocabulary a multiple of 8.
    pub logits: &'a Tensor,
    /// f64, above 0.
    pub temperatures: &'a Tensor,
    /// A line for each step, of at least `rows` f64 in [0, 1).
    pub uniforms: &'a Tensor,
    /// Which line is this step's, `[1] i64`.
    pub step: &'a Tensor,
    /// i64, not 0 for rows that take the most likely token.
    pub greedy: &'a Tensor,
}

/// Drawn tokens.
#[derive(Debug)]
pub struct DrawnRows {
    /// `[rows] i64`
    pub tokens: Tensor,
    /// Of the full softmax at the temperature `[rows] f32`.
    pub logprobs: Tensor,
    /// Of the same `[rows] f64`, nats.
    pub entropies: Tensor,
    /// Logarithms of the softmaxes' sums `[rows] f32`.
    normalizers: Tensor,
}

/// Whether the kernels take such logits.
#[must_use]
pub fn supports(logits: &Tensor) -> bool {
    takes(logits) && logits.dim() == 2 && logits.size()[1] % 8 == 0
}

fn numbers(operation: &'static str, tensor: &Tensor, kind: Kind, like: (&Tensor, i64)) -> Result<()> {
    let found = tensor.kind() == kind && tensor.size() == [like.1] && tensor.is_contiguous();
    require(operation, found && tensor.device() == like.0.device(), "numbers of rows must be [rows]")
}

/// One token for each row, by the inverse of the cumulative distribution in the order of token ids.
///
/// # Errors
/// [`FfiError`](crate::FfiError) if shapes or kinds do not fit or the GPU refuses.
pub fn draw(inputs: &DrawInputs<'_>) -> Result<DrawnRows> {
    const OPERATION: &str = "gpu::draw";
    let DrawInputs { logits, temperatures, uniforms, step, greedy } = *inputs;
    require(OPERATION, supports(logits) && logits.is_contiguous(), "logits must be rows of a multiple of 8")?;
    let (rows, vocab) = (logits.size()[0], logits.size()[1]);
    numbers(OPERATION, temperatures, Kind::Double, (logits, rows))?;
    numbers(OPERATION, greedy, Kind::Int64, (logits, rows))?;
    numbers(OPERATION, step, Kind::Int64, (logits, 1))?;
    let lines =
        uniforms.kind() == Kind::Double && uniforms.dim() == 2 && uniforms.device() == logits.device();
    let stride = if lines { uniforms.stride()[0] } else { 0 };
    require(OPERATION, lines && uniforms.size()[1] >= rows && uniforms.stride()[1] == 1, "no such uniforms")?;

    let chunks = blocks_of(vocab, CHUNK);
    let on = |kind: Kind, size: &[i64]| Tensor::empty(size, (kind, logits.device()));
    let (largests, first) = (on(Kind::Float, &[rows, chunks]), on(Kind::Int, &[rows, chunks]));
    let (sums, weighted) = (on(Kind::Double, &[rows, chunks]), on(Kind::Double, &[rows, chunks]));
    let measures = [&largests, &first, &sums, &weighted].map(Argument::of);
    let mut arguments = vec![Argument::of(logits), Argument::of(temperatures), Argument::Int(vocab as i32)];
    arguments.extend(measures);
    let sizes = Launch { grid: [chunks, rows, 1], block: THREADS, shared_bytes: 0 };
    // SAFETY: these are the kernel's arguments, and all shapes were checked.
    unsafe { Kernel::new(MODULE, "measure").launch(OPERATION, logits, sizes, &arguments) }?;

    let drawn = DrawnRows {
        tokens: on(Kind::Int64, &[rows]),
        logprobs: on(Kind::Float, &[rows]),
        entropies: on(Kind::Double, &[rows]),
        normalizers: on(Kind::Float, &[rows]),
    };
    let mut arguments = vec![
        Argument::of(logits),
        Argument::of(temperatures),
        Argument::of(uniforms),
        Argument::Long(stride),
        Argument::of(step),
        Argument::of(greedy),
        Argument::Int(vocab as i32),
        Argument::Int(chunks as i32),
    ];
    arguments.extend(measures);
    arguments
        .extend([&drawn.tokens, &drawn.logprobs, &drawn.entropies, &drawn.normalizers].map(Argument::of));
    let sizes = Launch { grid: [rows, 1, 1], block: THREADS, shared_bytes: chunks as u32 * 8 };
    // SAFETY: these are the kernel's arguments, and all shapes were checked. The step's value is the caller's promise.
    unsafe { Kernel::new(MODULE, "draw").launch(OPERATION, logits, sizes, &arguments) }?;
    Ok(drawn)
}

/// Adds `weight (onehot(token) - p)` to the rows of `sums` `[rows, vocab] f32` that are alive. Weights `[rows] f64`, alive
/// `[rows] i64`.
///
/// # Errors
/// [`FfiError`](crate::FfiError) if shapes or kinds do not fit or the GPU refuses.
pub fn add_residuals(
    inputs: &DrawInputs<'_>,
    drawn: &DrawnRows,
    (weights, alive): (&Tensor, &Tensor),
    sums: &Tensor,
) -> Result<()> {
    const OPERATION: &str = "gpu::add_residuals";
    let DrawInputs { logits, temperatures, .. } = *inputs;
    let (rows, vocab) = (logits.size()[0], logits.size()[1]);
    numbers(OPERATION, weights, Kind::Double, (logits, rows))?;
    numbers(OPERATION, alive, Kind::Int64, (logits, rows))?;
    numbers(OPERATION, &drawn.tokens, Kind::Int64, (logits, rows))?;
    let found = sums.kind() == Kind::Float && sums.size() == [rows, vocab] && sums.is_contiguous();
    require(OPERATION, found && sums.device() == logits.device(), "sums must be [rows, vocab] f32")?;
    let arguments = [
        Argument::of(logits),
        Argument::of(temperatures),
        Argument::of(weights),
        Argument::of(alive),
        Argument::of(&drawn.tokens),
        Argument::of(&drawn.normalizers),
        Argument::Int(vocab as i32),
        Argument::of(sums),
    ];
    let chunks = blocks_of(vocab, CHUNK);
    let sizes = Launch { grid: [chunks, rows, 1], block: THREADS, shared_bytes: 0 };
    // SAFETY: these are the kernel's arguments, and all shapes were checked.
    unsafe { Kernel::new(MODULE, "add_residuals").launch(OPERATION, logits, sizes, &arguments) }
}

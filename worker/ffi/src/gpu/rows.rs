//! Norm, rotation and gating over packed tokens, and their gradients.
//!
//! The same interface as on a CPU ([`crate::layer`]); gradients of weights do not depend on the order in which the GPU runs.

use tch::{Kind, Tensor};

use super::{Argument, Kernel, Launch, Module, blocks_of, fits, module, require, takes};
use crate::error::Result;
use crate::layer::{NormBackward, Rotary};

const MODULE: Module = module!("rows");

const BLOCK: u32 = 128;

/// Warps of a block; each takes a head at a time.
const WARPS: i64 = 4;

/// Blocks of kernels that sum over rows: for rows of a model's width, and for heads.
const SUMMING_BLOCKS: i64 = 264;
const SUMMING_HEAD_BLOCKS: i64 = 2112;

/// Widest head; a lane keeps a pair of numbers for each 64.
const WIDEST_HEAD: i64 = 256;

/// Widest row whose sums fit a block's shared memory.
const WIDEST_ROW: i64 = 12_288;

fn check_rotary(operation: &'static str, rotary: &Rotary<'_>, qkv: &Tensor) -> Result<i64> {
    let (heads, kv_heads, width) = rotary.heads;
    let rows = qkv.size()[0];
    let found = fits(qkv, qkv) && qkv.size() == [rows, (heads + 2 * kv_heads) * width];
    require(operation, found && width % 2 == 0 && width <= WIDEST_HEAD, "qkv must be rows of heads")?;
    for table in [rotary.cos, rotary.sin] {
        require(operation, fits(table, qkv) && table.size() == [rows, width / 2], "no such table of angles")?;
    }
    if let Some((query, key)) = rotary.norms {
        let found = [query, key].iter().all(|norm| fits(norm, qkv) && norm.size() == [width]);
        require(operation, found, "norms must be as wide as a head")?;
    }
    Ok(rows)
}

fn rotary_inputs(rotary: &Rotary<'_>, qkv: &Tensor) -> [Argument; 5] {
    let norms = rotary.norms;
    [
        Argument::of(qkv),
        Argument::optional(norms.map(|norms| norms.0)),
        Argument::optional(norms.map(|norms| norms.1)),
        Argument::of(rotary.cos),
        Argument::of(rotary.sin),
    ]
}

fn rotary_sizes(rotary: &Rotary<'_>, rows: i64) -> [Argument; 5] {
    let (heads, kv_heads, width) = rotary.heads;
    [
        Argument::Long(rows),
        Argument::Int(heads as i32),
        Argument::Int(kv_heads as i32),
        Argument::Int(width as i32),
        Argument::Float(rotary.eps as f32),
    ]
}

/// As [`Rotary::forward`].
///
/// # Errors
/// [`FfiError`](crate::FfiError) if shapes or kinds do not fit or the GPU refuses.
pub fn turn(rotary: &Rotary<'_>, qkv: &Tensor) -> Result<Tensor> {
    const OPERATION: &str = "gpu::turn";
    let rows = check_rotary(OPERATION, rotary, qkv)?;
    let (heads, kv_heads, width) = rotary.heads;
    let turned = Tensor::empty([rows, heads + kv_heads, width], (Kind::BFloat16, qkv.device()));
    let mut arguments = rotary_inputs(rotary, qkv).to_vec();
    arguments.push(Argument::of(&turned));
    arguments.extend(rotary_sizes(rotary, rows));
    let blocks = blocks_of(rows * (heads + kv_heads), WARPS);
    let sizes = Launch { grid: [blocks, 1, 1], block: BLOCK, shared_bytes: 0 };
    // SAFETY: these are the kernel's arguments, and all shapes were checked.
    unsafe { Kernel::new(MODULE, "turn").launch(OPERATION, qkv, sizes, &arguments) }?;
    Ok(turned)
}

/// As [`Rotary::backward`].
///
/// # Errors
/// [`FfiError`](crate::FfiError) if shapes or kinds do not fit or the GPU refuses.
pub fn turn_backward(
    rotary: &Rotary<'_>,
    qkv: &Tensor,
    dturned: &Tensor,
    dqkv: &Tensor,
    dnorms: Option<(&Tensor, &Tensor)>,
) -> Result<()> {
    const OPERATION: &str = "gpu::turn_backward";
    let rows = check_rotary(OPERATION, rotary, qkv)?;
    let (heads, kv_heads, width) = rotary.heads;
    let found = fits(dturned, qkv) && dturned.size() == [rows, heads + kv_heads, width];
    require(OPERATION, found && fits(dqkv, qkv) && dqkv.size() == qkv.size(), "gradients must fit qkv")?;
    let blocks = SUMMING_HEAD_BLOCKS.min(blocks_of(rows * (heads + kv_heads), WARPS));
    let sums = dnorms.map(|_| Tensor::empty([blocks * WARPS, 2, width], (Kind::Float, qkv.device())));
    let mut arguments = rotary_inputs(rotary, qkv).to_vec();
    arguments.extend([Argument::of(dturned), Argument::of(dqkv), Argument::optional(sums.as_ref())]);
    arguments.extend(rotary_sizes(rotary, rows));
    let sizes = Launch { grid: [blocks, 1, 1], block: BLOCK, shared_bytes: 0 };
    // SAFETY: these are the kernel's arguments, and all shapes were checked.
    unsafe { Kernel::new(MODULE, "turn_backward").launch(OPERATION, qkv, sizes, &arguments) }?;
    if let (Some(sums), Some((query, key))) = (sums, dnorms) {
        let sums = sums.sum_dim_intlist(0, false, Kind::Float);
        for (kind, gradient) in [query, key].into_iter().enumerate() {
            let _ = gradient.shallow_clone().g_add_(&sums.get(kind as i64));
        }
    }
    Ok(())
}

/// As [`crate::layer::gate`].
///
/// # Errors
/// [`FfiError`](crate::FfiError) if shapes or kinds do not fit or the GPU refuses.
pub fn gate(gate_up: &Tensor) -> Result<Tensor> {
    const OPERATION: &str = "gpu::gate";
    let (rows, inner) = gated_size(OPERATION, gate_up)?;
    let gated = Tensor::empty([rows, inner], (Kind::BFloat16, gate_up.device()));
    let arguments = [
        Argument::of(gate_up),
        Argument::of(&gated),
        Argument::Long(rows * inner),
        Argument::Int(inner as i32),
    ];
    // SAFETY: these are the kernel's arguments, and all shapes were checked.
    unsafe { Kernel::new(MODULE, "gate").launch(OPERATION, gate_up, gate_launch(rows * inner), &arguments) }?;
    Ok(gated)
}

/// As [`crate::layer::gate_backward`].
///
/// # Errors
/// [`FfiError`](crate::FfiError) if shapes or kinds do not fit or the GPU refuses.
pub fn gate_backward(d: &Tensor, gate_up: &Tensor) -> Result<(Tensor, Tensor)> {
    const OPERATION: &str = "gpu::gate_backward";
    let (rows, inner) = gated_size(OPERATION, gate_up)?;
    require(OPERATION, fits(d, gate_up) && d.size() == [rows, inner], "the gradient must fit")?;
    let (dgate_up, gated) = (gate_up.empty_like(), d.empty_like());
    let arguments = [
        Argument::of(d),
        Argument::of(gate_up),
        Argument::of(&dgate_up),
        Argument::of(&gated),
        Argument::Long(rows * inner),
        Argument::Int(inner as i32),
    ];
    let kernel = Kernel::new(MODULE, "gate_backward");
    // SAFETY: these are the kernel's arguments, and all shapes were checked.
    unsafe { kernel.launch(OPERATION, gate_up, gate_launch(rows * inner), &arguments) }?;
    Ok((dgate_up, gated))
}

fn gated_size(operation: &'static str, gate_up: &Tensor) -> Result<(i64, i64)> {
    let found = fits(gate_up, gate_up) && supports_gate(gate_up);
    require(operation, found, "gates must be rows of a multiple of 16")?;
    let size = gate_up.size();
    Ok((size[0], size[1] / 2))
}

/// Whether [`gate`] and [`gate_backward`] take `[rows, 2 inner]`: bf16 on a GPU, `inner` a multiple of 8.
#[must_use]
pub fn supports_gate(gate_up: &Tensor) -> bool {
    takes(gate_up) && gate_up.dim() == 2 && gate_up.size()[1] % 16 == 0
}

/// Whether [`rms_norm_backward`] takes `[rows, width]`: bf16 on a GPU, the width a multiple of 8 and not too large.
#[must_use]
pub fn supports_norm(x: &Tensor) -> bool {
    let width = x.size().last().copied().unwrap_or(0);
    takes(x) && x.dim() == 2 && width % 8 == 0 && width <= WIDEST_ROW
}

/// Whether [`turn`] and [`turn_backward`] take heads of this width: bf16 on a GPU, even and not too wide.
#[must_use]
pub fn supports_turn(qkv: &Tensor, width: i64) -> bool {
    takes(qkv) && width % 2 == 0 && width <= WIDEST_HEAD
}

fn gate_launch(count: i64) -> Launch {
    const THREADS: u32 = 256;
    Launch { grid: [blocks_of(count, 8 * i64::from(THREADS)), 1, 1], block: THREADS, shared_bytes: 0 }
}

/// As [`crate::layer::rms_norm_backward`].
///
/// # Errors
/// [`FfiError`](crate::FfiError) if shapes or kinds do not fit or the GPU refuses.
pub fn rms_norm_backward(inputs: &NormBackward<'_>) -> Result<Tensor> {
    const OPERATION: &str = "gpu::rms_norm_backward";
    const THREADS: u32 = 256;
    let NormBackward { dy, x, weight, residual, dweight, eps } = *inputs;
    let (rows, width) = (x.size()[0], x.size()[1]);
    let found = fits(x, x) && supports_norm(x);
    require(OPERATION, found, "rows must be a multiple of 8 wide")?;
    for other in [Some(dy), residual].into_iter().flatten() {
        require(OPERATION, fits(other, x) && other.size() == x.size(), "gradients must be like x")?;
    }
    require(OPERATION, fits(weight, x) && weight.size() == [width], "the weight must be as wide as a row")?;
    let dx = x.empty_like();
    let blocks = SUMMING_BLOCKS.min(rows);
    let sums = Tensor::empty([blocks, width], (Kind::Float, x.device()));
    let arguments = [
        Argument::of(dy),
        Argument::of(x),
        Argument::of(weight),
        Argument::optional(residual),
        Argument::of(&dx),
        Argument::of(&sums),
        Argument::Long(rows),
        Argument::Int(width as i32),
        Argument::Float(eps as f32),
    ];
    let sizes = Launch { grid: [blocks, 1, 1], block: THREADS, shared_bytes: width as u32 * 4 };
    // SAFETY: these are the kernel's arguments, and all shapes were checked.
    unsafe { Kernel::new(MODULE, "norm_backward").launch(OPERATION, x, sizes, &arguments) }?;
    let _ = dweight.shallow_clone().g_add_(&sums.sum_dim_intlist(0, false, Kind::Float));
    Ok(dx)
}

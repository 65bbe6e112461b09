//! Softmax statistics of a chunk of logits, and the loss's gradient by them: [`crate::head`] on a GPU.

use tch::{Kind, Tensor};

use super::{Argument, Kernel, Launch, Module, blocks_of, module, require, takes};
use crate::error::Result;
use crate::head::RowGradients;

const MODULE: Module = module!("head");

/// Threads of a block that sums a row.
const SUMMING_THREADS: u32 = 512;

/// What the loss reads of rows of logits, `[rows] f32` each.
#[derive(Debug)]
pub struct DeviceStatistics {
    /// log p(target).
    pub logprobs: Tensor,
    /// Nats.
    pub entropies: Tensor,
    normalizers: Tensor,
    /// `[rows] i64`
    targets: Tensor,
}

/// Whether the kernels take such logits.
#[must_use]
pub fn supports(logits: &Tensor) -> bool {
    takes(logits) && logits.dim() == 2 && logits.size()[1] % 8 == 0 && logits.is_contiguous()
}

/// The statistics of softmax(z / T).
///
/// # Errors
/// [`FfiError`](crate::FfiError) if shapes do not fit, a target is out of range, or the GPU refuses.
pub fn statistics(logits: &Tensor, temperature: f64, targets: &[i64]) -> Result<DeviceStatistics> {
    const OPERATION: &str = "gpu::head::statistics";
    require(OPERATION, supports(logits), "logits must be rows of a multiple of 8")?;
    let (rows, vocab) = (logits.size()[0], logits.size()[1]);
    let inside = targets.iter().all(|target| (0..vocab).contains(target));
    require(OPERATION, targets.len() as i64 == rows && inside, "each row needs a target of the vocabulary")?;
    let column = || Tensor::empty([rows], (Kind::Float, logits.device()));
    let found = DeviceStatistics {
        logprobs: column(),
        entropies: column(),
        normalizers: column(),
        targets: Tensor::from_slice(targets).to_device(logits.device()),
    };
    let arguments = [
        Argument::of(logits),
        Argument::of(&found.targets),
        Argument::Int(vocab as i32),
        Argument::Float((1.0 / temperature) as f32),
        Argument::of(&found.logprobs),
        Argument::of(&found.entropies),
        Argument::of(&found.normalizers),
    ];
    let sizes = Launch { grid: [rows, 1, 1], block: SUMMING_THREADS, shared_bytes: 0 };
    // SAFETY: these are the kernel's arguments, and all shapes and targets were checked.
    unsafe { Kernel::new(MODULE, "statistics").launch(OPERATION, logits, sizes, &arguments) }?;
    Ok(found)
}

/// As [`crate::head::gradient_in_place`].
///
/// # Errors
/// [`FfiError`](crate::FfiError) if shapes do not fit or the GPU refuses.
pub fn gradient_in_place(
    logits: &Tensor,
    temperature: f64,
    statistics: &DeviceStatistics,
    gradients: RowGradients<'_>,
) -> Result<()> {
    const OPERATION: &str = "gpu::head::gradient";
    const THREADS: u32 = 256;
    require(OPERATION, supports(logits), "logits must be rows of a multiple of 8")?;
    let (rows, vocab) = (logits.size()[0], logits.size()[1]);
    let lengths = [gradients.logprob.len(), gradients.entropy.len(), statistics.targets.size()[0] as usize];
    require(OPERATION, lengths.iter().all(|length| *length as i64 == rows), "each row needs its gradients")?;
    let column = |values: &[f32]| Tensor::from_slice(values).to_device(logits.device());
    let (by_logprob, by_entropy) = (column(gradients.logprob), column(gradients.entropy));
    let arguments = [
        Argument::of(logits),
        Argument::of(&statistics.targets),
        Argument::of(&statistics.entropies),
        Argument::of(&statistics.normalizers),
        Argument::of(&by_logprob),
        Argument::of(&by_entropy),
        Argument::Int(vocab as i32),
        Argument::Float((1.0 / temperature) as f32),
    ];
    let grid = [blocks_of(vocab, 8 * i64::from(THREADS)), rows, 1];
    // SAFETY: these are the kernel's arguments, and all shapes were checked; targets were when they were given.
    unsafe {
        let sizes = Launch { grid, block: THREADS, shared_bytes: 0 };
        Kernel::new(MODULE, "gradient").launch(OPERATION, logits, sizes, &arguments)
    }
}

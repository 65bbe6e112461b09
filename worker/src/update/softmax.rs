//! The softmax over a chunk of logits: what the loss reads of it, and the gradient by the logits.
//!
//! In: logits `[rows, vocab]` in the compute dtype, and a target for each row. Out: for each row the
//! target's log-probability and the entropy; then, from the loss's gradients by them, the gradient by the
//! logits, in the memory of the logits.

use g2rl_ffi::FfiError;
use g2rl_ffi::gpu;
use g2rl_ffi::head::{self, HeadStatistics, RowGradients};
use tch::{Device, Kind, Tensor};

/// The distributions softmax(z / T) of some rows of logits.
#[derive(Debug)]
pub struct SoftmaxRows<'a> {
    logits: Tensor,
    temperature: f64,
    targets: &'a [i64],
    statistics: HeadStatistics,
    /// The same on the GPU, where its kernels take the logits.
    on_device: Option<gpu::head::DeviceStatistics>,
}

impl<'a> SoftmaxRows<'a> {
    /// Takes over logits with one target for each row.
    ///
    /// # Errors
    /// [`FfiError`] if libtorch refuses or a target is not in the vocabulary.
    pub fn new(logits: Tensor, temperature: f64, targets: &'a [i64]) -> Result<Self, FfiError> {
        let mut on_device = None;
        let statistics = match logits.device() {
            Device::Cpu => head::statistics(&logits, temperature, targets)?,
            _ if gpu::head::supports(&logits) => {
                let found = gpu::head::statistics(&logits, temperature, targets)?;
                let (logprobs, entropies) = (to_vec(&found.logprobs), to_vec(&found.entropies));
                on_device = Some(found);
                HeadStatistics { logprobs, entropies, normalizers: Vec::new() }
            }
            device => {
                let logprobs = log_softmax(&logits, temperature);
                let targets = Tensor::from_slice(targets).to_device(device).unsqueeze(1);
                let entropies = -(&logprobs * logprobs.exp()).sum_dim_intlist(-1, false, Kind::Float);
                HeadStatistics {
                    logprobs: to_vec(&logprobs.gather(1, &targets, false).squeeze_dim(1)),
                    entropies: to_vec(&entropies),
                    normalizers: Vec::new(),
                }
            }
        };
        Ok(Self { logits, temperature, targets, statistics, on_device })
    }

    /// log p(target) of each row.
    #[must_use]
    pub fn logprobs(&self) -> &[f32] {
        &self.statistics.logprobs
    }

    /// Entropy of each row, nats.
    #[must_use]
    pub fn entropies(&self) -> &[f32] {
        &self.statistics.entropies
    }

    /// `(g (onehot - p) + c p (log p + H)) / T` from g = dLoss / dlog p(target) and the weight c of the
    /// entropy bonus, in the logits' kind.
    ///
    /// # Errors
    /// [`FfiError`] if libtorch refuses.
    pub fn into_gradient(self, gradients: RowGradients<'_>) -> Result<Tensor, FfiError> {
        let Self { logits, temperature, targets, statistics, on_device } = self;
        if let Some(statistics) = on_device {
            gpu::head::gradient_in_place(&logits, temperature, &statistics, gradients)?;
            return Ok(logits);
        }
        if logits.device() == Device::Cpu {
            head::gradient_in_place(&logits, temperature, targets, &statistics, gradients)?;
            return Ok(logits);
        }
        let column = |values: &[f32]| Tensor::from_slice(values).to_device(logits.device()).unsqueeze(1);
        let targets = Tensor::from_slice(targets).to_device(logits.device()).unsqueeze(1);
        let drawn = column(gradients.logprob) / temperature;
        let logprobs = log_softmax(&logits, temperature);
        let probabilities = logprobs.exp();
        let mut result = &probabilities * -&drawn;
        let _ = result.scatter_add_(1, &targets, &drawn);
        if gradients.entropy.iter().any(|weight| *weight != 0.0) {
            let weights = column(gradients.entropy) / temperature;
            result += (logprobs + column(&statistics.entropies)) * probabilities * weights;
        }
        Ok(result.to_kind(logits.kind()))
    }
}

fn log_softmax(logits: &Tensor, temperature: f64) -> Tensor {
    (logits.to_kind(Kind::Float) / temperature).log_softmax(-1, Kind::Float)
}

fn to_vec(values: &Tensor) -> Vec<f32> {
    Vec::try_from(values.to_kind(Kind::Float)).expect("a one-dimensional f32 tensor converts")
}

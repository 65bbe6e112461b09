//! `rollout -> features`: residual sums of running rollouts, and the feature of a finished one.
//!
//! Phi = (1 / L) sum_t (onehot(y_t) - p_t) W over the L response tokens (the end token included).
//! The map is linear, so the sums are kept over the vocabulary, added to in the pass that draws the
//! token, and multiplied with the head once per rollout.

use g2rl_ffi::head::project_residuals;
use tch::{Device, Kind, Tensor};

use super::RolloutError;
use crate::model::Model;

/// Rows of the head that are widened to f32 at a time.
const HEAD_ROWS: i64 = 16_384;

/// One vocabulary-long f32 sum for each slot.
#[derive(Debug)]
pub struct Residuals {
    /// `[slots, vocab] f32`
    sums: Tensor,
}

impl Residuals {
    /// Zeros.
    ///
    /// # Errors
    /// [`RolloutError::Torch`] if the memory cannot be had.
    pub fn new(slots: usize, model: &Model) -> Result<Self, RolloutError> {
        let size = [slots as i64, model.config().vocab_size];
        Ok(Self { sums: Tensor::f_zeros(size, (Kind::Float, model.weights().device()))? })
    }

    /// The sums `[slots, vocab] f32`.
    pub fn sums(&self) -> &Tensor {
        &self.sums
    }

    /// Starts a new sum.
    pub fn clear(&mut self, slot: usize) {
        let _ = self.sums.get(slot as i64).zero_();
    }

    /// The features `[hidden]` of slots, given each one's number of response tokens. On a CPU a feature does not
    /// depend on which others are asked for with it.
    ///
    /// # Errors
    /// [`RolloutError`] if libtorch refuses.
    pub fn features(&self, model: &Model, slots: &[(usize, usize)]) -> Result<Vec<Vec<f32>>, RolloutError> {
        let device = self.sums.device();
        let rows: Vec<i64> = slots.iter().map(|(slot, _)| *slot as i64).collect();
        let scales: Vec<f32> = slots.iter().map(|(_, length)| 1.0 / (*length).max(1) as f32).collect();
        let products = match device {
            Device::Cpu => project_residuals(&self.sums, &rows, model.head())?,
            _ => {
                let rows = Tensor::from_slice(&rows).to_device(device);
                project(&self.sums.f_index_select(0, &rows)?, model.head())?
            }
        };
        let features = products * Tensor::from_slice(&scales).to_device(device).unsqueeze(1);
        let hidden = model.config().hidden_size as usize;
        let values: Vec<f32> = Vec::try_from(features.f_view([-1])?)?;
        Ok(values.chunks(hidden).map(<[f32]>::to_vec).collect())
    }
}

/// `residuals [rows, vocab] f32` times the head `[vocab, hidden]`, in f32.
fn project(residuals: &Tensor, head: &Tensor) -> Result<Tensor, tch::TchError> {
    if head.kind() == Kind::Float {
        return residuals.f_matmul(head);
    }
    let (vocab, hidden) = head.size2()?;
    let mut sum = Tensor::f_zeros([residuals.size()[0], hidden], (Kind::Float, residuals.device()))?;
    let mut start = 0;
    while start < vocab {
        let count = HEAD_ROWS.min(vocab - start);
        let rows = head.f_narrow(0, start, count)?.f_to_kind(Kind::Float)?;
        let _ = sum.f_addmm_(&residuals.f_narrow(1, start, count)?, &rows)?;
        start += count;
    }
    Ok(sum)
}

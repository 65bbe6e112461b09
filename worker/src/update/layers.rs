//! Forward and backward through the layers, one recomputed layer at a time.
//!
//! The forward keeps only each layer's input, so activation memory is layers x tokens x hidden plus
//! the inside of one layer. The backward runs a layer again with gradients recorded and asks
//! autograd for the gradients by the layer's input and parameters.

use g2rl_ffi::autograd::grad;
use tch::{Kind, Tensor};

use super::UpdateError;
use super::gradients::{Bucket, GradientReduction, Gradients};
use super::pack::MicroBatch;
use crate::model::Model;
use crate::model::decoder::{RotaryRows, causal_attention, positions};
use crate::model::layout::Part;

/// What the forward of a micro-batch leaves behind for its backward.
#[derive(Debug)]
pub struct SavedForward {
    rotary: RotaryRows,
    /// Input of each layer `[tokens, hidden]`.
    inputs: Vec<Tensor>,
    /// Output of the last layer at the positions that predict response tokens
    /// `[response tokens, hidden]`.
    predicting: Tensor,
}

impl SavedForward {
    /// Runs the layers without recording gradients.
    #[must_use]
    pub fn run(model: &Model, batch: &MicroBatch) -> Self {
        let _guard = tch::no_grad_guard();
        let rotary = model.rotary_rows(&positions(&batch.lengths, batch.tokens.device()));
        let mut inputs = Vec::with_capacity(model.config().layers as usize);
        let mut x = model.embed(&batch.tokens);
        for layer in 0..model.config().layers as usize {
            let output = model
                .layer(model.layer_weights(layer), &x, &rotary, |qkv| causal_attention(qkv, &batch.lengths));
            inputs.push(std::mem::replace(&mut x, output));
        }
        Self { rotary, inputs, predicting: x.index_select(0, &batch.predictors) }
    }

    /// The hidden states that predict the response tokens, after the final norm, in the form the
    /// head's backward needs: leaves, and the graph that made them.
    #[must_use]
    pub fn normed(&self, model: &Model) -> NormedStates {
        let states = self.predicting.detach().set_requires_grad(true);
        let weight = model.final_norm_weight().detach().set_requires_grad(true);
        let normed = model.norm(&states, &weight);
        NormedStates { states, weight, normed }
    }

    /// The backward from the gradient by the predicting states `[response tokens, hidden]` to all
    /// parameters below. `reduction` is given in the last micro-batch: buckets are then complete
    /// and their sum over the ranks starts while the next layer's backward runs.
    ///
    /// # Errors
    /// [`UpdateError`] if libtorch or a peer fails.
    pub fn backward(
        mut self,
        model: &Model,
        batch: &MicroBatch,
        predicting_gradient: &Tensor,
        gradients: &Gradients,
        mut reduction: Option<&mut GradientReduction<'_>>,
    ) -> Result<(), UpdateError> {
        let tokens = batch.tokens.size()[0];
        let mut dx = Tensor::zeros(
            [tokens, model.config().hidden_size],
            (predicting_gradient.kind(), predicting_gradient.device()),
        )
        .index_copy(0, &batch.predictors, predicting_gradient);
        for layer in (0..self.inputs.len()).rev() {
            let input = self.inputs.pop().expect("one saved input for each layer");
            dx = self.layer_backward(model, batch, (layer, &input, &dx), gradients)?;
            if let Some(reduction) = reduction.as_deref_mut() {
                reduction.start(Bucket::Layer(layer))?;
            }
        }
        let _ = gradients.part(Part::Embedding).index_add_(0, &batch.tokens, &dx.to_kind(Kind::Float));
        match reduction {
            Some(reduction) => reduction.start(Bucket::Embedding),
            None => Ok(()),
        }
    }

    /// Recomputes one layer from its input and takes its gradients.
    fn layer_backward(
        &self,
        model: &Model,
        batch: &MicroBatch,
        (layer, input, output_gradient): (usize, &Tensor, &Tensor),
        gradients: &Gradients,
    ) -> Result<Tensor, UpdateError> {
        let x = input.detach().set_requires_grad(true);
        let leaves = model.layer_weights(layer).leaves();
        let output = model.layer(&leaves, &x, &self.rotary, |qkv| causal_attention(qkv, &batch.lengths));
        let named = leaves.tensors(layer);
        let mut inputs = vec![x.shallow_clone()];
        inputs.extend(named.iter().map(|(_, tensor)| tensor.shallow_clone()));
        let mut found = grad(&[output], &[output_gradient.shallow_clone()], &inputs)?.into_iter();
        let dx = found.next().flatten().ok_or(UpdateError::NoGradient { layer })?;
        for ((part, _), gradient) in named.iter().zip(found) {
            gradients.add(*part, &gradient.ok_or(UpdateError::NoGradient { layer })?);
        }
        Ok(dx)
    }
}

/// The predicting hidden states through the final norm, as an autograd graph.
#[derive(Debug)]
pub struct NormedStates {
    states: Tensor,
    weight: Tensor,
    normed: Tensor,
}

impl NormedStates {
    /// The values `[response tokens, hidden]`, outside the graph.
    pub fn values(&self) -> Tensor {
        self.normed.detach()
    }

    /// The gradient by the states before the norm; the norm's own is added to the buffer.
    ///
    /// # Errors
    /// [`UpdateError::Ffi`] if libtorch refuses.
    pub fn backward(&self, gradient: &Tensor, gradients: &Gradients) -> Result<Tensor, UpdateError> {
        let inputs = [self.states.shallow_clone(), self.weight.shallow_clone()];
        let mut found =
            grad(&[self.normed.shallow_clone()], &[gradient.shallow_clone()], &inputs)?.into_iter();
        let missing = || UpdateError::NoGradient { layer: usize::MAX };
        let states = found.next().flatten().ok_or_else(missing)?;
        gradients.add(Part::FinalNorm, &found.next().flatten().ok_or_else(missing)?);
        Ok(states)
    }
}

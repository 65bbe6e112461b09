//! Forward and backward through the layers, written out product by product.
//!
//! The forward keeps of each layer what [`Recompute`] says; the backward computes the rest again. Neither
//! records an autograd graph: every gradient goes straight into the flat buffer.

use g2rl_common::config::Recompute;
use g2rl_ffi::FfiError;
use g2rl_ffi::layer::NormBackward;
use tch::{Kind, Tensor};

use super::UpdateError;
use super::gradients::{Bucket, GradientReduction, Gradients};
use super::pack::MicroBatch;
use crate::model::Model;
use crate::model::attention::{Attended, Attention};
use crate::model::layer::{LayerTrace, RotaryRows};
use crate::model::layout::Part;
use crate::model::ops;

/// What is kept of a layer's forward.
#[derive(Debug)]
enum Kept {
    Everything(Box<LayerTrace>),
    InputAndAttention(Tensor, Attended),
    Input(Tensor),
}

/// What the forward of a micro-batch leaves behind for its backward.
#[derive(Debug)]
pub struct SavedForward<'a> {
    model: &'a Model,
    batch: &'a MicroBatch,
    rotary: RotaryRows,
    attention: Attention<'a>,
    layers: Vec<Kept>,
    /// Output of the last layer at the positions that predict response tokens
    /// `[response tokens, hidden]`.
    predicting: Tensor,
}

impl<'a> SavedForward<'a> {
    /// Runs the layers.
    ///
    /// # Errors
    /// [`FfiError`] if libtorch refuses.
    pub fn run(model: &'a Model, batch: &'a MicroBatch, recompute: Recompute) -> Result<Self, FfiError> {
        let _guard = tch::no_grad_guard();
        let rotary = model.rotary_rows(&batch.segments.positions());
        let attention = model.attention(&batch.segments);
        let count = model.config().layers as usize;
        let mut layers = Vec::with_capacity(count);
        let mut x = model.embed(&batch.tokens);
        for layer in 0..count {
            let weights = model.layer_weights(layer);
            let trace =
                LayerTrace::run(model.config(), weights, &x, &rotary, |input| attention.forward(input))?;
            x = trace.output(weights)?;
            layers.push(match recompute {
                Recompute::Nothing => Kept::Everything(Box::new(trace)),
                Recompute::AllButAttention => Kept::InputAndAttention(trace.input, trace.attended),
                Recompute::Layer => Kept::Input(trace.input),
            });
        }
        let predicting = x.index_select(0, &batch.predictors);
        Ok(Self { model, batch, rotary, attention, layers, predicting })
    }

    /// The hidden states that predict the response tokens, after the final norm: what the head reads.
    ///
    /// # Errors
    /// [`FfiError`] if libtorch refuses.
    pub fn normed(&self) -> Result<Tensor, FfiError> {
        self.model.final_norm(&self.predicting)
    }

    /// The backward from the gradient by [`Self::normed`] to all parameters below the head. `reduction` is
    /// given in the last micro-batch: buckets are then complete and their sum over the ranks starts while
    /// the next layer's backward runs.
    ///
    /// # Errors
    /// [`UpdateError`] if libtorch or a peer fails.
    pub fn backward(
        mut self,
        dnormed: &Tensor,
        gradients: &Gradients,
        mut reduction: Option<&mut GradientReduction<'_>>,
    ) -> Result<(), UpdateError> {
        let _guard = tch::no_grad_guard();
        let dpredicting = ops::rms_norm_backward(&NormBackward {
            dy: dnormed,
            x: &self.predicting,
            weight: self.model.final_norm_weight(),
            residual: None,
            dweight: &gradients.part(Part::FinalNorm),
            eps: self.model.config().rms_norm_eps,
        })?;
        if let Some(reduction) = reduction.as_deref_mut() {
            reduction.start(Bucket::Head)?;
        }
        // A prompt's last token predicts the first token of every answer.
        let tokens = self.batch.tokens.size()[0];
        let kind = (dpredicting.kind(), dpredicting.device());
        let mut dx = Tensor::zeros([tokens, self.model.config().hidden_size], kind).index_add(
            0,
            &self.batch.predictors,
            &dpredicting,
        );
        while let Some(kept) = self.layers.pop() {
            let layer = self.layers.len();
            let trace = self.trace(layer, kept)?;
            dx = self.layer_backward(layer, &trace, &dx, gradients)?;
            if let Some(reduction) = reduction.as_deref_mut() {
                reduction.start(Bucket::Layer(layer))?;
            }
        }
        let mut embedding = gradients.part(Part::Embedding);
        let _ = embedding.index_add_(0, &self.batch.tokens, &dx.to_kind(Kind::Float));
        match reduction {
            Some(reduction) => reduction.start(Bucket::Embedding),
            None => Ok(()),
        }
    }

    /// A layer's whole forward, of which what was not kept runs again.
    fn trace(&self, layer: usize, kept: Kept) -> Result<LayerTrace, FfiError> {
        let weights = self.model.layer_weights(layer);
        let run = |input: &Tensor, attended: Option<Attended>| {
            LayerTrace::run(self.model.config(), weights, input, &self.rotary, |attention| match attended {
                Some(attended) => Ok(attended),
                None => self.attention.forward(attention),
            })
        };
        match kept {
            Kept::Everything(trace) => Ok(*trace),
            Kept::InputAndAttention(input, attended) => run(&input, Some(attended)),
            Kept::Input(input) => run(&input, None),
        }
    }

    /// From the gradient by a layer's output to that by its input; the weights' are added to the buffer.
    fn layer_backward(
        &self,
        layer: usize,
        trace: &LayerTrace,
        dy: &Tensor,
        gradients: &Gradients,
    ) -> Result<Tensor, FfiError> {
        let (config, weights) = (self.model.config(), self.model.layer_weights(layer));
        let eps = config.rms_norm_eps;

        // 1. Feed-forward.
        let dgated = ops::product(|| dy.matmul(&weights.down));
        let (dgate_up, gated) = ops::gate_backward(&dgated, &trace.gate_up)?;
        gradients.add_product(Part::Down(layer), dy, &gated)?;
        gradients.add_product(Part::GateUp(layer), &dgate_up, &trace.post_normed)?;
        let dmiddle = ops::rms_norm_backward(&NormBackward {
            dy: &ops::product(|| dgate_up.matmul(&weights.gate_up)),
            x: &trace.middle,
            weight: &weights.post_norm,
            residual: Some(dy),
            dweight: &gradients.part(Part::PostNorm(layer)),
            eps,
        })?;

        // 2. Attention's output projection, and attention.
        let dattended = ops::product(|| dmiddle.matmul(&weights.attention_output));
        let dattended = dattended.view_as(&trace.attended.output);
        let attended = trace.attended.output.view([-1, config.heads * config.head_dim]);
        gradients.add_product(Part::AttentionOutput(layer), &dmiddle, &attended)?;
        let (dturned, dqkv) = self.attention.backward(&trace.attention, &dattended, &trace.attended)?;

        // 3. Rotation and norms of queries and keys.
        let norms = config
            .qk_norm
            .then(|| (gradients.part(Part::QueryNorm(layer)), gradients.part(Part::KeyNorm(layer))));
        let norms = norms.as_ref().map(|(query, key)| (query, key));
        ops::rotary_backward(&self.rotary.of(config, weights), &trace.attention.qkv, &dturned, &dqkv, norms)?;

        // 4. The product before them, and the layer's first norm.
        gradients.add_product(Part::Qkv(layer), &dqkv, &trace.normed)?;
        if config.qkv_bias {
            gradients.add(Part::QkvBias(layer), &dqkv.sum_dim_intlist(0, false, Kind::Float));
        }
        ops::rms_norm_backward(&NormBackward {
            dy: &ops::product(|| dqkv.matmul(&weights.qkv)),
            x: &trace.input,
            weight: &weights.input_norm,
            residual: Some(&dmiddle),
            dweight: &gradients.part(Part::InputNorm(layer)),
            eps,
        })
    }
}

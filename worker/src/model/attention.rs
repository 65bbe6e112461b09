//! Causal attention of packed segments, on any device, and its gradients.
//!
//! A segment attends to itself causally and before that to all of its prefix, which a group's answers share. Three ways:
//!
//! - on a CPU the project's own kernels;
//! - in bf16 on a GPU flash attention: all segments causally, then answers to their prompts, and one softmax made of both
//!   by their sums. The backward of a part needs only the whole output and the sums of both, so it runs part by part too;
//! - elsewhere libtorch's attention over runs of segments of equal length, which knows no prefixes.

use g2rl_ffi::FfiError;
use g2rl_ffi::attention::{PackedAttention, Segments};
use g2rl_ffi::flash::{FlashAttention, Spans};
use tch::{Device, Kind, Tensor};

use super::layer::AttentionInput;
use super::ops::differentiate;
use crate::profile::{self, Phase};

/// What an attention returns, and its backward needs.
#[derive(Debug)]
pub struct Attended {
    /// `[tokens, heads, head_dim]`
    pub output: Tensor,
    /// Logarithms of the softmaxes' sums, f32: `[tokens, heads]` on a CPU, `[heads, tokens]` of flash attention, else empty.
    pub normalizers: Tensor,
}

/// The attention of all layers over the same segments.
#[derive(Debug)]
pub struct Attention<'a> {
    segments: &'a Segments,
    flash: Option<Flash>,
}

/// Whether answers may share their prompt's tokens.
#[must_use]
pub fn knows_prefixes(device: Device, kind: Kind) -> bool {
    device == Device::Cpu || kind == Kind::BFloat16
}

impl<'a> Attention<'a> {
    /// Prepares it on a device.
    #[must_use]
    pub fn new(segments: &'a Segments, device: Device, kind: Kind) -> Self {
        let flash = device != Device::Cpu && kind == Kind::BFloat16 && !segments.is_empty();
        Self { segments, flash: flash.then(|| Flash::new(segments, device)) }
    }

    /// Runs it.
    ///
    /// # Errors
    /// [`FfiError`] if libtorch refuses or the device cannot attend to prefixes.
    pub fn forward(&self, input: &AttentionInput) -> Result<Attended, FfiError> {
        match &self.flash {
            Some(flash) => flash.forward(input),
            None if input.qkv.device() == Device::Cpu => {
                let (output, normalizers) = profile::time(Phase::Attention, || self.packed(input).forward())?;
                Ok(Attended { output, normalizers })
            }
            None => {
                let normalizers = Tensor::empty([0], (Kind::Float, input.qkv.device()));
                Ok(Attended { output: attend_by_runs(input, self.segments)?, normalizers })
            }
        }
    }

    /// The gradients by the rotated queries and keys, and a tensor like `qkv` with that by the values.
    ///
    /// # Errors
    /// [`FfiError`] if libtorch refuses.
    pub fn backward(
        &self,
        input: &AttentionInput,
        dout: &Tensor,
        attended: &Attended,
    ) -> Result<(Tensor, Tensor), FfiError> {
        match &self.flash {
            Some(flash) => flash.backward(input, dout, attended),
            None if input.qkv.device() == Device::Cpu => profile::time(Phase::Attention, || {
                self.packed(input).backward(dout, &attended.output, &attended.normalizers)
            }),
            None => {
                let [dturned, dqkv] = differentiate([&input.turned, &input.qkv], dout, |[turned, qkv]| {
                    let (turned, qkv) = (turned.shallow_clone(), qkv.shallow_clone());
                    attend_by_runs(&AttentionInput { turned, qkv, heads: input.heads }, self.segments)
                })?;
                Ok((dturned, dqkv))
            }
        }
    }

    fn packed(&self, input: &'a AttentionInput) -> PackedAttention<'a> {
        PackedAttention {
            turned: &input.turned,
            qkv: &input.qkv,
            heads: input.heads,
            segments: self.segments,
        }
    }
}

/// Flash attention over the same segments.
#[derive(Debug)]
struct Flash {
    own: Spans,
    prefixes: Option<Prefixes>,
}

/// Which rows attend to which prefixes: the answers of a group are one sequence of queries, their prompt one of keys.
#[derive(Debug)]
struct Prefixes {
    /// `[rows with a prefix] i64`
    queries: Tensor,
    query_spans: Spans,
    /// `[rows of prefixes] i64`
    keys: Tensor,
    key_spans: Spans,
}

impl Flash {
    fn new(segments: &Segments, device: Device) -> Self {
        let own = Spans::new(segments.lengths(), device);
        if !segments.has_prefixes() {
            return Self { own, prefixes: None };
        }
        let (mut queries, mut query_lengths) = (Vec::new(), Vec::new());
        let (mut keys, mut key_lengths) = (Vec::new(), Vec::new());
        let mut last = None;
        for (segment, prefix) in segments.prefixes().enumerate() {
            let Some(prefix) = prefix else { continue };
            let rows = segments.rows(segment);
            if last != Some(prefix) {
                query_lengths.push(0);
                key_lengths.push(segments.lengths()[prefix]);
                keys.extend(segments.rows(prefix));
                last = Some(prefix);
            }
            if let Some(length) = query_lengths.last_mut() {
                *length += segments.lengths()[segment];
            }
            queries.extend(rows);
        }
        let place = |rows: &[i64]| Tensor::from_slice(rows).to_device(device);
        let prefixes = Prefixes {
            queries: place(&queries),
            query_spans: Spans::new(&query_lengths, device),
            keys: place(&keys),
            key_spans: Spans::new(&key_lengths, device),
        };
        Self { own, prefixes: Some(prefixes) }
    }

    /// The attention of all segments to themselves.
    fn own<'a>(&'a self, (query, key, value): (&'a Tensor, &'a Tensor, &'a Tensor)) -> FlashAttention<'a> {
        FlashAttention { query, key, value, query_spans: &self.own, key_spans: &self.own, causal: true }
    }

    fn forward(&self, input: &AttentionInput) -> Result<Attended, FfiError> {
        let (query, key, value) = (input.query(), input.key(), input.value());
        let (mut output, mut normalizers) = self.own((&query, &key, &value)).forward()?;
        if let Some(prefixes) = &self.prefixes {
            let (query, key, value) = prefixes.select((&query, &key, &value));
            let (from_prefix, prefix_sums) = prefixes.attention((&query, &key, &value)).forward()?;
            let own_sums = normalizers.index_select(1, &prefixes.queries);
            let sums = own_sums.logaddexp(&prefix_sums);
            let share = |part: &Tensor| (part - &sums).exp().tr().unsqueeze(2);
            let own = output.index_select(0, &prefixes.queries) * share(&own_sums);
            let merged = (own + from_prefix * share(&prefix_sums)).to_kind(output.kind());
            let _ = output.index_copy_(0, &prefixes.queries, &merged);
            let _ = normalizers.index_copy_(1, &prefixes.queries, &sums);
        }
        Ok(Attended { output, normalizers })
    }

    fn backward(
        &self,
        input: &AttentionInput,
        dout: &Tensor,
        attended: &Attended,
    ) -> Result<(Tensor, Tensor), FfiError> {
        let (query, key, value) = (input.query(), input.key(), input.value());
        let Attended { output, normalizers } = attended;
        let [mut dquery, mut dkey, mut dvalue] =
            self.own((&query, &key, &value)).backward(dout, output, normalizers)?;
        if let Some(prefixes) = &self.prefixes {
            let (query, key, value) = prefixes.select((&query, &key, &value));
            let rows = |t: &Tensor| t.index_select(0, &prefixes.queries);
            let sums = normalizers.index_select(1, &prefixes.queries);
            let attention = prefixes.attention((&query, &key, &value));
            let [from_query, from_key, from_value] = attention.backward(&rows(dout), &rows(output), &sums)?;
            let _ = dquery.index_add_(0, &prefixes.queries, &from_query);
            let _ = dkey.index_add_(0, &prefixes.keys, &from_key);
            let _ = dvalue.index_add_(0, &prefixes.keys, &from_value);
        }
        let (heads, kv_heads, dim) = input.heads;
        let dqkv = input.qkv.empty_like();
        dqkv.view([-1, heads + 2 * kv_heads, dim]).narrow(1, heads + kv_heads, kv_heads).copy_(&dvalue);
        Ok((Tensor::cat(&[dquery, dkey], 1), dqkv))
    }
}

impl Prefixes {
    fn select(&self, (query, key, value): (&Tensor, &Tensor, &Tensor)) -> (Tensor, Tensor, Tensor) {
        let keys = |t: &Tensor| t.index_select(0, &self.keys);
        (query.index_select(0, &self.queries), keys(key), keys(value))
    }

    fn attention<'a>(
        &'a self,
        (query, key, value): (&'a Tensor, &'a Tensor, &'a Tensor),
    ) -> FlashAttention<'a> {
        FlashAttention {
            query,
            key,
            value,
            query_spans: &self.query_spans,
            key_spans: &self.key_spans,
            causal: false,
        }
    }
}

/// Consecutive segments of equal length go through one call of libtorch's attention.
fn attend_by_runs(input: &AttentionInput, segments: &Segments) -> Result<Tensor, FfiError> {
    if segments.has_prefixes() {
        return Err(FfiError::InvalidInput {
            operation: "attention",
            message: "prefixes are supported on the CPU and in bf16 only".to_owned(),
        });
    }
    let runs = equal_runs(segments.lengths());
    let sizes: Vec<i64> = runs.iter().map(|(length, count)| length * count).collect();
    let split = |t: Tensor| t.split_with_sizes(sizes.as_slice(), 0);
    let (queries, keys, values) = (split(input.query()), split(input.key()), split(input.value()));
    let outputs: Vec<Tensor> = runs
        .iter()
        .zip(queries.iter().zip(&keys).zip(&values))
        .map(|(run, ((query, key), value))| attend_run(*run, query, key, value))
        .collect();
    Ok(if outputs.len() == 1 { outputs[0].shallow_clone() } else { Tensor::cat(&outputs, 0) })
}

/// Lengths as (length, number of consecutive segments that have it).
fn equal_runs(lengths: &[i64]) -> Vec<(i64, i64)> {
    let mut runs: Vec<(i64, i64)> = Vec::new();
    for &length in lengths {
        match runs.last_mut() {
            Some((last, count)) if *last == length => *count += 1,
            _ => runs.push((length, 1)),
        }
    }
    runs
}

fn attend_run((length, count): (i64, i64), query: &Tensor, key: &Tensor, value: &Tensor) -> Tensor {
    let (heads, head_dim) = (query.size()[1], query.size()[2]);
    let kv_heads = key.size()[1];
    let queries = query.reshape([count, length, heads, head_dim]).transpose(1, 2);
    // The fused kernels want as many key heads as query heads.
    let repeat = |t: &Tensor| {
        t.reshape([count, length, kv_heads, 1, head_dim])
            .expand([count, length, kv_heads, heads / kv_heads, head_dim], false)
            .reshape([count, length, heads, head_dim])
            .transpose(1, 2)
    };
    let (keys, values) = (repeat(key), repeat(value));
    let output = Tensor::scaled_dot_product_attention(
        &queries,
        &keys,
        &values,
        None::<Tensor>,
        0.0,
        true,
        None,
        false,
    );
    output.transpose(1, 2).reshape([count * length, heads, head_dim])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_lengths_run_together() {
        assert_eq!(equal_runs(&[3, 3, 2, 3]), [(3, 2), (2, 1), (3, 1)]);
    }
}

//! How a step's sequences become mini-batches and the shares of the ranks.
//!
//! In: the sequences of a whole step. Out: for every mini-batch, one share for every rank.
//!
//! Invariants: every sequence is in exactly one share. Which sequences form a mini-batch, and the
//! weight of each token, depend on seed and step but not on the number of ranks, so the gradient
//! does not either. Generated and given responses are averaged each among themselves. Inside a mini-batch the heaviest share has at most the tokens of the lightest
//! plus one longest sequence.

use g2rl_common::ids::{RolloutId, StepIndex};
use g2rl_common::objective::{Aggregation, token_weights};
use g2rl_common::seed::CounterRng;

use super::interface::SequenceOrder;
use super::plan::ResponseSource;

/// A sequence to train on.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct PackedSequence {
    /// The rollout.
    pub rollout: RolloutId,
    /// Prompt and response tokens.
    pub tokens: u32,
    /// Response tokens, at least 1.
    pub response_tokens: u32,
    /// Of each of them.
    pub advantage: f32,
    /// Generated responses train the policy objective, given ones are imitated.
    pub source: ResponseSource,
}

/// How sequences are cut and weighed.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Packing {
    /// Seed of the run.
    pub seed: u64,
    /// The training step.
    pub step: StepIndex,
    /// Most sequences of a mini-batch over all ranks; 0 takes the whole step.
    pub per_minibatch: u32,
    /// Number of ranks, at least 1.
    pub ranks: u32,
    /// How the tokens of a mini-batch are averaged.
    pub aggregation: Aggregation,
    /// Factor of the imitation loss of given responses.
    pub imitation_coef: f64,
}

/// `[mini-batch][rank]` to the rank's share; no mini-batch if there are no sequences.
///
/// The number of mini-batches is the smallest that keeps them within `per_minibatch`, and their
/// sizes differ by one at most: a remainder of a few sequences would get an optimizer step as
/// large as the others.
#[must_use]
pub fn plan_minibatches(sequences: &[PackedSequence], packing: &Packing) -> Vec<Vec<Vec<SequenceOrder>>> {
    assert!(packing.ranks > 0, "no rank to train on");
    // 1. Order: as given for a whole step; shuffled before a cut, so that a mini-batch is not one
    //    prompt.
    let mut sequences = sequences.to_vec();
    let count = match packing.per_minibatch as usize {
        0 => usize::from(!sequences.is_empty()),
        most => sequences.len().div_ceil(most),
    };
    if count > 1 {
        CounterRng::new(packing.seed, &format!("mini-batches of step {}", packing.step))
            .shuffle(&mut sequences);
    }
    // 2. Cut; weights over each whole mini-batch; shares.
    let mut minibatches = Vec::with_capacity(count);
    let mut rest = sequences.as_slice();
    for index in 0..count {
        let (minibatch, others) = rest.split_at(rest.len().div_ceil(count - index));
        rest = others;
        minibatches.push(shares(minibatch, packing));
    }
    minibatches
}

/// A mini-batch's sequences from one source, with the weight of each one's tokens among them.
fn weighed(
    minibatch: &[PackedSequence],
    source: ResponseSource,
    aggregation: Aggregation,
) -> Vec<(PackedSequence, f64)> {
    let sequences: Vec<PackedSequence> = minibatch.iter().copied().filter(|s| s.source == source).collect();
    let lengths: Vec<usize> = sequences.iter().map(|sequence| sequence.response_tokens as usize).collect();
    sequences.into_iter().zip(token_weights(aggregation, &lengths)).collect()
}

/// Longest sequence first, each to the rank with the fewest tokens so far (Graham 1969).
fn shares(minibatch: &[PackedSequence], packing: &Packing) -> Vec<Vec<SequenceOrder>> {
    let mut sequences: Vec<(PackedSequence, f64)> = [ResponseSource::Generated, ResponseSource::Given]
        .into_iter()
        .flat_map(|source| weighed(minibatch, source, packing.aggregation))
        .collect();
    sequences.sort_by_key(|(sequence, _)| (std::cmp::Reverse(sequence.tokens), sequence.rollout));
    let mut shares: Vec<(u64, Vec<SequenceOrder>)> = vec![(0, Vec::new()); packing.ranks as usize];
    for (sequence, weight) in sequences {
        let (tokens, share) =
            shares.iter_mut().min_by_key(|(tokens, _)| *tokens).expect("there is a rank to train on");
        *tokens += u64::from(sequence.tokens);
        let (policy_weight, imitation_weight) = match sequence.source {
            ResponseSource::Generated => (weight, 0.0),
            ResponseSource::Given => (0.0, packing.imitation_coef * weight),
        };
        share.push(SequenceOrder {
            rollout: sequence.rollout,
            advantage: sequence.advantage,
            policy_weight: policy_weight as f32,
            imitation_weight: imitation_weight as f32,
        });
    }
    shares.into_iter().map(|(_, share)| share).collect()
}

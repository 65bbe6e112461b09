//! Sequences -> packed micro-batches.
//!
//! In: this rank's share of a mini-batch. Out: micro-batches of whole sequences, one after the
//! other without padding, each at most `tokens_per_microbatch` tokens long (a longer sequence gets
//! its own). Packing changes no gradient: every weight is already normalised over the global
//! mini-batch.
//!
//! Alignment: response token t of a sequence with p prompt tokens stands at position p + t and is
//! predicted by the hidden state at p + t - 1.

use std::ops::Range;

use g2rl_common::update::TrainSequence;
use tch::{Device, Tensor};

/// Why a share is refused.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum PackError {
    /// Prompt or response is empty, so that no token is predicted.
    #[error("sequence {id}: {tokens} tokens of which {prompt} are the prompt; both parts need at least one")]
    NoResponse {
        /// The rollout.
        id: String,
        /// All tokens.
        tokens: usize,
        /// Prompt tokens.
        prompt: u32,
    },
    /// A stream has not one value for each response token.
    #[error("sequence {id}: {found} behaviour log-probabilities for {expected} response tokens")]
    StreamLength {
        /// The rollout.
        id: String,
        /// Values given.
        found: usize,
        /// Values needed.
        expected: usize,
    },
    /// A token id is not in the vocabulary.
    #[error("sequence {id}: token id {token} is not below the vocabulary size {vocab}")]
    TokenOutOfRange {
        /// The rollout.
        id: String,
        /// The id.
        token: u32,
        /// Number of ids.
        vocab: i64,
    },
    /// The sequence is longer than the model's positions.
    #[error("sequence {id}: {tokens} tokens, the model has {positions} positions")]
    TooLong {
        /// The rollout.
        id: String,
        /// All tokens.
        tokens: usize,
        /// The model's limit.
        positions: i64,
    },
}

/// What the model allows.
#[derive(Debug, Clone, Copy)]
pub struct PackLimits {
    /// See [`g2rl_common::config::UpdateConfig::tokens_per_microbatch`].
    pub tokens_per_microbatch: usize,
    /// Number of token ids.
    pub vocab_size: i64,
    /// Longest sequence.
    pub max_positions: i64,
}

/// What the loss needs to know of one response token.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ResponseToken {
    /// Log-probability when it was sampled; not used where `policy_weight` is 0.
    pub behavior_logprob: f32,
    /// Its sequence's advantage.
    pub advantage: f32,
    /// Weight of the policy objective.
    pub policy_weight: f32,
    /// Weight of the negative log-likelihood.
    pub imitation_weight: f32,
}

/// Some sequences, packed.
#[derive(Debug)]
pub struct MicroBatch {
    /// Token ids of all sequences `[tokens] i64`.
    pub tokens: Tensor,
    /// Length of each sequence.
    pub lengths: Vec<i64>,
    /// Position of the hidden state that predicts each response token `[response tokens] i64`.
    pub predictors: Tensor,
    /// The response tokens `[response tokens] i64`.
    pub targets: Tensor,
    /// One entry for each response token.
    pub streams: Vec<ResponseToken>,
    /// The response tokens of each sequence, as ranges of `streams`.
    pub responses: Vec<Range<usize>>,
}

/// Packs a share. Longest sequences first, so that equal lengths are neighbours and the largest
/// micro-batch comes first: a run that does not fit fails at once, not at the end.
///
/// # Errors
/// [`PackError`], naming the rollout.
pub fn pack(
    sequences: &[TrainSequence],
    limits: PackLimits,
    device: Device,
) -> Result<Vec<MicroBatch>, PackError> {
    for sequence in sequences {
        check(sequence, limits)?;
    }
    let mut order: Vec<&TrainSequence> = sequences.iter().collect();
    order.sort_by_key(|s| (std::cmp::Reverse(s.tokens.len()), s.id));
    let mut batches: Vec<Vec<&TrainSequence>> = Vec::new();
    let mut filled = 0;
    for sequence in order {
        let length = sequence.tokens.len();
        match batches.last_mut() {
            Some(batch) if filled + length <= limits.tokens_per_microbatch => {
                batch.push(sequence);
                filled += length;
            }
            _ => {
                batches.push(vec![sequence]);
                filled = length;
            }
        }
    }
    Ok(batches.iter().map(|batch| assemble(batch, device)).collect())
}

fn check(sequence: &TrainSequence, limits: PackLimits) -> Result<(), PackError> {
    let (id, tokens) = (|| sequence.id.to_string(), sequence.tokens.len());
    let response = sequence.response_length();
    if sequence.prompt_length == 0 || response == 0 {
        return Err(PackError::NoResponse { id: id(), tokens, prompt: sequence.prompt_length });
    }
    if sequence.policy_weight != 0.0 && sequence.behavior_logprobs.len() != response {
        let found = sequence.behavior_logprobs.len();
        return Err(PackError::StreamLength { id: id(), found, expected: response });
    }
    if tokens as i64 > limits.max_positions {
        return Err(PackError::TooLong { id: id(), tokens, positions: limits.max_positions });
    }
    match sequence.tokens.iter().find(|t| i64::from(**t) >= limits.vocab_size) {
        Some(&token) => Err(PackError::TokenOutOfRange { id: id(), token, vocab: limits.vocab_size }),
        None => Ok(()),
    }
}

fn assemble(sequences: &[&TrainSequence], device: Device) -> MicroBatch {
    let mut tokens: Vec<i64> = Vec::new();
    let (mut predictors, mut targets) = (Vec::new(), Vec::new());
    let (mut streams, mut responses) = (Vec::new(), Vec::new());
    for sequence in sequences {
        let (start, prompt) = (tokens.len(), sequence.prompt_length as usize);
        tokens.extend(sequence.tokens.iter().map(|t| i64::from(*t)));
        predictors.extend((prompt - 1..sequence.tokens.len() - 1).map(|p| (start + p) as i64));
        targets.extend(sequence.tokens[prompt..].iter().map(|t| i64::from(*t)));
        let first = streams.len();
        streams.extend((0..sequence.response_length()).map(|t| ResponseToken {
            behavior_logprob: sequence.behavior_logprobs.get(t).copied().unwrap_or(0.0),
            advantage: sequence.advantage,
            policy_weight: sequence.policy_weight,
            imitation_weight: sequence.imitation_weight,
        }));
        responses.push(first..streams.len());
    }
    let place = |values: &[i64]| Tensor::from_slice(values).to_device(device);
    MicroBatch {
        tokens: place(&tokens),
        lengths: sequences.iter().map(|s| s.tokens.len() as i64).collect(),
        predictors: place(&predictors),
        targets: place(&targets),
        streams,
        responses,
    }
}

#[cfg(test)]
mod tests {
    use g2rl_common::ids::{GroupId, RolloutId};

    use super::*;

    const LIMITS: PackLimits = PackLimits { tokens_per_microbatch: 8, vocab_size: 100, max_positions: 64 };

    fn sequence(index: u32, tokens: &[u32], prompt_length: u32) -> TrainSequence {
        let response = tokens.len() - prompt_length as usize;
        TrainSequence {
            id: RolloutId { group: GroupId(0), index },
            tokens: tokens.to_vec(),
            prompt_length,
            behavior_logprobs: (0..response).map(|t| -(t as f32) - 1.0).collect(),
            advantage: index as f32,
            policy_weight: 0.5,
            imitation_weight: 0.0,
        }
    }

    fn ids(tensor: &Tensor) -> Vec<i64> {
        Vec::try_from(tensor).unwrap()
    }

    #[test]
    fn response_tokens_line_up_with_the_states_that_predict_them() {
        let sequences = [sequence(0, &[10, 11, 12], 1), sequence(1, &[20, 21, 22, 23], 2)];
        let batches = pack(&sequences, LIMITS, Device::Cpu).unwrap();
        let batch = &batches[0];
        assert_eq!(ids(&batch.tokens), [20, 21, 22, 23, 10, 11, 12]);
        assert_eq!(batch.lengths, [4, 3]);
        // 22 is predicted at the position of 21, and so on; never across sequences.
        assert_eq!(ids(&batch.predictors), [1, 2, 4, 5]);
        assert_eq!(ids(&batch.targets), [22, 23, 11, 12]);
        assert_eq!(batch.responses, [0..2, 2..4]);
        assert_eq!(batch.streams[1].behavior_logprob, -2.0);
        assert_eq!(batch.streams[2].advantage, 0.0);
    }

    #[test]
    fn micro_batches_keep_the_limit_and_every_sequence() {
        let sequences: Vec<_> = (0..7).map(|i| sequence(i, &vec![1; 2 + i as usize], 1)).collect();
        let batches = pack(&sequences, LIMITS, Device::Cpu).unwrap();
        assert!(batches.iter().all(|b| b.lengths.iter().sum::<i64>() <= 8));
        assert_eq!(batches.iter().map(|b| b.lengths.len()).sum::<usize>(), 7);
    }

    #[test]
    fn unusable_sequences_are_named() {
        let refuse = |s: TrainSequence| pack(&[s], LIMITS, Device::Cpu).unwrap_err().to_string();
        assert!(refuse(sequence(3, &[1, 2], 2)).contains("0.3"));
        assert!(refuse(sequence(3, &[1, 100], 1)).contains("100"));
        assert!(refuse(sequence(3, &[1; 65], 1)).contains("64 positions"));
        let mut short = sequence(3, &[1, 2, 3], 1);
        short.behavior_logprobs.pop();
        assert!(refuse(short).contains("1 behaviour"));
    }
}

//! Sequences -> packed micro-batches.
//!
//! In: this rank's share of a mini-batch. Out: micro-batches of whole sequences, one after the
//! other without padding, each at most `tokens_per_microbatch` tokens long (a longer sequence gets
//! its own). Answers to one prompt share its tokens: they are there once, as a segment that is the answers'
//! prefix. Packing changes no gradient: every weight is already normalised over the global mini-batch.
//!
//! Alignment: response token t of a sequence with p prompt tokens stands at position p + t and is
//! predicted by the hidden state at p + t - 1; for t = 0 that is the prompt's last token. A sequence's last
//! token predicts nothing and does not go through the model.

use std::collections::HashMap;
use std::ops::Range;

use g2rl_common::ids::{GroupId, RolloutId};
use g2rl_common::update::TrainSequence;
use g2rl_ffi::attention::Segments;
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
    /// Whether answers to one prompt share its tokens.
    pub share_prompts: bool,
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
    /// Token ids `[tokens] i64`.
    pub tokens: Tensor,
    /// Which tokens attend to which.
    pub segments: Segments,
    /// Row of the hidden state that predicts each response token `[response tokens] i64`.
    pub predictors: Tensor,
    /// The response tokens.
    pub targets: Vec<i64>,
    /// One entry for each response token.
    pub streams: Vec<ResponseToken>,
    /// The response tokens of each sequence, as ranges of `streams`.
    pub responses: Vec<Range<usize>>,
    /// The rollout of each sequence.
    pub ids: Vec<RolloutId>,
}

/// Packs a share. Longest sequences first, so that equal lengths are neighbours and the largest
/// micro-batch comes first: a run that does not fit fails at once, not at the end. Answers that share a
/// prompt stay together.
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
    let mut batches: Vec<Vec<Family<'_>>> = Vec::new();
    let mut filled = 0;
    for family in families(sequences, limits.share_prompts) {
        for sequence in family {
            // What the sequence adds to the current micro-batch, and what it takes in a new one.
            let (whole, own) = (sequence.tokens.len() - 1, sequence.response_length() - 1);
            let joins = |last: &Family<'_>| limits.share_prompts && same_prompt(last[0], sequence);
            match batches.last_mut() {
                Some(batch)
                    if filled + own <= limits.tokens_per_microbatch && batch.last().is_some_and(joins) =>
                {
                    batch.last_mut().expect("it was just looked at").push(sequence);
                    filled += own;
                }
                Some(batch) if filled + whole <= limits.tokens_per_microbatch => {
                    batch.push(vec![sequence]);
                    filled += whole;
                }
                _ => {
                    batches.push(vec![vec![sequence]]);
                    filled = whole;
                }
            }
        }
    }
    Ok(batches.iter().map(|batch| assemble(batch, device)).collect())
}

/// Sequences with one prompt.
type Family<'a> = Vec<&'a TrainSequence>;

fn same_prompt(a: &TrainSequence, b: &TrainSequence) -> bool {
    a.id.group == b.id.group
        && a.prompt_length == b.prompt_length
        && a.tokens[..a.prompt_length as usize] == b.tokens[..b.prompt_length as usize]
}

/// All sequences, longest first, in families if they share prompts.
fn families(sequences: &[TrainSequence], share_prompts: bool) -> Vec<Family<'_>> {
    let length = |s: &TrainSequence| std::cmp::Reverse(s.tokens.len());
    let mut order: Vec<&TrainSequence> = sequences.iter().collect();
    order.sort_by_key(|s| (length(s), s.id));
    if !share_prompts {
        return order.into_iter().map(|sequence| vec![sequence]).collect();
    }
    // A family's place is that of its longest sequence.
    let mut families: Vec<Family<'_>> = Vec::new();
    let mut of_group: HashMap<GroupId, Vec<usize>> = HashMap::new();
    for sequence in order {
        let candidates = of_group.entry(sequence.id.group).or_default();
        match candidates.iter().find(|at| same_prompt(families[**at][0], sequence)) {
            Some(at) => families[*at].push(sequence),
            None => {
                candidates.push(families.len());
                families.push(vec![sequence]);
            }
        }
    }
    families
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

/// The lists that become a micro-batch.
#[derive(Default)]
struct Assembly {
    tokens: Vec<i64>,
    segments: Segments,
    predictors: Vec<i64>,
    targets: Vec<i64>,
    streams: Vec<ResponseToken>,
    responses: Vec<Range<usize>>,
    ids: Vec<RolloutId>,
}

impl Assembly {
    /// Adds tokens as a segment and returns the row of the first.
    fn segment(&mut self, tokens: &[u32], prefix: Option<usize>) -> i64 {
        let start = self.tokens.len() as i64;
        if !tokens.is_empty() {
            self.tokens.extend(tokens.iter().map(|t| i64::from(*t)));
            self.segments.push(tokens.len() as i64, prefix);
        }
        start
    }

    /// Adds a sequence's response tokens; the first is predicted by row `first`, the others by the rows
    /// from `next` on.
    fn response(&mut self, sequence: &TrainSequence, first: i64, next: i64) {
        let length = sequence.response_length();
        self.predictors.push(first);
        self.predictors.extend((0..length as i64 - 1).map(|t| next + t));
        let response = &sequence.tokens[sequence.prompt_length as usize..];
        self.targets.extend(response.iter().map(|t| i64::from(*t)));
        let start = self.streams.len();
        self.streams.extend((0..length).map(|t| ResponseToken {
            behavior_logprob: sequence.behavior_logprobs.get(t).copied().unwrap_or(0.0),
            advantage: sequence.advantage,
            policy_weight: sequence.policy_weight,
            imitation_weight: sequence.imitation_weight,
        }));
        self.responses.push(start..self.streams.len());
        self.ids.push(sequence.id);
    }
}

fn assemble(families: &[Family<'_>], device: Device) -> MicroBatch {
    let mut all = Assembly::default();
    for family in families {
        let prompt = family[0].prompt_length as usize;
        if let [sequence] = family[..] {
            let start = all.segment(&sequence.tokens[..sequence.tokens.len() - 1], None);
            let first = start + prompt as i64 - 1;
            all.response(sequence, first, first + 1);
            continue;
        }
        let prefix = all.segments.len();
        let first = all.segment(&family[0].tokens[..prompt], None) + prompt as i64 - 1;
        for sequence in family {
            let next = all.segment(&sequence.tokens[prompt..sequence.tokens.len() - 1], Some(prefix));
            all.response(sequence, first, next);
        }
    }
    let place = |values: &[i64]| Tensor::from_slice(values).to_device(device);
    MicroBatch {
        tokens: place(&all.tokens),
        segments: all.segments,
        predictors: place(&all.predictors),
        targets: all.targets,
        streams: all.streams,
        responses: all.responses,
        ids: all.ids,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: PackLimits =
        PackLimits { tokens_per_microbatch: 8, vocab_size: 100, max_positions: 64, share_prompts: true };

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
        assert_eq!(ids(&batch.tokens), [20, 21, 22, 10, 11]);
        assert_eq!(batch.segments.lengths(), [3, 2]);
        assert!(!batch.segments.has_prefixes());
        // 22 is predicted at the position of 21, and so on; never across sequences.
        assert_eq!(ids(&batch.predictors), [1, 2, 3, 4]);
        assert_eq!(batch.targets, [22, 23, 11, 12]);
        assert_eq!(batch.responses, [0..2, 2..4]);
        assert_eq!(batch.ids.iter().map(|id| id.index).collect::<Vec<_>>(), [1, 0]);
        assert_eq!(batch.streams[1].behavior_logprob, -2.0);
        assert_eq!(batch.streams[2].advantage, 0.0);
    }

    #[test]
    fn answers_share_their_prompt() {
        // The second has a response of one token, whose state is never needed; the third another prompt.
        let sequences = [
            sequence(0, &[10, 11, 12, 13], 2),
            sequence(1, &[10, 11, 14], 2),
            sequence(2, &[10, 15, 16], 2),
            sequence(3, &[10, 11, 17, 18], 2),
        ];
        let batches = pack(&sequences, LIMITS, Device::Cpu).unwrap();
        assert_eq!(batches.len(), 1);
        let batch = &batches[0];
        assert_eq!(ids(&batch.tokens), [10, 11, 12, 17, 10, 15]);
        assert_eq!(batch.segments.lengths(), [2, 1, 1, 2]);
        assert_eq!(batch.segments.positions(), [0, 1, 2, 2, 0, 1]);
        assert_eq!(ids(&batch.predictors), [1, 2, 1, 3, 1, 5]);
        assert_eq!(batch.targets, [12, 13, 17, 18, 14, 16]);

        let apart = pack(&sequences, PackLimits { share_prompts: false, ..LIMITS }, Device::Cpu).unwrap();
        assert!(apart.iter().all(|batch| !batch.segments.has_prefixes()));
    }

    #[test]
    fn micro_batches_keep_the_limit_and_every_sequence() {
        let sequences: Vec<_> = (0..7).map(|i| sequence(i, &vec![1; 2 + i as usize], 1)).collect();
        for share_prompts in [true, false] {
            let batches = pack(&sequences, PackLimits { share_prompts, ..LIMITS }, Device::Cpu).unwrap();
            assert!(batches.iter().all(|b| b.segments.tokens() <= 8));
            assert_eq!(batches.iter().map(|b| b.responses.len()).sum::<usize>(), 7);
        }
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

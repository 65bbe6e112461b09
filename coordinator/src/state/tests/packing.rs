//! Properties of the cut into mini-batches and shares.

use std::collections::BTreeMap;

use crate::state::{PackedSequence, Packing, ResponseSource, SequenceOrder, plan_minibatches};
use g2rl_common::ids::{GroupId, RolloutId, StepIndex};
use g2rl_common::objective::Aggregation;
use proptest::prelude::*;

fn packing(per_minibatch: u32, ranks: u32) -> Packing {
    Packing {
        seed: 3,
        step: StepIndex(2),
        per_minibatch,
        ranks,
        aggregation: Aggregation::SequenceMeanTokenMean,
        imitation_coef: 0.25,
    }
}

/// Sequences of groups of 4, with these response lengths.
fn sequences(lengths: &[u32]) -> Vec<PackedSequence> {
    let sequence = |(index, &response_tokens): (usize, &u32)| PackedSequence {
        rollout: RolloutId { group: GroupId(index as u64 / 4), index: index as u32 % 4 },
        tokens: response_tokens + 11,
        response_tokens,
        advantage: index as f32,
        source: ResponseSource::Generated,
    };
    lengths.iter().enumerate().map(sequence).collect()
}

/// Mini-batch and order of each rollout, whichever rank has it.
fn by_rollout(plan: &[Vec<Vec<SequenceOrder>>]) -> BTreeMap<RolloutId, (usize, SequenceOrder)> {
    let mut found = BTreeMap::new();
    for (index, minibatch) in plan.iter().enumerate() {
        for order in minibatch.iter().flatten() {
            let before = found.insert(order.rollout, (index, order.clone()));
            assert!(before.is_none(), "rollout {} twice", order.rollout);
        }
    }
    found
}

fn aggregations() -> impl Strategy<Value = Aggregation> {
    prop_oneof![
        Just(Aggregation::TokenMean),
        Just(Aggregation::SequenceMeanTokenMean),
        Just(Aggregation::Constant { tokens: 100 }),
    ]
}

proptest! {
    #[test]
    fn every_sequence_is_in_one_share_and_shares_are_balanced(
        lengths in prop::collection::vec(1u32..5_000, 0..80),
        per_minibatch in 0u32..40,
        ranks in 1u32..9,
    ) {
        let all = sequences(&lengths);
        let tokens: BTreeMap<_, _> = all.iter().map(|sequence| (sequence.rollout, sequence.tokens)).collect();
        let plan = plan_minibatches(&all, &packing(per_minibatch, ranks));
        let found = by_rollout(&plan);
        prop_assert_eq!(found.len(), all.len());
        for sequence in &all {
            prop_assert_eq!(found[&sequence.rollout].1.advantage, sequence.advantage);
        }
        let mut sizes = Vec::new();
        for minibatch in &plan {
            prop_assert_eq!(minibatch.len(), ranks as usize);
            let loads: Vec<u32> =
                minibatch.iter().map(|share| share.iter().map(|order| tokens[&order.rollout]).sum()).collect();
            let longest = minibatch.iter().flatten().map(|order| tokens[&order.rollout]).max().unwrap();
            let (heaviest, lightest) = (loads.iter().max().unwrap(), loads.iter().min().unwrap());
            prop_assert!(*heaviest <= lightest + longest, "{loads:?}");
            sizes.push(minibatch.iter().map(Vec::len).sum::<usize>());
        }
        if let (Some(most), Some(least)) = (sizes.iter().max(), sizes.iter().min()) {
            prop_assert!(per_minibatch == 0 || *most <= per_minibatch as usize);
            prop_assert!(most - least <= 1, "{sizes:?}");
            prop_assert!(per_minibatch > 0 || sizes.len() == 1);
        }
    }

    #[test]
    fn the_number_of_ranks_changes_neither_minibatches_nor_weights(
        lengths in prop::collection::vec(1u32..5_000, 1..60),
        per_minibatch in 0u32..40,
        ranks in 2u32..9,
        aggregation in aggregations(),
    ) {
        let all = sequences(&lengths);
        let one = Packing { aggregation, ..packing(per_minibatch, 1) };
        let expected = by_rollout(&plan_minibatches(&all, &one));
        prop_assert_eq!(by_rollout(&plan_minibatches(&all, &Packing { ranks, ..one })), expected);
    }
}

#[test]
fn weights_are_those_of_the_global_minibatch() {
    // Sequence mean of token means over 2 sequences of 2 and 5 tokens: 1/(2 x 2) and 1/(2 x 5).
    let plan = plan_minibatches(&sequences(&[2, 5]), &packing(0, 2));
    let weights: Vec<f32> = by_rollout(&plan).values().map(|(_, order)| order.policy_weight).collect();
    assert_eq!(weights, [0.25, 0.1]);
    // Longest first: the sequence of 5 tokens goes to rank 0.
    assert_eq!(plan[0][0][0].rollout.index, 1);
}

/// Beside the policy's answers given solutions, with the coefficient: `mixed` of the golden values.
#[test]
fn answers_and_solutions_are_averaged_each_among_themselves() {
    let text = include_str!("../../../../common/tests/golden/golden_methods.json");
    let golden: serde_json::Value = serde_json::from_str(text).unwrap();
    for case in golden["mixed"].as_array().unwrap() {
        let lengths = |key: &str| -> Vec<u32> { serde_json::from_value(case[key].clone()).unwrap() };
        let (answers, solutions) = (lengths("answers"), lengths("solutions"));
        let mut all = sequences(&[answers.as_slice(), solutions.as_slice()].concat());
        all[answers.len()..].iter_mut().for_each(|sequence| sequence.source = ResponseSource::Given);
        let packing = Packing {
            aggregation: Aggregation::TokenMean,
            imitation_coef: case["coefficient"].as_f64().unwrap(),
            ..packing(0, 2)
        };
        let found = by_rollout(&plan_minibatches(&all, &packing));
        for (at, sequence) in all.iter().enumerate() {
            let order = &found[&sequence.rollout].1;
            let expected = match at < answers.len() {
                true => (case["policy_weight"].as_f64().unwrap() as f32, 0.0),
                false => (0.0, case["imitation_weight"].as_f64().unwrap() as f32),
            };
            assert_eq!((order.policy_weight, order.imitation_weight), expected, "sequence {at}");
        }
    }
}

#[test]
fn shares_are_balanced_by_tokens_not_by_sequences() {
    // 11 prompt tokens each: 111 against 51, then 51 + 41, then 51 + 41 + 41.
    let plan = plan_minibatches(&sequences(&[30, 100, 40, 30]), &packing(0, 2));
    let shares: Vec<Vec<u32>> =
        plan[0].iter().map(|share| share.iter().map(|order| order.rollout.index).collect()).collect();
    assert_eq!(shares, [vec![1], vec![2, 0, 3]]);
}

#[test]
fn a_cut_mixes_prompts_and_depends_on_seed_and_step() {
    let all = sequences(&[10; 64]);
    let cut = |packing: &Packing| {
        by_rollout(&plan_minibatches(&all, packing)).values().map(|(index, _)| *index).collect::<Vec<_>>()
    };
    let first = cut(&packing(16, 2));
    assert_eq!(first, cut(&packing(16, 2)));
    assert_ne!(first, cut(&Packing { seed: 4, ..packing(16, 2) }));
    assert_ne!(first, cut(&Packing { step: StepIndex(3), ..packing(16, 2) }));
    // 16 groups of 4 over 4 mini-batches: the chance that a group stays whole is below 1 in 40 each.
    let whole = first.chunks(4).filter(|group| group.iter().all(|index| *index == group[0])).count();
    assert!(whole <= 4, "{whole} of 16 groups are whole");
}

#[test]
fn no_sequences_make_no_minibatch() {
    assert!(plan_minibatches(&[], &packing(0, 2)).is_empty());
    assert!(plan_minibatches(&[], &packing(8, 2)).is_empty());
}

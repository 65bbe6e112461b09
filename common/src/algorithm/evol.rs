//! EVOL-RL (arXiv 2509.15194): rewards in two bands, inside which novelty of meaning decides.
//!
//! With the cosines of the responses' embeddings cut to [0, 1] as similarity s_ij, over the responses that
//! have an answer, and the class of right and the class of wrong ones:
//!
//! 1. u_i = 1 - (mean of s_ij over i's class + largest s_ij over all others) / 2; a response alone in its
//!    class has the mean over all others
//! 2. u~_i: u stretched to [0, 1] inside its class; 1 alone in a class, 1/2 if all of a class are equal
//! 3. a right answer earns 1/2 + u~/2, a wrong one -1 + u~/2, and a response without an answer -1
//!
//! So a right answer always earns more than a wrong one. The paper votes on which answer is right; here the
//! verifier says so, as in the comparison of arXiv 2512.15687. Its asymmetric clip and entropy bonus are
//! settings of `[objective]`. What is embedded is the text after `</think>`, or the whole response.

use super::{Algorithm, AlgorithmError, AlgorithmOptions, GroupInput, Needs};
use crate::geometry::GroupGeometry;
use crate::novelty::{DEGENERATE_TOLERANCE, NoveltyScores};

/// Novelty of meaning.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Evol;

impl Algorithm for Evol {
    fn name(&self) -> &'static str {
        "evol"
    }

    fn needs(&self) -> Needs {
        Needs { embeddings: true, ..Needs::default() }
    }

    fn shaped_rewards(
        &self,
        _options: &AlgorithmOptions,
        group: &GroupInput<'_>,
        _scores: Option<&NoveltyScores>,
    ) -> Result<Vec<f64>, AlgorithmError> {
        let geometry = GroupGeometry::from_features(group.embeddings)?;
        let answered: Vec<usize> = (0..group.rewards.len()).filter(|&i| group.answered[i]).collect();
        let novelty = |i: usize| novelty(&geometry, group.correct, &answered, i);
        let mut rewards = vec![-1.0; group.rewards.len()];
        for right in [true, false] {
            let class: Vec<usize> = answered.iter().copied().filter(|&i| group.correct[i] == right).collect();
            let scores: Vec<f64> = class.iter().map(|&i| novelty(i)).collect();
            let floor = if right { 0.5 } else { -1.0 };
            for (&i, stretched) in class.iter().zip(stretch(&scores)) {
                rewards[i] = floor + 0.5 * stretched;
            }
        }
        Ok(rewards)
    }
}

/// Step 1, of one of the responses with an answer.
fn novelty(geometry: &GroupGeometry, correct: &[bool], answered: &[usize], i: usize) -> f64 {
    let others: Vec<usize> = answered.iter().copied().filter(|&j| j != i).collect();
    let similarity = |j: &usize| geometry.cosine(i, *j).clamp(0.0, 1.0);
    let mean = |of: &[usize]| of.iter().map(similarity).sum::<f64>() / of.len().max(1) as f64;
    let class: Vec<usize> = others.iter().copied().filter(|&j| correct[j] == correct[i]).collect();
    let within = mean(if class.is_empty() { &others } else { &class });
    let nearest = others.iter().map(similarity).fold(0.0, f64::max);
    1.0 - 0.5 * (within + nearest)
}

/// Step 2, of one class.
fn stretch(scores: &[f64]) -> Vec<f64> {
    let low = scores.iter().copied().fold(f64::INFINITY, f64::min);
    let high = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    match scores {
        [_] => vec![1.0],
        // Rounding moves the scores of equal texts.
        _ if high - low <= DEGENERATE_TOLERANCE => vec![0.5; scores.len()],
        _ => scores.iter().map(|u| (u - low) / (high - low)).collect(),
    }
}

#[cfg(test)]
mod tests {
    use crate::algorithm::{AlgorithmKind, AlgorithmOptions, GroupInput, build};

    fn rewards(correct: &[bool], answered: &[bool], embeddings: &[Vec<f32>]) -> Vec<f64> {
        let evol = build(&AlgorithmOptions { kind: AlgorithmKind::Evol, ..AlgorithmOptions::default() });
        let base: Vec<f64> = correct.iter().map(|&c| if c { 1.0 } else { -1.0 }).collect();
        let group = GroupInput { rewards: &base, correct, answered, embeddings, ..GroupInput::default() };
        evol.group_advantages(&group).unwrap().shaped_rewards
    }

    #[test]
    fn equal_texts_get_the_middle_of_their_band_and_loners_its_end() {
        let same = || vec![0.6f32, 0.8];
        let found = rewards(&[true; 3], &[true; 3], &[same(), same(), same()]);
        assert_eq!(found, [0.75; 3]);
        let found = rewards(&[true, false], &[true; 2], &[same(), same()]);
        assert_eq!(found, [1.0, -0.5]);
        let found = rewards(&[false, false, false], &[true, true, false], &[same(), same(), same()]);
        assert_eq!(found, [-0.75, -0.75, -1.0]);
    }

    #[test]
    fn what_has_no_answer_is_left_out_of_the_comparison() {
        // Without the third, which is like the first, the first two are equally novel.
        let embeddings = [vec![1.0f32, 0.0], vec![0.0, 1.0], vec![1.0, 0.0]];
        let found = rewards(&[true, true, false], &[true, true, false], &embeddings);
        assert_eq!(found, [0.75, 0.75, -1.0]);
    }

    #[test]
    fn a_group_without_embeddings_is_refused() {
        let evol = build(&AlgorithmOptions { kind: AlgorithmKind::Evol, ..AlgorithmOptions::default() });
        let group = GroupInput { rewards: &[1.0], ..GroupInput::default() };
        let error = evol.group_advantages(&group).unwrap_err().to_string();
        assert!(error.contains("evol needs the embeddings"), "{error}");
    }
}

//! How good many answers to a problem are: pass@k and maj@k.
//!
//! In: which of n answers are correct, and what they say. Out: a number in [0, 1] for one problem;
//! [`crate::bootstrap`] makes a mean with an interval of many.

/// Probability that k answers drawn without replacement from n, c of them correct, contain a
/// correct one: 1 - C(n-c, k) / C(n, k), the unbiased estimate of Chen et al. (2021), arXiv
/// 2107.03374. `None` unless c <= n and 1 <= k <= n.
///
/// Computed as a product of factors in [0, 1], so that no binomial overflows.
#[must_use]
pub fn pass_at_k(n: u64, c: u64, k: u64) -> Option<f64> {
    if c > n || k == 0 || k > n {
        return None;
    }
    // Fewer than k wrong answers: each draw holds a correct one.
    if n - c < k {
        return Some(1.0);
    }
    let all_wrong: f64 = (n - c + 1..=n).map(|i| 1.0 - k as f64 / i as f64).product();
    Some(1.0 - all_wrong)
}

/// Whether the majority of the answers is correct; where several answers are equally frequent, the
/// share of them that is.
///
/// `answers` are canonical forms, `None` where nothing was extracted: that votes for nothing.
/// `correct[i]` says whether answer i was judged correct. Without any vote the result is 0.
///
/// # Panics
/// If the slices differ in length.
#[must_use]
pub fn majority<S: AsRef<str>>(answers: &[Option<S>], correct: &[bool]) -> f64 {
    assert_eq!(answers.len(), correct.len(), "one judgement for each answer");
    let mut votes: Vec<Votes<'_>> = Vec::new();
    for (answer, &correct) in answers.iter().zip(correct) {
        let Some(answer) = answer.as_ref().map(AsRef::as_ref) else { continue };
        match votes.iter_mut().find(|v| v.answer == answer) {
            Some(found) => {
                found.count += 1;
                found.correct += u32::from(correct);
            }
            None => votes.push(Votes { answer, count: 1, correct: u32::from(correct) }),
        }
    }
    let most = votes.iter().map(|v| v.count).max().unwrap_or(0);
    let winners: Vec<&Votes<'_>> = votes.iter().filter(|v| v.count == most).collect();
    if winners.is_empty() {
        return 0.0;
    }
    // Equal canonical forms are judged alike; should a verifier disagree with itself, the share.
    let share: f64 = winners.iter().map(|v| f64::from(v.correct) / f64::from(v.count)).sum();
    share / winners.len() as f64
}

struct Votes<'a> {
    answer: &'a str,
    count: u32,
    correct: u32,
}

/// maj@k of one problem: the mean of [`majority`] over consecutive blocks of k answers; answers
/// left over at the end are not used. `None` unless 1 <= k <= number of answers.
///
/// # Panics
/// If the slices differ in length.
#[must_use]
pub fn majority_at_k<S: AsRef<str>>(answers: &[Option<S>], correct: &[bool], k: usize) -> Option<f64> {
    assert_eq!(answers.len(), correct.len(), "one judgement for each answer");
    if k == 0 || k > answers.len() {
        return None;
    }
    let blocks = answers.len() / k;
    let sum: f64 = answers.chunks_exact(k).zip(correct.chunks_exact(k)).map(|(a, c)| majority(a, c)).sum();
    Some(sum / blocks as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pass_at_k_is_the_combinatorial_estimate() {
        // C(3, 2) / C(5, 2) = 3 / 10.
        assert!((pass_at_k(5, 2, 2).unwrap() - 0.7).abs() < 1e-15);
        // k = 1 is the share of correct answers.
        assert!((pass_at_k(16, 3, 1).unwrap() - 3.0 / 16.0).abs() < 1e-15);
        assert_eq!(pass_at_k(16, 0, 8), Some(0.0));
        assert_eq!(pass_at_k(16, 9, 8), Some(1.0));
        // One correct of n: k / n, also where the binomials have thousands of digits.
        assert!((pass_at_k(100_000, 1, 50_000).unwrap() - 0.5).abs() < 1e-12);
        assert_eq!((pass_at_k(4, 5, 1), pass_at_k(4, 1, 0), pass_at_k(4, 1, 5)), (None, None, None));
    }

    #[test]
    fn ties_are_split_evenly() {
        let answers = [Some("4"), Some("5"), Some("4"), Some("5"), None, None, None];
        let correct = [true, false, true, false, false, false, false];
        assert_eq!(majority(&answers, &correct), 0.5);
        assert_eq!(majority(&answers[..3], &correct[..3]), 1.0);
        assert_eq!(majority(&answers[3..], &correct[3..]), 0.0);
        assert_eq!(majority(&answers[4..], &correct[4..]), 0.0);
    }

    #[test]
    fn majority_at_k_averages_blocks() {
        let answers = [Some("4"), Some("4"), Some("5"), Some("4"), Some("4")];
        let correct = [true, true, false, true, true];
        // Blocks (4 4), (5 4): 1 and 1/2; the fifth answer is left over.
        assert_eq!(majority_at_k(&answers, &correct, 2), Some(0.75));
        assert_eq!(majority_at_k(&answers, &correct, 6), None);
    }
}

//! The main result in a paragraph: never more than the intervals say.
//!
//! A difference is called one only if its interval leaves out 0, its runs are at least two, and it is beyond all that the
//! control, which means nothing, may have gained.

use g2rl_common::bootstrap::Interval;

use super::series::evaluated;
use super::sources::Report;
use crate::experiment::{Comparison, MethodSummary, interval};

/// The paragraph.
pub(super) fn main_result(report: &Report) -> String {
    match &report.comparison {
        Some(comparison) => compared(comparison),
        None => side_by_side(report),
    }
}

/// What can be said of a difference.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Finding {
    /// Its interval contains 0.
    Nothing,
    /// One pair of runs: nobody knows how much runs differ.
    OneRun,
    /// Not beyond what the control shows.
    Noise,
    /// Higher or lower.
    Difference,
}

fn finding(difference: &Interval, runs: usize, noise: Option<&Interval>) -> Finding {
    let (low, high) = (difference.low, difference.high);
    let floor = noise.map_or(0.0, |noise| noise.low.abs().max(noise.high.abs()));
    match () {
        () if low <= 0.0 && high >= 0.0 => Finding::Nothing,
        () if runs < 2 => Finding::OneRun,
        () if difference.mean.abs() <= floor => Finding::Noise,
        () => Finding::Difference,
    }
}

fn find<'a>(of: &'a [(String, Interval)], name: &str) -> Option<&'a Interval> {
    of.iter().find(|(other, _)| other == name).map(|(_, interval)| interval)
}

fn compared(comparison: &Comparison) -> String {
    let Some(score) = comparison.scores.first() else { return "No score is compared.".to_owned() };
    let baseline = &comparison.baseline;
    let Some(base) = comparison.methods.iter().find(|m| m.method == *baseline) else {
        return format!("No run of {baseline}, the baseline, is complete: nothing can be compared yet.");
    };
    let mut text = find(&base.scores, score).map_or(String::new(), |level| {
        let problems = comparison.problems;
        format!(
            "After the last step {baseline}, the baseline, has a {score} of {} % on {problems} held-out problems. ",
            interval(score, level)
        )
    });
    let is_control = |method: &&MethodSummary| Some(&method.method) == comparison.control.as_ref();
    let control = comparison.methods.iter().find(is_control);
    let noise = control.and_then(|control| find(&control.differences, score));
    let others = comparison.methods.iter().filter(|method| method.method != *baseline && !is_control(method));
    let found: Vec<(&MethodSummary, &Interval)> =
        others.filter_map(|method| Some((method, find(&method.differences, score)?))).collect();
    for (method, difference) in &found {
        text.push_str(&sentence((method, difference), score, noise));
    }
    if found.is_empty() {
        text.push_str(
            "There is no pair of complete runs with the same warm start and seed to compare it with. ",
        );
    }
    if let (Some(control), Some(noise)) = (control, noise) {
        text.push_str(&format!(
            "The noise floor: {}, a control that means nothing, differs from the baseline by {} points. ",
            control.method,
            interval(score, noise)
        ));
    }
    if found.len() > 1 {
        text.push_str(&format!(
            "Of {} intervals of 95 % one in twenty leaves out 0 by chance. ",
            found.len()
        ));
    }
    if comparison.methods.iter().any(|method| method.runs < method.planned) {
        text.push_str("The experiment is not complete. ");
    }
    text.push_str("Differences are in points, with 95 % intervals over runs and problems.");
    text
}

fn sentence(
    (method, difference): (&MethodSummary, &Interval),
    score: &str,
    noise: Option<&Interval>,
) -> String {
    let (name, runs) = (&method.method, method.runs);
    let difference_text = interval(score, difference);
    let direction = if difference.mean > 0.0 { "higher" } else { "lower" };
    match finding(difference, runs, noise) {
        Finding::Nothing => format!(
            "{name} cannot be told from it: its {score} differs by {difference_text}, an interval that contains 0. "
        ),
        Finding::OneRun => format!(
            "The run of {name} ends {direction}, by {difference_text}; with one run the interval does not contain how much \
             runs differ, so nothing follows for the method. "
        ),
        Finding::Noise => format!(
            "{name} ends {direction}, by {difference_text}, which is no more than the control may show without meaning \
             anything. "
        ),
        Finding::Difference => {
            format!("{name} ends {direction}, by {difference_text}, over {runs} runs. ")
        }
    }
}

/// Without an experiment nothing says which runs belong together in pairs.
fn side_by_side(report: &Report) -> String {
    let Some(score) = report.runs.iter().find_map(|run| run.scores.first()) else {
        return "Nothing was evaluated: what follows is training alone.".to_owned();
    };
    let ends: Vec<String> = report
        .methods
        .iter()
        .filter_map(|method| {
            let runs: Vec<_> = report.of(method).collect();
            let last = *evaluated(&runs, score).last()?;
            let end = Interval { mean: last.mean, low: last.low, high: last.high };
            let count = if runs.len() == 1 { "one run".to_owned() } else { format!("{} runs", runs.len()) };
            Some(format!("{method} {} % after {} steps ({count})", interval(score, &end), last.x))
        })
        .collect();
    format!(
        "{score} in the last evaluation: {}. Intervals are over runs and problems. These runs were not planned as an \
         experiment, so no difference is claimed.",
        ends.join(", ")
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn i(mean: f64, low: f64, high: f64) -> Interval {
        Interval { mean, low, high }
    }

    #[test]
    fn nothing_is_said_that_intervals_and_control_do_not_allow() {
        let noise = i(0.01, -0.02, 0.04);
        assert_eq!(finding(&i(0.05, -0.01, 0.11), 3, None), Finding::Nothing);
        assert_eq!(finding(&i(0.05, 0.0, 0.10), 3, None), Finding::Nothing);
        assert_eq!(finding(&i(0.05, 0.01, 0.09), 1, None), Finding::OneRun);
        assert_eq!(finding(&i(0.03, 0.01, 0.05), 3, Some(&noise)), Finding::Noise);
        assert_eq!(finding(&i(-0.05, -0.09, -0.01), 3, Some(&noise)), Finding::Difference);
    }

    #[test]
    fn the_paragraph_has_the_noise_floor_beside_the_differences() {
        let method = |name: &str, runs, differences: Vec<(&str, Interval)>| MethodSummary {
            method: name.to_owned(),
            settings: Vec::new(),
            runs,
            planned: 2,
            scores: vec![("pass@1".to_owned(), i(0.4, 0.3, 0.5))],
            differences: differences.into_iter().map(|(name, i)| (name.to_owned(), i)).collect(),
            at_level: Vec::new(),
            differences_at_equal: Vec::new(),
            geometry: [].into(),
            curve: Vec::new(),
            rollouts: 0,
            seconds: 0.0,
        };
        let mut comparison = Comparison {
            name: "e".to_owned(),
            baseline: "grpo".to_owned(),
            control: Some("random".to_owned()),
            scores: vec!["pass@1".to_owned()],
            problems: 60,
            level: None,
            methods: vec![
                method("grpo", 2, vec![]),
                method("g2rl", 2, vec![("pass@1", i(0.1, 0.05, 0.15))]),
                method("evol", 1, vec![("pass@1", i(0.1, 0.05, 0.15))]),
                method("random", 2, vec![("pass@1", i(0.01, -0.02, 0.04))]),
            ],
        };
        let text = compared(&comparison);
        for part in [
            "grpo, the baseline, has a pass@1 of 40.0 [30.0, 50.0] % on 60 held-out problems",
            "g2rl ends higher, by 10.0 [5.0, 15.0], over 2 runs.",
            "The run of evol ends higher",
            "random, a control that means nothing, differs from the baseline by 1.0 [-2.0, 4.0] points",
            "not complete",
        ] {
            assert!(text.contains(part), "{part} in {text}");
        }
        comparison.methods[3].differences[0].1 = i(0.1, -0.02, 0.2);
        assert!(compared(&comparison).contains("no more than the control may show"), "{text}");
        comparison.methods.remove(0);
        assert!(compared(&comparison).contains("nothing can be compared yet"));
    }
}

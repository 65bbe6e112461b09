//! Cosines of pairs of responses by bins, with and without identical responses.
//!
//! From geometries of models where there are some: these know which responses are right. A journal has only the bins of
//! all pairs of a step, and how many of them are identical; those have cosine 1, so they are taken out of the last bin.

use g2rl_common::geometry::PairStatistics;

use super::curves::{file_name, styles};
use super::data::{RunCosines, RunData};
use super::plot::{Figure, Line, Plot, Point, Shape, Style};
use super::sources::Report;
use crate::geometry::{CosineReport, ModelGeometry, PairKind, PairReport};

/// All histograms.
pub(super) fn figures(report: &Report) -> Vec<Figure> {
    let figures = match report.geometry.is_empty() {
        true => vec![of_training(report)],
        false => vec![
            of_models(report, "gradient", |model| Some(&model.gradient)),
            of_models(report, "semantic", |model| model.semantic.as_ref()),
        ],
    };
    figures.into_iter().filter(|figure| !figure.plots.is_empty()).collect()
}

/// A line with a point at each bin's lower edge; `None` without pairs.
fn line(label: &str, style: Style, bins: &[f64]) -> Option<Line> {
    let pairs: f64 = bins.iter().sum();
    let point =
        |(bin, count): (usize, &f64)| Point::new(-1.0 + 2.0 * bin as f64 / bins.len() as f64, count / pairs);
    let points = bins.iter().enumerate().map(point).collect();
    (pairs > 0.0).then(|| Line { label: label.to_owned(), style, points })
}

fn plot(id: String, title: String, lines: Vec<Line>) -> Option<Plot> {
    (!lines.is_empty()).then(|| Plot {
        id,
        title,
        unit: "% of pairs".to_owned(),
        x: "cosine".to_owned(),
        share: true,
        shape: Shape::Bins,
        lines,
    })
}

const WHICH: [&str; 2] = ["all pairs", "not identical"];

fn of_models(
    report: &Report,
    what: &str,
    pairs: impl Fn(&ModelGeometry) -> Option<&Vec<PairReport>>,
) -> Figure {
    let of_kind = |kind: PairKind, identical: bool| {
        let lines = report.geometry.iter().enumerate().filter_map(|(place, model)| {
            let found = pairs(model)?.iter().find(|pairs| pairs.kind == kind)?;
            let found: Option<&CosineReport> = match identical {
                true => found.with_identical.as_ref(),
                false => found.without_identical.as_ref(),
            };
            let bins: Vec<f64> = found?.histogram.iter().map(|&pairs| pairs as f64).collect();
            line(&model.model, Style::of(place, false), &bins)
        });
        let which = WHICH[usize::from(!identical)];
        let id = format!("cosines-{what}-{}-{}", kind.as_str(), file_name(which));
        plot(id, format!("{}, {which}", capital(kind.as_str())), lines.collect())
    };
    let plots = PairKind::ALL.into_iter().flat_map(|kind| [(kind, true), (kind, false)]);
    let first = report.geometry.first();
    let (problems, samples, temperature) =
        first.map_or((0, 0, 0.0), |model| (model.problems, model.samples, model.temperature));
    Figure {
        title: format!("Cosines of {what} features"),
        caption: format!(
            "Pairs of answers to one problem: {problems} problems, {samples} answers each, temperature {temperature}; by \
             whether the two are right. Identical answers have cosine 1."
        )
        .replace("semantic features", "embeddings of the texts"),
        plots: plots.filter_map(|(kind, identical)| of_kind(kind, identical)).collect(),
    }
}

fn capital(text: &str) -> String {
    let mut chars = text.chars();
    chars.next().map_or(String::new(), |first| first.to_uppercase().chain(chars).collect())
}

fn of_training(report: &Report) -> Figure {
    let of = |identical: bool| {
        let lines = styles(report).into_iter().filter_map(|(method, style)| {
            let runs: Vec<&RunData> = report.of(method).collect();
            let cosines = runs.iter().filter_map(|run| run.cosines.as_ref());
            line(method, style, &bins(cosines, identical))
        });
        let which = WHICH[usize::from(!identical)];
        plot(format!("cosines-training-{}", file_name(which)), capital(which), lines.collect())
    };
    let bins = PairStatistics::default().histogram.len();
    Figure {
        title: "Cosines of gradient features".to_owned(),
        caption: format!(
            "Pairs of responses of a group in the last fifth of the training steps, {bins} bins. Identical responses have \
             cosine 1 and are taken out of the last bin. A run's journal does not say which pairs are of right and of wrong \
             responses; `g2rl-coordinator geometry` does, and its directory given as --geometry shows it here."
        ),
        plots: [true, false].into_iter().filter_map(of).collect(),
    }
}

/// The sum of some runs' bins.
fn bins<'a>(runs: impl Iterator<Item = &'a RunCosines>, identical: bool) -> Vec<f64> {
    let mut sum: Vec<f64> = Vec::new();
    for run in runs {
        sum.resize(sum.len().max(run.histogram.len()), 0.0);
        sum.iter_mut().zip(&run.histogram).for_each(|(sum, pairs)| *sum += pairs);
        if let Some(last) = sum.last_mut().filter(|_| !identical) {
            *last = (*last - run.identical).max(0.0);
        }
    }
    sum
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn identical_pairs_are_taken_out_of_the_last_bin() {
        let one = RunCosines { histogram: vec![1.0, 0.0, 5.0], identical: 4.0 };
        let two = RunCosines { histogram: vec![0.0, 2.0, 3.0], identical: 3.0 };
        let all = [one, two];
        assert_eq!(bins(all.iter(), true), [1.0, 2.0, 8.0]);
        assert_eq!(bins(all.iter(), false), [1.0, 2.0, 1.0]);
        assert!(bins([].iter(), true).is_empty());
    }

    #[test]
    fn a_line_has_shares_at_the_lower_edges() {
        let line = line("a", Style::of(0, false), &[1.0, 2.0, 4.0, 1.0]).unwrap();
        let points: Vec<(f64, f64)> = line.points.iter().map(|p| (p.x, p.mean)).collect();
        assert_eq!(points, [(-1.0, 0.125), (-0.5, 0.25), (0.0, 0.5), (0.5, 0.125)]);
        assert_eq!(super::line("a", Style::of(0, false), &[0.0, 0.0]), None);
    }
}

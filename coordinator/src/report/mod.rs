//! One file that shows what an experiment, or a few runs, came to.
//!
//! In: run directories, alone or as an experiment, and geometries of models ([`ReportOptions`]). Out: a page without any
//! other file ([`html`]), and each of its plots as a file ([`plot_files`]). The same input gives the same bytes. Must not
//! know: how runs are made, and what a method is.
//!
//! ```text
//! directories -> Report -> Plot (curves, histograms) -> SVG, PNG
//!                  |-----> SampleGroup                   |
//!                  '-----> Section (experiment) ---------'-> page
//! ```
//!
//! | file | what |
//! |---|---|
//! | `data` | what is read of a run |
//! | `sources` | which runs belong together |
//! | `series` | smoothed, averaged over runs, thinned |
//! | `curves` | which curves there are |
//! | `histograms` | cosines by bins |
//! | `plot`, `draw`, `heat` | a plot as data, and with `plotters` |
//! | `svg`, `bitmap` | its two forms |
//! | `groups`, `choose` | sample groups, and which ones |
//! | `words` | the main result in a paragraph |
//! | `page`, `samples` | the page |
//!
//! Invariants: texts of models reach the page through the template's escaping only. What a page holds is bounded in every
//! dimension that grows with the runs: curves are per method and thinned, groups are counted and cut.

mod bitmap;
mod choose;
mod curves;
mod data;
mod draw;
mod groups;
mod heat;
mod histograms;
mod page;
mod plot;
mod samples;
mod series;
mod sources;
mod svg;
#[cfg(test)]
pub(crate) mod tests;
mod words;

use std::path::PathBuf;

pub use self::sources::Report;

/// What a report is about.
#[derive(Debug, Clone, Default)]
pub struct ReportOptions {
    /// Run directories with the name of what they are runs of.
    pub runs: Vec<(String, PathBuf)>,
    /// An experiment's file, or its directory.
    pub experiment: Option<PathBuf>,
    /// Directory of `g2rl-coordinator geometry`.
    pub geometry: Option<PathBuf>,
    /// What the data is called; by default the name of the training data.
    pub data_name: Option<String>,
}

/// A plot as files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlotFile {
    /// Name without an ending.
    pub name: String,
    /// Scalable, in the light palette.
    pub svg: String,
    /// The same in pixels.
    pub png: Vec<u8>,
}

/// The page.
///
/// # Errors
/// If a plot cannot be drawn.
pub fn html(report: &Report) -> anyhow::Result<String> {
    page::page(report)
}

/// Every plot of the page as files.
///
/// # Errors
/// If a plot cannot be drawn.
pub fn plot_files(report: &Report) -> anyhow::Result<Vec<PlotFile>> {
    let figures = curves::figures(report).into_iter().chain(histograms::figures(report));
    let plots = figures.flat_map(|figure| figure.plots);
    plots
        .map(|plot| Ok(PlotFile { svg: svg::file(&plot)?, png: bitmap::png(&plot)?, name: plot.id }))
        .collect()
}

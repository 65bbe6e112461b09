//! A plot as data: what `draw` draws and what the table beside it says.

/// Plots that are looked at together, with one legend.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Figure {
    /// The heading.
    pub(super) title: String,
    /// What the plots show, and how it was made.
    pub(super) caption: String,
    /// Each with the same lines, as far as they have points.
    pub(super) plots: Vec<Plot>,
}

/// One plot.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Plot {
    /// Unique in the report; a file name.
    pub(super) id: String,
    /// What it shows.
    pub(super) title: String,
    /// The unit of y.
    pub(super) unit: String,
    /// Name of x.
    pub(super) x: String,
    /// Values are shares, shown in per cent.
    pub(super) share: bool,
    /// How points are joined.
    pub(super) shape: Shape,
    /// In the order of the legend.
    pub(super) lines: Vec<Line>,
}

/// How points become a picture.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Shape {
    /// A line.
    Curve,
    /// A line with a marker at each point.
    Marked,
    /// Bins of equal width, each from its point to the next.
    Bins,
}

/// What tells lines apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Style {
    /// Place in the palette, below [`COLORS`].
    pub(super) color: usize,
    /// Dashed.
    pub(super) dashed: bool,
    /// Place among the markers.
    pub(super) marker: usize,
}

/// Colours of the palette; the last one is grey.
pub(super) const COLORS: usize = 8;

impl Style {
    /// The style of a method: the control is grey and dashed, the others have a colour each as long as there are some.
    pub(super) fn of(place: usize, control: bool) -> Self {
        let colors = COLORS - 1;
        match control {
            true => Self { color: colors, dashed: true, marker: place },
            false => Self { color: place % colors, dashed: (place / colors) % 2 == 1, marker: place },
        }
    }
}

/// One line.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Line {
    /// As the legend names it.
    pub(super) label: String,
    /// How it is drawn.
    pub(super) style: Style,
    /// By ascending x.
    pub(super) points: Vec<Point>,
}

/// A point with its interval, which is empty where there is none.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Point {
    /// Where.
    pub(super) x: f64,
    /// How much.
    pub(super) mean: f64,
    /// Lower end.
    pub(super) low: f64,
    /// Upper end.
    pub(super) high: f64,
}

impl Point {
    /// Without an interval.
    pub(super) fn new(x: f64, mean: f64) -> Self {
        Self { x, mean, low: mean, high: mean }
    }
}

impl Plot {
    fn points(&self) -> impl Iterator<Item = &Point> {
        self.lines.iter().flat_map(|line| &line.points)
    }

    /// What of x is seen.
    pub(super) fn x_range(&self) -> (f64, f64) {
        if self.shape == Shape::Bins {
            return (-1.0, 1.0);
        }
        let (low, high) = extremes(self.points().map(|point| point.x));
        if low < high { (low, high) } else { (low - 0.5, high + 0.5) }
    }

    /// What of y is seen: all means; intervals of evaluations whole, of steps half as much again on either side.
    pub(super) fn y_range(&self) -> (f64, f64) {
        let (low, high) = extremes(self.points().map(|point| point.mean));
        let span = match high - low {
            span if span > 0.0 => span,
            _ => (low.abs() / 10.0).max(0.01),
        };
        let (ends_low, _) = extremes(self.points().map(|point| point.low));
        let (_, ends_high) = extremes(self.points().map(|point| point.high));
        let pad = 0.06 * span;
        let mut low = (ends_low - pad).max(low - 0.5 * span).min(low - pad);
        let mut high = (ends_high + pad).min(high + 0.5 * span).max(high + pad);
        if self.shape == Shape::Marked {
            // Whiskers are seen whole.
            (low, high) = (low.min(ends_low - pad), high.max(ends_high + pad));
        }
        if self.share {
            (low, high) = (low.max(0.0), high.min(1.0));
        }
        if self.shape == Shape::Bins {
            low = 0.0;
        }
        if low < high { (low, high) } else { (low - pad, high + pad) }
    }

    /// A number of it, with as many digits as a span of this size needs.
    pub(super) fn number(&self, value: f64, span: f64) -> String {
        let unit = if self.share { 100.0 } else { 1.0 };
        let digits = (1.0 - (unit * span).abs().max(1e-6).log10().floor()).clamp(0.0, 6.0) as usize;
        let text = format!("{:.digits$}", unit * value);
        let zero = text.trim_start_matches('-').chars().all(|c| matches!(c, '0' | '.'));
        let sign = if zero { "" } else { "\u{2212}" };
        text.strip_prefix('-').map_or(text.clone(), |rest| format!("{sign}{rest}"))
    }
}

fn extremes(values: impl Iterator<Item = f64>) -> (f64, f64) {
    let (low, high) =
        values.fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), x| (low.min(x), high.max(x)));
    if low <= high { (low, high) } else { (0.0, 1.0) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plot(points: Vec<Point>, share: bool) -> Plot {
        let line = Line { label: "a".to_owned(), style: Style::of(0, false), points };
        Plot {
            id: "p".to_owned(),
            title: String::new(),
            unit: String::new(),
            x: String::new(),
            share,
            shape: Shape::Curve,
            lines: vec![line],
        }
    }

    #[test]
    fn means_are_seen_whole_and_intervals_as_far_as_they_leave_room() {
        let wide = |x, mean| Point { x, mean, low: mean - 9.0, high: mean + 0.1 };
        let plot = plot(vec![wide(1.0, 0.0), wide(3.0, 1.0)], false);
        // 1 + 0.1 + 0.06 above; half the span of 1 below.
        let (low, high) = plot.y_range();
        assert!((low + 0.5).abs() < 1e-12 && (high - 1.16).abs() < 1e-12, "{low} {high}");
        assert_eq!(plot.x_range(), (1.0, 3.0));
    }

    #[test]
    fn ranges_of_one_value_or_none_are_not_empty() {
        for points in [vec![], vec![Point::new(4.0, 0.0)], vec![Point::new(4.0, 1.0)]] {
            let plot = plot(points, true);
            let ((a, b), (c, d)) = (plot.x_range(), plot.y_range());
            assert!(a < b && c < d && c >= 0.0 && d <= 1.0, "{a} {b} {c} {d}");
        }
    }

    #[test]
    fn numbers_have_the_digits_that_their_span_needs() {
        let (share, number) = (plot(vec![], true), plot(vec![], false));
        assert_eq!((share.number(0.256, 0.2), share.number(0.256, 0.05)), ("26".into(), "25.6".into()));
        assert_eq!(number.number(-0.256, 0.2), "\u{2212}0.26");
        assert_eq!(number.number(-0.0001, 0.2), "0.00");
        assert_eq!(number.number(123.4, 50.0), "123");
    }

    #[test]
    fn every_method_has_its_style() {
        let styles: Vec<Style> = (0..14).map(|place| Style::of(place, false)).collect();
        for (at, style) in styles.iter().enumerate() {
            let same = |other: &&Style| (other.color, other.dashed) == (style.color, style.dashed);
            assert_eq!(styles.iter().filter(same).count(), 1, "{at}");
        }
        assert_eq!(Style::of(2, true), Style { color: 7, dashed: true, marker: 2 });
    }
}

//! A plot drawn on any backend of `plotters`.

use std::sync::Once;

use plotters::coord::Shift;
use plotters::coord::types::RangedCoordf64;
use plotters::prelude::*;
use plotters::style::{FontStyle, register_font};

use super::plot::{Line, Plot, Point, Shape, Style};

/// What a thing in a picture is; a look gives each a colour.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Role {
    /// Place in the palette.
    Series(usize),
    /// Words and numbers.
    Text,
    /// Lines behind the data.
    Grid,
    /// Axes.
    Axis,
    /// What is behind everything.
    Surface,
    /// A cosine from -1 (0) to 1 (8).
    Heat(usize),
}

/// How a plot looks.
pub(super) struct Look {
    /// Pixels of a unit: sizes are given in units.
    pub(super) scale: u32,
    /// Width and height, units.
    pub(super) size: (u32, u32),
    /// The colour of each role.
    pub(super) paint: fn(Role) -> RGBColor,
    /// Title and legend are inside, on a surface: the picture stands alone.
    pub(super) alone: bool,
}

/// The light palette: that of Okabe and Ito, which people who see fewer colours can tell apart, darker where white is
/// behind it.
pub(super) fn light(role: Role) -> RGBColor {
    const SERIES: [u32; 8] = [0x0072B2, 0xC74E00, 0x008A66, 0xB3578F, 0x3A9BD1, 0xB87D00, 0x6B5B00, 0x6B7280];
    const HEAT: [u32; 9] =
        [0x2166AC, 0x4F91C4, 0x8EBBDB, 0xC9DEED, 0xF4F4F2, 0xF6D3BF, 0xECA27F, 0xD6694C, 0xB2182B];
    let hex = |rgb: u32| RGBColor((rgb >> 16) as u8, (rgb >> 8) as u8, rgb as u8);
    match role {
        Role::Series(at) => hex(SERIES[at % SERIES.len()]),
        Role::Heat(at) => hex(HEAT[at.min(HEAT.len() - 1)]),
        Role::Text => hex(0x374151),
        Role::Grid => hex(0xE5E7EB),
        Role::Axis => hex(0x9CA3AF),
        Role::Surface => hex(0xFFFFFF),
    }
}

/// The only font: layout does not depend on what a machine has.
const FONT: &[u8] = include_bytes!("font/Inter-Regular-latin.ttf");

/// Makes the font known, once.
fn font() {
    static REGISTERED: Once = Once::new();
    REGISTERED.call_once(|| {
        let registered = register_font("sans-serif", FontStyle::Normal, FONT);
        assert!(registered.is_ok(), "the font that comes with the program can be read");
    });
}

type Failed<DB> = DrawingAreaErrorKind<<DB as DrawingBackend>::ErrorType>;
type Drawn<DB> = Result<(), Failed<DB>>;
type Area<DB> = DrawingArea<DB, Shift>;
type Chart<'a, DB> = ChartContext<'a, DB, Cartesian2d<RangedCoordf64, RangedCoordf64>>;

impl Look {
    /// The picture's size, pixels.
    pub(super) fn pixels(&self) -> (u32, u32) {
        (self.size.0 * self.scale, self.size.1 * self.scale)
    }

    /// Pixels of so many units.
    fn px(&self, units: f64) -> i32 {
        (units * f64::from(self.scale)).round() as i32
    }

    fn text(&self, size: f64) -> TextStyle<'static> {
        font();
        let style = TextStyle::from((FontFamily::SansSerif, self.px(size)).into_font());
        TextStyle { color: (self.paint)(Role::Text).to_backend_color(), ..style }
    }

    fn stroke(&self, role: Role, width: f64) -> ShapeStyle {
        (self.paint)(role).stroke_width(self.px(width).unsigned_abs())
    }
}

/// Draws a plot.
///
/// # Errors
/// If the backend fails.
pub(super) fn draw<DB: DrawingBackend>(root: &Area<DB>, plot: &Plot, look: &Look) -> Drawn<DB> {
    let area = match look.alone {
        false => root.clone(),
        true => {
            root.fill(&(look.paint)(Role::Surface))?;
            let top = heading(root, plot, look)?;
            root.clone().split_vertically(top).1
        }
    };
    let ((x0, x1), (y0, y1)) = (plot.x_range(), plot.y_range());
    let mut chart = ChartBuilder::on(&area)
        .margin_top(look.px(8.0))
        .margin_right(look.px(14.0))
        .x_label_area_size(look.px(42.0))
        .y_label_area_size(look.px(50.0))
        .build_cartesian_2d(x0..x1, y0..y1)?;
    let (x_number, y_number) = (|x: &f64| axis_number(*x), |y: &f64| plot.number(*y, y1 - y0));
    chart
        .configure_mesh()
        .disable_x_mesh()
        .light_line_style(TRANSPARENT)
        .bold_line_style(look.stroke(Role::Grid, 1.0))
        .axis_style(look.stroke(Role::Axis, 1.0))
        .set_all_tick_mark_size(look.px(3.0))
        .x_labels(6)
        .y_labels(5)
        .x_label_formatter(&x_number)
        .y_label_formatter(&y_number)
        .label_style(look.text(15.0))
        .axis_desc_style(look.text(15.0))
        .x_desc(plot.x.as_str())
        .draw()?;
    for (place, line) in plot.lines.iter().enumerate() {
        match plot.shape {
            Shape::Marked => whiskers(&mut chart, line, look, beside(place, plot.lines.len()), (y0, y1))?,
            Shape::Curve | Shape::Bins => band(&mut chart, line, look, (y0, y1))?,
        }
    }
    for line in &plot.lines {
        stroke(&mut chart, line, plot.shape, look, (y0, y1))?;
    }
    Ok(())
}

/// Steps as whole numbers, cosines with a digit.
fn axis_number(x: f64) -> String {
    let text = if x.fract() == 0.0 { format!("{x:.0}") } else { format!("{x:.1}") };
    text.replace('-', "\u{2212}")
}

/// How far an interval stands beside its point, units: those of several lines at one x must not cover each other.
fn beside(place: usize, lines: usize) -> f64 {
    const APART: f64 = 3.0;
    APART * (place as f64 - (lines as f64 - 1.0) / 2.0)
}

/// The intervals of a line with few points, each with a foot at its ends.
fn whiskers<DB: DrawingBackend>(
    chart: &mut Chart<'_, DB>,
    line: &Line,
    look: &Look,
    beside: f64,
    (y0, y1): (f64, f64),
) -> Drawn<DB> {
    let style = look.stroke(Role::Series(line.style.color), 1.0);
    let (shift, foot) = (look.px(beside), look.px(1.5));
    for point in line.points.iter().filter(|point| point.low < point.high) {
        let (x, top) = chart.backend_coord(&(point.x, point.high.clamp(y0, y1)));
        let (_, bottom) = chart.backend_coord(&(point.x, point.low.clamp(y0, y1)));
        let (x, area) = (x + shift, chart.plotting_area().strip_coord_spec());
        let origin = area.get_base_pixel();
        let at = |x: i32, y: i32| (x - origin.0, y - origin.1);
        for ends in [
            [at(x, top), at(x, bottom)],
            [at(x - foot, top), at(x + foot, top)],
            [at(x - foot, bottom), at(x + foot, bottom)],
        ] {
            area.draw(&PathElement::new(ends, style))?;
        }
    }
    Ok(())
}

/// The interval of a line.
fn band<DB: DrawingBackend>(
    chart: &mut Chart<'_, DB>,
    line: &Line,
    look: &Look,
    (y0, y1): (f64, f64),
) -> Drawn<DB> {
    if line.points.len() < 2 || line.points.iter().all(|point| point.low == point.high) {
        return Ok(());
    }
    let upper = line.points.iter().map(|point| (point.x, point.high.clamp(y0, y1)));
    let lower = line.points.iter().rev().map(|point| (point.x, point.low.clamp(y0, y1)));
    let color = (look.paint)(Role::Series(line.style.color)).mix(0.14);
    chart.draw_series([Polygon::new(upper.chain(lower).collect::<Vec<_>>(), color.filled())]).map(|_| ())
}

/// Corners of what is drawn of a line.
fn corners(points: &[Point], shape: Shape) -> Vec<(f64, f64)> {
    if shape != Shape::Bins {
        return points.iter().map(|point| (point.x, point.mean)).collect();
    }
    let ends = points.iter().skip(1).map(|point| point.x).chain([1.0]);
    points.iter().zip(ends).flat_map(|(point, end)| [(point.x, point.mean), (end, point.mean)]).collect()
}

fn stroke<DB: DrawingBackend>(
    chart: &mut Chart<'_, DB>,
    line: &Line,
    shape: Shape,
    look: &Look,
    (y0, y1): (f64, f64),
) -> Drawn<DB> {
    let style = look.stroke(Role::Series(line.style.color), 1.75);
    let corners: Vec<(f64, f64)> =
        corners(&line.points, shape).into_iter().map(|(x, y)| (x, y.clamp(y0, y1))).collect();
    match line.style.dashed {
        false => chart.draw_series(LineSeries::new(corners, style))?,
        true => chart.draw_series(DashedLineSeries::new(corners, look.px(5.0), look.px(3.0), style))?,
    };
    // A single point is no line.
    if shape == Shape::Marked || line.points.len() == 1 {
        let filled = style.filled();
        let marker = |point: &Point| {
            EmptyElement::at((point.x, point.mean.clamp(y0, y1)))
                + Polygon::new(marker(line.style, f64::from(look.scale)), filled)
        };
        chart.draw_series(line.points.iter().map(marker))?;
    }
    Ok(())
}

/// Corners of a marker around its point.
pub(super) fn marker(style: Style, scale: f64) -> Vec<(i32, i32)> {
    const MARKERS: [(u32, f64, f64); 5] =
        [(16, 0.0, 3.6), (4, 0.125, 4.4), (3, 0.25, 5.0), (4, 0.0, 5.0), (3, 0.75, 5.0)];
    let (count, turn, radius) = MARKERS[style.marker % MARKERS.len()];
    let corner = |i: u32| {
        let angle = std::f64::consts::TAU * (f64::from(i) / f64::from(count) + turn);
        let along = |x: f64| (radius * scale * x).round() as i32;
        (along(angle.cos()), -along(angle.sin()))
    };
    (0..count).map(corner).collect()
}

/// Title and legend; returns their height, pixels.
fn heading<DB: DrawingBackend>(root: &Area<DB>, plot: &Plot, look: &Look) -> Result<i32, Failed<DB>> {
    let (left, size) = (look.px(16.0), look.text(15.0));
    root.draw_text(&format!("{} ({})", plot.title, plot.unit), &look.text(20.0), (left, look.px(12.0)))?;
    let (mut x, mut y) = (left, look.px(36.0));
    for line in &plot.lines {
        let width = look.px(40.0) + root.estimate_text_size(&line.label, &size)?.0 as i32 * 5 / 4;
        if x + width > look.px(f64::from(look.size.0)) && x > left {
            (x, y) = (left, y + look.px(18.0));
        }
        let style = look.stroke(Role::Series(line.style.color), 2.0);
        let middle = y + look.px(6.0);
        let to = |offset: f64| (x + look.px(offset), middle);
        match line.style.dashed {
            false => root.draw(&PathElement::new([to(0.0), to(20.0)], style))?,
            true => {
                for part in [0.0, 8.0, 16.0] {
                    root.draw(&PathElement::new([to(part), to((part + 5.0_f64).min(20.0))], style))?;
                }
            }
        }
        if plot.shape == Shape::Marked {
            let (cx, cy) = to(10.0);
            let corners = marker(line.style, f64::from(look.scale));
            let corners: Vec<(i32, i32)> = corners.into_iter().map(|(dx, dy)| (cx + dx, cy + dy)).collect();
            root.draw(&Polygon::new(corners, style.filled()))?;
        }
        root.draw_text(&line.label, &size, (x + look.px(26.0), y))?;
        x += width;
    }
    Ok(y + look.px(20.0))
}

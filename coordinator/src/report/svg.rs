//! Plots as SVG: for the page, where colours are classes, and as files.

use anyhow::anyhow;
use maud::{Markup, PreEscaped, html};
use plotters::prelude::*;

use super::draw::{Look, Role, draw, light};
use super::heat::{self, Heat};
use super::plot::{COLORS, Plot};

/// A page's plots: small, so that text keeps its size on a phone; coordinates are whole numbers, hence the scale.
const PAGE: Look = Look { scale: 4, size: (420, 250), paint: marked, alone: false };

/// Files' plots.
pub(super) const FILE: Look = Look { scale: 4, size: (640, 400), paint: light, alone: true };

/// A colour that stands for a role until [`classes`] has named it.
pub(super) fn marked(role: Role) -> RGBColor {
    let at = ROLES.iter().position(|(other, _)| *other == role).unwrap_or(0);
    RGBColor(0xFE, 0xDC, at as u8)
}

/// Each role with its class.
const ROLES: [(Role, &str); COLORS + 13] = [
    (Role::Series(0), "c0"),
    (Role::Series(1), "c1"),
    (Role::Series(2), "c2"),
    (Role::Series(3), "c3"),
    (Role::Series(4), "c4"),
    (Role::Series(5), "c5"),
    (Role::Series(6), "c6"),
    (Role::Series(7), "c7"),
    (Role::Text, "ct"),
    (Role::Grid, "cg"),
    (Role::Axis, "ca"),
    (Role::Surface, "cb"),
    (Role::Heat(0), "h0"),
    (Role::Heat(1), "h1"),
    (Role::Heat(2), "h2"),
    (Role::Heat(3), "h3"),
    (Role::Heat(4), "h4"),
    (Role::Heat(5), "h5"),
    (Role::Heat(6), "h6"),
    (Role::Heat(7), "h7"),
    (Role::Heat(8), "h8"),
];

/// A plot as a file.
///
/// # Errors
/// If it cannot be drawn.
pub(super) fn file(plot: &Plot) -> anyhow::Result<String> {
    render(plot, &FILE)
}

fn render(plot: &Plot, look: &Look) -> anyhow::Result<String> {
    let mut text = String::new();
    let root = SVGBackend::with_string(&mut text, look.pixels()).into_drawing_area();
    draw(&root, plot, look).map_err(|error| anyhow!("plot {}: {error}", plot.id))?;
    root.present().map_err(|error| anyhow!("plot {}: {error}", plot.id))?;
    drop(root);
    Ok(text)
}

/// A plot in the page, with a title and a description for who does not see it.
///
/// # Errors
/// If it cannot be drawn.
pub(super) fn inline(plot: &Plot, description: &str) -> anyhow::Result<Markup> {
    let title = format!("{} ({})", plot.title, plot.unit);
    Ok(embed(&render(plot, &PAGE)?, PAGE.pixels(), "chart", &plot.id, (title.as_str(), description)))
}

/// A heat map in the page.
///
/// # Errors
/// If it cannot be drawn.
pub(super) fn inline_heat(heat: &Heat, id: &str) -> anyhow::Result<Markup> {
    let mut text = String::new();
    let pixels = heat::pixels(heat);
    let root = SVGBackend::with_string(&mut text, pixels).into_drawing_area();
    heat::draw(&root, heat, marked).map_err(|error| anyhow!("heat map {id}: {error}"))?;
    root.present().map_err(|error| anyhow!("heat map {id}: {error}"))?;
    drop(root);
    let description = format!("Cosines of {0} by {0} responses, from -1 to 1.", heat.size);
    Ok(embed(&text, pixels, "heat", id, ("Cosines of the group's responses", description.as_str())))
}

/// Puts what was drawn into an element that scales and says what it is.
fn embed(
    drawn: &str,
    (width, height): (u32, u32),
    class: &str,
    id: &str,
    (title, description): (&str, &str),
) -> Markup {
    let (title_id, description_id) = (format!("{id}-title"), format!("{id}-desc"));
    let inside = drawn.split_once(">\n").map_or("", |(_, rest)| rest);
    let inside = inside.trim_end().strip_suffix("</svg>").unwrap_or(inside);
    html! {
        svg class=(class) viewBox=(format!("0 0 {width} {height}")) role="img"
            aria-labelledby=(format!("{title_id} {description_id}")) {
            title id=(title_id) { (title) }
            desc id=(description_id) { (description) }
            (PreEscaped(classes(inside)))
        }
    }
}

/// Colours become classes, and what every element says is left out.
fn classes(drawn: &str) -> String {
    let mut text = drawn
        .replace(" opacity=\"1\"", "")
        .replace(" font-family=\"sans-serif\"", "")
        .replace(" fill=\"none\" stroke=\"", " stroke=\"")
        .replace(" stroke=\"none\"", "")
        .replace(" \"/>", "\"/>")
        .replace(">\n", ">")
        .replace("\n</", "</");
    for (at, (_, class)) in ROLES.iter().enumerate() {
        let color = format!("#FEDC{at:02X}");
        text = text
            .replace(&format!("fill=\"{color}\""), &format!("class=\"f {class}\""))
            .replace(&format!("stroke=\"{color}\""), &format!("class=\"s {class}\""));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::super::plot::{Line, Point, Shape, Style};
    use super::*;

    fn plot() -> Plot {
        let points = vec![Point { x: 1.0, mean: 0.2, low: 0.1, high: 0.3 }, Point::new(2.0, 0.4)];
        let line = |place, label: &str| Line {
            label: label.to_owned(),
            style: Style::of(place, false),
            points: points.clone(),
        };
        Plot {
            id: "p".to_owned(),
            title: "A <plot>".to_owned(),
            unit: "%".to_owned(),
            x: "step".to_owned(),
            share: true,
            shape: Shape::Marked,
            lines: vec![line(0, "a"), line(8, "<b>")],
        }
    }

    #[test]
    fn colours_of_the_page_are_classes() {
        let text = inline(&plot(), "says & describes").unwrap().into_string();
        assert!(!text.contains('#') && !text.contains("FEDC") && !text.contains("rgb"), "{text}");
        for part in [
            "class=\"s c0\"",
            "class=\"f c0\"",
            "class=\"s c1\"",
            "class=\"f ct\"",
            "viewBox=\"0 0 1680 1000\"",
        ] {
            assert!(text.contains(part), "{part} in {text}");
        }
        assert!(text.contains("A &lt;plot&gt; (%)") && text.contains("says &amp; describes"), "{text}");
        assert!(text.ends_with("</svg>") && text.matches("</svg>").count() == 1);
    }

    #[test]
    fn a_file_has_its_legend_and_colours() {
        let text = file(&plot()).unwrap();
        for part in ["xmlns=", "#0072B2", "A &lt;plot&gt;", "&lt;b&gt;", "width=\"2560\""] {
            assert!(text.contains(part), "{part} in {text}");
        }
        assert_eq!(text, file(&plot()).unwrap());
    }

    #[test]
    fn every_role_has_a_class_of_its_own() {
        for (at, (role, class)) in ROLES.iter().enumerate() {
            assert_eq!(marked(*role).2 as usize, at);
            assert_eq!(ROLES.iter().filter(|(_, other)| other == class).count(), 1);
        }
    }
}

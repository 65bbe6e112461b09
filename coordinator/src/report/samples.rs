//! The part of the page that shows sample groups. All texts go through the template's escaping.

use maud::{Markup, html};

use super::groups::{MOST_RESPONSES, SampleGroup, SampleResponse};
use super::svg;

/// All groups.
///
/// # Errors
/// If a heat map cannot be drawn.
pub(super) fn samples(groups: &[SampleGroup]) -> anyhow::Result<Markup> {
    if groups.is_empty() {
        return Ok(html! {});
    }
    let mut names: Vec<&str> = Vec::new();
    for group in groups {
        if !names.contains(&group.from.as_str()) {
            names.push(&group.from);
        }
    }
    let shown: Vec<Markup> =
        groups.iter().enumerate().map(|(at, of)| group(at, of)).collect::<anyhow::Result<_>>()?;
    Ok(html! {
        section id="groups" {
            h2 { "Sample groups" }
            p.caption {
                "Of the first, the middle and the last step of a run the group that says most: right and wrong responses \
                 before others, then the largest spread of novelty. They are examples, not a sample to count in."
            }
            @if groups.iter().all(|group| group.heat.is_none()) {
                p.note { "The journals of these runs do not hold the cosines of a group; there is no map of them." }
            } @else {
                p.caption.scale {
                    "Cosines: \u{2212}1 "
                    @for shade in 0..9 { span class=(format!("swatch h{shade}")) {} }
                    " 1; row and column n are response n. Groups whose cosines are not kept have no map."
                }
            }
            div.filters hidden {
                label { "Show " select name="from" {
                    option value="" { "all" }
                    @for name in names { option value=(name) { (name) } }
                } }
                label { input type="checkbox" name="mixed"; " right and wrong only" }
                button type="button" name="open" { "Open all" }
            }
            @for group in shown { (group) }
        }
    })
}

fn group(at: usize, group: &SampleGroup) -> anyhow::Result<Markup> {
    let heat = group.heat.as_ref().map(|heat| svg::inline_heat(heat, &format!("heat-{at}"))).transpose()?;
    let right = group.responses.iter().filter(|response| response.correct == Some(true)).count();
    Ok(html! {
        details.group data-from=(group.from) data-mixed=(group.mixed()) open[at == 0] {
            summary {
                strong { (group.from) } " \u{00b7} " (group.label)
                @if let Some(step) = group.step { " \u{00b7} step " (step) }
                span.right { (right) " of " (group.responses.len()) " right" }
            }
            @match &group.prompt {
                Some((prompt, answer)) => {
                    pre.prompt { (prompt) }
                    p.note { "Problem: " (group.problem) ". Answer in the data: " (answer) }
                },
                None => p.note {
                    "Problem: " (group.problem) ". Its text is not kept with the answers."
                },
            }
            @if group.total > group.responses.len() {
                p.note { "The first " (MOST_RESPONSES) " of " (group.total) " responses." }
            }
            div.body {
                ol.responses { @for response in &group.responses { (response_item(response)) } }
                @if let Some(heat) = heat { div.map { (heat) } }
            }
        }
    })
}

fn signed(value: f64) -> String {
    format!("{value:+.2}").replace('-', "\u{2212}")
}

fn response_item(response: &SampleResponse) -> Markup {
    let (class, verdict) = match response.correct {
        Some(true) => ("ok", "right"),
        Some(false) => ("no", "wrong"),
        None => ("", "not judged"),
    };
    html! {
        li class=(class) {
            pre { (response.text) }
            p.facts {
                span.verdict { (verdict) }
                @if let Some(reward) = response.reward { span { "reward " b { (signed(reward)) } } }
                @if let Some(novelty) = response.novelty {
                    span { "novelty " b { (format!("{novelty:.2}")) } }
                }
                @if let Some(advantage) = response.advantage { span { "advantage " b { (signed(advantage)) } } }
                span { (response.tokens) " tokens" }
                span { (response.finish_reason.replace('_', " ")) }
                @if !response.reason.is_empty() { span.reason { (response.reason) } }
            }
        }
    }
}

//! The page as a whole, from the verdict down.

use std::time::Duration;

use maud::{DOCTYPE, Markup, PreEscaped, html};

use super::charts::{self, CANVASES, Canvas};
use super::command_line::command_line;
use super::{Story, sections};
use crate::verify::report::Micros;
use crate::verify::timeline::Timeline;

const STYLE: &str = include_str!("page.css");

pub(super) fn page(story: &Story<'_>) -> anyhow::Result<Markup> {
    let answers = plots(story.timeline, charts::answers)?;
    let latencies = plots(story.timeline, charts::latencies)?;
    Ok(html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                meta name="color-scheme" content="light dark";
                title { (verdict(story)) " – handover" }
                style { (PreEscaped(STYLE)) }
            }
            body {
                main {
                    (headline(story))
                    (sections::tiles(story))
                    (sections::failed_upgrades(story))
                    (sections::closes(story))
                    (figure(answers, html! {
                        h2 { "Who answered" }
                        p.hint {
                            "Requests per second, at the instant each was due. "
                            "Each colour with its number is one process, in order of appearance. "
                            @if story.report.passed {
                                "The top stays level through every upgrade: nothing went unanswered."
                            }
                        }
                        (legend_of_marks(story))
                    }))
                    (figure(latencies, html! {
                        h2 { "How long an answer took" }
                        p.hint {
                            "From the instant a request was due to the last byte of its answer, "
                            "on a logarithmic scale."
                        }
                        ul.legend {
                            li { i.key.line.median {} "half were faster" }
                            li { i.key.line.slow {} "99\u{202f}% were faster" }
                            li { i.key.area {} "the slowest" }
                        }
                    }))
                    (sections::latencies(story.report))
                    (sections::losses(story))
                    (sections::counts(story))
                    (sections::upgrades(story.timeline))
                    (reproduction(story))
                }
            }
        }
    })
}

fn headline(story: &Story<'_>) -> Markup {
    let report = story.report;
    let passed = report.passed && story.broke_off.is_none();
    let began = humantime::format_rfc3339_seconds(story.began).to_string();
    let began = began.replace('T', " at ").replace('Z', " UTC");
    let took = Duration::from_millis(report.duration_ms);
    html! {
        header class=(if passed { "passed" } else { "failed" }) {
            p.badge { (if passed { "✓ passed" } else { "✗ failed" }) }
            h1 { (verdict(story)) }
            @if let Some(why) = &story.broke_off {
                p.why { "The test broke off: " (why) }
            }
            p.what {
                @if story.args.demo_command.is_some() { "The bundled service of handover demo at " }
                @else { "The service at " }
                code { (report.url) }
                " was upgraded under load for " (sections::seconds(took))
                " on " time { (began) } "."
            }
        }
    }
}

/// The result in words.
fn verdict(story: &Story<'_>) -> String {
    let report = story.report;
    let (done, wanted) = (report.upgrades_done, report.upgrades_wanted);
    let requests = sections::grouped(report.requests);
    let upgrades = if wanted == 1 { "upgrade" } else { "upgrades" };
    let lost = match report.lost {
        0 => "none lost".to_owned(),
        lost => format!("{} lost", sections::grouped(lost)),
    };
    format!("{done} of {wanted} {upgrades}, {requests} requests, {lost}")
}

/// A chart, whose caption tells what it shows.
fn figure(plots: Markup, caption: Markup) -> Markup {
    html! {
        figure {
            figcaption { (caption) }
            (plots)
        }
    }
}

/// A chart in all sizes.
fn plots(
    timeline: &Timeline,
    draw: fn(&Timeline, &Canvas) -> anyhow::Result<String>,
) -> anyhow::Result<Markup> {
    CANVASES
        .iter()
        .map(|canvas| {
            let svg = draw(timeline, canvas)?;
            Ok(html! { div class={ "plot " (canvas.class) } aria-hidden="true" { (PreEscaped(svg)) } })
        })
        .collect::<anyhow::Result<Vec<_>>>()
        .map(|plots| html! { @for plot in plots { (plot) } })
}

fn legend_of_marks(story: &Story<'_>) -> Markup {
    let report = story.report;
    html! {
        ul.legend {
            li {
                i.key.band {}
                "an upgrade, from asked to seen"
                @if report.upgrades_done > 0 { " (median " (Micros(report.upgrade_us.p50)) ")" }
            }
            @if report.upgrades_done < report.upgrades_asked {
                li { i.key.band.given-up {} "an upgrade that was given up" }
            }
            @if report.lost > 0 { li { i.key.lost {} "lost requests" } }
        }
    }
}

fn reproduction(story: &Story<'_>) -> Markup {
    let command = story.args.demo_command.clone().unwrap_or_else(|| command_line(story.args));
    html! {
        section {
            h2 { "Do it again" }
            pre { code { (command) } }
            p.hint { "Written by handover " (env!("CARGO_PKG_VERSION")) "." }
        }
    }
}

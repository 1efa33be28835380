//! The tables and lists of the page.

use std::time::Duration;

use maud::{Markup, html};

use super::Story;
use crate::verify::loss::Kind;
use crate::verify::report::{Micros, Quantiles, Report};
use crate::verify::tally::Lane;
use crate::verify::timeline::{End, LostRequest, Mark, Place, Timeline};

/// The numbers that matter most.
pub(super) fn tiles(story: &Story<'_>) -> Markup {
    let report = story.report;
    html! {
        dl.tiles {
            div { dt { "lost" } dd.bad[report.lost > 0].good[report.lost == 0] { (grouped(report.lost)) } }
            div { dt { "answered" } dd { (grouped(report.answered)) } }
            div { dt { "processes" } dd { (grouped(report.answerers)) } }
            div { dt { "slowest answer" } dd { (Micros(report.latency_us.max)) } }
        }
    }
}

pub(super) fn failed_upgrades(story: &Story<'_>) -> Markup {
    const SHOWN: usize = 20;
    let failed = &story.report.failed_upgrades;
    let never_asked = story.report.upgrades_wanted - story.report.upgrades_asked;
    html! {
        @if !failed.is_empty() || never_asked > 0 {
            section.failures {
                h2 { "Upgrades that did not happen" }
                ul {
                    @for failure in failed.iter().take(SHOWN) {
                        li { b { "Upgrade " (failure.upgrade) } ": " (failure.why) }
                    }
                }
                (more(failed.len().saturating_sub(SHOWN) as u64))
                @if never_asked > 0 { p { (never_asked) " were never asked for: the test ended before." } }
            }
        }
    }
}

/// Connections that were closed, if none was to be.
pub(super) fn closes(story: &Story<'_>) -> Markup {
    html! {
        @if let Some(why) = story.report.forbidden_closes() {
            section.failures {
                h2 { "Connections that did not last" }
                p { (why) "." }
            }
        }
    }
}

pub(super) fn latencies(report: &Report) -> Markup {
    let Report { latency_us: total, latency_us_upgrade: upgrade, latency_us_rest: rest, .. } =
        report;
    let row = |value: fn(&Quantiles) -> u64| [total, upgrade, rest].map(value).map(Micros);
    let rows = [
        ("p50", row(|latency| latency.p50)),
        ("p99", row(|latency| latency.p99)),
        ("p99.9", row(|latency| latency.p999)),
        ("max", row(|latency| latency.max)),
    ];
    html! {
        section {
            table.numbers {
                thead {
                    tr {
                        th scope="col" { "latency" }
                        @for name in ["in total", "in upgrades", "at rest"] { th scope="col" { (name) } }
                    }
                }
                tbody {
                    @for (name, latencies) in rows {
                        tr {
                            th scope="row" { (name) }
                            @for latency in latencies { td { (latency) } }
                        }
                    }
                }
            }
            p.hint {
                "In upgrades: under way at any moment from the asking until half a second after another "
                "process was seen to answer."
            }
        }
    }
}

pub(super) fn losses(story: &Story<'_>) -> Markup {
    let (report, timeline) = (story.report, story.timeline);
    html! {
        section {
            h2 { "Lost requests" }
            @if report.lost == 0 {
                p { "None: every one of " (grouped(report.requests)) " requests got its whole answer in time." }
            } @else {
                (kinds(report))
                ol.losses {
                    @for lost in &timeline.losses { (loss(lost, timeline)) }
                }
                (more(report.lost.saturating_sub(timeline.losses.len() as u64)))
            }
        }
    }
}

/// How many were lost in which way.
fn kinds(report: &Report) -> Markup {
    html! {
        table.numbers {
            tbody {
                @for kind in Kind::ALL {
                    @let count = report.lost_by_kind.of(kind);
                    @if count > 0 {
                        tr { th scope="row" { (kind.name()) } td { (grouped(count)) } }
                    }
                }
            }
        }
    }
}

fn loss(lost: &LostRequest, timeline: &Timeline) -> Markup {
    let ended = Micros(lost.ended.saturating_sub(lost.due).as_micros() as u64);
    html! {
        li {
            p {
                b { (lost.loss.kind.name()) }
                " · " (client(lost.lane))
                " · at " (seconds(lost.at())) ", " (place(timeline.place(lost.at())))
            }
            p.hint { (lost.loss.why) ", " (ended) " after it was due" }
        }
    }
}

/// All that was counted.
pub(super) fn counts(story: &Story<'_>) -> Markup {
    let Report { requests_by_client: clients, .. } = story.report;
    let report = story.report;
    let mut rows = vec![
        ("requests", report.requests, true),
        ("on new connections", clients.new_connections, false),
        ("on kept connections", clients.keep_alive, false),
    ];
    if report.has_http2() {
        rows.push(("on HTTP/2 connections", clients.http2, false));
        rows.push(("sent again, not processed before", report.sent_again, false));
    }
    if clients.streams > 0 {
        rows.push(("streams", clients.streams, false));
        rows.push(("streams still open at the end", report.streams_open_at_end, false));
    }
    let closes = &report.closes;
    rows.extend([
        ("answered", report.answered, true),
        ("lost", report.lost, true),
        ("kept connections closed by the service", closes.keep_alive.sum(), true),
        ("announced", closes.keep_alive.announced, false),
        ("idle and unannounced", report.idle_closed, false),
    ]);
    if report.busy_closed() > 0 {
        rows.push(("with a request under way", report.busy_closed(), false));
    }
    if report.has_http2() {
        rows.extend([
            ("HTTP/2 connections closed by the service", closes.http2.sum(), true),
            ("announced by GOAWAY", closes.http2.announced, false),
            ("unannounced", closes.http2.unannounced, false),
        ]);
    }
    html! {
        section {
            h2 { "All counts" }
            table.numbers {
                tbody {
                    @for (name, count, is_sum) in rows {
                        tr.part[!is_sum] { th scope="row" { (name) } td { (grouped(count)) } }
                    }
                }
            }
            @if clients.streams > 0 {
                p.hint { "Streams are in no chart, unless they were lost: their length is no latency." }
            }
        }
    }
}

/// When each upgrade was asked for and seen.
pub(super) fn upgrades(timeline: &Timeline) -> Markup {
    const SHOWN: usize = 500;
    let upgrades = &timeline.upgrades;
    html! {
        section {
            details {
                summary { "All upgrades" }
                table.numbers.upgrades {
                    thead { tr { th scope="col" { "upgrade" } th scope="col" { "asked at" } th scope="col" { "seen after" } } }
                    tbody {
                        @for (number, Mark { asked, end }) in (1..).zip(upgrades).take(SHOWN) {
                            tr {
                                th scope="row" { (number) }
                                td { (seconds(*asked)) }
                                td { @match end {
                                    End::Seen(seen) => (Micros((*seen - *asked).as_micros() as u64)),
                                    End::GivenUp(_) | End::Open => { b.bad { "not seen" } }
                                } }
                            }
                        }
                    }
                }
                (more(upgrades.len().saturating_sub(SHOWN) as u64))
            }
        }
    }
}

fn more(count: u64) -> Markup {
    html! { @if count > 0 { p { "and " (grouped(count)) " more" } } }
}

fn client(lane: Lane) -> &'static str {
    match lane {
        Lane::NewConnection => "new connection",
        Lane::KeepAlive => "kept connection",
        Lane::Http2 => "HTTP/2 connection",
        Lane::Stream => "stream",
    }
}

fn place(place: Place) -> String {
    let micros = |duration: Duration| Micros(duration.as_micros() as u64);
    match place {
        Place::Before { upgrade, left } => {
            format!("{} before upgrade {upgrade} was asked for", micros(left))
        }
        Place::During { upgrade, since_asked } => {
            format!("in upgrade {upgrade}, {} after it was asked for", micros(since_asked))
        }
        Place::After { upgrade, since_end, was_seen } => {
            let end = if was_seen { "seen" } else { "given up" };
            format!("{} after upgrade {upgrade} was {end}", micros(since_end))
        }
        Place::NoUpgrade => "with no upgrade asked for".to_owned(),
    }
}

pub(super) fn seconds(duration: Duration) -> String {
    format!("{:.3} s", duration.as_secs_f64())
}

/// A count with its thousands apart.
pub(super) fn grouped(count: u64) -> String {
    let digits = count.to_string();
    let first = digits.len() % 3;
    let (head, tail) = digits.split_at(first);
    let groups = tail.as_bytes().chunks(3).map(|group| group.escape_ascii().to_string());
    let groups: Vec<_> =
        std::iter::once(head.to_owned()).filter(|head| !head.is_empty()).chain(groups).collect();
    groups.join("\u{202f}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn thousands_stand_apart() {
        let spaced = |count| grouped(count).replace('\u{202f}', " ");
        assert_eq!([0, 7, 999, 1000, 33_012].map(spaced), ["0", "7", "999", "1 000", "33 012"]);
        assert_eq!(spaced(1_234_567), "1 234 567");
    }

    #[test]
    fn a_loss_is_placed_in_words() {
        let ms = Duration::from_millis(12);
        assert_eq!(
            place(Place::During { upgrade: 3, since_asked: ms }),
            "in upgrade 3, 12.0 ms after it was asked for"
        );
        assert_eq!(
            place(Place::After { upgrade: 3, since_end: ms, was_seen: false }),
            "12.0 ms after upgrade 3 was given up"
        );
    }
}

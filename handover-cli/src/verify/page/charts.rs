//! The pictures: who answered over time, and how fast.
//!
//! Colours are stand-ins, each of which `page.css` turns into a colour that suits a light or a dark
//! page. Each chart is drawn in several sizes, of which the page shows the one that fits, so that text
//! is as large on a phone as on a wide screen.

mod stack;

use std::ops::Range;
use std::time::Duration;

use plotters::coord::Shift;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use crate::verify::report::Micros;
use crate::verify::timeline::{Bucket, Buckets, End, Timeline};
use stack::Layer;

/// A size of a chart, and the class that shows it on screens that it fits.
pub(super) struct Canvas {
    pub(super) class: &'static str,
    width: u32,
    height: u32,
    /// How many spans of time are told apart.
    columns: usize,
    time_labels: usize,
}

pub(super) const CANVASES: [Canvas; 3] = [
    Canvas { class: "narrow", width: 340, height: 230, columns: 96, time_labels: 5 },
    Canvas { class: "medium", width: 640, height: 260, columns: 192, time_labels: 8 },
    Canvas { class: "wide", width: 1000, height: 280, columns: 320, time_labels: 12 },
];

const INK: RGBColor = RGBColor(0, 0, 0x01);
const GRID: RGBColor = RGBColor(0, 0, 0x02);
const MARK: RGBColor = RGBColor(0, 0, 0x03);
const FAILED: RGBColor = RGBColor(0, 0, 0x04);
const LOST: RGBColor = RGBColor(0, 0, 0x05);
const MEDIAN: RGBColor = RGBColor(0, 0, 0x06);
const SLOW: RGBColor = RGBColor(0, 0, 0x07);
const SLOWEST: RGBColor = RGBColor(0, 0, 0x08);
const ON_LAYER: RGBColor = RGBColor(0, 0, 0x09);
/// Neighbours differ in lightness as well, for those who do not tell the hues apart.
const PROCESSES: [RGBColor; 6] = [
    RGBColor(0, 0, 0x10),
    RGBColor(0, 0, 0x11),
    RGBColor(0, 0, 0x12),
    RGBColor(0, 0, 0x13),
    RGBColor(0, 0, 0x14),
    RGBColor(0, 0, 0x15),
];

/// In the units of plotters, which draws text at 1/1.24 of what it is told.
const TEXT_SIZE: u32 = 15;

type Root<'a> = DrawingArea<SVGBackend<'a>, Shift>;

/// A span of time as it is drawn, in seconds.
struct Column<'a> {
    from: f64,
    to: f64,
    bucket: &'a Bucket,
}

/// Requests per second, by who answered.
pub(super) fn answers(timeline: &Timeline, canvas: &Canvas) -> anyhow::Result<String> {
    draw(canvas, |root| {
        let buckets = timeline.buckets(columns_of_even_rates(timeline, canvas));
        let columns = columns(&buckets);
        let end = end(&columns);
        let runs = stack::runs(&columns);
        let top = runs.iter().flat_map(|run| &run.tops).fold(1.0, |top: f64, &(_, y)| top.max(y));

        let mut chart = frame(root).build_cartesian_2d(0.0..end, 0.0..top * 1.08)?;
        mesh!(chart, canvas).y_labels(4).y_label_formatter(&|rate| format!("{rate:.0}")).draw()?;
        for run in &runs {
            chart.draw_series([Polygon::new(run.outline(), color(run.layer).filled())])?;
        }
        for (run, (at, middle)) in stack::labels(&runs, &columns, end, canvas.width, top) {
            let style = text(&ON_LAYER, VPos::Center);
            chart.draw_series([Text::new(run.layer.to_string(), (at, middle), style)])?;
        }
        let plot = chart.plotting_area().get_pixel_range();
        draw_upgrades(root, timeline, &plot, end)?;
        draw_losses(root, timeline, canvas, &plot, end)
    })
}

/// Latencies, on a logarithmic scale.
pub(super) fn latencies(timeline: &Timeline, canvas: &Canvas) -> anyhow::Result<String> {
    draw(canvas, |root| {
        let buckets = timeline.buckets(canvas.columns);
        let columns = columns(&buckets);
        let end = end(&columns);
        let chart = &mut frame(root);
        let scale = decades(&columns);
        let mut chart = chart.build_cartesian_2d(0.0..end, scale.clone().log_scale())?;
        mesh!(chart, canvas).y_labels(6).y_label_formatter(&|us| round(*us)).draw()?;
        let plot = chart.plotting_area().get_pixel_range();

        // A line over a time without answers would tell of answers.
        let parts = || columns.split(|column| column.bucket.latency.is_empty());
        for part in parts() {
            let area = outline(part, |bucket| bucket.latency.max(), scale.start);
            chart.draw_series([Polygon::new(area, SLOWEST.filled())])?;
        }
        draw_upgrades(root, timeline, &plot, end)?;
        for (quantile, color) in [(0.99, SLOW), (0.5, MEDIAN)] {
            for part in parts() {
                let line = points(part, |bucket| bucket.latency.value_at_quantile(quantile));
                chart.draw_series(LineSeries::new(line, color.stroke_width(2)))?;
            }
        }
        draw_losses(root, timeline, canvas, &plot, end)
    })
}

fn draw(
    canvas: &Canvas,
    paint: impl FnOnce(&Root<'_>) -> anyhow::Result<()>,
) -> anyhow::Result<String> {
    let mut svg = String::new();
    let root = SVGBackend::with_string(&mut svg, (canvas.width, canvas.height));
    let root = root.into_drawing_area();
    paint(&root)?;
    root.present()?;
    drop(root);
    Ok(svg)
}

fn frame<'a, 'b>(root: &'a Root<'b>) -> ChartBuilder<'a, 'b, SVGBackend<'b>> {
    let mut frame = ChartBuilder::on(root);
    // Above is the place of the numbers of the upgrades.
    frame.margin_top(20).margin_right(10).x_label_area_size(26).y_label_area_size(56);
    frame
}

/// Axes and grid, which are of another type for each kind of scale.
macro_rules! mesh {
    ($chart:ident, $canvas:ident) => {
        $chart
            .configure_mesh()
            .disable_x_mesh()
            .max_light_lines(0)
            .bold_line_style(GRID)
            .axis_style(GRID)
            .label_style(("sans-serif", TEXT_SIZE).into_font().color(&INK))
            .x_labels($canvas.time_labels)
            .x_label_formatter(&|seconds| time(*seconds))
    };
}
use mesh;

/// Each upgrade as a band from the asking to the instant it was seen, with its number above.
fn draw_upgrades(
    root: &Root<'_>,
    timeline: &Timeline,
    (across, down): &(Range<i32>, Range<i32>),
    end: f64,
) -> anyhow::Result<()> {
    const LABEL_WIDTH: i32 = 20;
    const LEAST_DISTANCE: usize = 12;
    // So many lines that they would hide what they mark become ticks at the top.
    let is_dense = timeline.upgrades.len() * LEAST_DISTANCE > across.len();
    let x = |at: Duration| pixel(at.as_secs_f64(), across, end);
    let (mut last_line, mut last_label) = (i32::MIN, i32::MIN);
    for (number, mark) in (1..).zip(&timeline.upgrades) {
        let asked = x(mark.asked);
        // What would lie on the line before it adds nothing.
        if asked < last_line.saturating_add(2) {
            continue;
        }
        let (until, color) = match mark.end {
            End::Seen(seen) => (x(seen), MARK),
            End::GivenUp(given_up) => (x(given_up), FAILED),
            End::Open => (across.end, FAILED),
        };
        let bottom = if is_dense && color == MARK { down.start + 3 } else { down.end };
        let band = [(asked, down.start), (until, bottom)];
        root.draw(&Rectangle::new(band, color.mix(0.25).filled()))?;
        for line in [asked, until] {
            let line = vec![(line, down.start - 3), (line, bottom)];
            root.draw(&PathElement::new(line, color.mix(0.6).stroke_width(1)))?;
        }
        last_line = until;
        if asked >= last_label.saturating_add(LABEL_WIDTH) {
            let place = (asked, down.start - 4);
            root.draw(&Text::new(number.to_string(), place, text(&color, VPos::Bottom)))?;
            last_label = asked;
        }
    }
    Ok(())
}

/// A mark at the top wherever something was lost: one request of thousands is no visible height.
fn draw_losses(
    root: &Root<'_>,
    timeline: &Timeline,
    canvas: &Canvas,
    (across, down): &(Range<i32>, Range<i32>),
    end: f64,
) -> anyhow::Result<()> {
    const HEIGHT: i32 = 7;
    let buckets = timeline.buckets(canvas.columns);
    for column in columns(&buckets).iter().filter(|column| column.bucket.lost > 0) {
        let from = pixel(column.from, across, end) - 1;
        let to = pixel(column.to, across, end).max(from + 3) + 1;
        let mark = [(from, down.start), (to, down.start + HEIGHT)];
        root.draw(&Rectangle::new(mark, LOST.filled()))?;
    }
    Ok(())
}

/// How many columns the chart can have so that one request more or less makes no tooth.
fn columns_of_even_rates(timeline: &Timeline, canvas: &Canvas) -> usize {
    const REQUESTS_PER_COLUMN: u64 = 20;
    const FEWEST: usize = 24;
    let columns = timeline.buckets(usize::MAX).requests() / REQUESTS_PER_COLUMN;
    usize::try_from(columns).unwrap_or(usize::MAX).clamp(FEWEST, canvas.columns)
}

fn columns(buckets: &Buckets) -> Vec<Column<'_>> {
    let width = buckets.width.as_secs_f64();
    // The last request stands for the time until the next would have been due.
    let end = buckets.end.as_secs_f64() * (1.0 + 1.0 / buckets.requests().max(1) as f64);
    let column = |(number, bucket)| {
        let (from, is_last) = (number as f64 * width, number + 1 == buckets.all.len());
        let to = if is_last { end.max(from + width / 2.0) } else { from + width };
        Column { from, to, bucket }
    };
    buckets.all.iter().enumerate().map(column).collect()
}

fn end(columns: &[Column<'_>]) -> f64 {
    columns.last().map_or(1.0, |last| last.to)
}

fn points<'a>(
    columns: &'a [Column<'_>],
    value: impl Fn(&Bucket) -> u64 + 'a,
) -> impl Iterator<Item = (f64, f64)> + 'a {
    let answered = columns.iter().filter(|column| !column.bucket.latency.is_empty());
    answered.map(move |column| {
        (f64::midpoint(column.from, column.to), value(column.bucket).max(1) as f64)
    })
}

/// The polygon below values, in steps.
fn outline(columns: &[Column<'_>], value: impl Fn(&Bucket) -> u64, floor: f64) -> Vec<(f64, f64)> {
    let steps = columns.iter().flat_map(|column| {
        let value = value(column.bucket).max(1) as f64;
        [(column.from, value), (column.to, value)]
    });
    let ends = columns.last().zip(columns.first());
    let base = ends.into_iter().flat_map(|(last, first)| [(last.to, floor), (first.from, floor)]);
    steps.chain(base).collect()
}

/// The whole powers of ten that hold all latencies, in microseconds.
fn decades(columns: &[Column<'_>]) -> Range<f64> {
    let fastest = points(columns, |bucket| bucket.latency.value_at_quantile(0.5));
    let slowest = points(columns, |bucket| bucket.latency.max());
    let low = fastest.map(|(_, us)| us).fold(f64::INFINITY, f64::min);
    let high = slowest.map(|(_, us)| us).fold(0.0, f64::max);
    if high == 0.0 {
        return 100.0..10_000.0;
    }
    let low = low.log10().floor();
    let high = high.log10().ceil().max(low + 1.0);
    10_f64.powf(low)..10_f64.powf(high)
}

fn pixel(seconds: f64, across: &Range<i32>, end: f64) -> i32 {
    let width = f64::from(across.end - across.start);
    across.start + (seconds / end * width).round().clamp(0.0, width) as i32
}

fn text(color: &RGBColor, vertical: VPos) -> TextStyle<'static> {
    let font = ("sans-serif", TEXT_SIZE).into_font();
    font.color(color).pos(Pos::new(HPos::Center, vertical))
}

fn color(layer: Layer) -> RGBColor {
    match layer {
        Layer::Answered(process) => PROCESSES[(process.0 - 1) as usize % PROCESSES.len()],
        Layer::Lost => LOST,
    }
}

fn time(seconds: f64) -> String {
    match seconds {
        ..120.0 => format!("{} s", (seconds * 1e3).round() / 1e3),
        _ => format!("{}:{:02} min", (seconds / 60.0) as u64, seconds.round() as u64 % 60),
    }
}

/// A power of ten as the axis names it, without the digits that are always 0.
fn round(micros: f64) -> String {
    Micros(micros.round() as u64).to_string().replace(".00 ", " ").replace(".0 ", " ")
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;

    #[test]
    fn every_stand_in_colour_is_replaced_by_the_style_sheet() {
        let css = include_str!("page.css");
        let all = [INK, GRID, MARK, FAILED, LOST, MEDIAN, SLOW, SLOWEST, ON_LAYER];
        for RGBColor(r, g, b) in all.into_iter().chain(PROCESSES) {
            let color = format!("#{r:02X}{g:02X}{b:02X}");
            assert!(css.contains(&format!("=\"{color}\"]")), "{color}");
        }
    }

    #[test]
    fn a_test_without_a_single_request_can_be_drawn() {
        let timeline = Timeline::new(Instant::now(), "1");
        for canvas in &CANVASES {
            assert!(answers(&timeline, canvas).unwrap().ends_with("</svg>\n"));
            assert!(latencies(&timeline, canvas).unwrap().ends_with("</svg>\n"));
        }
    }

    #[test]
    fn axes_are_labelled_as_people_read() {
        assert_eq!([1.0, 1e3, 1e6].map(round), ["1 µs", "1 ms", "1 s"]);
        assert_eq!([0.5, 90.0, 125.0].map(time), ["0.5 s", "90 s", "2:05 min"]);
    }
}

//! Figures as pictures.

use std::error::Error;
use std::path::Path;

use plotters::coord::Shift;
use plotters::prelude::*;

use crate::table::number;
use crate::{Figure, Subject};

/// Those that are told apart; they differ in lightness as well.
const COLORS: [RGBColor; 8] = [
    RGBColor(0xd1, 0x49, 0x1b),
    RGBColor(0x1b, 0x4f, 0x8a),
    RGBColor(0x3f, 0x9b, 0x5a),
    RGBColor(0x8e, 0x44, 0xad),
    RGBColor(0xc9, 0x9a, 0x2e),
    RGBColor(0x5b, 0xb5, 0xc9),
    RGBColor(0x55, 0x55, 0x55),
    RGBColor(0xb0, 0x60, 0x80),
];

const TEXT: (&str, u32) = ("sans-serif", 14);

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;

/// Draws a figure, as lines on two logarithmic axes if something grows, and as bars otherwise.
///
/// # Errors
///
/// If the file cannot be written.
pub fn plot(figure: &Figure, path: &Path) -> Result<(), Box<dyn Error>> {
    let grows = figure.axis.is_some() && figure.places().len() > 1;
    let height = if grows { 420 } else { 70 + 34 * figure.subjects.len() as u32 };
    let root = SVGBackend::new(path, (760, height)).into_drawing_area();
    root.fill(&WHITE)?;
    if grows {
        lines(figure, &root)?
    } else {
        bars(figure, &root)?
    }
    root.present()?;
    Ok(())
}

/// The order of colours is that of the subjects, and ours is always the first.
fn color(figure: &Figure, subject: &Subject) -> RGBColor {
    if subject.name == "handover" {
        return COLORS[0];
    }
    let others = figure.subjects.iter().filter(|other| other.name != "handover");
    let place = others.take_while(|other| other.name != subject.name).count();
    COLORS[1 + place % (COLORS.len() - 1)]
}

fn lines(figure: &Figure, root: &Area<'_>) -> Result<(), Box<dyn Error>> {
    // Nothing has no place on a logarithmic axis: it stands where a tenth of the least does.
    let places = figure.places();
    let least = places.iter().copied().find(|place| *place > 0.0).unwrap_or(1.0);
    let place = |at: f64| if at > 0.0 { at } else { least / 4.0 };
    let samples = figure.subjects.iter().flat_map(|subject| &subject.points);
    let medians: Vec<f64> =
        samples.map(|point| point.quantile(0.5)).filter(|median| *median > 0.0).collect();
    let low = medians.iter().copied().fold(f64::INFINITY, f64::min);
    let high = medians.iter().copied().fold(low, f64::max);
    // For the legend, above all lines.
    let air = 2.0 + figure.subjects.len() as f64;
    let first = place(places.first().copied().unwrap_or_default());
    let last = places.last().copied().unwrap_or(1.0);
    let mut chart = ChartBuilder::on(root)
        .caption(format!("{}, {}", figure.title, figure.unit), ("sans-serif", 18))
        .margin(10)
        .margin_right(24)
        .x_label_area_size(42)
        .y_label_area_size(64)
        .build_cartesian_2d(
            (first / 1.1..last * 1.1).log_scale(),
            (low / 2.0..high * air).log_scale(),
        )?;
    let label = |at: &f64| if *at < least / 1.5 { "0".to_owned() } else { number(*at) };
    chart
        .configure_mesh()
        .x_desc(figure.axis.as_deref().unwrap_or_default())
        .x_label_formatter(&label)
        .y_label_formatter(&|value| if *value < 1.0 { value.to_string() } else { number(*value) })
        .light_line_style(WHITE)
        .label_style(TEXT)
        .axis_desc_style(TEXT)
        .draw()?;
    for subject in &figure.subjects {
        let color = color(figure, subject);
        let mut points: Vec<_> = subject.points.iter().collect();
        points.sort_by(|one, other| one.at.total_cmp(&other.at));
        let median = |point: &&crate::Point| (place(point.at), point.quantile(0.5).max(low / 2.0));
        let line = LineSeries::new(points.iter().map(median), color.stroke_width(2));
        chart
            .draw_series(line)?
            .label(&subject.name)
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 18, y)], color.stroke_width(3)));
        let spread = points.iter().filter(|point| point.samples.len() > 1).map(|point| {
            let at = place(point.at);
            let ends = [0.1, 0.9].map(|share| (at, point.quantile(share).max(low / 2.0)));
            PathElement::new(ends, color.stroke_width(1))
        });
        chart.draw_series(spread)?;
        chart.draw_series(
            points.iter().map(|point| Circle::new(median(point), 3, color.filled())),
        )?;
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::UpperLeft)
        .background_style(WHITE.mix(0.85))
        .border_style(RGBColor(0xcc, 0xcc, 0xcc))
        .label_font(TEXT)
        .draw()?;
    Ok(())
}

fn bars(figure: &Figure, root: &Area<'_>) -> Result<(), Box<dyn Error>> {
    let values: Vec<(&Subject, f64)> = figure
        .subjects
        .iter()
        .filter_map(|subject| Some((subject, subject.points.first()?.quantile(0.5))))
        .collect();
    let most = values.iter().map(|(_, value)| *value).fold(0.0, f64::max).max(f64::MIN_POSITIVE);
    root.draw(&Text::new(
        format!("{}, {}", figure.title, figure.unit),
        (16, 12),
        ("sans-serif", 18).into_font(),
    ))?;
    for (row, (subject, value)) in values.iter().enumerate() {
        let top = 48 + 34 * i32::try_from(row)?;
        let length = (value / most * 400.0).round() as i32;
        root.draw(&Text::new(subject.name.clone(), (16, top + 4), TEXT.into_font()))?;
        let bar = [(230, top), (230 + length.max(1), top + 22)];
        root.draw(&Rectangle::new(bar, color(figure, subject).filled()))?;
        root.draw(&Text::new(number(*value), (238 + length, top + 4), TEXT.into_font()))?;
    }
    Ok(())
}

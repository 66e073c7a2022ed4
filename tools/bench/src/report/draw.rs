//! Draws charts as SVG, in colours that stand for roles: the page's style sheet gives each role its colour
//! for light and for dark.

use hostveil::error::{Error, ErrorKind, Result};
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use crate::figure::{float, number};

use super::chart::{Bar, Chart, Line, Plot, Value};

/// Roles; the numbers stand in style.css too.
const INK: RGBColor = RGBColor(1, 1, 1);
const MUTED: RGBColor = RGBColor(2, 2, 2);
const GRID: RGBColor = RGBColor(3, 3, 3);
const RANGE: RGBColor = RGBColor(4, 4, 4);
/// The series' colours, ours first; the last is for what others do.
pub(super) const SERIES: [RGBColor; 2] = [RGBColor(5, 5, 5), RGBColor(6, 6, 6)];
const OTHER: RGBColor = RGBColor(7, 7, 7);

/// Width of a chart in its own units: text keeps its size down to a narrow screen.
const WIDTH: u32 = 420;
const FONT: &str = "sans-serif";
const TEXT: u32 = 17;
/// Height of a bar with the line of text above it.
const BAR: i32 = 42;
/// Height of a chart of lines.
const LINES: u32 = 260;

/// A chart as an SVG element.
pub(super) fn svg(chart: &Chart) -> Result<String> {
    let mut text = String::new();
    let drawn = match &chart.plot {
        Plot::Bars(bars) => draw_bars(&mut text, bars),
        Plot::Lines { labels, lines } => draw_lines(&mut text, labels, lines),
    };
    drawn.map_err(|e| Error::new(ErrorKind::Io, format!("cannot draw a chart: {e}")))?;
    Ok(text)
}

type Drawn = std::result::Result<(), Box<dyn std::error::Error>>;

/// Horizontal bars, each under its label and value, with a line from the least to the most.
fn draw_bars(text: &mut String, bars: &[Bar]) -> Drawn {
    let count = i32::try_from(bars.len())?;
    let height = u32::try_from(count * BAR + 4)?;
    let root = SVGBackend::with_string(text, (WIDTH, height)).into_drawing_area();
    let low = bars.iter().map(|bar| bar.value.least).fold(0.0, f64::min);
    let high = bars.iter().map(|bar| bar.value.most).fold(0.0, f64::max);
    let width = (high - low).max(1e-9);
    let x = |value: f64| pixel((value - low) / width * f64::from(WIDTH - 2)) + 1;
    for (bar, number_of) in bars.iter().zip(0..count) {
        let top = number_of * BAR;
        let (above, below) = (top + 21, top + 36);
        let style = |anchor, color: &RGBColor| {
            (FONT, TEXT).into_font().color(color).pos(Pos::new(anchor, VPos::Bottom))
        };
        root.draw_text(&bar.label, &style(HPos::Left, &INK), (1, above - 3))?;
        let right = i32::try_from(WIDTH)? - 1;
        root.draw_text(&value_text(bar.value), &style(HPos::Right, &MUTED), (right, above - 3))?;
        let color = if bar.ours { SERIES[0] } else { OTHER };
        root.draw(&Rectangle::new([(x(0.0), above), (x(bar.value.median), below)], color.filled()))?;
        let middle = i32::midpoint(above, below);
        let (least, most) = (x(bar.value.least), x(bar.value.most));
        if most > least {
            for ends in [[(least, middle), (most, middle)], tick(least, middle), tick(most, middle)] {
                root.draw(&PathElement::new(ends, RANGE.stroke_width(2)))?;
            }
        }
    }
    if low < 0.0 {
        root.draw(&PathElement::new([(x(0.0), 0), (x(0.0), count * BAR)], MUTED))?;
    }
    root.present()?;
    Ok(())
}

fn tick(x: i32, middle: i32) -> [(i32, i32); 2] {
    [(x, middle - 4), (x, middle + 4)]
}

fn value_text(value: Value) -> String {
    if value.least < value.most {
        format!("{} [{}–{}]", number(value.median), number(value.least), number(value.most))
    } else {
        number(value.median)
    }
}

/// A round number without the zeroes behind its point.
fn short(value: f64) -> String {
    let text = number(value);
    if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.').to_owned() } else { text }
}

/// A position inside the chart.
#[allow(clippy::cast_possible_truncation)] // it is between 0 and WIDTH, and what is no number becomes 0
fn pixel(value: f64) -> i32 {
    value.round() as i32
}

/// Lines over labels, with points and ranges; references dimmed.
fn draw_lines(text: &mut String, labels: &[String], lines: &[Line]) -> Drawn {
    let root = SVGBackend::with_string(text, (WIDTH, LINES)).into_drawing_area();
    let values = || lines.iter().flat_map(|line| line.values.iter().flatten());
    let high = values().map(|value| value.most).fold(0.0, f64::max).max(1e-9) * 1.06;
    let last = float(labels.len().saturating_sub(1) as u128);
    let mut chart = ChartBuilder::on(&root)
        .margin(8)
        .margin_right(24)
        .x_label_area_size(28)
        .y_label_area_size(42)
        .build_cartesian_2d(-0.15..last + 0.15, 0.0..high)?;
    let every = labels.len().div_ceil(9).max(1);
    let label = |x: &f64| {
        let index = usize::try_from(pixel(*x)).unwrap_or(usize::MAX);
        let near = (x - x.round()).abs() < 0.05 && index.is_multiple_of(every);
        labels.get(index).filter(|_| near).cloned().unwrap_or_default()
    };
    let style = (FONT, TEXT).into_font().color(&MUTED);
    chart
        .configure_mesh()
        .disable_x_mesh()
        .light_line_style(TRANSPARENT)
        .bold_line_style(GRID)
        .axis_style(GRID)
        .x_labels(labels.len() + 1)
        .y_labels(6)
        .x_label_formatter(&label)
        .y_label_formatter(&|y| short(*y))
        .label_style(style)
        .draw()?;
    for (line, number_of) in lines.iter().zip(0_usize..) {
        let color = if line.reference { MUTED } else { SERIES[number_of % SERIES.len()] };
        let width = if line.reference { 1 } else { 2 };
        let points =
            || line.values.iter().zip(0_u32..).filter_map(|(value, x)| Some((f64::from(x), (*value)?)));
        let middle = points().map(|(x, value)| (x, value.median));
        chart.draw_series(LineSeries::new(middle, color.stroke_width(width)))?;
        if line.reference {
            continue;
        }
        let range = |(x, value): (f64, Value)| {
            PathElement::new([(x, value.least), (x, value.most)], color.stroke_width(1))
        };
        chart.draw_series(points().map(range))?;
        chart.draw_series(points().map(|(x, value)| Circle::new((x, value.median), 3, color.filled())))?;
    }
    root.present()?;
    Ok(())
}

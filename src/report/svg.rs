//! Figures as SVG: heat maps of scores, and lines with error bars. A value that is not there is not drawn.

pub use super::curves::{Curve, curves};
use crate::error::{Error, Result};
use plotters::coord::Shift;
use plotters::prelude::*;

/// One grid of scores between 0 and 1.
#[derive(Debug, Clone, PartialEq)]
pub struct HeatMap {
    /// Heading.
    pub title: String,
    /// Labels left to right.
    pub columns: Vec<String>,
    /// Labels top to bottom.
    pub rows: Vec<String>,
    /// `[row][column]`; `None` is left blank.
    pub values: Vec<Vec<Option<f64>>>,
}

/// One line over labelled places.
#[derive(Debug, Clone, PartialEq)]
pub struct Line {
    /// Name in the legend.
    pub name: String,
    /// (which of the labels, value, standard error).
    pub points: Vec<(usize, f64, Option<f64>)>,
}

/// What the axes mean.
#[derive(Debug, Clone, Copy)]
pub struct Axes<'a> {
    /// Of the whole figure.
    pub title: &'a str,
    /// Below.
    pub x: &'a str,
    /// At the left.
    pub y: &'a str,
}

const CELL: (u32, u32) = (64, 30);
const MARGIN_LEFT: u32 = 72;
const MARGIN_TOP: u32 = 52;
const TITLE_HEIGHT: u32 = 36;
const MARGIN_BOTTOM: u32 = 40;
/// Small multiples side by side.
const MOST_ACROSS: usize = 3;

/// Dark to bright at equal steps of lightness, readable with any colour vision and in grey (the anchors of "viridis",
/// van der Walt and Smith 2015).
const ANCHORS: [(u8, u8, u8); 5] = [
    (68, 1, 84),
    (59, 82, 139),
    (33, 145, 140),
    (94, 201, 98),
    (253, 231, 37),
];

/// Colours of lines, apart for any colour vision (Okabe and Ito 2008).
pub(super) const LINE_COLOURS: [RGBColor; 8] = [
    RGBColor(0, 0, 0),
    RGBColor(230, 159, 0),
    RGBColor(86, 180, 233),
    RGBColor(0, 158, 115),
    RGBColor(213, 94, 0),
    RGBColor(0, 114, 178),
    RGBColor(204, 121, 167),
    RGBColor(240, 228, 66),
];

pub(super) fn failed(error: impl std::fmt::Display) -> Error {
    Error::bug(format!("a figure cannot be drawn: {error}"))
}

fn colour(value: f64) -> RGBColor {
    let place = value.clamp(0.0, 1.0) * (ANCHORS.len() - 1) as f64;
    let below = (place.floor() as usize).min(ANCHORS.len() - 2);
    let weight = place - below as f64;
    let mix = |a: u8, b: u8| (f64::from(a) + (f64::from(b) - f64::from(a)) * weight).round() as u8;
    let (a, b) = (ANCHORS[below], ANCHORS[below + 1]);
    RGBColor(mix(a.0, b.0), mix(a.1, b.1), mix(a.2, b.2))
}

pub(super) fn text(size: u32) -> TextStyle<'static> {
    ("sans-serif", size).into_font().color(&BLACK)
}

/// Height of one name below a plot.
pub(super) const LEGEND_LINE: u32 = 20;

/// The place of a plot and, below it, that of `names` names.
pub(super) fn with_legend(svg: &mut String, names: usize) -> Result<[DrawingArea<SVGBackend<'_>, Shift>; 2]> {
    const PLOT: u32 = 420;
    let size = (760, PLOT + LEGEND_LINE * names as u32 + 10);
    let area = SVGBackend::with_string(svg, size).into_drawing_area();
    area.fill(&WHITE).map_err(failed)?;
    let (plot, legend) = area.split_vertically(PLOT);
    Ok([plot, legend])
}

/// Name number `number` with a piece of its line.
pub(super) fn draw_name(
    legend: &DrawingArea<SVGBackend<'_>, Shift>,
    number: usize,
    name: &str,
    style: ShapeStyle,
) -> Result<()> {
    let at = (LEGEND_LINE * number as u32) as i32 + 8;
    let line = PathElement::new(vec![(56, at), (84, at)], style);
    legend.draw(&line).map_err(failed)?;
    let name = Text::new(name.to_owned(), (92, at - 6), text(13));
    legend.draw(&name).map_err(failed)
}

fn centred(size: u32, ink: RGBColor) -> TextStyle<'static> {
    use plotters::style::text_anchor::{HPos, Pos, VPos};
    let middle = Pos::new(HPos::Center, VPos::Center);
    ("sans-serif", size).into_font().color(&ink).pos(middle)
}

/// Heat maps of one scale beside and below each other.
pub fn heat_maps(axes: Axes<'_>, maps: &[HeatMap]) -> Result<String> {
    let widest = maps.iter().map(|map| map.columns.len()).max().unwrap_or(0) as u32;
    let tallest = maps.iter().map(|map| map.rows.len()).max().unwrap_or(0) as u32;
    let across = maps.len().clamp(1, MOST_ACROSS);
    let down = maps.len().div_ceil(across).max(1);
    // A heading needs room even above a narrow grid.
    let panel = (
        (MARGIN_LEFT + widest * CELL.0 + 16).max(320),
        MARGIN_TOP + tallest * CELL.1 + MARGIN_BOTTOM,
    );
    let size = (panel.0 * across as u32, TITLE_HEIGHT + panel.1 * down as u32);
    let mut svg = String::new();
    {
        let area = SVGBackend::with_string(&mut svg, size).into_drawing_area();
        area.fill(&WHITE).map_err(failed)?;
        let title = centred(17, BLACK);
        area.draw(&Text::new(axes.title.to_owned(), (size.0 as i32 / 2, 20), title))
            .map_err(failed)?;
        let (_, panels) = area.split_vertically(TITLE_HEIGHT);
        for (panel, map) in panels.split_evenly((down, across)).iter().zip(maps) {
            heat_map(panel, axes, map)?;
        }
        area.present().map_err(failed)?;
    }
    Ok(svg)
}

fn heat_map(area: &DrawingArea<SVGBackend<'_>, Shift>, axes: Axes<'_>, map: &HeatMap) -> Result<()> {
    let (width, height) = (CELL.0 as i32, CELL.1 as i32);
    let (left, top) = (MARGIN_LEFT as i32, MARGIN_TOP as i32);
    let middle = left + map.columns.len() as i32 * width / 2;
    let bottom = top + map.rows.len() as i32 * height;
    let draw = |label: &str, at: (i32, i32), size: u32| {
        let style = centred(size, BLACK);
        area.draw(&Text::new(label.to_owned(), at, style)).map_err(failed)
    };
    draw(&map.title, (middle.max(160), 16), 14)?;
    draw(axes.y, (left / 2, top - 12), 12)?;
    draw(axes.x, (middle, bottom + 30), 12)?;
    for (column, label) in (0..).zip(&map.columns) {
        draw(label, (left + column * width + width / 2, bottom + 12), 12)?;
    }
    for ((row, label), values) in (0..).zip(&map.rows).zip(&map.values) {
        let y = top + row * height;
        draw(label, (left / 2, y + height / 2), 12)?;
        for (column, value) in (0..).zip(values) {
            let x = left + column * width;
            let corners = [(x, y), (x + width - 2, y + height - 2)];
            let Some(value) = *value else {
                let frame = Rectangle::new(corners, BLACK.mix(0.3).stroke_width(1));
                area.draw(&frame).map_err(failed)?;
                continue;
            };
            area.draw(&Rectangle::new(corners, colour(value).filled()))
                .map_err(failed)?;
            let ink = if value < 0.6 { WHITE } else { BLACK };
            let style = centred(12, ink);
            let place = (x + width / 2 - 1, y + height / 2 - 1);
            area.draw(&Text::new(format!("{value:.2}"), place, style))
                .map_err(failed)?;
        }
    }
    Ok(())
}

/// Lines over `labels`, values between 0 and 1, with bars of one standard error.
pub fn lines(axes: Axes<'_>, labels: &[String], lines: &[Line]) -> Result<String> {
    let last = labels.len().saturating_sub(1) as f64;
    let mut svg = String::new();
    {
        let [plot, legend] = with_legend(&mut svg, lines.len())?;
        let mut chart = ChartBuilder::on(&plot)
            .caption(axes.title, ("sans-serif", 17))
            .margin(12)
            .x_label_area_size(44)
            .y_label_area_size(52)
            .build_cartesian_2d(-0.25..last + 0.25, 0.0..1.02)
            .map_err(failed)?;
        let label = |x: &f64| {
            // Marks are asked for between the places, too; those have no label.
            let near = x.round();
            let at = ((x - near).abs() < 1e-6 && near >= 0.0).then_some(near as usize);
            at.and_then(|at| labels.get(at)).cloned().unwrap_or_default()
        };
        chart
            .configure_mesh()
            .disable_x_mesh()
            .x_labels(2 * labels.len() + 1)
            .x_label_formatter(&label)
            .y_label_formatter(&|y| format!("{y:.1}"))
            .x_desc(axes.x)
            .y_desc(axes.y)
            .light_line_style(WHITE)
            .draw()
            .map_err(failed)?;
        for (number, line) in lines.iter().enumerate() {
            let colour = LINE_COLOURS[number % LINE_COLOURS.len()];
            let points = line.points.iter().map(|&(at, value, _)| (at as f64, value));
            let path = PathElement::new(points.clone().collect::<Vec<_>>(), colour.stroke_width(2));
            chart.draw_series([path]).map_err(failed)?;
            chart
                .draw_series(points.map(|point| Circle::new(point, 3, colour.filled())))
                .map_err(failed)?;
            let bars = line.points.iter().filter_map(|&(at, value, error)| {
                let (x, error) = (at as f64, error?);
                let ends = vec![(x, (value - error).max(0.0)), (x, (value + error).min(1.0))];
                Some(PathElement::new(ends, colour.stroke_width(1)))
            });
            chart.draw_series(bars).map_err(failed)?;
            draw_name(&legend, number, &line.name, colour.stroke_width(2))?;
        }
        plot.present().map_err(failed)?;
    }
    Ok(svg)
}

/// `4096` as `4k`, and what is no multiple of 1024 as it is.
pub fn short_tokens(tokens: usize) -> String {
    match tokens {
        n if n >= 1 << 20 && n.is_multiple_of(1 << 20) => format!("{}M", n >> 20),
        n if n >= 1 << 10 && n.is_multiple_of(1 << 10) => format!("{}k", n >> 10),
        n => n.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const AXES: Axes<'_> = Axes {
        title: "passkey <all>",
        x: "tokens",
        y: "depth",
    };

    #[test]
    fn a_heat_map_draws_every_value_and_no_other() {
        let map = |title: &str| HeatMap {
            title: title.into(),
            columns: vec!["4k".into(), "8k".into()],
            rows: vec!["0".into(), "1".into()],
            values: vec![vec![Some(0.0), Some(0.5)], vec![None, Some(1.0)]],
        };
        let svg = heat_maps(AXES, &[map("dense"), map("token-select:top-k=64")]).unwrap();
        assert!(svg.starts_with("<svg") && svg.trim_end().ends_with("</svg>"), "{svg}");
        assert_eq!(svg.matches("0.50").count(), 2);
        assert_eq!(
            svg.matches("#FDE725").count(),
            2,
            "the brightest colour is a score of 1: {svg}"
        );
        // White background, 3 cells and 1 empty frame per map.
        assert_eq!(svg.matches("<rect").count(), 1 + 2 * 4);
        assert!(
            svg.contains("token-select:top-k=64") && svg.contains("passkey &lt;all&gt;"),
            "{svg}"
        );
        assert_eq!(
            svg,
            heat_maps(AXES, &[map("dense"), map("token-select:top-k=64")]).unwrap()
        );
    }

    #[test]
    fn lines_have_a_dot_per_point_a_name_and_labelled_places() {
        let line = |name: &str, points: &[(usize, f64, Option<f64>)]| Line {
            name: name.into(),
            points: points.to_vec(),
        };
        let labels = ["4k".to_owned(), "8k".to_owned(), "16k".to_owned()];
        let all = [
            line("dense", &[(0, 1.0, None), (1, 0.5, Some(0.1)), (2, 0.25, Some(0.1))]),
            line("cut short", &[(0, 0.9, None)]),
        ];
        let svg = lines(AXES, &labels, &all).unwrap();
        assert_eq!(svg.matches("<circle").count(), 4);
        for part in ["16k", "8k", "cut short"] {
            assert!(svg.contains(part), "{part}: {svg}");
        }
    }

    #[test]
    fn nothing_is_drawn_of_nothing() {
        assert!(heat_maps(AXES, &[]).is_ok());
        assert_eq!(
            (short_tokens(4096), short_tokens(1 << 20), short_tokens(1500)),
            ("4k".into(), "1M".into(), "1500".into())
        );
    }
}

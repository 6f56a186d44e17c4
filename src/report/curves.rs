//! Curves over a numeric axis as SVG.

use super::svg::{Axes, LINE_COLOURS, draw_name, failed, with_legend};
use crate::error::Result;
use plotters::prelude::*;

/// One curve.
#[derive(Debug, Clone, PartialEq)]
pub struct Curve {
    /// Name in the legend.
    pub name: String,
    /// (x, y), x rising.
    pub points: Vec<(f64, f64)>,
    /// Which of the colours; curves that belong together share one.
    pub colour: usize,
    /// Drawn thin and pale.
    pub thin: bool,
}

/// Curves with axes from the smallest to the largest value; values that are not finite are not drawn.
pub fn curves(axes: Axes<'_>, curves: &[Curve]) -> Result<String> {
    let finite = |curve: &Curve| {
        let points = curve.points.iter().copied();
        points
            .filter(|(x, y)| x.is_finite() && y.is_finite())
            .collect::<Vec<_>>()
    };
    let all: Vec<(f64, f64)> = curves.iter().flat_map(finite).collect();
    let range = |of: fn(&(f64, f64)) -> f64| {
        let low = all.iter().map(of).fold(f64::INFINITY, f64::min);
        let high = all.iter().map(of).fold(f64::NEG_INFINITY, f64::max);
        // A single value still needs an axis with a length.
        if high > low {
            low..high
        } else {
            low.min(0.0)..high.max(0.0) + 1.0
        }
    };
    let (x, y) = (range(|point| point.0), range(|point| point.1));
    let mut svg = String::new();
    {
        let [plot, legend] = with_legend(&mut svg, curves.len())?;
        let mut chart = ChartBuilder::on(&plot)
            .caption(axes.title, ("sans-serif", 17))
            .margin(12)
            .x_label_area_size(44)
            .y_label_area_size(60)
            .build_cartesian_2d(x, y)
            .map_err(failed)?;
        chart
            .configure_mesh()
            .x_desc(axes.x)
            .y_desc(axes.y)
            .light_line_style(WHITE)
            .draw()
            .map_err(failed)?;
        for (number, curve) in curves.iter().enumerate() {
            let colour = LINE_COLOURS[curve.colour % LINE_COLOURS.len()];
            let style = if curve.thin {
                colour.mix(0.45).stroke_width(1)
            } else {
                colour.stroke_width(2)
            };
            chart
                .draw_series([PathElement::new(finite(curve), style)])
                .map_err(failed)?;
            draw_name(&legend, number, &curve.name, style)?;
        }
        plot.present().map_err(failed)?;
    }
    Ok(svg)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn curves_with_a_gap_or_a_single_point_are_drawn() {
        let axes = Axes {
            title: "loss",
            x: "steps",
            y: "nats",
        };
        let curve = |points: &[(f64, f64)]| Curve {
            name: "rcmha".into(),
            points: points.to_vec(),
            colour: 9,
            thin: false,
        };
        let svg = curves(
            axes,
            &[curve(&[(1.0, 4.0), (2.0, f64::NAN), (3.0, 2.0)]), curve(&[(1.0, 4.0)])],
        )
        .unwrap();
        assert_eq!(svg.matches("rcmha").count(), 2);
        assert!(!svg.contains("NaN"));
        assert!(curves(axes, &[curve(&[(1.0, 4.0)])]).unwrap().contains("<svg"));
    }
}

//! Rotary embedding: frequencies of every scaling scheme, and the table of angles.

use super::config::{ModelConfig, RopeScaling};
use crate::kernels::RopeTable;
use std::f64::consts::PI;

/// Inverse frequencies of the D/2 pairs and the factor on cosines and sines, as transformers computes them.
pub fn inverse_frequencies(config: &ModelConfig) -> (Vec<f32>, f32) {
    let d = config.attention.head_dim;
    let theta = config.rope_theta;
    let plain: Vec<f64> = (0..d / 2).map(|i| theta.powf(-(2.0 * i as f64) / d as f64)).collect();
    match config.rope_scaling {
        RopeScaling::None => (to_f32(plain), 1.0),
        RopeScaling::Linear { factor } => (plain.iter().map(|f| (f / f64::from(factor)) as f32).collect(), 1.0),
        RopeScaling::Llama3 {
            factor,
            low_freq_factor,
            high_freq_factor,
            original_positions,
        } => {
            let (factor, low, high) = (
                f64::from(factor),
                f64::from(low_freq_factor),
                f64::from(high_freq_factor),
            );
            let original = original_positions as f64;
            let stretched = plain.iter().map(|&f| {
                let wavelength = 2.0 * PI / f;
                if wavelength < original / high {
                    f
                } else if wavelength > original / low {
                    f / factor
                } else {
                    let keep = (original / wavelength - low) / (high - low);
                    (1.0 - keep) * f / factor + keep * f
                }
            });
            (to_f32(stretched.collect()), 1.0)
        }
        RopeScaling::Yarn {
            factor,
            beta_fast,
            beta_slow,
            attention_factor,
            original_positions,
            truncate,
        } => {
            // The pair index at which a frequency makes `turns` turns over the original window.
            let index = |turns: f32| {
                d as f64 * (original_positions as f64 / (f64::from(turns) * 2.0 * PI)).ln() / (2.0 * theta.ln())
            };
            let (mut low, mut high) = (index(beta_fast), index(beta_slow));
            if truncate {
                (low, high) = (low.floor(), high.ceil());
            }
            let (low, high) = (low.max(0.0), high.min(d as f64 - 1.0));
            let span = if (high - low).abs() < f64::EPSILON {
                0.001
            } else {
                high - low
            };
            let stretched = plain.iter().enumerate().map(|(i, &f)| {
                let ramp = ((i as f64 - low) / span).clamp(0.0, 1.0);
                f / f64::from(factor) * ramp + f * (1.0 - ramp)
            });
            (to_f32(stretched.collect()), attention_factor)
        }
    }
}

fn to_f32(x: Vec<f64>) -> Vec<f32> {
    x.into_iter().map(|f| f as f32).collect()
}

/// Cosines and sines for positions `0..positions`, angles in f32 as in training.
pub fn table(config: &ModelConfig, positions: usize) -> RopeTable {
    let (frequencies, factor) = inverse_frequencies(config);
    let half = frequencies.len();
    let mut cos = Vec::with_capacity(positions * half);
    let mut sin = Vec::with_capacity(positions * half);
    for position in 0..positions {
        for frequency in &frequencies {
            let (s, c) = (position as f32 * frequency).sin_cos();
            cos.push(c * factor);
            sin.push(s * factor);
        }
    }
    RopeTable { cos, sin, half }
}

/// Bytes of [`table`].
pub fn table_bytes(config: &ModelConfig, positions: usize) -> usize {
    positions * config.attention.head_dim * 4
}

//! Rotary embedding: frequencies of every scaling scheme, and the table of angles.

use super::config::{ModelConfig, RopeScaling};
use crate::error::{Error, Result};
use crate::kernels::RopeTable;
use crate::selection::{PolicyConfig, RopeExtension};
use std::borrow::Cow;
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

/// `config` with its rotary embedding stretched for a context of `max_context` tokens. A factor of 1 changes nothing. The
/// model has no scaling of its own ([`check_extension`]); if it has one, NTK changes the base beneath it and `YaRN`
/// replaces it.
pub fn extended(config: &ModelConfig, extension: Option<RopeExtension>, max_context: usize) -> Cow<'_, ModelConfig> {
    let Some(extension) = extension else {
        return Cow::Borrowed(config);
    };
    let trained = config.max_position_embeddings;
    let factor = extension.factor(trained, max_context);
    let mut extended = config.clone();
    match extension {
        _ if factor <= 1.0 => {}
        RopeExtension::Ntk { .. } => {
            let d = config.attention.head_dim as f64;
            // One pair alone (D = 2) turns once per position whatever the base.
            if d > 2.0 {
                extended.rope_theta *= f64::from(factor).powf(d / (d - 2.0));
            }
        }
        RopeExtension::Yarn { .. } => {
            extended.rope_scaling = RopeScaling::Yarn {
                factor,
                beta_fast: 32.0,
                beta_slow: 1.0,
                attention_factor: 0.1 * factor.ln() + 1.0,
                original_positions: trained,
                truncate: true,
            };
        }
    }
    Cow::Owned(extended)
}

/// Refuses to stretch frequencies that the model already stretches.
pub fn check_extension(config: &ModelConfig, policy: &PolicyConfig) -> Result<()> {
    let own = match config.rope_scaling {
        RopeScaling::None => return Ok(()),
        RopeScaling::Linear { .. } => "linear",
        RopeScaling::Llama3 { .. } => "llama3",
        RopeScaling::Yarn { .. } => "yarn",
    };
    if policy.rope_extension().is_none() {
        return Ok(());
    }
    Err(Error::user(format!(
        "`--policy {}`: the model already stretches its rotary embedding (rope_type `{own}`)",
        policy.name()
    ))
    .help("pass `--policy dense`, which uses the model's own scaling"))
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

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn config(scaling: &serde_json::Value) -> ModelConfig {
        let value = json!({"model_type": "llama", "hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4,
            "num_hidden_layers": 3, "vocab_size": 100, "rms_norm_eps": 1e-5, "max_position_embeddings": 512,
            "rope_theta": 5e5, "rope_scaling": scaling});
        ModelConfig::from_json(&value, "test").expect("valid")
    }

    #[test]
    fn ntk_stretches_the_lowest_frequency_by_the_factor_and_keeps_the_highest() {
        let config = config(&json!(null));
        let (plain, _) = inverse_frequencies(&config);
        let ntk = RopeExtension::Ntk { factor: None };
        let (stretched, factor) = inverse_frequencies(&extended(&config, Some(ntk), 4096));
        assert!((factor - 1.0).abs() < 1e-9);
        assert!((stretched[0] - plain[0]).abs() < 1e-9);
        let ratio = plain[7] / stretched[7];
        assert!((ratio - 8.0).abs() < 1e-4, "{ratio}");
    }

    #[test]
    fn yarn_is_the_one_of_a_config_that_says_yarn() {
        let stated = json!({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 512});
        let (want, want_factor) = inverse_frequencies(&config(&stated));
        let plain = config(&json!(null));
        let yarn = RopeExtension::Yarn { factor: Some(4.0) };
        let (got, factor) = inverse_frequencies(&extended(&plain, Some(yarn), 7));
        assert_eq!(got, want);
        assert!((factor - want_factor).abs() < 1e-7);
    }

    #[test]
    fn a_context_inside_the_trained_window_is_not_stretched() {
        let config = config(&json!(null));
        for extension in [
            RopeExtension::Ntk { factor: None },
            RopeExtension::Yarn { factor: None },
        ] {
            let short = extended(&config, Some(extension), 512);
            assert_eq!(inverse_frequencies(&short), inverse_frequencies(&config));
        }
    }

    #[test]
    fn a_model_with_scaling_of_its_own_is_refused() {
        let config = config(&json!({"rope_type": "linear", "factor": 2.0}));
        let policy = PolicyConfig::Ntk { rope_factor: None };
        let error = check_extension(&config, &policy).expect_err("two stretches");
        assert!(error.to_string().contains("rope_type `linear`"), "{error}");
        assert!(check_extension(&config, &PolicyConfig::Dense).is_ok());
    }
}

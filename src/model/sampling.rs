//! Choosing the next token: the processors of transformers in their order, then one seeded draw.
//!
//! The arithmetic is that of [`crate::kernels::choice`], so that a device draws the same token from the same logits.

use rand::RngCore;
use rand_chacha::ChaCha8Rng;
use serde::Serialize;

use crate::error::{Error, Result};
use crate::kernels::Choice;
use crate::kernels::choice::{least_weight, place, wanted_weight, weight, weight_scale};
use crate::random::stream_rng;

/// How the next token is chosen. The default is greedy.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct SamplingConfig {
    /// Divisor of the logits; 0 is greedy decoding.
    pub temperature: f32,
    /// Keep this many of the largest logits, and what ties with the last of them. 0 is off.
    pub top_k: Option<usize>,
    /// Keep the fewest tokens whose probabilities reach this mass.
    pub top_p: Option<f32>,
    /// Keep tokens with at least this share of the largest probability.
    pub min_p: Option<f32>,
    /// Divide positive and multiply negative logits of tokens already in the context by this.
    pub repetition_penalty: Option<f32>,
    /// Seed of the draw.
    pub seed: u64,
}

impl SamplingConfig {
    /// Refuses values without a meaning, naming the flag.
    pub fn validate(&self) -> Result<()> {
        let check = |good: bool, flag: &str, value: f32, wanted: &str| {
            if good {
                return Ok(());
            }
            Err(Error::user(format!("`{flag} {value}` is out of range")).help(format!("pass {wanted}")))
        };
        let t = self.temperature;
        check(
            t.is_finite() && t >= 0.0,
            "--temperature",
            t,
            "0 (greedy) or a positive number",
        )?;
        if let Some(p) = self.top_p {
            check(p > 0.0 && p <= 1.0, "--top-p", p, "a number above 0 and at most 1")?;
        }
        if let Some(p) = self.min_p {
            check((0.0..=1.0).contains(&p), "--min-p", p, "a number between 0 and 1")?;
        }
        if let Some(r) = self.repetition_penalty {
            check(
                r.is_finite() && r > 0.0,
                "--repetition-penalty",
                r,
                "a positive number (1 is off)",
            )?;
        }
        Ok(())
    }
}

/// A token that may be drawn.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Candidate {
    id: u32,
    logit: f32,
    /// See [`weight`].
    weight: u64,
}

/// Draws tokens from logits; all its randomness comes from the seed's stream `sampling`.
#[derive(Debug, Clone)]
pub struct Sampler {
    config: SamplingConfig,
    rng: ChaCha8Rng,
    seen: Vec<bool>,
    candidates: Vec<Candidate>,
}

impl Sampler {
    /// A sampler for a validated configuration.
    pub fn new(config: SamplingConfig) -> Result<Self> {
        Self::in_stream(config, "sampling")
    }

    /// The same drawing from another stream of the seed: for several texts of one run.
    pub fn in_stream(config: SamplingConfig, stream: &str) -> Result<Self> {
        config.validate()?;
        let rng = stream_rng(config.seed, stream);
        Ok(Self {
            config,
            rng,
            seen: Vec::new(),
            candidates: Vec::new(),
        })
    }

    /// Lets `device` choose what [`Self::sample`] would choose: if it does, the draw counts.
    pub fn choose_on(&mut self, history: &[u32], device: impl FnOnce(&Choice<'_>) -> Option<u32>) -> Option<u32> {
        let mut rng = self.rng.clone();
        let SamplingConfig {
            temperature,
            top_k,
            top_p,
            min_p,
            repetition_penalty,
            ..
        } = self.config;
        let drawn = temperature > 0.0;
        let choice = Choice {
            scale: if drawn { weight_scale(temperature) } else { 0.0 },
            top_k: top_k.unwrap_or(0),
            top_p: top_p.unwrap_or(1.0),
            min_p: min_p.unwrap_or(0.0),
            repetition_penalty: repetition_penalty.unwrap_or(1.0),
            history,
            bits: if drawn { rng.next_u64() } else { 0 },
        };
        let id = device(&choice)?;
        self.rng = rng;
        Some(id)
    }

    /// The next token. `history` is the whole context (prompt and generated ids), which only the repetition penalty
    /// reads; the penalty is written into `logits`.
    ///
    /// Greedy decoding (temperature 0) takes the largest logit, the lowest id among equals, and draws nothing. A
    /// logit of minus infinity excludes its token; NaN or plus infinity anywhere means that the forward pass has
    /// failed, and a token chosen from what is left would hide it: that is an error.
    pub fn sample(&mut self, logits: &mut [f32], history: &[u32]) -> Result<u32> {
        let (best, max) = self.prepare(logits, history)?;
        if self.config.temperature == 0.0 {
            return Ok(best);
        }
        let total = self.filter(logits, max);
        let mut left = place(self.rng.next_u64(), total);
        let drawn = self.candidates.iter().find(|candidate| {
            let here = left < candidate.weight;
            left = left.wrapping_sub(candidate.weight);
            here
        });
        Ok(drawn.map_or(best, |candidate| candidate.id))
    }

    /// The distribution [`Self::sample`] draws from: ids in rising order with their probabilities.
    pub fn distribution(&mut self, logits: &mut [f32], history: &[u32]) -> Result<Vec<(u32, f64)>> {
        let (best, max) = self.prepare(logits, history)?;
        if self.config.temperature == 0.0 {
            return Ok(vec![(best, 1.0)]);
        }
        let total = self.filter(logits, max);
        let share = |c: &Candidate| (c.id, c.weight as f64 / total as f64);
        Ok(self.candidates.iter().map(share).collect())
    }

    /// Applies the repetition penalty and returns the largest logit with its id.
    #[expect(clippy::float_cmp, reason = "only exactly 1 is off")]
    fn prepare(&mut self, logits: &mut [f32], history: &[u32]) -> Result<(u32, f32)> {
        if let Some(penalty) = self.config.repetition_penalty.filter(|&r| r != 1.0) {
            self.penalize(logits, history, penalty);
        }
        let mut best = None;
        for (id, &logit) in logits.iter().enumerate() {
            if logit.is_nan() || logit == f32::INFINITY {
                return Err(Error::user(format!("the model gave token {id} the logit {logit}"))
                    .note("every later token would be meaningless, so generation stops here")
                    .help(
                        "compare `config.json` (rotary and norm constants) and the weights with the published ones",
                    ));
            }
            if best.is_none_or(|(_, max)| logit > max) {
                best = Some((id as u32, logit));
            }
        }
        best.filter(|&(_, max)| max > f32::NEG_INFINITY)
            .ok_or_else(|| Error::bug("no token has a finite logit"))
    }

    /// Each token of the context once, however often it occurs.
    fn penalize(&mut self, logits: &mut [f32], history: &[u32], penalty: f32) {
        self.seen.clear();
        self.seen.resize(logits.len(), false);
        for &id in history {
            let id = id as usize;
            if id < logits.len() && !std::mem::replace(&mut self.seen[id], true) {
                let logit = &mut logits[id];
                *logit = if *logit < 0.0 {
                    *logit * penalty
                } else {
                    *logit / penalty
                };
            }
        }
    }

    /// Fills `candidates` (in id order) with what temperature, top-k, top-p and min-p leave; returns their weight.
    fn filter(&mut self, logits: &[f32], max: f32) -> u64 {
        let floor = self.top_k_floor(logits);
        let scale = weight_scale(self.config.temperature);
        self.candidates.clear();
        self.candidates.extend(
            logits
                .iter()
                .enumerate()
                .filter(|&(_, &logit)| logit >= floor)
                .map(|(id, &logit)| Candidate {
                    id: id as u32,
                    // Minus zero counts as zero.
                    logit: logit + 0.0,
                    weight: weight(logit, max, scale),
                })
                .filter(|candidate| candidate.weight > 0),
        );
        if let Some(top_p) = self.config.top_p.filter(|&p| p < 1.0) {
            self.keep_top_p(top_p);
        }
        if let Some(min_p) = self.config.min_p {
            let least = least_weight(min_p);
            self.candidates.retain(|c| c.weight >= least);
        }
        self.candidates.iter().map(|c| c.weight).sum()
    }

    /// The smallest logit that top-k keeps.
    fn top_k_floor(&self, logits: &[f32]) -> f32 {
        match self.config.top_k {
            Some(k) if k > 0 && k < logits.len() => {
                let mut sorted = logits.to_vec();
                *sorted.select_nth_unstable_by(k - 1, |a, b| b.total_cmp(a)).1
            }
            _ => f32::NEG_INFINITY,
        }
    }

    /// Keeps a token while the likelier ones have not reached `top_p`; among equals the lower id is the likelier.
    fn keep_top_p(&mut self, top_p: f32) {
        let total: u64 = self.candidates.iter().map(|c| c.weight).sum();
        let wanted = wanted_weight(top_p, total);
        // Tokens below this share are too light, even all together, to be needed. Sorting a whole
        // vocabulary would take several times longer than everything else here.
        let negligible = (total - wanted) / self.candidates.len().max(1) as u64;
        self.candidates.retain(|c| c.weight >= negligible);
        // Where two logits have one weight, the larger is the likelier.
        self.candidates
            .sort_unstable_by(|a, b| b.logit.total_cmp(&a.logit).then(a.id.cmp(&b.id)));
        let mut weight = 0;
        let kept = self.candidates.iter().take_while(|c| {
            let needed = weight < wanted;
            weight += c.weight;
            needed
        });
        let kept = kept.count();
        self.candidates.truncate(kept);
        self.candidates.sort_unstable_by_key(|c| c.id);
    }
}

#[cfg(test)]
mod tests {
    use super::{Sampler, SamplingConfig};

    fn greedy() -> Sampler {
        Sampler::new(SamplingConfig::default()).unwrap()
    }

    #[test]
    fn greedy_takes_the_lowest_id_among_equals() {
        assert_eq!(greedy().sample(&mut [0.0, 2.0, 2.0, 1.0], &[]).unwrap(), 1);
        assert_eq!(greedy().sample(&mut [f32::NEG_INFINITY, -3.0], &[]).unwrap(), 1);
    }

    #[test]
    fn a_failed_forward_pass_is_an_error_for_greedy_and_sampling() {
        for temperature in [0.0, 1.0] {
            let config = SamplingConfig {
                temperature,
                ..SamplingConfig::default()
            };
            let mut sampler = Sampler::new(config).unwrap();
            let error = sampler.sample(&mut [0.0, f32::NAN], &[]).unwrap_err();
            assert!(error.message().contains("token 1"), "{error}");
            assert!(sampler.sample(&mut [f32::INFINITY, 0.0], &[]).is_err());
            assert!(sampler.sample(&mut [f32::NEG_INFINITY; 2], &[]).is_err());
            assert!(sampler.sample(&mut [], &[]).is_err());
        }
    }

    #[test]
    fn each_flag_is_named_with_its_value() {
        let bad = |edit: fn(&mut SamplingConfig)| {
            let mut config = SamplingConfig::default();
            edit(&mut config);
            config.validate().unwrap_err().to_string()
        };
        assert!(bad(|c| c.temperature = -1.0).contains("`--temperature -1`"));
        assert!(bad(|c| c.temperature = f32::NAN).contains("`--temperature NaN`"));
        assert!(bad(|c| c.top_p = Some(0.0)).contains("`--top-p 0`"));
        assert!(bad(|c| c.top_p = Some(1.5)).contains("`--top-p 1.5`"));
        assert!(bad(|c| c.min_p = Some(2.0)).contains("`--min-p 2`"));
        assert!(bad(|c| c.repetition_penalty = Some(0.0)).contains("`--repetition-penalty 0`"));
        assert!(
            Sampler::new(SamplingConfig {
                min_p: Some(-1.0),
                ..SamplingConfig::default()
            })
            .is_err()
        );
    }

    #[test]
    fn a_tiny_temperature_is_greedy_and_never_overflows() {
        let config = SamplingConfig {
            temperature: f32::MIN_POSITIVE,
            ..SamplingConfig::default()
        };
        let mut sampler = Sampler::new(config).unwrap();
        assert_eq!(sampler.sample(&mut [1.0, 3.0e38, 2.0], &[]).unwrap(), 1);
    }

    #[test]
    fn one_seed_gives_one_sequence() {
        let draw = |seed| {
            let config = SamplingConfig {
                temperature: 1.0,
                seed,
                ..SamplingConfig::default()
            };
            let mut sampler = Sampler::new(config).unwrap();
            (0..32)
                .map(|_| sampler.sample(&mut [0.0; 50], &[]).unwrap())
                .collect::<Vec<_>>()
        };
        assert_eq!(draw(3), draw(3));
        assert_ne!(draw(3), draw(4));
    }

    #[test]
    fn draws_follow_the_distribution() {
        const DRAWS: u32 = 40_000;
        let logits = [0.5, -1.0, 2.0, 0.0, 1.5];
        let config = SamplingConfig {
            temperature: 0.8,
            top_p: Some(0.95),
            seed: 11,
            ..SamplingConfig::default()
        };
        let mut sampler = Sampler::new(config).unwrap();
        let wanted = sampler.distribution(&mut logits.clone(), &[]).unwrap();
        let mut counts = [0u32; 5];
        for _ in 0..DRAWS {
            counts[sampler.sample(&mut logits.clone(), &[]).unwrap() as usize] += 1;
        }
        for (id, p) in wanted {
            let deviation = (p * (1.0 - p) / f64::from(DRAWS)).sqrt();
            let got = f64::from(counts[id as usize]) / f64::from(DRAWS);
            // Four standard errors: one seed, so this either holds for good or the draw is biased.
            assert!((got - p).abs() < 4.0 * deviation, "token {id}: {got} against {p}");
        }
    }
}

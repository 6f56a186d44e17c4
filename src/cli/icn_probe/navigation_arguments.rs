//! Arguments of navigation: which methods, how far, from which seeds.

use crate::cli::arguments::{Switch, at_least_one};
use crate::error::{Error, Result};
use crate::model::sampling::SamplingConfig;
use crate::probe::navigation::{Method, Settings};
use clap::Args;

#[derive(Debug, Args)]
#[command(next_help_heading = "Navigation")]
pub(super) struct NavigationArgs {
    /// Methods to compare; differences are to the first [default: all]
    #[arg(long, value_enum, value_delimiter = ',', value_name = "METHODS")]
    methods: Vec<Method>,
    /// Queries; after each, what was found counts as explored. Several numbers make a sweep, with --step: every pair is run
    #[arg(long, value_delimiter = ',', default_value = "10", value_name = "N", value_parser = at_least_one())]
    rounds: Vec<usize>,
    /// Answers of a round, or several numbers for a sweep
    #[arg(long, value_delimiter = ',', default_value = "10", value_name = "N", value_parser = at_least_one())]
    step: Vec<usize>,
    /// Tokens that an answer may take
    #[arg(long, default_value_t = 64, value_name = "TOKENS", value_parser = at_least_one())]
    max_new_tokens: usize,
    /// Of the method temperature
    #[arg(long, default_value_t = 1.0, value_name = "T")]
    temperature: f32,
    /// Of the method top-p, at temperature 1
    #[arg(long, default_value_t = 0.9, value_name = "P")]
    top_p: f32,
    /// Of the method diverse-beam: logarithm of probability per earlier group with the same token
    #[arg(long, default_value_t = 0.5, value_name = "X")]
    beam_penalty: f32,
    /// Of the method cluster-penalty: logits per explored token of the same cluster
    #[arg(long, default_value_t = 1.0, value_name = "X")]
    cluster_penalty: f32,
    /// Of the method key-projection: share of the query's part in the span of explored keys that is taken away
    #[arg(long, default_value_t = 1.0, value_name = "SHARE")]
    projection: f32,
    /// Measure what the list does to the query, beside an unrelated list
    #[arg(long, value_enum, default_value = "on")]
    pub geometry: Switch,
    /// Seeds of the random methods, counted up from --seed; the others are asked once
    #[arg(long, default_value_t = 1, value_name = "N", value_parser = at_least_one())]
    pub seeds: usize,
    /// First seed, also of clusters and resampling
    #[arg(long, default_value_t = 0)]
    pub seed: u64,
}

impl NavigationArgs {
    /// Sizes and strengths, checked: one for each pair of rounds and answers of a round.
    pub fn sweep(&self) -> Result<Vec<Settings>> {
        self.check()?;
        let mut all: Vec<Settings> = Vec::new();
        for &rounds in &self.rounds {
            for &step in &self.step {
                let settings = self.settings(rounds, step);
                if !all.contains(&settings) {
                    all.push(settings);
                }
            }
        }
        Ok(all)
    }

    /// The same for a command that makes no sweep.
    pub fn single(&self) -> Result<Settings> {
        match self.sweep()?[..] {
            [settings] => Ok(settings),
            _ => Err(Error::user(
                "several numbers for `--rounds` or `--step` make a sweep, which this command does not do",
            )
            .help("pass one number each; `icn-probe navigate` sweeps")),
        }
    }

    fn settings(&self, rounds: usize, step: usize) -> Settings {
        Settings {
            rounds,
            step,
            max_new_tokens: self.max_new_tokens,
            temperature: self.temperature,
            top_p: self.top_p,
            beam_penalty: self.beam_penalty,
            cluster_penalty: self.cluster_penalty,
            projection: self.projection,
        }
    }

    fn check(&self) -> Result<()> {
        for (flag, value) in [
            ("--beam-penalty", self.beam_penalty),
            ("--cluster-penalty", self.cluster_penalty),
            ("--projection", self.projection),
        ] {
            if !value.is_finite() || value < 0.0 {
                return Err(
                    Error::user(format!("`{flag} {value}` is out of range")).help("pass 0 or a positive number")
                );
            }
        }
        if self.temperature == 0.0 {
            return Err(Error::user("`--temperature 0` samples the same answer again and again")
                .help("pass a positive number such as 1"));
        }
        let sampling = SamplingConfig {
            temperature: self.temperature,
            top_p: Some(self.top_p),
            ..SamplingConfig::default()
        };
        sampling.validate()
    }

    /// The methods in the order of the command line, each once; all of `known` where none was named.
    pub fn methods(&self, known: &[Method]) -> Result<Vec<Method>> {
        if let Some(other) = self.methods.iter().find(|method| !known.contains(method)) {
            let names: Vec<&str> = known.iter().map(|method| method.name()).collect();
            return Err(
                Error::user(format!("`--methods {}` is no method of this command", other.name()))
                    .help(format!("pass some of: {}", names.join(", "))),
            );
        }
        let asked = if self.methods.is_empty() { known } else { &self.methods };
        let mut methods = Vec::new();
        for method in asked {
            if !methods.contains(method) {
                methods.push(*method);
            }
        }
        Ok(methods)
    }

    /// Completions in one pass. The groups of a diverse beam choose one after the other, so all must be there.
    pub fn batch(&self, methods: &[Method], wanted: usize) -> usize {
        let most = |sizes: &[usize]| sizes.iter().copied().max().unwrap_or(1);
        let answers = most(&self.rounds) * most(&self.step);
        if methods.contains(&Method::DiverseBeam) {
            answers
        } else {
            wanted.min(answers)
        }
    }

    /// The seeds that `method` is asked with.
    pub fn seeds_of(&self, method: Method) -> std::ops::Range<u64> {
        let count = if method.is_random() { self.seeds as u64 } else { 1 };
        self.seed..self.seed.saturating_add(count)
    }
}

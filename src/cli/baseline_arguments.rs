//! Knobs of the policies that `TokenSelect` is compared with.

use super::arguments::{PolicyName, tokens};
use crate::selection::{PolicyConfig, SelfExtendConfig};
use clap::Args;

/// Knobs that one policy each reads.
#[derive(Debug, Args)]
#[command(next_help_heading = "Selection policy")]
pub struct BaselineArgs {
    /// ntk, yarn: how far positions are stretched; auto is context over trained window [default: auto]
    #[arg(long, value_name = "FACTOR|auto", value_parser = parse_rope_factor)]
    rope_factor: Option<RopeFactor>,
    /// self-extend: places that share one position [default: 8]
    #[arg(long, value_name = "TOKENS", value_parser = tokens())]
    self_extend_group: Option<usize>,
    /// self-extend: distances below this are exact [default: 1024]
    #[arg(long, value_name = "TOKENS", value_parser = tokens())]
    self_extend_window: Option<usize>,
}

/// A stretch, or what the context needs.
#[derive(Debug, Clone, Copy)]
struct RopeFactor(Option<f32>);

fn parse_rope_factor(text: &str) -> Result<RopeFactor, String> {
    match text {
        "auto" => Ok(RopeFactor(None)),
        _ => text
            .parse()
            .map(|factor| RopeFactor(Some(factor)))
            .map_err(|_| "pass a number such as 16, or `auto`".to_owned()),
    }
}

impl BaselineArgs {
    fn rope_factor(&self) -> Option<f32> {
        self.rope_factor.and_then(|factor| factor.0)
    }

    pub(super) fn ntk(&self) -> PolicyConfig {
        PolicyConfig::Ntk {
            rope_factor: self.rope_factor(),
        }
    }

    pub(super) fn yarn(&self) -> PolicyConfig {
        PolicyConfig::Yarn {
            rope_factor: self.rope_factor(),
        }
    }

    pub(super) fn self_extend(&self) -> PolicyConfig {
        PolicyConfig::SelfExtend(SelfExtendConfig {
            group: self.self_extend_group.unwrap_or(8),
            window: self.self_extend_window.unwrap_or(1024),
        })
    }

    /// Every flag, whether it is given, and the policies that read it.
    pub(super) fn given(&self) -> Vec<(&'static str, bool, &'static [PolicyName])> {
        use PolicyName::{Ntk, SelfExtend, Yarn};
        vec![
            ("--rope-factor", self.rope_factor.is_some(), &[Ntk, Yarn]),
            ("--self-extend-group", self.self_extend_group.is_some(), &[SelfExtend]),
            ("--self-extend-window", self.self_extend_window.is_some(), &[SelfExtend]),
        ]
    }
}

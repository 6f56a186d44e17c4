//! Knobs of the policies that `TokenSelect` is compared with.

use super::arguments::{PolicyName, at_least_one};
use super::or_auto::{self, OrAuto};
use crate::kernels::Positions;
use crate::selection::{
    H2oConfig, H2oPrefill, InfLlmConfig, PolicyConfig, Pooling, QuestConfig, SelfExtendConfig, SnapKvConfig,
    TokenSelectConfig,
};
use clap::builder::RangedU64ValueParser;
use clap::{Args, ValueEnum};

/// Pooling takes so many steps per token; papers use 5 to 13.
const WIDEST_KERNEL: u64 = 1023;

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum PoolingName {
    /// As the released code
    Mean,
    /// As the paper
    Max,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum H2oPrefillName {
    /// Read the whole prompt, then drop
    Dense,
    /// Drop before every chunk
    Evict,
}

/// Knobs that one policy each reads.
#[derive(Debug, Args)]
#[command(next_help_heading = "Selection policy")]
pub struct BaselineArgs {
    /// ntk, yarn: how far positions are stretched; auto is context over trained window [default: auto]
    #[arg(long, value_name = "FACTOR|auto", value_parser = or_auto::factor)]
    rope_factor: Option<OrAuto<f32>>,
    /// self-extend: places that share one position; auto is the fewest that keep the farthest key within two thirds of the
    /// trained window [default: auto]
    #[arg(long, value_name = "TOKENS|auto", value_parser = or_auto::at_least_one)]
    self_extend_group: Option<OrAuto<usize>>,
    /// self-extend: distances below this are exact; auto is a quarter of the trained window [default: auto]
    #[arg(long, value_name = "TOKENS|auto", value_parser = or_auto::at_least_one)]
    self_extend_window: Option<OrAuto<usize>>,
    /// inf-llm: tokens per block; top-k holds so many whole blocks [default: 128]
    #[arg(long, value_name = "TOKENS", value_parser = at_least_one())]
    inf_llm_block_size: Option<usize>,
    /// inf-llm: keys that stand for a block [default: 4]
    #[arg(long, value_name = "TOKENS", value_parser = at_least_one())]
    inf_llm_representatives: Option<usize>,
    /// quest: tokens per page; top-k holds so many whole pages [default: 16]
    #[arg(long, value_name = "TOKENS", value_parser = at_least_one())]
    quest_page_size: Option<usize>,
    /// quest: first layers that attend to everything [default: 2]
    #[arg(long, value_name = "LAYERS")]
    quest_dense_layers: Option<usize>,
    /// snap-kv: last prompt queries that vote [default: 32]
    #[arg(long, value_name = "TOKENS", value_parser = at_least_one())]
    snap_kv_window: Option<usize>,
    /// snap-kv: neighbours pooled, odd [default: 5]
    #[arg(long, value_name = "TOKENS", value_parser = RangedU64ValueParser::<usize>::new().range(1..=WIDEST_KERNEL))]
    snap_kv_kernel: Option<usize>,
    /// snap-kv: how they are pooled [default: mean]
    #[arg(long, value_enum)]
    snap_kv_pooling: Option<PoolingName>,
    /// h2o: what becomes of a prompt [default: dense]
    #[arg(long, value_enum)]
    h2o_prefill: Option<H2oPrefillName>,
}

impl BaselineArgs {
    fn rope_factor(&self) -> Option<f32> {
        or_auto::stated(self.rope_factor)
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
            group: or_auto::stated(self.self_extend_group),
            window: or_auto::stated(self.self_extend_window),
        })
    }

    pub(super) fn inf_llm(&self, budget: &TokenSelectConfig) -> PolicyConfig {
        PolicyConfig::InfLlm(InfLlmConfig {
            n_init: budget.n_init,
            n_local: budget.n_local,
            top_k: budget.top_k,
            block_size: self.inf_llm_block_size.unwrap_or(128),
            representatives: self.inf_llm_representatives.unwrap_or(4),
        })
    }

    pub(super) fn quest(&self, budget: &TokenSelectConfig, positions: Option<Positions>) -> PolicyConfig {
        PolicyConfig::Quest(QuestConfig {
            n_init: budget.n_init,
            n_local: budget.n_local,
            top_k: budget.top_k,
            page_size: self.quest_page_size.unwrap_or(16),
            dense_layers: self.quest_dense_layers.unwrap_or(2),
            positions: positions.unwrap_or(Positions::Original),
        })
    }

    pub(super) fn snap_kv(&self, budget: &TokenSelectConfig, positions: Option<Positions>) -> PolicyConfig {
        PolicyConfig::SnapKv(SnapKvConfig {
            n_init: budget.n_init,
            n_local: budget.n_local,
            top_k: budget.top_k,
            observation_window: self.snap_kv_window.unwrap_or(32),
            kernel: self.snap_kv_kernel.unwrap_or(5),
            pooling: self.snap_kv_pooling.map_or(Pooling::Mean, |pooling| match pooling {
                PoolingName::Mean => Pooling::Mean,
                PoolingName::Max => Pooling::Max,
            }),
            positions: positions.unwrap_or(Positions::Original),
        })
    }

    pub(super) fn h2o(&self, budget: &TokenSelectConfig, positions: Option<Positions>) -> PolicyConfig {
        PolicyConfig::H2o(H2oConfig {
            n_init: budget.n_init,
            n_local: budget.n_local,
            top_k: budget.top_k,
            prefill: self.h2o_prefill.map_or(H2oPrefill::Dense, |prefill| match prefill {
                H2oPrefillName::Dense => H2oPrefill::Dense,
                H2oPrefillName::Evict => H2oPrefill::Evict,
            }),
            positions: positions.unwrap_or(Positions::Original),
        })
    }

    /// Every flag, whether it is given, and the policies that read it.
    pub(super) fn given(&self) -> Vec<(&'static str, bool, &'static [PolicyName])> {
        use PolicyName::{H2o, InfLlm, Ntk, Quest, SelfExtend, SnapKv, Yarn};
        vec![
            ("--rope-factor", self.rope_factor.is_some(), &[Ntk, Yarn]),
            ("--self-extend-group", self.self_extend_group.is_some(), &[SelfExtend]),
            ("--self-extend-window", self.self_extend_window.is_some(), &[SelfExtend]),
            ("--inf-llm-block-size", self.inf_llm_block_size.is_some(), &[InfLlm]),
            (
                "--inf-llm-representatives",
                self.inf_llm_representatives.is_some(),
                &[InfLlm],
            ),
            ("--quest-page-size", self.quest_page_size.is_some(), &[Quest]),
            ("--quest-dense-layers", self.quest_dense_layers.is_some(), &[Quest]),
            ("--snap-kv-window", self.snap_kv_window.is_some(), &[SnapKv]),
            ("--snap-kv-kernel", self.snap_kv_kernel.is_some(), &[SnapKv]),
            ("--snap-kv-pooling", self.snap_kv_pooling.is_some(), &[SnapKv]),
            ("--h2o-prefill", self.h2o_prefill.is_some(), &[H2o]),
        ]
    }
}

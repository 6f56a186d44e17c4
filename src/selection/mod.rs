//! Which cached tokens a query chunk attends to: one trait, one policy per file.
//!
//! A policy sees the queries of one layer's chunk before attention and the cache with the chunk already in it, and fills
//! a [`Selection`]. It never sees hidden states and never copies the forward pass. Adding a policy: one file, one line
//! in [`PolicyConfig::build`].

mod dense;
mod h2o;
mod inf_llm;
mod operands;
mod quest;
mod rope_extension;
mod row_store;
mod self_extend;
mod snap_kv;
mod statistics;
mod streaming_llm;
mod token_select;

pub use dense::Dense;
pub use h2o::{H2o, H2oConfig, H2oPrefill};
pub use inf_llm::{InfLlm, InfLlmConfig};
pub use operands::RotatedQueries;
pub use quest::{Quest, QuestConfig};
pub use rope_extension::{ExtendedDense, RopeExtension};
pub use self_extend::{SelfExtend, SelfExtendConfig};
pub use snap_kv::{Pooling, SnapKv, SnapKvConfig};
pub use statistics::{CosineSummary, LayerStatistics, SelectionStatistics};
pub use streaming_llm::StreamingLlm;
pub use token_select::{Budget, CacheThreshold, ChunkQuery, ScoreScale, TokenSelect, TokenSelectConfig, Vote};

use crate::error::{Error, Result};
use crate::kernels::{AttentionShape, Backend, Positions, RopeTable, TokenList};
use crate::kv_cache::KvCache;

/// Whether a chunk is part of the prompt or a generated token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// Prompt tokens.
    Prefill,
    /// One generated token.
    Decode,
}

/// The queries of one layer's chunk.
pub struct QueryView<'a, B: Backend> {
    /// Fused rows `[C, (H + 2 Hkv) D]`; queries first, un-rotated.
    pub qkv: &'a B::Buffer,
    /// C.
    pub rows: usize,
    /// Prompt or generated.
    pub phase: Phase,
    /// H, Hkv, D.
    pub shape: AttentionShape,
    /// The layer's own sliding window in tokens; `None`: full attention.
    pub window: Option<usize>,
    /// Rotation angles.
    pub rope: &'a RopeTable,
}

/// What became of the selection cache in one layer and step.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum CacheOutcome {
    /// Not consulted: dense step, prefill, or a policy without one.
    #[default]
    Unused,
    /// The earlier selection was used again.
    Hit,
    /// A new selection was made.
    Miss,
}

/// What one layer attends to in one chunk.
#[derive(Debug, Clone)]
pub struct Selection {
    /// True: every stored token, `tokens` is empty.
    pub dense: bool,
    /// Number of lists: 1, shared by all heads, or Hkv, one for each KV head.
    pub heads: usize,
    /// The packed lists, `[heads, n]`: logical tokens, ascending, the chunk last.
    pub tokens: Vec<u32>,
    /// The chosen part of each (top-k), `[heads, k]`, ascending; `None` where the policy chose nothing.
    pub selected: Option<Vec<u32>>,
    /// Fate of the selection cache.
    pub cache: CacheOutcome,
    /// Where keys and queries are placed.
    pub positions: Positions,
}

impl Default for Selection {
    fn default() -> Self {
        Self {
            dense: true,
            heads: 1,
            tokens: Vec::new(),
            selected: None,
            cache: CacheOutcome::Unused,
            positions: Positions::Original,
        }
    }
}

impl Selection {
    /// Forgets the last chunk: every stored token, at its own position.
    pub fn clear(&mut self) {
        self.dense = true;
        self.heads = 1;
        self.tokens.clear();
        self.selected = None;
        self.cache = CacheOutcome::Unused;
        self.positions = Positions::Original;
    }

    /// The list for the attention kernel, with `stored` tokens in the cache.
    pub fn list(&self, stored: usize) -> TokenList<'_> {
        if self.dense {
            TokenList::All(stored)
        } else if self.heads > 1 {
            TokenList::PerHead {
                lists: &self.tokens,
                kv_heads: self.heads,
            }
        } else {
            TokenList::Listed(&self.tokens)
        }
    }
}

/// Chooses which cached tokens a query chunk may attend to, and at which positions.
pub trait SelectionPolicy<B: Backend>: Send {
    /// Fills `out` (cleared before the call) for `layer`; the chunk is already in `cache`.
    fn select(
        &mut self,
        backend: &B,
        layer: usize,
        query: &QueryView<'_, B>,
        cache: &KvCache<B>,
        out: &mut Selection,
    ) -> Result<()>;

    /// Forgets everything about the last text.
    fn reset(&mut self) {}

    /// First tokens always kept; 0 for a policy that knows none.
    fn n_init(&self) -> usize {
        0
    }

    /// Whether the last prompt token is a chunk of its own, so that it gets its own selection.
    fn last_token_alone(&self) -> bool {
        false
    }

    /// How rotary frequencies are stretched for this policy; `None`: not at all.
    fn rope_extension(&self) -> Option<RopeExtension> {
        None
    }

    /// Positions that rotation must cover for a context of `max_context` tokens in chunks of `chunk`.
    fn positions_needed(&self, max_context: usize, chunk: usize) -> usize;

    /// Bytes of working memory; feeds the memory plan.
    fn scratch_bytes(&self, shape: &AttentionShape, max_context: usize, chunk: usize) -> usize;

    /// Counts of the current text; feeds the report.
    fn statistics(&self) -> SelectionStatistics {
        SelectionStatistics::default()
    }
}

/// A policy by name with all its settings; this is what reports record.
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
#[serde(rename_all = "kebab-case", tag = "name")]
pub enum PolicyConfig {
    /// Every stored token.
    Dense,
    /// First tokens and a sliding window (arXiv 2309.17453).
    StreamingLlm {
        /// First tokens always kept.
        n_init: usize,
        /// Most recent tokens kept.
        n_local: usize,
        /// Where keys and queries are placed.
        positions: Positions,
    },
    /// Token-level selection (arXiv 2411.02886).
    TokenSelect(TokenSelectConfig),
    /// Every stored token, NTK-aware rotary base.
    Ntk {
        /// Stretch; `None`: context over trained window.
        rope_factor: Option<f32>,
    },
    /// Every stored token, `YaRN` (arXiv 2309.00071).
    Yarn {
        /// Stretch; `None`: context over trained window.
        rope_factor: Option<f32>,
    },
    /// Every stored token, far ones at grouped positions (arXiv 2401.01325).
    SelfExtend(SelfExtendConfig),
    /// A window, and blocks looked up by representative keys (arXiv 2402.04617).
    InfLlm(InfLlmConfig),
    /// Pages by the bounds of their keys, in decode (arXiv 2406.10774).
    Quest(QuestConfig),
    /// What the end of the prompt looks at, in decode (arXiv 2404.14469).
    SnapKv(SnapKvConfig),
    /// Heavy hitters and recent tokens (arXiv 2306.14048).
    H2o(H2oConfig),
}

impl PolicyConfig {
    /// The name as on the command line.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Dense => "dense",
            Self::TokenSelect(_) => "token-select",
            Self::StreamingLlm { .. } => "streaming-llm",
            Self::Ntk { .. } => "ntk",
            Self::Yarn { .. } => "yarn",
            Self::SelfExtend(_) => "self-extend",
            Self::InfLlm(_) => "inf-llm",
            Self::Quest(_) => "quest",
            Self::SnapKv(_) => "snap-kv",
            Self::H2o(_) => "h2o",
        }
    }

    /// Checks every setting by itself.
    pub fn validate(&self) -> Result<()> {
        let n_local = match self {
            Self::Dense => return Ok(()),
            Self::Ntk { .. } | Self::Yarn { .. } => {
                return self.rope_extension().map_or(Ok(()), RopeExtension::validate);
            }
            Self::SelfExtend(config) => return config.validate(),
            Self::StreamingLlm { n_local, .. } => *n_local,
            Self::TokenSelect(config) => {
                config.validate()?;
                config.n_local
            }
            Self::InfLlm(config) => {
                config.validate()?;
                config.n_local
            }
            Self::Quest(config) => {
                config.validate()?;
                config.n_local
            }
            Self::SnapKv(config) => {
                config.validate()?;
                config.n_local
            }
            Self::H2o(config) => {
                config.validate()?;
                config.n_local
            }
        };
        if n_local == 0 {
            return Err(
                Error::user("`--n-local 0`: a query must see at least itself").help("pass `--n-local 1` or more")
            );
        }
        Ok(())
    }

    /// Refuses what only a GPU has kernels for.
    pub fn check_host(&self) -> Result<()> {
        match self {
            Self::TokenSelect(config) if config.int8_keys => Err(Error::user(
                "`--score-dtype int8` scores from an 8-bit copy of the keys, which is kept on a GPU only",
            )
            .help("pass `--device cuda`, or `--score-dtype f32`")),
            _ => Ok(()),
        }
    }

    /// How the policy stretches rotary frequencies.
    pub fn rope_extension(&self) -> Option<RopeExtension> {
        match self {
            Self::Ntk { rope_factor } => Some(RopeExtension::Ntk { factor: *rope_factor }),
            Self::Yarn { rope_factor } => Some(RopeExtension::Yarn { factor: *rope_factor }),
            _ => None,
        }
    }

    /// The same with everything filled in that follows from the model's trained window and the context; this is what
    /// reports record.
    #[must_use]
    pub fn for_context(mut self, trained: usize, max_context: usize) -> Self {
        if let Some(extension) = self.rope_extension()
            && let Self::Ntk { rope_factor } | Self::Yarn { rope_factor } = &mut self
        {
            *rope_factor = Some(extension.factor(trained, max_context));
        }
        if let Self::SelfExtend(config) = &mut self {
            *config = config.for_context(trained, max_context);
        }
        self
    }

    /// The largest distance between a query and a key of a text of `tokens` tokens that the policy leaves as it is;
    /// `None` where keys are placed anew or frequencies are stretched.
    pub fn farthest(&self, tokens: usize) -> Option<usize> {
        match self {
            // The prompt is read densely, whatever becomes of it in decode.
            Self::Dense | Self::Quest(_) | Self::SnapKv(_) => Some(tokens),
            Self::H2o(config) if config.prefill == H2oPrefill::Dense || config.positions == Positions::Original => {
                Some(tokens)
            }
            Self::StreamingLlm { positions, .. } | Self::TokenSelect(TokenSelectConfig { positions, .. })
                if *positions == Positions::Original =>
            {
                Some(tokens)
            }
            Self::SelfExtend(config) => Some(config.farthest(tokens)),
            _ => None,
        }
    }

    /// The policy itself, for a model of `layers` layers.
    pub fn build<B: Backend>(&self, layers: usize) -> Box<dyn SelectionPolicy<B>> {
        match self {
            Self::Dense => Box::new(Dense),
            Self::StreamingLlm {
                n_init,
                n_local,
                positions,
            } => Box::new(StreamingLlm {
                n_init: *n_init,
                n_local: *n_local,
                positions: *positions,
            }),
            Self::TokenSelect(config) => Box::new(TokenSelect::new(config.clone(), layers)),
            Self::Ntk { rope_factor } => Box::new(ExtendedDense {
                extension: RopeExtension::Ntk { factor: *rope_factor },
            }),
            Self::Yarn { rope_factor } => Box::new(ExtendedDense {
                extension: RopeExtension::Yarn { factor: *rope_factor },
            }),
            Self::SelfExtend(config) => Box::new(SelfExtend { config: *config }),
            Self::InfLlm(config) => Box::new(InfLlm::new(config.clone(), layers)),
            Self::Quest(config) => Box::new(Quest::new(config.clone(), layers)),
            Self::SnapKv(config) => Box::new(SnapKv::new(config.clone(), layers)),
            Self::H2o(config) => Box::new(H2o::new(config.clone(), layers)),
        }
    }
}

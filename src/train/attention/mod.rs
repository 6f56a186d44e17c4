//! The attentions that are compared: one registry, one layer, one kernel.
//!
//! An [`AttentionKind`] is nothing but its [`Parts`]: how it knows positions, and what is convolved. [`layer`] builds any
//! combination of parts from projections, the depth-wise convolution of [`heads`] and the softmax of [`core`], so the
//! four published attentions and our openings differ in what the paper says they differ in and in nothing else.

mod call;
pub mod core;
pub mod heads;
pub mod layer;
pub mod scratch;

use crate::error::{Error, Result};
use serde::{Deserialize, Serialize};

/// How attention knows where keys are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Positions {
    /// Sinusoids of the place in the window, added to the normalised input of every attention (Vaswani et al. 2017);
    /// at every layer, because memory rows are stored without position.
    Sinusoid,
    /// A learned table over distances with per-head biases (Transformer-XL's scores with a free table).
    Relative,
    /// Rotation of queries and keys (Su et al. 2021).
    Rotary,
}

/// What an attention consists of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Parts {
    /// How it knows positions.
    pub positions: Positions,
    /// Whether projections are convolved along time.
    pub convolution: bool,
    /// Whether the projections to queries and keys have a bias (values always have).
    pub query_key_bias: bool,
    /// Whether convolutions see the rows before the segment and before the memory, instead of zeros.
    pub carry: bool,
}

/// The attentions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum AttentionKind {
    /// Multi-head attention with sinusoidal positions
    Mha,
    /// Multi-DConv-head attention (Primer): mha with convolved queries, keys and values
    Mdha,
    /// Relative multi-head attention: Transformer-XL with a learned table
    Rmha,
    /// Relative convolutional multi-head attention: rmha with convolved queries, keys and values
    Rcmha,
    /// Own opening: mdha with rotary positions instead of sinusoids
    RopeConv,
    /// Own opening: rcmha whose convolutions go on across segments
    RcmhaCarry,
}

impl AttentionKind {
    /// The four of the paper.
    pub const PAPER: [Self; 4] = [Self::Mha, Self::Mdha, Self::Rmha, Self::Rcmha];

    /// Its name on the command line and in reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::Mha => "mha",
            Self::Mdha => "mdha",
            Self::Rmha => "rmha",
            Self::Rcmha => "rcmha",
            Self::RopeConv => "rope-conv",
            Self::RcmhaCarry => "rcmha-carry",
        }
    }

    /// What it consists of.
    pub fn parts(self) -> Parts {
        let (positions, convolution) = match self {
            Self::Mha => (Positions::Sinusoid, false),
            Self::Mdha => (Positions::Sinusoid, true),
            Self::Rmha => (Positions::Relative, false),
            Self::Rcmha | Self::RcmhaCarry => (Positions::Relative, true),
            Self::RopeConv => (Positions::Rotary, true),
        };
        Parts {
            positions,
            convolution,
            query_key_bias: positions != Positions::Relative,
            carry: self == Self::RcmhaCarry,
        }
    }
}

/// Which projections are convolved, and how.
#[expect(
    clippy::struct_excessive_bools,
    reason = "any of the three projections, in either form"
)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Convolution {
    /// Width along time; 3 in Primer and in the paper's code.
    pub kernel: usize,
    /// Queries.
    pub query: bool,
    /// Keys.
    pub key: bool,
    /// Values.
    pub value: bool,
    /// Weights of its own for every head, as in Primer; else shared by the heads, as in the paper's code.
    pub per_head: bool,
}

impl Default for Convolution {
    fn default() -> Self {
        Self {
            kernel: 3,
            query: true,
            key: true,
            value: true,
            per_head: false,
        }
    }
}

/// How many distances the relative table has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TableSize {
    /// Distances 0 to memory + segment - 1: all that are ever read.
    Clipped,
    /// 2 P rows for distances -P to P - 1, as the paper's code allocates (P = 4096); what is beyond reach or hidden by
    /// the mask is never read.
    Full(usize),
}

impl TableSize {
    /// Rows, and the row of distance 0, for these lengths.
    pub fn rows(self, memory: usize, segment: usize) -> Result<(usize, usize)> {
        let reach = memory + segment;
        match self {
            Self::Clipped => Ok((reach, reach - 1)),
            Self::Full(positions) if positions + 1 >= reach => Ok((2 * positions, positions)),
            Self::Full(positions) => Err(Error::user(format!(
                "a relative table of {positions} positions is too short for a memory of {memory} and a segment of {segment}"
            ))
            .help("pass a larger `--relative-table`, or `--relative-table clipped`")),
        }
    }
}

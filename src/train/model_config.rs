//! Sizes and kinds of a model.

use super::attention::layer::LayerConfig;
use super::attention::{AttentionKind, Convolution, Positions, TableSize};
use crate::error::{Error, Result};
use serde::{Deserialize, Serialize};

/// Sizes and kinds of a model.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ModelConfig {
    /// Which attention.
    pub attention: AttentionKind,
    /// Symbols.
    pub vocab: usize,
    /// L.
    pub layers: usize,
    /// d.
    pub d_model: usize,
    /// H.
    pub heads: usize,
    /// Hidden size of the feed-forward part.
    pub d_ffn: usize,
    /// M, positions of memory per layer.
    pub memory: usize,
    /// T, positions of a training segment.
    pub segment: usize,
    /// The convolution of attentions that have one.
    pub convolution: Convolution,
    /// The relative table of attentions that have one.
    pub table: TableSize,
}

impl ModelConfig {
    /// What its attention layers are built from.
    pub fn layer(&self) -> LayerConfig {
        LayerConfig {
            kind: self.attention,
            d_model: self.d_model,
            heads: self.heads,
            memory: self.memory,
            segment: self.segment,
            convolution: self.convolution,
            table: self.table,
        }
    }

    /// Refuses sizes that do not fit together.
    pub fn validate(&self) -> Result<()> {
        let sizes = [
            ("--layers", self.layers),
            ("--d-model", self.d_model),
            ("--heads", self.heads),
            ("--d-ffn", self.d_ffn),
            ("--segment", self.segment),
            ("--kernel", self.convolution.kernel),
        ];
        if let Some((flag, _)) = sizes.iter().find(|(_, size)| *size == 0) {
            return Err(Error::user(format!("`{flag} 0` makes no model")).help("pass 1 or more"));
        }
        if !self.d_model.is_multiple_of(self.heads) {
            return Err(Error::user(format!(
                "`--heads {}` does not divide `--d-model {}`",
                self.heads, self.d_model
            ))
            .help("pass sizes that divide, such as `--d-model 128 --heads 8`"));
        }
        if self.attention.parts().positions == Positions::Rotary && !(self.d_model / self.heads).is_multiple_of(2) {
            return Err(Error::user(format!(
                "heads of {} elements cannot be turned in pairs by {}",
                self.d_model / self.heads,
                self.attention.name()
            ))
            .help("choose `--d-model` and `--heads` so that a head has an even number of elements"));
        }
        Ok(())
    }
}

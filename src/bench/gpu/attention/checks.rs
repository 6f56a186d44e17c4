//! What was timed against f32 on the host.

use super::measure::Bench;
use super::{Call, ERROR_BOUND, RECALL_BOUND, TIE_BOUND};
use crate::bench::gpu::Check;
use crate::bench::gpu::reference::{
    Placed, Stored, attend_row, compare_choice, relative_error, rotated_query, round, selection_query, soft_votes,
};
use crate::error::Result;
use crate::kernels::Device;
use crate::model::context::AttentionContext;
use crate::selection::{PolicyConfig, ScoreScale, TokenSelectConfig};
use std::ops::Range;

/// The check that a row's error is taken from.
pub(super) const OUTPUT: &str = "relative error of the output";

impl Bench<'_> {
    /// Rows of the last chunk, and the chunk's place in the forward pass.
    fn last_chunk(&self) -> Range<usize> {
        match self.case.call {
            Call::Step => 0..1,
            Call::Chunks(_) | Call::Stage(_) => self.rows - self.prefill_chunk..self.rows,
            Call::Causal => {
                let rest = self.case.key.tokens % self.rows;
                0..if rest == 0 { self.rows } else { rest }
            }
        }
    }

    /// What was timed against f32: the choice of the last chunk, and its output in a few rows.
    pub(super) fn checks(&mut self) -> Result<Vec<Check>> {
        if self.case.call != Call::Causal {
            self.attend(0, self.rows)?;
        }
        let (device, shape) = (self.device, self.config.attention);
        let tokens = self.case.key.tokens;
        let out = device.download(&self.out).into_owned();
        let qkv = device.download(&self.qkv).into_owned();
        device.status()?;
        let [keys, values] = self.context.stored_bits(device, 0, tokens, &shape)?;
        let stored = |bits| Stored {
            bits,
            element: device.element(),
            shape,
        };
        let (keys, values) = (stored(&keys[..]), stored(&values[..]));
        let chunk = self.last_chunk();
        let mut checks = Vec::new();
        let list: Vec<usize> = match &self.case.policy {
            PolicyConfig::TokenSelect(config) => {
                let list = match self.case.call {
                    Call::Step => self.context.step_list(0)?,
                    _ => self.context.prompt_list(device, chunk.start / self.prefill_chunk)?,
                };
                let list: Vec<usize> = list.into_iter().map(|token| token as usize).collect();
                checks.extend(self.check_choice(config, &list, &qkv, chunk.clone(), keys)?);
                list
            }
            _ => (0..tokens).collect(),
        };
        // A step rotates in registers and multiplies f32 or 16 bits as it likes; the tiles of a chunk are given to the matrix
        // units in 16 bits, queries and keys alike, and that rounding is the caller's choice of type, not the kernel's error.
        let tiles = self.case.call != Call::Step;
        let placed = match &self.case.policy {
            PolicyConfig::TokenSelect(_) if tiles => Placed::PackedRounded(&self.rope),
            PolicyConfig::TokenSelect(_) => Placed::Packed(&self.rope),
            _ => Placed::AsStored,
        };
        let sound = list.len() >= chunk.len() && list.iter().all(|&token| token < tokens);
        let mut worst = if sound { 0.0 } else { f64::NAN };
        let mut rows = vec![chunk.start, chunk.start + chunk.len() / 2, chunk.end - 1];
        rows.dedup();
        for row in rows.into_iter().filter(|_| sound) {
            let visible = &list[..list.len() - (chunk.end - 1 - row)];
            let mut query = rotated_query(&qkv, row, &shape, &self.rope, visible.len() - 1);
            if tiles {
                round(&mut query, device.element());
            }
            let expected = attend_row(&query, keys, values, visible, placed);
            let found = &out[row * shape.query_width()..][..shape.query_width()];
            let error = relative_error(found, &expected);
            worst = if error <= worst { worst } else { error };
        }
        checks.push(Check::at_most(OUTPUT, worst, ERROR_BOUND));
        checks.extend(self.check_cache());
        Ok(checks)
    }

    /// The chosen tokens against the f32 votes.
    fn check_choice(
        &self,
        config: &TokenSelectConfig,
        list: &[usize],
        qkv: &[f32],
        chunk: Range<usize>,
        keys: Stored<'_>,
    ) -> Result<Vec<Check>> {
        let (tokens, shape) = (self.case.key.tokens, self.config.attention);
        if tokens <= config.token_budget() {
            return Ok(Vec::new());
        }
        let window = if config.local_outside_chunk {
            config.n_local + chunk.len()
        } else {
            config.n_local.max(chunk.len())
        };
        let candidates = config.n_init..tokens.saturating_sub(window).max(config.n_init);
        let exact = selection_query(qkv, chunk.clone(), &shape, &self.rope, config.n_local);
        let mut checks = Vec::new();
        // Scores are made from queries of 16 bits: the choice is judged by those.
        let query = if self.case.call == Call::Step {
            self.context.step_query(self.device, 0, &shape)?
        } else {
            let at = chunk.start / self.prefill_chunk;
            self.context.prompt_query(self.device, at, &shape)?
        };
        let error = relative_error(&query, &exact);
        checks.push(Check::at_most(
            "relative error of the selection query",
            error,
            ERROR_BOUND,
        ));
        let scale = match config.score_scale {
            ScoreScale::None => 1.0,
            ScoreScale::SqrtD => 1.0 / (shape.head_dim as f32).sqrt(),
        };
        let votes = soft_votes(&query, keys, candidates.clone(), config.head_map, scale);
        let chosen: Vec<usize> = list
            .iter()
            .filter(|token| candidates.contains(token))
            .map(|token| token - candidates.start)
            .collect();
        // The rest of the list is settled: first tokens and window, whole and in order.
        let around = (0..candidates.start).chain(candidates.end..tokens);
        let rest = list.iter().copied().filter(|token| !candidates.contains(token));
        let choice = compare_choice(&votes, config.top_k, &chosen);
        let settled = rest.eq(around);
        checks.push(if config.int8_keys && self.case.call == Call::Step {
            let recall = if settled { choice.recall } else { f64::NAN };
            Check::at_least("recall of the f32 choice", recall, RECALL_BOUND)
        } else {
            let worst = if settled { choice.worst } else { f64::INFINITY };
            Check::at_most("distance of wrong choices from the edge", worst, TIE_BOUND)
        });
        Ok(checks)
    }

    /// Whether a hit was timed as a hit, and a miss as a miss.
    fn check_cache(&self) -> Option<Check> {
        if self.case.call != Call::Step || self.case.policy == PolicyConfig::Dense {
            return None;
        }
        let layer = self.context.statistics().layers.into_iter().next()?;
        Some(if self.case.method.ends_with("hit") {
            Check::at_most(
                "misses of the selection cache after the first",
                layer.cache_misses as f64 - 1.0,
                0.0,
            )
        } else {
            Check::at_most("hits of the selection cache", layer.cache_hits as f64, 0.0)
        })
    }
}

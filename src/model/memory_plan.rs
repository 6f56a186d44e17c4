//! What a run will need, in bytes per part, before anything is loaded.

use super::config::ModelConfig;
use super::context::{AttentionContext, Engine};
use super::decoder::{SessionLimits, activation_bytes};
use super::weights;
use crate::bytes::human_bytes;
use crate::error::{Error, Result};
use crate::kernels::PAGE_TOKENS;
use crate::selection::PolicyConfig;

/// Bytes per part.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
pub struct MemoryPlan {
    /// Weights as the backend holds them.
    pub weights_bytes: usize,
    /// Keys and values of the whole context.
    pub kv_cache_bytes: usize,
    /// Activations of one chunk, logits, rotary table, attention tiles.
    pub prefill_scratch_bytes: usize,
    /// Scores, votes and lists of the policy.
    pub selection_scratch_bytes: usize,
}

impl MemoryPlan {
    /// The plan of one session.
    pub fn new<E: Engine>(device: &E, config: &ModelConfig, policy: &PolicyConfig, limits: SessionLimits) -> Self {
        let rows = E::Context::rows_at_once(limits);
        let width = config
            .intermediate_size
            .max(config.hidden_size)
            .max(config.attention.query_width());
        let context = E::Context::bytes(device, config, policy, limits);
        Self {
            weights_bytes: weights::weight_bytes(device, config),
            kv_cache_bytes: context.kv_cache,
            prefill_scratch_bytes: activation_bytes(device, config, rows)
                + context.attention
                + device.working_bytes(rows, width, &config.attention),
            selection_scratch_bytes: context.selection,
        }
    }

    /// All parts.
    pub fn total_bytes(&self) -> usize {
        // The cache of an absurd context saturates.
        (self.weights_bytes + self.prefill_scratch_bytes)
            .saturating_add(self.selection_scratch_bytes)
            .saturating_add(self.kv_cache_bytes)
    }

    /// One line of all parts.
    pub fn parts(&self) -> String {
        format!(
            "weights {} · kv cache {} · prefill scratch {} · selection scratch {}",
            human_bytes(self.weights_bytes),
            human_bytes(self.kv_cache_bytes),
            human_bytes(self.prefill_scratch_bytes),
            human_bytes(self.selection_scratch_bytes)
        )
    }

    /// Refuses a plan that exceeds `available` bytes, naming the largest context that fits.
    pub fn check<E: Engine>(
        &self,
        device: &E,
        model: &str,
        config: &ModelConfig,
        policy: &PolicyConfig,
        limits: SessionLimits,
        available: usize,
    ) -> Result<()> {
        if self.total_bytes() <= available {
            return Ok(());
        }
        let fits = |max_context: usize| {
            let limits = SessionLimits { max_context, ..limits };
            Self::new(device, config, policy, limits).total_bytes() <= available
        };
        let (mut low, mut high) = (0, limits.max_context);
        while low < high {
            let middle = (low + high).div_ceil(2);
            if fits(middle) { low = middle } else { high = middle - 1 }
        }
        let error = Error::environment(format!(
            "`{model}` with {} tokens needs {}, but {} are available",
            limits.max_context,
            human_bytes(self.total_bytes()),
            human_bytes(available)
        ))
        .note(self.parts());
        Err(if low == 0 {
            error
                .note("no context fits")
                .help("use a smaller model, a smaller `--prefill-chunk`, or a machine with more memory")
        } else {
            // Whole pages where there is more than one: the cache grows by them.
            let context = if low > PAGE_TOKENS {
                low - low % PAGE_TOKENS
            } else {
                low
            };
            error
                .note(format!("the largest context that fits is {context} tokens"))
                .help(format!("pass `--max-context {context}`"))
        })
    }
}

/// Memory that a new process may take: what the kernel calls available, within the control group's limit. `None` where
/// the system does not say.
pub fn available_bytes() -> Option<usize> {
    let meminfo = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = meminfo.lines().find_map(|l| l.strip_prefix("MemAvailable:"))?;
    let available = line.trim().strip_suffix("kB")?.trim().parse::<usize>().ok()? * 1024;
    let read = |path: &str| std::fs::read_to_string(path).ok()?.trim().parse::<usize>().ok();
    let group = match (read("/sys/fs/cgroup/memory.max"), read("/sys/fs/cgroup/memory.current")) {
        (Some(limit), Some(used)) => Some(limit.saturating_sub(used)),
        _ => None,
    };
    Some(group.map_or(available, |group| group.min(available)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::cpu::Cpu;

    fn config() -> ModelConfig {
        let value = serde_json::json!({"model_type": "qwen2", "hidden_size": 896, "intermediate_size": 4864,
            "num_attention_heads": 14, "num_key_value_heads": 2, "num_hidden_layers": 24, "vocab_size": 151_936,
            "rms_norm_eps": 1e-6, "max_position_embeddings": 32768, "tie_word_embeddings": true});
        ModelConfig::from_json(&value, "test").expect("valid")
    }

    #[test]
    fn a_known_shape_has_known_parts() {
        let limits = SessionLimits {
            max_context: 32768,
            prefill_chunk: 512,
            diagnose: false,
        };
        let plan = MemoryPlan::new(&Cpu, &config(), &PolicyConfig::Dense, limits);
        // 494,032,768 parameters of 4 bytes; 24 layers x 2 x 128 elements x 4 bytes per token.
        assert_eq!(plan.weights_bytes, 494_032_768 * 4);
        assert_eq!(plan.kv_cache_bytes, 32768 * 24 * 2 * 128 * 4);
        assert_eq!(plan.selection_scratch_bytes, 0);
    }

    #[test]
    fn a_plan_too_large_names_the_largest_context_that_fits() {
        let limits = SessionLimits {
            max_context: 1 << 20,
            prefill_chunk: 512,
            diagnose: false,
        };
        let plan = MemoryPlan::new(&Cpu, &config(), &PolicyConfig::Dense, limits);
        let error = plan
            .check(&Cpu, "m", &config(), &PolicyConfig::Dense, limits, 4 << 30)
            .expect_err("1M tokens do not fit 4 GiB");
        assert_eq!(error.exit_code(), 3);
        let text = error.to_string();
        let context: usize = text
            .split("--max-context ")
            .nth(1)
            .and_then(|t| t.trim_end_matches('`').parse().ok())
            .expect("names a context");
        let at = |max_context| {
            let limits = SessionLimits { max_context, ..limits };
            MemoryPlan::new(&Cpu, &config(), &PolicyConfig::Dense, limits).total_bytes()
        };
        assert!(at(context) <= 4 << 30 && at(context + PAGE_TOKENS) > 4 << 30, "{text}");
    }
}

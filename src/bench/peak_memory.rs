//! What this process holds in memory, in bytes, as the kernel counts it.
//!
//! Linux keeps the peak in `/proc/self/status`; elsewhere the values are missing with the reason, never estimated.

use crate::report::Measured;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Resident memory of this process.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct MemoryUse {
    /// Largest resident set since the start or the last [`reset_peak`].
    pub peak_rss_bytes: Measured<u64>,
    /// Resident set now.
    pub rss_bytes: Measured<u64>,
    /// The part of it that is allocated memory.
    pub rss_anonymous_bytes: Measured<u64>,
    /// The part of it that is mapped files, such as weights; the kernel can drop it at will.
    pub rss_file_bytes: Measured<u64>,
}

/// Reads the memory use of this process now.
pub fn memory_use() -> MemoryUse {
    if !cfg!(target_os = "linux") {
        return MemoryUse::missing(&format!("not measured on {}", std::env::consts::OS));
    }
    match std::fs::read_to_string("/proc/self/status") {
        Ok(status) => MemoryUse::parse(&status),
        Err(error) => MemoryUse::missing(&format!("/proc/self/status: {error}")),
    }
}

/// Sets the peak back to the present use, so that the next peak belongs to one phase alone.
///
/// Yields the reason where the system does not allow it; the peak then covers the whole process.
pub fn reset_peak() -> Result<(), String> {
    if !cfg!(target_os = "linux") {
        return Err(format!("the peak cannot be reset on {}", std::env::consts::OS));
    }
    std::fs::write("/proc/self/clear_refs", "5").map_err(|error| format!("/proc/self/clear_refs: {error}"))
}

impl MemoryUse {
    fn missing(reason: &str) -> Self {
        Self {
            peak_rss_bytes: Measured::missing(reason),
            rss_bytes: Measured::missing(reason),
            rss_anonymous_bytes: Measured::missing(reason),
            rss_file_bytes: Measured::missing(reason),
        }
    }

    fn parse(status: &str) -> Self {
        Self {
            peak_rss_bytes: field(status, "VmHWM"),
            rss_bytes: field(status, "VmRSS"),
            rss_anonymous_bytes: field(status, "RssAnon"),
            rss_file_bytes: field(status, "RssFile"),
        }
    }
}

fn field(status: &str, name: &str) -> Measured<u64> {
    kibibytes(status, name).map_or_else(
        || Measured::missing(format!("the kernel does not report {name}")),
        Measured::Value,
    )
}

/// The bytes of a `Name:   123 kB` line of a /proc file ("kB" there means 1024 bytes).
pub(crate) fn kibibytes(text: &str, name: &str) -> Option<u64> {
    text.lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))
        .and_then(|rest| rest.trim().strip_suffix("kB")?.trim().parse::<u64>().ok())
        .and_then(|kibibytes| kibibytes.checked_mul(1024))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_kilobytes_as_1024_bytes_and_names_what_is_absent() {
        let memory = MemoryUse::parse("Name:\tx\nVmHWM:\t    2048 kB\nVmRSS:\t 1 kB\nRssAnon:\tmany\n");
        assert_eq!(memory.peak_rss_bytes, Measured::Value(2 * 1024 * 1024));
        assert_eq!(memory.rss_bytes, Measured::Value(1024));
        assert_eq!(
            memory.rss_anonymous_bytes.reason(),
            Some("the kernel does not report RssAnon")
        );
        assert_eq!(
            memory.rss_file_bytes.reason(),
            Some("the kernel does not report RssFile")
        );
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn the_peak_is_at_least_a_touched_allocation() {
        let block = std::hint::black_box(vec![1_u8; 64 << 20]);
        let memory = memory_use();
        assert!(*memory.peak_rss_bytes.get().unwrap() >= block.len() as u64);
        assert!(memory.rss_bytes.get().unwrap() <= memory.peak_rss_bytes.get().unwrap());
    }
}

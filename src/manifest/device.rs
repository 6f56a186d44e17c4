//! The machine: processor, memory, accelerators.

use crate::bench::peak_memory::kibibytes;
use crate::report::Measured;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The machine that computed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Device {
    /// Operating system.
    pub os: String,
    /// Its kernel's version.
    pub kernel: Measured<String>,
    /// Processor model.
    pub cpu: Measured<String>,
    /// Processors this process may use.
    pub cpus: Measured<u64>,
    /// Vector instructions found at run time.
    pub simd: Vec<String>,
    /// Main memory.
    pub memory_total_bytes: Measured<u64>,
    /// Accelerators that took part.
    pub accelerators: Vec<Accelerator>,
}

/// A GPU that took part.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Accelerator {
    /// Model.
    pub name: String,
    /// Its memory.
    pub memory_total_bytes: Measured<u64>,
    /// Driver version.
    pub driver: Measured<String>,
    /// Compute capability, such as `9.0`.
    pub compute_capability: Measured<String>,
}

impl Device {
    /// This machine, without accelerators.
    pub fn current() -> Self {
        Self {
            os: std::env::consts::OS.into(),
            kernel: file("/proc/sys/kernel/osrelease")
                .map(|text| text.trim().to_owned())
                .map_or_else(Measured::missing, Measured::Value),
            cpu: file("/proc/cpuinfo").map_or_else(Measured::missing, |text| cpu_model(&text)),
            cpus: std::thread::available_parallelism().map_or_else(
                |error| Measured::missing(error.to_string()),
                |n| Measured::Value(n.get() as u64),
            ),
            simd: simd_features(),
            memory_total_bytes: file("/proc/meminfo").map_or_else(Measured::missing, |text| memory_total(&text)),
            accelerators: Vec::new(),
        }
    }
}

fn file(path: &str) -> Result<String, String> {
    if !cfg!(target_os = "linux") {
        return Err(format!("not read on {}", std::env::consts::OS));
    }
    std::fs::read_to_string(path).map_err(|error| format!("{path}: {error}"))
}

/// The first `model name` (x86); ARM kernels give none.
fn cpu_model(cpuinfo: &str) -> Measured<String> {
    cpuinfo
        .lines()
        .find_map(|line| line.strip_prefix("model name")?.split_once(':'))
        .map_or_else(
            || Measured::missing("/proc/cpuinfo has no model name"),
            |(_, name)| Measured::Value(name.trim().to_owned()),
        )
}

fn memory_total(meminfo: &str) -> Measured<u64> {
    kibibytes(meminfo, "MemTotal").map_or_else(|| Measured::missing("/proc/meminfo has no MemTotal"), Measured::Value)
}

#[cfg(target_arch = "x86_64")]
fn simd_features() -> Vec<String> {
    let found = [
        ("sse4.2", std::arch::is_x86_feature_detected!("sse4.2")),
        ("avx", std::arch::is_x86_feature_detected!("avx")),
        ("avx2", std::arch::is_x86_feature_detected!("avx2")),
        ("fma", std::arch::is_x86_feature_detected!("fma")),
        ("f16c", std::arch::is_x86_feature_detected!("f16c")),
        ("avx512f", std::arch::is_x86_feature_detected!("avx512f")),
        ("avx512bw", std::arch::is_x86_feature_detected!("avx512bw")),
        ("avx512vnni", std::arch::is_x86_feature_detected!("avx512vnni")),
        ("avx512bf16", std::arch::is_x86_feature_detected!("avx512bf16")),
        ("avx512fp16", std::arch::is_x86_feature_detected!("avx512fp16")),
    ];
    names(&found)
}

#[cfg(target_arch = "aarch64")]
fn simd_features() -> Vec<String> {
    let found = [
        ("neon", std::arch::is_aarch64_feature_detected!("neon")),
        ("fp16", std::arch::is_aarch64_feature_detected!("fp16")),
        ("bf16", std::arch::is_aarch64_feature_detected!("bf16")),
        ("dotprod", std::arch::is_aarch64_feature_detected!("dotprod")),
        ("sve", std::arch::is_aarch64_feature_detected!("sve")),
    ];
    names(&found)
}

#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
fn simd_features() -> Vec<String> {
    Vec::new()
}

#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
fn names(found: &[(&str, bool)]) -> Vec<String> {
    let present = found.iter().filter(|(_, present)| *present);
    present.map(|(name, _)| (*name).to_owned()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_the_formats_of_linux_and_says_what_is_absent() {
        let x86 = "processor\t: 0\nmodel name\t: Some CPU @ 2.0GHz\n\nmodel name\t: second\n";
        assert_eq!(cpu_model(x86), Measured::Value("Some CPU @ 2.0GHz".into()));
        assert!(cpu_model("processor\t: 0\nBogoMIPS\t: 50.00\n").reason().is_some());
        assert_eq!(memory_total("MemTotal:       16 kB\n"), Measured::Value(16384));
        assert!(memory_total("").reason().is_some());
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn this_machine_has_processors_and_memory() {
        let device = Device::current();
        assert!(*device.cpus.get().unwrap() >= 1);
        assert!(*device.memory_total_bytes.get().unwrap() > 1 << 20);
    }
}

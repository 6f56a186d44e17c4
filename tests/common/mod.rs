//! What several integration tests need.
#![allow(dead_code, reason = "each test binary uses a part of this")]
#![allow(clippy::print_stderr, reason = "a skipped test says why")]

pub mod icn_probe;
pub mod program;
pub mod ruler;
pub mod ruler_solvers;
pub mod tables;
pub mod tiny_model;

use std::path::{Path, PathBuf};
use tokselect::kernels::cuda::Gpu;

/// The first GPU. `None`, with the reason printed, where there is none; a panic if `TOKSELECT_REQUIRE_GPU=1`.
pub fn gpu() -> Option<Gpu> {
    match Gpu::open(0, None) {
        Ok(gpu) => Some(gpu),
        Err(error) => {
            assert!(std::env::var_os("TOKSELECT_REQUIRE_GPU").is_none(), "{error}");
            eprintln!("skipped: {error}");
            None
        }
    }
}

/// A path in the folder of development data, which is not part of the repository: `TOKSELECT_SHARED`, or `shared`
/// beside the checkout. `None`, with the reason printed, where it is absent; a panic if `TOKSELECT_REQUIRE_SHARED=1`.
pub fn shared(path: &str) -> Option<PathBuf> {
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR"));
    let roots = match std::env::var_os("TOKSELECT_SHARED") {
        Some(root) => vec![PathBuf::from(root)],
        None => vec![manifest.join("../shared"), manifest.join("../../shared")],
    };
    let found = roots.iter().map(|root| root.join(path)).find(|p| p.exists());
    if found.is_none() {
        let reason = format!("`{path}` is not in {roots:?}; set TOKSELECT_SHARED to the development data");
        assert!(
            std::env::var_os("TOKSELECT_REQUIRE_SHARED").is_none_or(|v| v != "1"),
            "{reason}"
        );
        eprintln!("skipped: {reason}");
    }
    found
}

/// The six reference models: tiny, random weights, the layout of published ones.
pub const REFERENCE_MODELS: [&str; 6] = [
    "llama2-mha-f16",
    "llama3-f32-sharded",
    "mistral-window-f32",
    "qwen2-bf16-tied",
    "qwen2-f32-single",
    "qwen3-bf16-tied",
];

/// The directory of a reference model.
pub fn reference_model(name: &str) -> Option<PathBuf> {
    shared(&format!("data/reference_models/{name}"))
}

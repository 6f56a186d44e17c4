//! `--dump-logits`: the numbers that a parity check compares.

use crate::error::{Error, Result, io_error};
use crate::model::generate::Generation;
use crate::report::replace_file;
use serde_json::json;
use std::path::Path;

/// Fails before anything is computed if the file cannot be written; leaves everything as it was.
pub(super) fn check_writable(path: &Path) -> Result<()> {
    let absent = !path.exists();
    std::fs::OpenOptions::new()
        .create(true)
        .append(true)
        .open(path)
        .map(drop)
        .and_then(|()| if absent { std::fs::remove_file(path) } else { Ok(()) })
        .map_err(|e| io_error("write", path, &e))
}

/// Writes ids, logits after the prompt, and what every step selected.
pub(super) fn write(path: &Path, input_ids: &[u32], generation: &Generation) -> Result<()> {
    let step = |s: &crate::model::generate::StepRecord| json!({"n_stored": s.n_stored, "selected": s.selected, "cache": s.cache});
    let chunk = |s: &crate::model::generate::StepRecord| json!({"n_stored": s.n_stored, "chunk": s.rows, "selected": s.selected});
    let value = json!({
        "input_ids": input_ids,
        "last_logits": generation.prompt_logits,
        "generated_ids": generation.ids,
        "decode_steps": generation.decode_steps.iter().map(step).collect::<Vec<_>>(),
        "prefill_chunks": generation.prefill_steps.iter().map(chunk).collect::<Vec<_>>(),
    });
    let text = serde_json::to_string(&value).map_err(|e| Error::bug(format!("logits as JSON: {e}")))?;
    if path.is_file() || !path.exists() {
        return replace_file(path, text.as_bytes());
    }
    // A device or a pipe is not replaced.
    std::fs::write(path, text).map_err(|e| io_error("write", path, &e))
}

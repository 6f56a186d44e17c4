//! What users get wrong, and what machines do to them: every case ends in one clear error with a remedy and the right
//! exit code, and costs nothing that was written before.
//!
//! [`program::refuses`](common::program::refuses) states what every refusal has in common; the cases add what it must
//! name: the file, key or flag, the value, the place in it.

#[path = "../common/mod.rs"]
mod common;

mod flags;
mod model;
mod output;
mod prompt;
#[cfg(unix)]
mod resume;

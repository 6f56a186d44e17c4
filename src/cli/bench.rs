//! placeholder
use super::Context;
use crate::error::Result;
use crate::exit::Outcome;
use clap::Args;
/// Arguments of `tokselect bench`.
#[derive(Debug, Args)]
pub struct BenchArgs {}
pub(super) fn run(_args: &BenchArgs, _context: &Context) -> Result<Outcome> {
    Ok(Outcome::Done)
}

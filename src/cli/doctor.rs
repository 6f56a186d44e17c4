//! placeholder
use super::Context;
use crate::error::Result;
use crate::exit::Outcome;
use clap::Args;
/// Arguments of `tokselect doctor`.
#[derive(Debug, Args)]
pub struct DoctorArgs {}
pub(super) fn run(_args: &DoctorArgs, _context: &Context) -> Result<Outcome> {
    Ok(Outcome::Done)
}

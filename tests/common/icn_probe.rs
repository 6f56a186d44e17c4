//! Commands of `tokselect icn-probe`.

use super::program::tokselect;
use std::process::Command;

/// One of its subcommands.
pub fn probe(command: &str, flags: &[&str]) -> Command {
    let mut program = tokselect();
    program.args(["icn-probe", command]).args(flags);
    program
}

/// A quick exploration of two lists.
pub const SMALL: [&str; 10] = [
    "--categories",
    "months,fruits",
    "--rounds",
    "2",
    "--step",
    "6",
    "--max-new-tokens",
    "12",
    "--format",
    "json",
];

//! The `tokselect` program; everything is in the library.

use std::process::ExitCode;

fn main() -> ExitCode {
    tokselect::exit::run(|| tokselect::cli::main(std::env::args_os().collect()))
}

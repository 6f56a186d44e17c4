//! How the process ends: results, errors and panics become exit codes.

use crate::error::{Error, Result};
use crate::manifest::Build;
use crate::printer::{Printer, PrinterOptions};
use std::panic::{AssertUnwindSafe, PanicHookInfo};
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};

/// How a command ended when it did not fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// Everything was done (exit code 0).
    Done,
    /// The reader of stdout has gone, as `head` does; there is nobody left to serve (exit code 0).
    OutputClosed,
    /// The command line was wrong and clap has said how (exit code 2).
    UsageShown,
}

impl Outcome {
    /// The process exit code.
    pub fn exit_code(self) -> u8 {
        match self {
            Self::Done | Self::OutputClosed => 0,
            Self::UsageShown => 2,
        }
    }

    /// Whether the rest of the output may be left out.
    pub fn is_closed(self) -> bool {
        self == Self::OutputClosed
    }
}

/// Runs the program: prints its error, if any, and gives the exit code. A panic is told once and gives 70.
pub fn run(program: impl FnOnce() -> Result<Outcome>) -> ExitCode {
    std::panic::set_hook(Box::new(report_panic));
    let printer = Printer::new(PrinterOptions::default());
    std::panic::catch_unwind(AssertUnwindSafe(program))
        .map_or(ExitCode::from(70), |result| ExitCode::from(finish(&result, &printer)))
}

fn finish(result: &Result<Outcome>, printer: &Printer) -> u8 {
    match result {
        Ok(outcome) => outcome.exit_code(),
        Err(error) => {
            printer.error(error);
            error.exit_code()
        }
    }
}

/// Several threads can panic over the same defect; one message is enough.
static PANIC_REPORTED: AtomicBool = AtomicBool::new(false);

fn report_panic(panic: &PanicHookInfo<'_>) {
    if PANIC_REPORTED.swap(true, Ordering::SeqCst) {
        return;
    }
    let backtrace = std::backtrace::Backtrace::capture();
    let backtrace = (backtrace.status() == std::backtrace::BacktraceStatus::Captured).then(|| backtrace.to_string());
    let payload = panic.payload();
    let message = payload
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| payload.downcast_ref::<String>().map(String::as_str));
    let place = panic.location().map(ToString::to_string);
    let error = panic_error(message, place.as_deref(), backtrace.as_deref());
    Printer::new(PrinterOptions::default()).error(&error);
}

fn panic_error(message: Option<&str>, place: Option<&str>, backtrace: Option<&str>) -> Error {
    let mut error = Error::bug(format!(
        "this is a bug in tokselect: {}",
        message.unwrap_or("a panic without message")
    ));
    if let Some(place) = place {
        error = error.note(format!("at {place}"));
    }
    error = error.note(Build::current().to_string());
    for line in backtrace.into_iter().flat_map(str::lines) {
        error = error.note(line);
    }
    let repository = env!("CARGO_PKG_REPOSITORY");
    let to = if repository.is_empty() {
        String::new()
    } else {
        format!(" at {repository}/issues")
    };
    let more = if backtrace.is_none() {
        "; `RUST_BACKTRACE=1` adds where it came from"
    } else {
        ""
    };
    error.help(format!("report it{to} with this message and the command line{more}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_ending_has_its_exit_code() {
        let printer = Printer::to(Vec::new(), Vec::new(), PrinterOptions::default());
        for (result, code) in [
            (Ok(Outcome::Done), 0),
            (Ok(Outcome::OutputClosed), 0),
            (Ok(Outcome::UsageShown), 2),
            (Err(Error::acceptance("x")), 1),
            (Err(Error::user("x")), 2),
            (Err(Error::environment("x")), 3),
            (Err(Error::bug("x")), 70),
            (Err(Error::interrupted("x")), 130),
        ] {
            assert_eq!(finish(&result, &printer), code);
        }
    }

    #[test]
    fn a_panic_says_that_it_is_a_bug_where_and_how_to_report_it() {
        let text = panic_error(Some("index 3 of 2"), Some("src/a.rs:1:2"), None).to_string();
        let text = text.replace(&Build::current().to_string(), "VERSION");
        let text = text.replace(&format!(" at {}/issues", env!("CARGO_PKG_REPOSITORY")), "");
        insta::assert_snapshot!(text, @r"
        this is a bug in tokselect: index 3 of 2
          at src/a.rs:1:2
          VERSION
        help: report it with this message and the command line; `RUST_BACKTRACE=1` adds where it came from
        ");
    }
}

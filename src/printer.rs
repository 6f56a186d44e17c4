//! The only place that prints. stdout carries results; progress, status and errors go to stderr.
//!
//! Progress and status vanish when stderr is not a terminal; warnings and errors never do on their own.

use crate::error::{Error, Result};
use crate::exit::Outcome;
use crate::report::{Format, Report, Table, terminal};
use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::ffi::OsStr;
use std::io::{self, IsTerminal, Write};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

/// What the user wants to see.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct PrinterOptions {
    /// `-q`: nothing on stderr but errors.
    pub quiet: bool,
    /// `-v`: details, and status lines even when piped.
    pub verbose: bool,
    /// `--no-progress`: no bars.
    pub no_progress: bool,
}

type Sink = Mutex<Box<dyn Write + Send>>;

/// Prints; can be shared between threads.
pub struct Printer {
    options: PrinterOptions,
    stdout: Sink,
    stderr: Sink,
    stdout_style: terminal::Style,
    stderr_style: terminal::Style,
    bars: MultiProgress,
    closed: AtomicBool,
}

impl Printer {
    /// A printer to this process's stdout and stderr.
    pub fn new(options: PrinterOptions) -> Self {
        let style = |is_terminal: bool| terminal::Style {
            colour: colour_allowed(
                is_terminal,
                std::env::var_os("NO_COLOR").as_deref(),
                std::env::var_os("TERM").as_deref(),
            ),
            terminal: is_terminal,
            width: None,
        };
        let hidden = options.quiet || options.no_progress;
        Self {
            options,
            stdout_style: style(io::stdout().is_terminal()),
            stderr_style: style(io::stderr().is_terminal()),
            stdout: Mutex::new(Box::new(io::stdout())),
            stderr: Mutex::new(Box::new(io::stderr())),
            // indicatif itself draws nothing when stderr is not a terminal.
            bars: MultiProgress::with_draw_target(if hidden {
                ProgressDrawTarget::hidden()
            } else {
                ProgressDrawTarget::stderr()
            }),
            closed: AtomicBool::new(false),
        }
    }

    /// A printer to other places, as if they were pipes.
    pub fn to(
        stdout: impl Write + Send + 'static,
        stderr: impl Write + Send + 'static,
        options: PrinterOptions,
    ) -> Self {
        Self {
            options,
            stdout: Mutex::new(Box::new(stdout)),
            stderr: Mutex::new(Box::new(stderr)),
            stdout_style: terminal::Style::default(),
            stderr_style: terminal::Style::default(),
            bars: MultiProgress::with_draw_target(ProgressDrawTarget::hidden()),
            closed: AtomicBool::new(false),
        }
    }

    /// Writes a piece of the result and flushes it.
    ///
    /// [`Outcome::OutputClosed`] means that nobody reads any more: stop and return it. Ignoring it is harmless, later
    /// pieces are dropped. A full disk is an error.
    pub fn write_result(&self, text: &str) -> Result<Outcome> {
        if self.closed.load(Ordering::SeqCst) {
            return Ok(Outcome::OutputClosed);
        }
        let written = self.bars.suspend(|| write_all(&self.stdout, text));
        match written {
            Ok(()) => Ok(Outcome::Done),
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {
                self.closed.store(true, Ordering::SeqCst);
                Ok(Outcome::OutputClosed)
            }
            Err(error) => Err(Error::environment(format!("cannot write to standard output: {error}"))
                .help("check the space where it is redirected to, or pass `--output DIR`")),
        }
    }

    /// Writes one line of the result.
    pub fn line(&self, text: &str) -> Result<Outcome> {
        self.write_result(&format!("{text}\n"))
    }

    /// Writes a table as part of the result.
    pub fn table(&self, table: &Table) -> Result<Outcome> {
        self.write_result(&terminal::table(table, &self.stdout_style))
    }

    /// Writes a report in the format of `--format`.
    pub fn report(&self, report: &Report, format: Format) -> Result<Outcome> {
        self.write_result(&report.render(format, &self.stdout_style)?)
    }

    /// Says what is going on: `loading demo`.
    pub fn status(&self, verb: &str, what: &str) {
        if !self.options.quiet && (self.stderr_style.terminal || self.options.verbose) {
            let verb = self.paint(GREEN, verb);
            self.note(&format!("{verb} {}\n", visible_lines(what)));
        }
    }

    /// Says what only `-v` wants to know.
    pub fn detail(&self, text: &str) {
        if self.options.verbose && !self.options.quiet {
            self.note(&format!("{}\n", visible_lines(text)));
        }
    }

    /// Warns of something that the result may suffer from.
    pub fn warning(&self, text: &str) {
        if !self.options.quiet {
            let label = self.paint(YELLOW, "warning:");
            self.note(&format!("{label} {}\n", visible_lines(text)));
        }
    }

    /// Prints an error: the message, its facts indented, its remedy.
    pub fn error(&self, error: &Error) {
        let mut lines = vec![format!(
            "{} {}",
            self.paint(RED, "error:"),
            visible_lines(error.message())
        )];
        lines.extend(error.notes().iter().map(|note| format!("  {}", visible_lines(note))));
        if let Some(help) = error.remedy() {
            lines.push(format!("{} {}", self.paint(CYAN, "help:"), visible_lines(help)));
        }
        self.note(
            &(lines.join(
                "
",
            ) + "
"),
        );
    }

    /// Prints what clap has to say: help and version on stdout, a wrong command line on stderr.
    pub fn clap(&self, error: &clap::Error) -> Result<Outcome> {
        let text = error.render();
        let to_stderr = error.use_stderr();
        if to_stderr && error.kind() != clap::error::ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand {
            self.error(&usage_error(&text.to_string()));
            return Ok(Outcome::UsageShown);
        }
        let style = if to_stderr {
            self.stderr_style
        } else {
            self.stdout_style
        };
        let text = if style.colour {
            text.ansi().to_string()
        } else {
            text.to_string()
        };
        if to_stderr {
            self.note(&text);
            return Ok(Outcome::UsageShown);
        }
        self.write_result(&text)
    }

    /// What stdout can show.
    pub fn stdout_style(&self) -> terminal::Style {
        self.stdout_style
    }

    /// Whether progress is drawn at all; a terminal is asked for besides.
    pub fn shows_progress(&self) -> bool {
        !self.options.quiet && !self.options.no_progress
    }

    /// A bar for `length` steps of `what`; it goes away when dropped.
    pub fn progress(&self, length: u64, what: &str) -> Progress {
        let bar = self.bars.add(ProgressBar::new(length));
        if let Ok(style) = ProgressStyle::with_template("{msg} {wide_bar} {human_pos}/{human_len} {eta}") {
            bar.set_style(style);
        }
        bar.set_message(terminal::visible(what));
        Progress { bar }
    }

    fn note(&self, text: &str) {
        // When stderr cannot be written to, there is no place left to say so.
        let _ = self.bars.suspend(|| write_all(&self.stderr, text));
    }

    fn paint(&self, code: &str, text: &str) -> String {
        if self.stderr_style.colour {
            format!("\x1b[{code}m{text}\x1b[0m")
        } else {
            text.to_owned()
        }
    }
}

/// clap's message in the form of every other error: its tip, or the values it would take, become the remedy.
fn usage_error(rendered: &str) -> Error {
    let mut lines = rendered.lines().map(str::trim).filter(|line| !line.is_empty());
    let first = lines.next().unwrap_or_default();
    let mut error = Error::user(first.strip_prefix("error: ").unwrap_or(first));
    let mut help = None;
    for line in lines.filter(|line| !line.starts_with("For more information")) {
        let values = line
            .strip_prefix("[possible values: ")
            .and_then(|rest| rest.strip_suffix(']'));
        let remedy = values.map(|values| format!("pass one of {values}"));
        match remedy.or_else(|| line.strip_prefix("tip: ").map(str::to_owned)) {
            Some(remedy) if help.is_none() => help = Some(remedy),
            _ => error = error.note(line),
        }
    }
    error.help(help.unwrap_or_else(|| "`--help` after the command lists its flags".to_owned()))
}

const RED: &str = "1;31";
const GREEN: &str = "1;32";
const YELLOW: &str = "1;33";
const CYAN: &str = "1;36";

/// A progress bar.
#[derive(Debug)]
pub struct Progress {
    bar: ProgressBar,
}

impl Progress {
    /// `steps` more are done.
    pub fn advance(&self, steps: u64) {
        self.bar.inc(steps);
    }

    /// Changes the text.
    pub fn set_message(&self, what: &str) {
        self.bar.set_message(terminal::visible(what));
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}

fn write_all(sink: &Sink, text: &str) -> io::Result<()> {
    let mut sink = sink.lock().unwrap_or_else(PoisonError::into_inner);
    sink.write_all(text.as_bytes())?;
    sink.flush()
}

/// As [`terminal::visible`], with line breaks kept.
fn visible_lines(text: &str) -> String {
    text.split('\n').map(terminal::visible).collect::<Vec<_>>().join("\n")
}

/// Colour on a terminal that can show it, unless `NO_COLOR` is set to anything (<https://no-color.org>).
fn colour_allowed(is_terminal: bool, no_color: Option<&OsStr>, term: Option<&OsStr>) -> bool {
    is_terminal && no_color.is_none_or(OsStr::is_empty) && term != Some(OsStr::new("dumb"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    #[derive(Clone, Default)]
    struct Capture(Arc<Mutex<Vec<u8>>>);

    impl Capture {
        fn text(&self) -> String {
            String::from_utf8(self.0.lock().unwrap().clone()).unwrap()
        }
    }

    impl Write for Capture {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    struct Failing(io::ErrorKind);

    impl Write for Failing {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            Err(self.0.into())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn example_error() -> Error {
        Error::environment("`model` needs 21.9 GiB, but 20.0 GiB are free on cuda:0")
            .note("weights 14.2 GiB · kv cache 7.0 GiB")
            .note("a name with \x1b[31mcolour")
            .help("pass `--max-context 95232`")
    }

    #[test]
    fn the_voice_of_an_error() {
        let stderr = Capture::default();
        Printer::to(Vec::new(), stderr.clone(), PrinterOptions::default()).error(&example_error());
        insta::assert_snapshot!(stderr.text(), @r"
        error: `model` needs 21.9 GiB, but 20.0 GiB are free on cuda:0
          weights 14.2 GiB · kv cache 7.0 GiB
          a name with \u{1b}[31mcolour
        help: pass `--max-context 95232`
        ");
    }

    #[test]
    fn colour_marks_the_labels_only() {
        let stderr = Capture::default();
        let mut printer = Printer::to(Vec::new(), stderr.clone(), PrinterOptions::default());
        printer.stderr_style.colour = true;
        printer.error(&example_error());
        let text = stderr.text();
        assert!(text.starts_with("\x1b[1;31merror:\x1b[0m `model`"));
        assert!(text.contains("\n\x1b[1;36mhelp:\x1b[0m pass"));
        assert_eq!(text.matches('\x1b').count(), 4);
    }

    #[test]
    fn results_and_notes_do_not_mix_and_status_vanishes_when_piped() {
        let (stdout, stderr) = (Capture::default(), Capture::default());
        let printer = Printer::to(stdout.clone(), stderr.clone(), PrinterOptions::default());
        printer.status("loading", "demo");
        printer.detail("hidden");
        printer.warning("slow");
        assert_eq!(printer.write_result("to").unwrap(), Outcome::Done);
        printer.line("ken").unwrap();
        drop(printer.progress(3, "samples"));
        assert_eq!(
            (stdout.text().as_str(), stderr.text().as_str()),
            ("token\n", "warning: slow\n")
        );
    }

    #[test]
    fn quiet_leaves_errors_and_verbose_adds_details() {
        let loud = |options| {
            let stderr = Capture::default();
            let printer = Printer::to(Vec::new(), stderr.clone(), options);
            printer.status("loading", "demo");
            printer.detail("3 files");
            printer.warning("slow");
            printer.error(&Error::user("wrong"));
            stderr.text()
        };
        let quiet = PrinterOptions {
            quiet: true,
            ..PrinterOptions::default()
        };
        let verbose = PrinterOptions {
            verbose: true,
            ..PrinterOptions::default()
        };
        assert_eq!(loud(quiet), "error: wrong\n");
        assert_eq!(loud(verbose), "loading demo\n3 files\nwarning: slow\nerror: wrong\n");
    }

    #[test]
    fn a_reader_that_has_gone_is_no_error() {
        let printer = Printer::to(
            Failing(io::ErrorKind::BrokenPipe),
            Vec::new(),
            PrinterOptions::default(),
        );
        assert!(printer.line("x").unwrap().is_closed());
        assert!(printer.line("y").unwrap().is_closed());
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_full_stdout_is_an_error_of_the_environment() {
        let full = std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
        let printer = Printer::to(full, Vec::new(), PrinterOptions::default());
        let error = printer.line("x").unwrap_err();
        assert_eq!(error.exit_code(), 3);
        assert!(
            error.message().starts_with("cannot write to standard output: No space"),
            "{error}"
        );
    }

    #[test]
    fn a_wrong_command_line_is_told_like_any_other_error() {
        let told = |arguments: &[&str]| {
            let command = clap::Command::new("program")
                .arg(
                    clap::Arg::new("policy")
                        .long("policy")
                        .value_parser(["dense", "select"]),
                )
                .arg(
                    clap::Arg::new("top-k")
                        .long("top-k")
                        .value_parser(clap::value_parser!(u8)),
                );
            let arguments = std::iter::once(&"program").chain(arguments);
            let stderr = Capture::default();
            let printer = Printer::to(Vec::new(), stderr.clone(), PrinterOptions::default());
            let error = command.try_get_matches_from(arguments).unwrap_err();
            assert_eq!(printer.clap(&error).unwrap(), Outcome::UsageShown);
            stderr.text()
        };
        insta::assert_snapshot!(told(&["--policy", "x"]), @r"
        error: invalid value 'x' for '--policy <policy>'
        help: pass one of dense, select
        ");
        insta::assert_snapshot!(told(&["--topk", "3"]), @r"
        error: unexpected argument '--topk' found
          Usage: program --top-k <top-k>
        help: a similar argument exists: '--top-k'
        ");
        insta::assert_snapshot!(told(&["--top-k", "x"]), @r"
        error: invalid value 'x' for '--top-k <top-k>': invalid digit found in string
        help: `--help` after the command lists its flags
        ");
    }

    #[test]
    fn colour_needs_a_terminal_and_respects_no_color() {
        let set = Some(OsStr::new("1"));
        let empty = Some(OsStr::new(""));
        assert!(colour_allowed(true, None, None) && colour_allowed(true, empty, Some(OsStr::new("xterm"))));
        assert!(!colour_allowed(false, None, None) && !colour_allowed(true, set, None));
        assert!(!colour_allowed(true, None, Some(OsStr::new("dumb"))));
    }
}

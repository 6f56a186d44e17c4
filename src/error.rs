//! The one error type: what went wrong, the facts around it, the remedy, and the exit code that follows.
//!
//! ```text
//! error: `model.safetensors` is truncated: the header promises 454024 bytes, the file has 1000
//!   tensor `model.norm.weight` ends at byte 454024
//! help: download the file again
//! ```

use std::fmt;
use std::io::ErrorKind;

/// What kind of failure it is; decides the process exit code.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A stated acceptance bound failed (exit code 1).
    Acceptance,
    /// The input or the command line is wrong (exit code 2).
    User,
    /// The machine or its surroundings cannot do it: no device, no memory, disk full, file missing offline (exit code 3).
    Environment,
    /// Stopped by the user with partial results saved (exit code 130).
    Interrupted,
    /// A defect of this program (exit code 70).
    Bug,
}

/// An error with its kind, one-line message, indented facts, and a remedy.
#[derive(Debug, Clone, thiserror::Error)]
pub struct Error {
    kind: Kind,
    message: String,
    notes: Vec<String>,
    help: Option<String>,
}

/// Result with this crate's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    fn new(kind: Kind, message: impl Into<String>) -> Self {
        Self {
            kind,
            message: message.into(),
            notes: Vec::new(),
            help: None,
        }
    }

    /// The input or the command line is wrong.
    pub fn user(message: impl Into<String>) -> Self {
        Self::new(Kind::User, message)
    }

    /// The machine or its surroundings cannot do it.
    pub fn environment(message: impl Into<String>) -> Self {
        Self::new(Kind::Environment, message)
    }

    /// A stated acceptance bound failed.
    pub fn acceptance(message: impl Into<String>) -> Self {
        Self::new(Kind::Acceptance, message)
    }

    /// Stopped by the user; `message` says what was kept.
    pub fn interrupted(message: impl Into<String>) -> Self {
        Self::new(Kind::Interrupted, message)
    }

    /// A defect of this program.
    pub fn bug(message: impl Into<String>) -> Self {
        Self::new(Kind::Bug, message)
    }

    /// Adds one indented line of facts below the message.
    #[must_use]
    pub fn note(mut self, note: impl Into<String>) -> Self {
        self.notes.push(note.into());
        self
    }

    /// Sets the remedy.
    #[must_use]
    pub fn help(mut self, help: impl Into<String>) -> Self {
        self.help = Some(help.into());
        self
    }

    /// What kind of failure it is.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// The one-line message, without notes and help.
    pub fn message(&self) -> &str {
        &self.message
    }

    /// The indented lines of facts.
    pub fn notes(&self) -> &[String] {
        &self.notes
    }

    /// The remedy, if one is known.
    pub fn remedy(&self) -> Option<&str> {
        self.help.as_deref()
    }

    /// The process exit code (see [`Kind`]).
    pub fn exit_code(&self) -> u8 {
        match self.kind {
            Kind::Acceptance => 1,
            Kind::User => 2,
            Kind::Environment => 3,
            Kind::Bug => 70,
            Kind::Interrupted => 130,
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.message)?;
        for note in &self.notes {
            write!(f, "\n  {note}")?;
        }
        if let Some(help) = &self.help {
            write!(f, "\nhelp: {help}")?;
        }
        Ok(())
    }
}

/// Turns an I/O failure at `path` into an [`Error`]: a full disk is the environment's fault, the rest the user's. The
/// remedy follows from the kind of failure; a caller that knows a better one sets it.
pub fn io_error(action: &str, path: &std::path::Path, source: &std::io::Error) -> Error {
    let message = format!("cannot {action} `{}`: {source}", path.display());
    let help = match source.kind() {
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded => {
            return Error::environment(message).help("free some space, or choose another place to write to");
        }
        ErrorKind::NotFound => "check the spelling of the path; the folder of a file must exist",
        ErrorKind::PermissionDenied => "check who owns the path and what its permissions allow",
        ErrorKind::IsADirectory => "name a file, not a directory",
        ErrorKind::NotADirectory => "a part of the path is a file; name a path inside a directory",
        ErrorKind::ReadOnlyFilesystem => "choose a place that can be written to",
        _ => "check the path and the disk that it is on",
    };
    Error::user(message).help(help)
}

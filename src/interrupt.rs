//! Ctrl-C: the first asks the command to stop between two samples, the second stops at once.

use crate::error::{Error, Result};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Whether the user has asked to stop; clones share the answer.
#[derive(Debug, Clone, Default)]
pub struct Interrupt {
    raised: Arc<AtomicBool>,
}

impl Interrupt {
    /// Catches Ctrl-C, SIGTERM and SIGHUP from now on. Once per process.
    pub fn install() -> Result<Self> {
        Self::install_with(|| {})
    }

    /// As [`Interrupt::install`]; `notice` runs once, at the first signal, to say that the command is finishing.
    pub fn install_with(notice: impl Fn() + Send + 'static) -> Result<Self> {
        let interrupt = Self::default();
        let raised = interrupt.clone();
        ctrlc::set_handler(move || {
            if raised.raise() {
                // The user does not want to wait; samples are flushed one by one, so nothing finished is lost.
                std::process::exit(130);
            }
            notice();
        })
        .map_err(|error| Error::bug(format!("cannot catch Ctrl-C: {error}")))?;
        Ok(interrupt)
    }

    /// Whether to stop.
    pub fn is_raised(&self) -> bool {
        self.raised.load(Ordering::SeqCst)
    }

    /// Asks to stop, as a signal does; tells whether it had been asked before.
    pub fn raise(&self) -> bool {
        self.raised.swap(true, Ordering::SeqCst)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clones_share_the_request_and_the_second_is_told_from_the_first() {
        let interrupt = Interrupt::default();
        let worker = interrupt.clone();
        assert!(!worker.is_raised());
        assert!(!interrupt.raise());
        assert!(worker.is_raised() && interrupt.raise());
    }
}

//! The bar of a training run: loss, speed, time left.

use crate::cli::Context;
use crate::printer::Progress;
use crate::train::metrics::{Line, Part};
use crate::train::run::Observer;
use crate::train::trainer::{Step, Trainer};

/// Shows a run on stderr and listens for Ctrl-C.
pub struct Watch<'a> {
    context: &'a Context,
    bar: Progress,
    name: String,
    started: bool,
    valid: Option<f64>,
}

impl<'a> Watch<'a> {
    /// A bar over `steps` steps of run `name`.
    pub fn new(context: &'a Context, steps: u64, name: &str) -> Self {
        Self {
            context,
            bar: context.printer.progress(steps, name),
            name: name.to_owned(),
            started: false,
            valid: None,
        }
    }
}

impl Observer for Watch<'_> {
    fn step(&mut self, trainer: &Trainer, _: &Step) {
        // The first step of a resumed run comes after those that were done before.
        self.bar.advance(if self.started { 1 } else { trainer.progress.step });
        self.started = true;
        if trainer.progress.step.is_multiple_of(10) {
            let progress = &trainer.progress;
            let valid = self.valid.map_or_else(String::new, |loss| format!(", valid {loss:.3}"));
            self.bar.set_message(&format!(
                "{} loss {:.3}{valid}, {:.0} tokens/s",
                self.name,
                progress.smoothed_loss,
                trainer.tokens_per_s()
            ));
        }
    }

    fn line(&mut self, line: &Line) {
        let part = line.part.name();
        if line.part != Part::Train {
            self.valid = Some(line.loss);
        }
        self.context.printer.detail(&format!(
            "{} step {} {part} loss {:.4} accuracy {:.4} rate {:.2e} gradient {:.3}",
            self.name, line.step, line.loss, line.accuracy, line.rate, line.gradient_norm
        ));
    }

    fn notice(&mut self, text: &str) {
        self.context.printer.warning(&format!("{}: {text}", self.name));
    }

    fn stopped(&self) -> bool {
        self.context.interrupt.is_raised()
    }
}

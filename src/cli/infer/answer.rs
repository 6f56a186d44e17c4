//! Answering prompts: the text as it comes, Ctrl-C, samples as they are finished.

use super::{Encoded, Finished, InferArgs, Plan, TASK, dump, summary};
use crate::cli::device::ChosenDevice;
use crate::cli::{Context, loading};
use crate::error::{Error, Result};
use crate::interrupt::Interrupt;
use crate::model::context::Engine;
use crate::model::decoder::Session;
use crate::model::generate::{Finish, Observer, Request, generate};
use crate::model::sampling::Sampler;
use crate::printer::{Printer, Progress};
use crate::report::SampleSink;
use serde_json::json;

/// Prints text as it comes, follows prefill with a bar, and listens for Ctrl-C.
struct Watcher<'a> {
    printer: &'a Printer,
    interrupt: &'a Interrupt,
    stream: bool,
    closed: bool,
    bar: Option<Progress>,
}

impl Observer for Watcher<'_> {
    fn prefilled(&mut self, tokens: usize) {
        if let Some(bar) = &self.bar {
            bar.advance(tokens as u64);
        }
    }

    fn text(&mut self, text: &str) -> Result<()> {
        self.bar = None;
        if self.stream {
            self.closed |= self.printer.write_result(text)?.is_closed();
        }
        Ok(())
    }

    fn stopped(&self) -> bool {
        self.closed || self.interrupt.is_raised()
    }
}

/// Answers whatever `sink` does not hold yet.
pub(super) fn execute(args: &InferArgs, plan: &Plan, sink: &mut dyn SampleSink, context: &Context) -> Result<Finished> {
    let printer = &context.printer;
    let mut finished = Finished {
        interrupted: false,
        closed: false,
        partial: None,
        diagnosis: crate::attention::Diagnosis::default(),
    };
    let todo: Vec<&Encoded> = plan.prompts.iter().filter(|p| !sink.is_done(TASK, &p.id)).collect();
    let skipped = plan.prompts.len() - todo.len();
    if skipped > 0 {
        printer.warning(&format!(
            "{skipped} of {} answers are already there; {} to go",
            plan.prompts.len(),
            todo.len()
        ));
    }
    if todo.is_empty() {
        if let Some(path) = &args.dump_logits {
            return Err(Error::user(format!(
                "`--dump-logits {}` writes what a run computes, but the answer is already there",
                path.display()
            ))
            .help("choose another `--output` directory, or leave the flag out"));
        }
        return Ok(finished);
    }
    match &plan.device {
        ChosenDevice::Cpu(cpu) => answer(*cpu, args, plan, &todo, sink, context, &mut finished)?,
        ChosenDevice::Cuda(cuda) => answer(cuda.clone(), args, plan, &todo, sink, context, &mut finished)?,
    }
    Ok(finished)
}

/// Answers the prompts of `todo` one after the other.
fn answer<E: Engine>(
    device: E,
    args: &InferArgs,
    plan: &Plan,
    todo: &[&Encoded],
    sink: &mut dyn SampleSink,
    context: &Context,
    finished: &mut Finished,
) -> Result<()> {
    let printer = &context.printer;
    let decoder = loading::load_on(device, &plan.located, plan.weights.as_ref(), context)?;
    let mut session = Session::new(&decoder, &plan.policy, plan.limits)?;
    if args.dump_logits.is_some() {
        session.keep_trace();
    }
    for prompt in todo {
        if context.interrupt.is_raised() {
            finished.interrupted = true;
            break;
        }
        session.reset();
        let mut watcher = Watcher {
            printer,
            interrupt: &context.interrupt,
            stream: !plan.many && args.output.format.is_none(),
            closed: false,
            bar: Some(printer.progress(prompt.ids.len() as u64, "reading the prompt")),
        };
        let request = Request {
            ids: &prompt.ids,
            max_new_tokens: args.generation.max_new_tokens,
            eos: &plan.eos,
            stop: &args.generation.stop,
            tokenizer: plan.tokenizer.as_ref(),
        };
        let mut sampler = Sampler::new(plan.sampling.clone())?;
        let generation = generate(&mut session, &request, &mut sampler, &mut watcher)?;
        let closed = watcher.closed;
        let streamed = watcher.stream;
        drop(watcher);
        if streamed && plan.tokenizer.is_none() {
            printer.write_result(&summary::ids_as_text(&generation.ids))?;
        }
        if streamed && !closed {
            printer.write_result("\n")?;
        }
        if let Some(diagnosis) = session.diagnosis() {
            finished.diagnosis.merge(diagnosis);
        }
        let row = summary::sample(prompt, &generation, &session);
        if generation.finish == Finish::Interrupted {
            finished.interrupted = true;
            finished.closed = closed;
            finished.partial = Some(row);
            break;
        }
        if let Some(path) = &args.dump_logits {
            dump::write(path, &prompt.ids, &generation)?;
        }
        summary::print_speed(&generation, prompt.ids.len(), printer);
        // Kept before it is printed: a full or closed stdout loses no answer.
        sink.append(TASK, &prompt.id, row)?;
        if plan.many && args.output.format.is_none() {
            let line = json!({"id": prompt.id, "text": generation.text, "finish": generation.finish});
            if printer.line(&line.to_string())?.is_closed() {
                finished.closed = true;
                finished.interrupted = plan.prompts.iter().any(|p| !sink.is_done(TASK, &p.id));
                break;
            }
        }
    }
    Ok(())
}

//! `tokselect infer`: continue prompts with a real checkpoint, dense or with a selection policy.

mod dump;
mod summary;

use super::Context;
use super::arguments::{ModelArgs, OutputArgs, PolicyArgs, tokens};
use super::device::ChosenDevice;
use super::loading::{self, Language, Located};
use super::prompts::{self, Content, Prompts, token_ids};
use crate::error::{Error, Result};
use crate::exit::Outcome;
use crate::interrupt::Interrupt;
use crate::manifest::Manifest;
use crate::model::chat_template::{ChatMessage, ChatTemplate, ChatTemplateChoice};
use crate::model::config::ModelConfig;
use crate::model::context::{CudaContext, Engine};
use crate::model::decoder::{Session, SessionLimits};
use crate::model::generate::{Finish, Generation, Observer, Request, generate};
use crate::model::memory_plan::{MemoryPlan, available_bytes};
use crate::model::prompt::PromptEncoder;
use crate::model::sampling::{Sampler, SamplingConfig};
use crate::model::stop::StopStrings;
use crate::model::tokenizer::Tokenizer;
use crate::model::weights::TensorSource;
use crate::printer::{Printer, Progress};
use crate::report::{MemorySink, Report, RunDirectory, SampleSink};
use crate::selection::PolicyConfig;
use clap::Args;
use serde_json::{Value, json};
use std::io::IsTerminal;
use std::path::{Path, PathBuf};

/// Name of the task in sample files.
const TASK: &str = "infer";

/// Arguments of `tokselect infer`.
#[derive(Debug, Args)]
// `--top-k -1` is a wrong value, not an unknown flag `-1`.
#[command(allow_negative_numbers = true)]
pub struct InferArgs {
    #[command(flatten)]
    model: ModelArgs,
    #[command(flatten)]
    prompt: PromptArgs,
    #[command(flatten)]
    generation: GenerationArgs,
    #[command(flatten)]
    policy: PolicyArgs,
    #[command(flatten)]
    output: OutputArgs,
    /// Compare every selection of a single token with exact attention: recall@k and attention mass kept
    #[arg(long)]
    diagnose: bool,
    /// Write ids, last logits and every selection to this JSON file, for parity checks; one prompt only
    #[arg(long, value_name = "FILE")]
    dump_logits: Option<PathBuf>,
}

#[derive(Debug, Args)]
#[command(next_help_heading = "Prompt")]
struct PromptArgs {
    /// The prompt [default: stdin, if it is not a terminal]
    #[arg(short, long, allow_hyphen_values = true, value_name = "TEXT", group = "source")]
    prompt: Option<String>,
    /// Read the prompt from a UTF-8 file, `-` for stdin
    #[arg(long, value_name = "FILE", group = "source")]
    prompt_file: Option<PathBuf>,
    /// Answer every line of a JSONL file with `prompt`, `messages` or `token_ids`; `-` for stdin
    #[arg(long, value_name = "FILE", group = "source")]
    prompts: Option<PathBuf>,
    /// Start from token ids: `1,5,7`, or a file that holds such a list
    #[arg(long, value_name = "IDS|FILE", group = "source")]
    token_ids: Option<String>,
    /// System message, where a chat template is used
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    system: Option<String>,
    /// Chat template: auto (the model's own, if any), none, or a Jinja file
    #[arg(long, default_value = "auto", value_name = "auto|none|FILE")]
    chat_template: ChatTemplateChoice,
}

#[derive(Debug, Args)]
#[command(next_help_heading = "Generation")]
struct GenerationArgs {
    /// Tokens to generate at most
    #[arg(short = 'n', long, default_value_t = 256, value_name = "TOKENS", value_parser = tokens())]
    max_new_tokens: usize,
    /// Go on after an end-of-text token
    #[arg(long)]
    ignore_eos: bool,
    /// End the text where this string appears; may be repeated
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    stop: Vec<String>,
    /// Sampling temperature, 0 for greedy
    #[arg(long, default_value_t = 0.0, value_name = "T", allow_hyphen_values = true)]
    temperature: f32,
    /// Sample from this many of the likeliest tokens
    #[arg(long, value_name = "K")]
    sample_top_k: Option<usize>,
    /// Sample from the fewest tokens that reach this probability
    #[arg(long, value_name = "P", allow_hyphen_values = true)]
    top_p: Option<f32>,
    /// Sample from tokens with at least this share of the largest probability
    #[arg(long, value_name = "P", allow_hyphen_values = true)]
    min_p: Option<f32>,
    /// Make tokens already in the text less likely, 1 for off
    #[arg(long, value_name = "R", allow_hyphen_values = true)]
    repetition_penalty: Option<f32>,
    /// Seed of the sampling
    #[arg(long, default_value_t = 0)]
    seed: u64,
}

impl GenerationArgs {
    fn sampling(&self, printer: &Printer) -> Result<SamplingConfig> {
        let config = SamplingConfig {
            temperature: self.temperature,
            top_k: self.sample_top_k,
            top_p: self.top_p,
            min_p: self.min_p,
            repetition_penalty: self.repetition_penalty,
            seed: self.seed,
        };
        config.validate()?;
        let unused = self.sample_top_k.is_some() || self.top_p.is_some() || self.min_p.is_some();
        if self.temperature == 0.0 && unused {
            printer.warning("decoding is greedy at temperature 0: --sample-top-k, --top-p and --min-p change nothing");
        }
        Ok(config)
    }
}

/// A prompt as ids.
struct Encoded {
    id: String,
    ids: Vec<u32>,
    place: String,
}

/// Everything decided before weights are loaded.
struct Plan {
    located: Located,
    weights: Box<dyn TensorSource>,
    tokenizer: Option<Tokenizer>,
    template: Option<ChatTemplate>,
    eos: Vec<u32>,
    policy: PolicyConfig,
    sampling: SamplingConfig,
    limits: SessionLimits,
    prompts: Vec<Encoded>,
    many: bool,
    data_sha256: String,
    memory: MemoryPlan,
    device: ChosenDevice,
}

pub(super) fn run(args: &InferArgs, context: &Context) -> Result<Outcome> {
    let plan = plan(args, context)?;
    if args.output.dry_run {
        return summary::print_plan(&plan, args.output.format, context);
    }
    let config = summary::effective_config(args, &plan);
    let mut manifest = Manifest::begin(rayon::current_num_threads());
    let mut directory = None;
    let mut memory_sink = MemorySink::new(crate::manifest::config_hash(&Value::Object(config.clone())));
    if let Some(output) = &args.output.output {
        let opened = RunDirectory::open_or_resume(output, "infer", &config)?;
        opened
            .notices()
            .iter()
            .for_each(|notice| context.printer.warning(notice));
        directory = Some(opened);
    }
    if let Some(path) = &args.dump_logits {
        dump::check_writable(path)?;
    }
    let sink: &mut dyn SampleSink = match &mut directory {
        Some(directory) => directory,
        None => &mut memory_sink,
    };
    let finished = execute(args, &plan, sink, context)?;
    let samples = sink.samples()?;

    if directory.is_some() || args.output.format.is_some() {
        if directory.is_some() {
            // Hashing reads every byte of the model: only a report that stays is worth it.
            loading::record_files(&mut manifest, &plan.located.files, true)?;
        }
        summary::fill_manifest(&mut manifest, &plan);
        manifest.finish();
        let mut report = Report::new("infer", context.command_line.clone(), config, manifest);
        summary::fill_report(&mut report, &plan, &finished, &samples);
        if let Some(directory) = &directory {
            directory.write_report(&mut report)?;
        }
        if let Some(format) = args.output.format {
            context.printer.report(&report, format)?;
        }
    }
    if finished.interrupted && !finished.closed {
        let kept = match &args.output.output {
            Some(path) => format!("{} finished answers are kept in `{}`", samples.len(), path.display()),
            None => "what was made is printed".to_owned(),
        };
        let error = Error::interrupted(format!("interrupted; {kept}"));
        return Err(match &args.output.output {
            Some(_) => error.help("run the same command again to go on"),
            None => error.help("pass `--output DIR` to keep finished answers and go on later"),
        });
    }
    Ok(Outcome::Done)
}

fn plan(args: &InferArgs, context: &Context) -> Result<Plan> {
    // Slips of the keyboard are told before files are looked for.
    args.policy.policy(None)?;
    let unread = args.policy.unread();
    if !unread.is_empty() {
        context
            .printer
            .warning(&format!("the chosen policy does not read {}", unread.join(", ")));
    }
    let sampling = args.generation.sampling(&context.printer)?;
    StopStrings::new(args.generation.stop.iter().cloned())?;
    let prompts = read_prompts(&args.prompt)?;
    if args.dump_logits.is_some() && prompts.all.len() != 1 {
        return Err(
            Error::user(format!("`--dump-logits` takes one prompt, not {}", prompts.all.len()))
                .help("pass one prompt with `--prompt` or `--token-ids`"),
        );
    }
    let only_ids = prompts.all.iter().all(|p| matches!(p.content, Content::Ids(_)));
    let located = locate(args, only_ids, context)?;
    let Language {
        tokenizer,
        template,
        eos,
    } = loading::language(&located, &args.prompt.chat_template, args.generation.ignore_eos)?;
    let encoded = encode(&prompts, args, tokenizer.as_ref(), template.as_ref())?;
    let longest = encoded.iter().map(|p| p.ids.len()).max().unwrap_or(0);
    let max_context = args
        .model
        .max_context
        .unwrap_or(longest + args.generation.max_new_tokens);
    let config = &located.config;
    check_prompts(&encoded, max_context, config)?;
    if let Some(stated) = args.model.max_context {
        args.policy.check_context(stated)?;
    }
    let trained = config.max_position_embeddings;
    let policy = args.policy.policy(Some(trained))?.for_context(trained, max_context);
    if let Some(farthest) = policy.farthest(max_context)
        && farthest > trained
    {
        context.printer.warning(&format!(
            "with `--policy {}` {max_context} tokens lie up to {farthest} positions apart, more than the {trained} the model was made for; \
             attention degrades there",
            policy.name(),
        ));
    }
    let limits = SessionLimits {
        max_context,
        prefill_chunk: args.policy.prefill_chunk(Some(trained)),
        diagnose: args.diagnose,
    };
    let weights = loading::open_weights(&args.model, &located)?;
    let device = args.model.open_device(&context.printer, &|| {
        CudaContext::runs(&located.config, &policy, limits)
    })?;
    let memory = match &device {
        ChosenDevice::Cpu(cpu) => {
            policy.check_host()?;
            let available = available_bytes();
            loading::plan_memory_on(cpu, &args.model, &located, &policy, limits, available)?
        }
        ChosenDevice::Cuda(cuda) => {
            let (free, _) = cuda.gpu().memory()?;
            loading::plan_memory_on(cuda, &args.model, &located, &policy, limits, Some(free))?
        }
    };
    Ok(Plan {
        weights,
        tokenizer,
        template,
        eos,
        policy,
        sampling,
        limits,
        prompts: encoded,
        many: prompts.many,
        data_sha256: prompts.sha256,
        memory,
        device,
        located,
    })
}

/// Refuses prompts that the context cannot hold and ids that the model does not know.
fn check_prompts(prompts: &[Encoded], max_context: usize, config: &ModelConfig) -> Result<()> {
    for prompt in prompts {
        if prompt.ids.len() > max_context {
            return Err(Error::user(format!(
                "{} has {} tokens, more than `--max-context {max_context}`",
                prompt.place,
                prompt.ids.len()
            ))
            .help(format!(
                "pass `--max-context {}` or shorten the prompt",
                prompt.ids.len()
            )));
        }
        if let Some(id) = prompt.ids.iter().find(|&&id| id as usize >= config.vocab_size) {
            return Err(Error::user(format!(
                "{}: token id {id} is outside the model's vocabulary of {} ids",
                prompt.place, config.vocab_size
            ))
            .help("use ids that the model's own tokenizer gives"));
        }
    }
    Ok(())
}

/// Ids need no tokenizer: a model without one still runs, and its answers are ids.
fn locate(args: &InferArgs, only_ids: bool, context: &Context) -> Result<Located> {
    match loading::locate(&args.model, true, context) {
        Err(error) if only_ids => {
            let located = loading::locate(&args.model, false, context).map_err(|_| error)?;
            context
                .printer
                .warning("no tokenizer was found: answers are token ids, not text");
            Ok(located)
        }
        other => other,
    }
}

fn read_prompts(args: &PromptArgs) -> Result<Prompts> {
    if let Some(text) = &args.prompt {
        return Ok(prompts::single(Content::Text(text.clone()), "the prompt"));
    }
    if let Some(path) = &args.prompts {
        return prompts::jsonl(path);
    }
    if let Some(ids) = &args.token_ids {
        return Ok(prompts::single(Content::Ids(token_ids(ids)?), "`--token-ids`"));
    }
    let missing = |why: &str| {
        Error::user(format!("no prompt is given{why}"))
            .help("pass `--prompt TEXT`, `--prompt-file FILE`, `--prompts FILE.jsonl`, or pipe a text in")
    };
    let path = match &args.prompt_file {
        Some(path) => path.as_path(),
        None if std::io::stdin().is_terminal() => return Err(missing("")),
        None => Path::new("-"),
    };
    let text = prompts::read_text(path)?;
    if args.prompt_file.is_none() && text.is_empty() {
        // Under cron and the like stdin is empty without anyone having meant it to be the prompt.
        return Err(missing(", and standard input is empty"));
    }
    Ok(prompts::single(Content::Text(text), &prompts::name(path)))
}

fn encode(
    prompts: &Prompts,
    args: &InferArgs,
    tokenizer: Option<&Tokenizer>,
    template: Option<&ChatTemplate>,
) -> Result<Vec<Encoded>> {
    let tokenizer_or = |place: &str| {
        tokenizer.ok_or_else(|| {
            Error::user(format!("{place} is text, but the model has no tokenizer.json"))
                .help("put the model's tokenizer.json beside its config.json, or pass ids with `--token-ids`")
        })
    };
    let mut all = Vec::with_capacity(prompts.all.len());
    for prompt in &prompts.all {
        let render = |tokenizer: &Tokenizer, template: &ChatTemplate, messages: &[ChatMessage]| {
            let mut conversation = Vec::new();
            if let Some(system) = args
                .prompt
                .system
                .as_ref()
                .filter(|_| messages.iter().all(|m| m.role != "system"))
            {
                conversation.push(ChatMessage::new("system", system.as_str()));
            }
            conversation.extend_from_slice(messages);
            let encoder = PromptEncoder {
                tokenizer,
                template: Some(template),
            };
            Ok::<_, Error>(encoder.conversation(template, &conversation, "")?.ids)
        };
        let ids = match (&prompt.content, template) {
            (Content::Ids(ids), _) => ids.clone(),
            (Content::Text(text), Some(template)) => render(
                tokenizer_or(&prompt.place)?,
                template,
                &[ChatMessage::new("user", text.as_str())],
            )?,
            (Content::Text(text), None) => {
                if args.prompt.system.is_some() {
                    return Err(Error::user("`--system` needs a chat template, and the model has none")
                        .help("pass `--chat-template FILE`, or put the instruction into the prompt"));
                }
                tokenizer_or(&prompt.place)?.encode(text, true)?
            }
            (Content::Messages(messages), Some(template)) => render(tokenizer_or(&prompt.place)?, template, messages)?,
            (Content::Messages(_), None) => {
                return Err(Error::user(format!("{}: messages need a chat template", prompt.place))
                    .help("pass `--chat-template FILE`, or write `prompt` instead of `messages`"));
            }
        };
        if ids.is_empty() {
            return Err(
                Error::user(format!("{} is empty: there is no token to continue from", prompt.place))
                    .help("write a prompt of at least one character"),
            );
        }
        all.push(Encoded {
            id: prompt.id.clone(),
            ids,
            place: prompt.place.clone(),
        });
    }
    Ok(all)
}

/// What a run leaves for the report.
struct Finished {
    /// Some answer is missing.
    interrupted: bool,
    /// Because the reader of stdout has gone, which is no failure.
    closed: bool,
    /// The answer that was cut off.
    partial: Option<Value>,
    diagnosis: crate::attention::Diagnosis,
}

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

fn execute(args: &InferArgs, plan: &Plan, sink: &mut dyn SampleSink, context: &Context) -> Result<Finished> {
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

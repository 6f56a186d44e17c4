//! `tokselect infer`: continue prompts with a real checkpoint, dense or with a selection policy.

mod answer;
mod arguments;
mod dump;
mod summary;

pub use arguments::InferArgs;
use arguments::PromptArgs;

use super::Context;
use super::device::ChosenDevice;
use super::loading::{self, Language, Located};
use super::prompts::{self, Content, Prompts, token_ids};
use super::run_output::RunOutput;
use crate::error::{Error, Result};
use crate::exit::Outcome;
use crate::manifest::Manifest;
use crate::model::chat_template::{ChatMessage, ChatTemplate};
use crate::model::config::ModelConfig;
use crate::model::context::CudaContext;
use crate::model::decoder::SessionLimits;
use crate::model::memory_plan::{MemoryPlan, available_bytes};
use crate::model::prompt::PromptEncoder;
use crate::model::sampling::SamplingConfig;
use crate::model::stop::StopStrings;
use crate::model::tokenizer::Tokenizer;
use crate::model::weights::TensorSource;
use crate::report::Report;
use crate::selection::PolicyConfig;
use serde_json::Value;
use std::io::IsTerminal;
use std::path::Path;

/// Name of the task in sample files.
const TASK: &str = "infer";

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

pub(super) fn run(args: &InferArgs, context: &Context) -> Result<Outcome> {
    let plan = plan(args, context)?;
    if args.output.dry_run {
        return summary::print_plan(&plan, args.output.format, context);
    }
    let config = summary::effective_config(args, &plan);
    let mut manifest = Manifest::begin(rayon::current_num_threads());
    let mut output = RunOutput::open(&args.output, "infer", &config, context)?;
    if let Some(path) = &args.dump_logits {
        dump::check_writable(path)?;
    }
    let sink = output.sink();
    let finished = answer::execute(args, &plan, sink, context)?;
    let samples = sink.samples()?;

    if output.directory.is_some() || args.output.format.is_some() {
        if output.directory.is_some() {
            // Hashing reads every byte of the model: only a report that stays is worth it.
            loading::record_files(&mut manifest, &plan.located.files, true)?;
        }
        summary::fill_manifest(&mut manifest, &plan);
        manifest.finish();
        let mut report = Report::new("infer", context.command_line.clone(), config, manifest);
        summary::fill_report(&mut report, &plan, &finished, &samples);
        if let Some(directory) = &output.directory {
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

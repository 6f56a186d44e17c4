//! From a model reference to a decoder in memory: files, config, memory plan, weights.

use super::Context;
use super::arguments::ModelArgs;
use crate::bench::shapes::Shape;
use crate::error::{Error, Result};
use crate::hub::{HubOptions, ModelFiles, Need, SourceRecord, resolve};
use crate::kernels::Device;
use crate::kernels::cpu::Cpu;
use crate::manifest::{FileRecord, Manifest};
use crate::model::chat_template::{ChatTemplate, ChatTemplateChoice, ChatTemplateFiles};
use crate::model::checkpoint::Checkpoint;
use crate::model::config::ModelConfig;
use crate::model::context::Engine;
use crate::model::decoder::{Decoder, SessionLimits};
use crate::model::generation_config::GenerationConfig;
use crate::model::memory_plan::{MemoryPlan, available_bytes};
use crate::model::rope;
use crate::model::tokenizer::{Tokenizer, TokenizerFiles};
use crate::model::weights::{ModelWeights, RandomWeights, TensorSource, tensor_specs};
use crate::report::Measured;
use crate::selection::PolicyConfig;
use std::path::{Path, PathBuf};

/// A model whose files were found and whose config was read; its weights are still on disk.
pub(super) struct Located {
    pub files: ModelFiles,
    pub config: ModelConfig,
}

/// Finds the files of the model and reads its config. With random weights no weight file is needed.
pub(super) fn locate(args: &ModelArgs, tokenizer: bool, context: &Context) -> Result<Located> {
    let need = match (args.random_weights.is_some(), tokenizer) {
        (true, true) => Need::ConfigAndTokenizer,
        (true, false) => Need::ConfigOnly,
        (false, true) => Need::All,
        (false, false) => Need::ConfigAndWeights,
    };
    locate_parts(args, need, context)
}

/// As [`locate`], for text without a run: config and tokenizer only.
pub(super) fn locate_tokenizer(args: &ModelArgs, context: &Context) -> Result<Located> {
    locate_parts(args, Need::ConfigAndTokenizer, context)
}

fn locate_parts(args: &ModelArgs, need: Need, context: &Context) -> Result<Located> {
    let reference = args.reference();
    let options = HubOptions {
        revision: args.revision.clone(),
        offline: args.offline,
        progress: context.printer.shows_progress(),
    };
    let files = resolve(reference, need, &options)?;
    let config = ModelConfig::load(&files.config)?;
    Ok(Located { files, config })
}

/// What turns text into ids and back, and what ends a text.
pub(super) struct Language {
    /// `None` for a model without one.
    pub tokenizer: Option<Tokenizer>,
    /// `None` for plain text.
    pub template: Option<ChatTemplate>,
    /// Ids that end a text; empty to ignore them.
    pub eos: Vec<u32>,
}

/// Reads the tokenizer, checks it against the model, and reads the template that `choice` asks for.
pub(super) fn language(located: &Located, choice: &ChatTemplateChoice, ignore_eos: bool) -> Result<Language> {
    let Located { files, config } = located;
    let tokenizer = files
        .tokenizer
        .as_deref()
        .map(|path| {
            let tokenizer = Tokenizer::load(TokenizerFiles {
                tokenizer: path,
                tokenizer_config: files.tokenizer_config.as_deref(),
            })?;
            tokenizer.check_against_model_vocab(config.vocab_size)?;
            Ok::<_, Error>(tokenizer)
        })
        .transpose()?;
    let generation = GenerationConfig::load(files.generation_config.as_deref(), &files.config)?;
    let eos = match (ignore_eos, generation.eos_token_ids.as_slice()) {
        (true, _) => Vec::new(),
        (false, []) => tokenizer
            .as_ref()
            .and_then(Tokenizer::eos_token_id)
            .into_iter()
            .collect(),
        (false, ids) => ids.to_vec(),
    };
    let is_jinja = |path: &Path| path.extension().is_some_and(|e| e == "jinja");
    let chat_file = files.chat_template.as_deref();
    let template = ChatTemplate::choose(
        choice,
        ChatTemplateFiles {
            jinja: chat_file.filter(|p| is_jinja(p)),
            tokenizer_config: files.tokenizer_config.as_deref(),
            json: chat_file.filter(|p| !is_jinja(p)),
        },
    )?;
    Ok(Language {
        tokenizer,
        template,
        eos,
    })
}

/// Records the model's files by content: the weights, and the config if there is one. This reads every byte of them.
pub(super) fn record_files(manifest: &mut Manifest, files: &ModelFiles, config: bool) -> Result<()> {
    for path in files.weights.iter().chain(config.then_some(&files.config)) {
        let mut record = FileRecord::of(path)?;
        // Where the built-in model was laid out says nothing about it, and differs from machine to machine.
        if let (SourceRecord::Embedded { name, .. }, Some(file)) = (&files.source, path.file_name()) {
            record.path = format!("{name}/{}", file.to_string_lossy());
        }
        manifest.model_files.push(record);
    }
    Ok(())
}

/// Records tokenizer and template, and the hashes of the model's files where the report stays.
pub(super) fn fill_manifest(
    manifest: &mut Manifest,
    located: &Located,
    tokenizer: &Tokenizer,
    template: Option<&ChatTemplate>,
    hash_files: bool,
) -> Result<()> {
    if hash_files {
        record_files(manifest, &located.files, true)?;
    }
    manifest.tokenizer_sha256 = Measured::Value(tokenizer.hash().to_owned());
    manifest.chat_template_sha256 = template.map_or_else(
        || Measured::missing("no chat template"),
        |template| Measured::Value(template.hash().to_owned()),
    );
    Ok(())
}

/// A built-in shape in the place of a model: a config, no files.
pub(super) fn built_in(shape: Shape) -> Result<Located> {
    let files = ModelFiles {
        reference: shape.name().to_owned(),
        source: SourceRecord::File {
            path: format!("built-in shape {}", shape.name()).into(),
        },
        config: PathBuf::new(),
        generation_config: None,
        tokenizer: None,
        tokenizer_config: None,
        chat_template: None,
        weights_index: None,
        weights: Vec::new(),
    };
    let config = ModelConfig::from_json(&shape.config(), &format!("built-in shape `{}`", shape.name()))?;
    Ok(Located { files, config })
}

/// Where the weights come from, checked against the config; nothing is loaded yet.
pub(super) fn open_weights(args: &ModelArgs, located: &Located) -> Result<Box<dyn TensorSource>> {
    open_weights_seeded(args.random_weights, located)
}

/// As [`open_weights`], random under `seed` if there is one.
pub(super) fn open_weights_seeded(seed: Option<u64>, located: &Located) -> Result<Box<dyn TensorSource>> {
    if let Some(seed) = seed {
        return Ok(Box::new(RandomWeights {
            seed,
            standard_deviation: located.config.initializer_range,
        }));
    }
    if located.files.weights.is_empty() {
        return Err(Error::user(format!(
            "`{}` is a configuration without weights",
            located.files.reference
        ))
        .help("name the model's directory, or pass `--random-weights SEED` to make some"));
    }
    let checkpoint = Checkpoint::open(&located.files.weights, located.files.weights_index.as_deref())?;
    checkpoint.check(&located.config)?;
    Ok(Box::new(checkpoint))
}

/// The memory plan on the CPU, refused if it exceeds what may be used.
pub(super) fn plan_memory(
    args: &ModelArgs,
    located: &Located,
    policy: &PolicyConfig,
    limits: SessionLimits,
) -> Result<MemoryPlan> {
    policy.check_host()?;
    plan_memory_on(&Cpu, args, located, policy, limits, available_bytes())
}

/// The memory plan on `device`, refused if it exceeds what may be used there.
pub(super) fn plan_memory_on<E: Engine>(
    device: &E,
    args: &ModelArgs,
    located: &Located,
    policy: &PolicyConfig,
    limits: SessionLimits,
    available: Option<usize>,
) -> Result<MemoryPlan> {
    rope::check_extension(&located.config, policy)?;
    let plan = MemoryPlan::new(device, &located.config, policy, limits);
    if let Some(available) = args.max_memory.or(available) {
        let model = &located.files.reference;
        plan.check(device, model, &located.config, policy, limits, available)?;
    }
    Ok(plan)
}

/// Brings the weights into memory of the CPU, with a progress bar.
pub(super) fn load(located: &Located, source: &dyn TensorSource, context: &Context) -> Result<Decoder<Cpu>> {
    load_on(Cpu, located, source, context)
}

/// Brings the weights into memory of `device`, with a progress bar.
pub(super) fn load_on<D: Device>(
    device: D,
    located: &Located,
    source: &dyn TensorSource,
    context: &Context,
) -> Result<Decoder<D>> {
    let elements: usize = tensor_specs(&located.config).iter().map(|s| s.rows() * s.cols()).sum();
    let bar = context.printer.progress(elements as u64, "loading weights");
    let weights = ModelWeights::load(&device, &located.config, source, &mut |done| bar.advance(done))?;
    device.status()?;
    context.printer.detail(&format!(
        "{:.1} M parameters on the {} backend, {} threads",
        elements as f64 / 1e6,
        device.name(),
        rayon::current_num_threads()
    ));
    Ok(Decoder {
        config: located.config.clone(),
        weights,
        backend: device,
    })
}

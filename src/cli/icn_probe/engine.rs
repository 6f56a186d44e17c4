//! What the subcommands share: the model with its engine, the clustering, the questions, the judge.

use crate::bytes::human_bytes;
use crate::cli::Context;
use crate::cli::arguments::{ModelArgs, at_least_one};
use crate::cli::loading::{self, Language, Located};
use crate::error::{Error, Result};
use crate::kernels::cpu::Cpu;
use crate::model::chat_template::{ChatTemplate, ChatTemplateChoice};
use crate::model::config::ModelConfig;
use crate::model::decoder::Decoder;
use crate::model::memory_plan::{MemoryPlan, available_bytes};
use crate::model::prompt::PromptEncoder;
use crate::model::tokenizer::Tokenizer;
use crate::model::weights::TensorSource;
use crate::probe::clusters::Clustering;
use crate::probe::completion::{Completer, EngineLimits, TokenTexts};
use crate::probe::judge::{ClosedList, CommandJudge, Judge, ModelJudge};
use crate::probe::key_space::Rows;
use crate::probe::kmeans::{self, Distance, KMeansConfig};
use crate::probe::lists::Questions;
use crate::probe::prompts::{Form, ListPrompts};
use crate::selection::PolicyConfig;
use clap::{Args, ValueEnum};
use serde_json::{Map, Value, json};
use std::path::PathBuf;
use std::time::Duration;

/// Tokens of prompt and answer where nothing was said: a list of hundreds of answers, and no gigabytes of keys and values for
/// a window that nobody fills.
const USUAL_CONTEXT: usize = 8192;
/// A prompt of fewer tokens is no question any more.
const LEAST: usize = 32;

/// Which model, and how it is asked.
#[derive(Debug, Args)]
pub(super) struct EngineArgs {
    #[command(flatten)]
    pub model: ModelArgs,
    #[command(flatten)]
    pub asking: AskingArgs,
}

#[derive(Debug, Args)]
#[command(next_help_heading = "Engine")]
pub(super) struct AskingArgs {
    /// Chat template: none (the prompt as plain text, as in the paper's code), auto (the model's own, if any), or a Jinja file
    #[arg(long, default_value = "none", value_name = "auto|none|FILE")]
    pub chat_template: ChatTemplateChoice,
    /// Completions in one forward pass
    #[arg(long, default_value_t = 100, value_name = "N", value_parser = at_least_one())]
    pub batch: usize,
}

/// The model's files are found and its sizes known; its weights are still on disk.
pub(super) struct Engine {
    pub located: Located,
    pub weights: Box<dyn TensorSource>,
    pub tokenizer: Tokenizer,
    pub template: Option<ChatTemplate>,
    pub eos: Vec<u32>,
    pub texts: TokenTexts,
    pub limits: EngineLimits,
    pub memory: MemoryPlan,
    /// Bytes beside those of the plan, see [`Besides`].
    pub besides_bytes: usize,
}

/// What a command holds beside the decoder and its session.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Besides {
    /// The keys in rows, for products and projections.
    pub keys: bool,
    /// k-means over a copy of them, with so many clusters at most; see [`ClusterChoice::made`].
    pub clusters: Option<usize>,
    /// A second session, in which the model judges.
    pub judging: bool,
}

impl Besides {
    fn bytes(self, config: &ModelConfig, session: &MemoryPlan) -> usize {
        let (count, dim) = (config.vocab_size, config.hidden_size);
        let keys = if self.keys { 4 * count * dim } else { 0 };
        let clusters = self.clusters.map_or(0, |k| {
            let k = if k == 0 { default_clusters(count) } else { k };
            kmeans::needed_bytes(count, dim, k)
        });
        let judging = if self.judging {
            session.total_bytes() - session.weights_bytes
        } else {
            0
        };
        (keys + clusters).saturating_add(judging)
    }
}

impl Engine {
    /// Finds the model and plans for completions of `completion_tokens` tokens, at most `batch` at once, with `besides` held
    /// in memory, too.
    pub fn plan(
        args: &EngineArgs,
        completion_tokens: usize,
        batch: usize,
        besides: Besides,
        context: &Context,
    ) -> Result<Self> {
        args.model.check_cpu()?;
        let located = loading::locate(&args.model, true, context)?;
        let Language {
            tokenizer,
            template,
            eos,
        } = loading::language(&located, &args.asking.chat_template, false)?;
        let tokenizer = tokenizer.ok_or_else(|| Error::bug("a required tokenizer was not located"))?;
        if args.asking.chat_template == ChatTemplateChoice::Auto && template.is_none() {
            context.printer.warning(&format!(
                "`{}` has no chat template; questions are put as plain text",
                located.files.reference
            ));
        }
        let trained = located.config.max_position_embeddings;
        let context_tokens = args.model.max_context.unwrap_or(trained.min(USUAL_CONTEXT));
        if context_tokens < completion_tokens + LEAST {
            return Err(Error::user(format!(
                "a context of {context_tokens} tokens does not hold a prompt and an answer of {completion_tokens}"
            ))
            .help("pass a larger `--max-context` or a smaller `--max-new-tokens`"));
        }
        let limits = EngineLimits {
            prompt_tokens: context_tokens - completion_tokens,
            completion_tokens,
            batch,
        };
        let memory = loading::plan_memory(&args.model, &located, &PolicyConfig::Dense, limits.session())?;
        let besides_bytes = besides.bytes(&located.config, &memory);
        check_memory(&args.model, &memory, besides_bytes)?;
        let texts = TokenTexts::new(&tokenizer, located.config.vocab_size)?;
        Ok(Self {
            weights: loading::open_weights(&args.model, &located)?,
            located,
            tokenizer,
            template,
            eos,
            texts,
            limits,
            memory,
            besides_bytes,
        })
    }

    /// Refuses an instruction that leaves no room for an answer.
    pub fn check_instruction(&self, form: Form, instruction: &str) -> Result<()> {
        self.prompts(form).with_list(instruction, &[]).map(drop)
    }

    /// All bytes that are planned for.
    pub fn total_bytes(&self) -> usize {
        self.memory.total_bytes().saturating_add(self.besides_bytes)
    }

    pub fn load(&self, context: &Context) -> Result<Decoder<Cpu>> {
        loading::load(&self.located, self.weights.as_ref(), context)
    }

    pub fn encoder(&self) -> PromptEncoder<'_> {
        PromptEncoder {
            tokenizer: &self.tokenizer,
            template: self.template.as_ref(),
        }
    }

    pub fn prompts(&self, form: Form) -> ListPrompts<'_> {
        ListPrompts {
            form,
            encoder: self.encoder(),
            most_tokens: self.limits.prompt_tokens,
        }
    }

    pub fn completer<'m>(
        &'m self,
        decoder: &'m Decoder<Cpu>,
        stopped: &'m dyn Fn() -> bool,
    ) -> Result<Completer<'m, Cpu>> {
        Completer::new(decoder, &self.texts, &self.eos, self.limits, stopped)
    }

    pub fn keys(&self) -> Result<Rows> {
        Rows::load(&self.located.config, self.weights.as_ref())
    }

    /// What bears on every result.
    pub fn config(&self, args: &EngineArgs) -> Map<String, Value> {
        let config = json!({
            "model": self.located.files.reference,
            "source": self.located.files.source,
            "random_weights": args.model.random_weights,
            "device": "cpu",
            "dtype": "f32",
            "tokenizer_sha256": self.tokenizer.hash(),
            "chat_template_sha256": self.template.as_ref().map(ChatTemplate::hash),
            "eos_token_ids": self.eos,
            "engine": self.limits,
        });
        match config {
            Value::Object(map) => map,
            _ => Map::new(),
        }
    }
}

/// Refuses what does not fit beside a session that would.
fn check_memory(args: &ModelArgs, memory: &MemoryPlan, besides: usize) -> Result<()> {
    let needed = memory.total_bytes().saturating_add(besides);
    match args.max_memory.or_else(available_bytes) {
        Some(available) if available < needed => Err(Error::environment(format!(
            "model, keys, clusters and judge need {}, but {} are available",
            human_bytes(needed),
            human_bytes(available)
        ))
        .note(format!(
            "{} · keys, clusters and judge {}",
            memory.parts(),
            human_bytes(besides)
        ))
        .help("pass a smaller `--max-context` or `--batch`, or `--clusters FILE` instead of making some")),
        _ => Ok(()),
    }
}

/// The clusters of keys that a measurement refers to.
#[derive(Debug, Args)]
#[command(next_help_heading = "Clusters")]
pub(super) struct ClusterChoice {
    /// A clustering of this model: a file of `icn-probe clusters`, or ids as .json, .txt or .pt [default: k-means now]
    #[arg(long, value_name = "FILE")]
    pub clusters: Option<PathBuf>,
    /// Number of clusters, or several for a sweep [default: a 125th of the vocabulary to the nearest power of two, at least 128]
    #[arg(long, value_delimiter = ',', value_name = "K", value_parser = at_least_one(), conflicts_with = "clusters")]
    pub k: Vec<usize>,
    /// What k-means minimises
    #[arg(long, value_enum, default_value = "euclidean", conflicts_with = "clusters")]
    pub distance: Distance,
}

/// K for a vocabulary: 1024 for that of Llama 3 and 512 for that of `OLMo`, as the paper has them.
pub(super) fn default_clusters(vocab_size: usize) -> usize {
    let wanted = (vocab_size as f64 / 125.0).log2().round().exp2() as usize;
    wanted.max(128).min(vocab_size)
}

impl ClusterChoice {
    /// The number of clusters for a command that makes no sweep; `None`: the default.
    pub fn single(&self) -> Result<Option<usize>> {
        match self.k[..] {
            [] => Ok(None),
            [k] => Ok(Some(k)),
            _ => Err(
                Error::user("several numbers for `--k` make a sweep, which this command does not do")
                    .help("pass one number; `icn-probe navigate` sweeps"),
            ),
        }
    }

    /// The most clusters that k-means will be asked for; 0: as many as the vocabulary's size suggests. `None`: none are made.
    pub fn made(&self) -> Option<usize> {
        let most = self.k.iter().copied().max().unwrap_or(0);
        self.clusters.is_none().then_some(most)
    }

    /// What bears on results of it, checked against the model.
    pub fn config(&self, engine: &Engine) -> Result<Value> {
        let vocab_size = engine.located.config.vocab_size;
        let mut imported = None;
        if let Some(path) = &self.clusters {
            let clustering = Clustering::load(path)?;
            clustering.check(vocab_size, path)?;
            imported = Some(clustering.hash());
        }
        for &k in &self.k {
            kmeans::check_clusters(k, vocab_size)?;
        }
        // One number, or none, stands alone, as in runs without a sweep.
        let k = match self.k[..] {
            [] => Value::Null,
            [k] => json!(k),
            _ => json!(self.k),
        };
        Ok(json!({"imported": imported, "k": k, "distance": self.distance}))
    }

    /// Loads the clustering, or makes one of `clusters`.
    pub fn clustering(
        &self,
        clusters: Option<usize>,
        engine: &Engine,
        keys: &Rows,
        seed: u64,
        context: &Context,
    ) -> Result<Clustering> {
        let vocab_size = engine.located.config.vocab_size;
        if let Some(path) = &self.clusters {
            let clustering = Clustering::load(path)?;
            clustering.check(vocab_size, path)?;
            return Ok(clustering);
        }
        let config = KMeansConfig {
            clusters: clusters.unwrap_or_else(|| default_clusters(vocab_size)),
            distance: self.distance,
            max_iterations: 100,
            tolerance: 1e-4,
            restarts: 1,
            seed,
        };
        context
            .printer
            .status("clustering", &format!("{vocab_size} keys into {}", config.clusters));
        let mut rows = keys.clone();
        let found = kmeans::fit(&Cpu, &mut rows, &config, &mut |_, _| !context.interrupt.is_raised())?;
        Ok(Clustering {
            ids: found.labels,
            clusters: config.clusters,
            centres: None,
            settings: json!(config),
        })
    }
}

/// Questions with lists of answers.
#[derive(Debug, Args)]
#[command(next_help_heading = "Questions")]
pub(super) struct QuestionArgs {
    /// Answer lists: a JSON file or a folder of such [default: the 49 lists of datasets/knowledge]
    #[arg(long, value_name = "FILE|DIR")]
    pub lists: Option<PathBuf>,
    /// Which of them, by their ids [default: all]
    #[arg(long, value_delimiter = ',', value_name = "IDS")]
    pub categories: Vec<String>,
    /// Ask no more than this many of them
    #[arg(long, value_name = "N", value_parser = at_least_one())]
    pub limit: Option<usize>,
}

impl QuestionArgs {
    /// The questions; `quick` of the built-in ones where nothing was said.
    pub fn questions(&self, quick: &[&str]) -> Result<Questions> {
        let mut questions = match &self.lists {
            Some(path) => Questions::read(path)?,
            None => Questions::built_in()?,
        };
        if self.lists.is_none() && self.categories.is_empty() && self.limit.is_none() {
            let names: Vec<String> = quick.iter().map(|name| (*name).to_owned()).collect();
            questions.choose(&names)?;
        } else if self.categories.iter().all(|name| name != "all") {
            questions.choose(&self.categories)?;
        }
        questions.all.truncate(self.limit.unwrap_or(usize::MAX));
        Ok(questions)
    }
}

/// Who judges.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum JudgeName {
    /// The closed list: letters and digits decide, aliases count
    List,
    /// The probed model itself, asked whether the answer is right
    Model,
    /// An external program, see --judge-command
    Command,
}

#[derive(Debug, Args)]
#[command(next_help_heading = "Judge")]
pub(super) struct JudgeArgs {
    /// Who says whether an answer is right [default: list; with --judge-command: command]
    #[arg(long, value_enum)]
    pub judge: Option<JudgeName>,
    /// Shell command that reads {"instruction", "answer"} and writes {"correct": true|false}, one JSON object a line
    #[arg(long, value_name = "COMMAND")]
    pub judge_command: Option<String>,
    /// Seconds that a verdict of the command may take
    #[arg(long, value_name = "S", default_value_t = 60.0, value_parser = seconds)]
    pub judge_timeout: f64,
}

fn seconds(text: &str) -> std::result::Result<f64, String> {
    text.parse()
        .ok()
        .filter(|s: &f64| (0.001..1e6).contains(s))
        .ok_or_else(|| "pass seconds above 0, such as 60".to_owned())
}

impl JudgeArgs {
    /// Who judges, checked against the other flags.
    pub fn name(&self) -> Result<JudgeName> {
        let name = self.judge.unwrap_or(match self.judge_command {
            Some(_) => JudgeName::Command,
            None => JudgeName::List,
        });
        match (name, &self.judge_command) {
            (JudgeName::Command, None) => Err(Error::user("`--judge command` needs the command")
                .help("pass it with `--judge-command \"python3 judge.py\"`")),
            (JudgeName::List | JudgeName::Model, Some(_)) => Err(Error::user(
                "`--judge-command` is given, but another judge is asked for",
            )
            .help("leave out `--judge`, or pass `--judge command`")),
            _ => Ok(name),
        }
    }

    /// Whether the model is asked.
    pub fn is_model(&self) -> bool {
        self.judge == Some(JudgeName::Model)
    }

    pub fn config(&self) -> Result<Value> {
        Ok(match self.name()? {
            JudgeName::List => json!("list"),
            JudgeName::Model => json!("model"),
            JudgeName::Command => json!({"command": self.judge_command}),
        })
    }

    /// The judge, ready to be asked.
    pub fn judge<'m>(
        &self,
        engine: &'m Engine,
        decoder: &'m Decoder<Cpu>,
        stopped: &'m dyn Fn() -> bool,
    ) -> Result<Box<dyn Judge + 'm>> {
        Ok(match (self.name()?, &self.judge_command) {
            (JudgeName::Command, Some(line)) => {
                let timeout = Duration::from_secs_f64(self.judge_timeout);
                Box::new(CommandJudge::start(line, timeout, stopped)?)
            }
            (JudgeName::Model, _) => Box::new(ModelJudge::new(engine.completer(decoder, stopped)?, engine.encoder())?),
            _ => Box::new(ClosedList),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cluster_counts_are_those_of_the_paper_for_its_vocabularies() {
        assert_eq!(default_clusters(128_256), 1024);
        assert_eq!(default_clusters(50_304), 512);
        assert_eq!(default_clusters(2304), 128);
        assert_eq!(default_clusters(40), 40);
    }
}

//! Arguments to a plan: which samples, which policies, how much memory; and what `--dry-run` shows of it.

use super::examples::{JOIN_TOKENS, check_examples, longest};
use super::{AccuracyArgs, Suite, TaskArgs, text_config};
use crate::bytes::human_bytes;
use crate::cli::Context;
use crate::cli::bench::variants::Variants;
use crate::cli::loading::{self, Language, Located};
use crate::error::{Error, Result};
use crate::eval::Task;
use crate::eval::runner::{Cell, Grid, Overhead};
use crate::exit::Outcome;
use crate::model::chat_template::ChatTemplate;
use crate::model::decoder::SessionLimits;
use crate::model::memory_plan::MemoryPlan;
use crate::model::prompt::PromptEncoder;
use crate::model::tokenizer::Tokenizer;
use crate::model::weights::TensorSource;
use crate::report::{Column, Format, Table};
use crate::selection::PolicyConfig;
use serde_json::{Map, Value, json};

/// Everything decided before weights are loaded.
pub(super) struct Plan {
    pub command: &'static str,
    pub located: Located,
    pub weights: Box<dyn TensorSource>,
    pub tokenizer: Tokenizer,
    pub template: Option<ChatTemplate>,
    pub eos: Vec<u32>,
    pub variants: Variants,
    pub grid: Grid,
    pub max_context: usize,
    /// Of the variant that needs most; one session is alive at a time.
    pub memory: MemoryPlan,
}

/// All of a list that may be empty, as options: `None` alone where it is.
fn or_none<T>(values: Vec<T>) -> Vec<Option<T>> {
    if values.is_empty() {
        vec![None]
    } else {
        values.into_iter().map(Some).collect()
    }
}

/// Ascending, each once.
fn distinct<T: Copy + PartialEq>(values: &[T], order: impl Fn(&T, &T) -> std::cmp::Ordering) -> Vec<T> {
    let mut values = values.to_vec();
    values.sort_by(order);
    values.dedup();
    values
}

/// The samples that `args` ask for.
pub(super) fn grid(suite: Suite, args: &TaskArgs, variants: Vec<String>, overhead_tokens: Overhead) -> Grid {
    let lengths = distinct(args.lengths.as_deref().unwrap_or(&suite.lengths), usize::cmp);
    let depths = distinct(args.depths.as_deref().unwrap_or(&suite.depths), f64::total_cmp);
    let samples = args.samples.unwrap_or(suite.samples);
    Grid {
        cells: Grid::cells(&suite.tasks, &or_none(lengths), &or_none(depths), samples, args.limit),
        tasks: suite.tasks,
        variants,
        seed: args.seed,
        overhead_tokens,
    }
}

pub(super) fn plan(suite: impl FnOnce() -> Result<Suite>, args: &AccuracyArgs, context: &Context) -> Result<Plan> {
    args.variants.variants(args.model.max_context, None)?;
    let suite = suite()?;
    args.model.check_cpu()?;
    let located = loading::locate(&args.model, true, context)?;
    let trained = located.config.max_position_embeddings;
    let variants = args.variants.variants(args.model.max_context, Some(trained))?;
    variants.warn_of_unread(&context.printer);
    let Language {
        tokenizer,
        template,
        eos,
    } = loading::language(&located, &args.task.chat_template, false)?;
    let tokenizer = tokenizer.ok_or_else(|| Error::bug("a required tokenizer was not located"))?;
    let encoder = PromptEncoder {
        tokenizer: &tokenizer,
        template: template.as_ref(),
    };
    let command = suite.command;
    let cut_to_context = suite.cut_to_context;
    let overhead = Overhead {
        templated: encoder.overhead_tokens(true)?,
        plain: encoder.overhead_tokens(false)?,
    };
    let variant_names = variants.all.iter().map(|variant| variant.name.clone()).collect();
    let grid = grid(suite, &args.task, variant_names, overhead);
    check_examples(&grid, &tokenizer, context)?;
    let max_context = match args.model.max_context {
        // What is cut to it may join with the template to a few tokens more.
        Some(stated) if cut_to_context => stated + JOIN_TOKENS,
        Some(stated) => stated,
        None => longest(&grid, &encoder, context)?,
    };
    if variants.all.iter().any(|v| v.policy == PolicyConfig::Dense)
        && max_context > located.config.max_position_embeddings + JOIN_TOKENS
    {
        context.printer.warning(&format!(
            "{max_context} tokens are more than the {} the model was made for; dense attention degrades there",
            located.config.max_position_embeddings
        ));
    }
    let mut memory: Option<MemoryPlan> = None;
    for variant in &variants.all {
        let limits = SessionLimits {
            max_context,
            prefill_chunk: variant.prefill_chunk,
            diagnose: false,
        };
        let plan = loading::plan_memory(&args.model, &located, &variant.policy, limits)?;
        if memory.is_none_or(|most| plan.total_bytes() > most.total_bytes()) {
            memory = Some(plan);
        }
    }
    Ok(Plan {
        command,
        weights: loading::open_weights(&args.model, &located)?,
        memory: memory.ok_or_else(|| Error::bug("a run without policies"))?,
        located,
        tokenizer,
        template,
        eos,
        variants,
        grid,
        max_context,
    })
}

/// What the tasks are made of.
fn task_config(grid: &Grid) -> Map<String, Value> {
    let of = |task: &dyn Task| {
        json!({
            "suite": task.suite(),
            "settings": task.settings(),
            "max_new_tokens": task.max_new_tokens(),
            "metrics": task.metrics(),
            "data_sha256": task.data_sha256(),
        })
    };
    let tasks = grid.tasks.iter();
    tasks.map(|task| (task.name().to_owned(), of(task.as_ref()))).collect()
}

/// Every option that bears on the result; a run with another one is another run.
pub(super) fn effective_config(plan: &Plan, args: &AccuracyArgs) -> Map<String, Value> {
    let grid = &plan.grid;
    let cell = |cell: &Cell| json!([grid.tasks[cell.task].name(), cell.length, cell.depth, cell.samples]);
    let mut config = Map::new();
    let mut put = |key: &str, value: Value| drop(config.insert(key.to_owned(), value));
    put("model", json!(plan.located.files.reference));
    put("source", json!(plan.located.files.source));
    put("random_weights", json!(args.model.random_weights));
    put("device", json!("cpu"));
    put("dtype", json!("f32"));
    put("policies", json!(plan.variants.all));
    put("reference", json!(plan.variants.reference.map(|at| &grid.variants[at])));
    put("tasks", Value::Object(task_config(grid)));
    put("cells", grid.cells.iter().map(cell).collect());
    put("max_context", json!(plan.max_context));
    put("seed", json!(grid.seed));
    put("eos_token_ids", json!(plan.eos));
    config.extend(text_config(&plan.tokenizer, plan.template.as_ref()));
    config
}

/// `--dry-run`: what would be asked, and the memory it takes.
pub(super) fn print_plan(plan: &Plan, format: Option<Format>, context: &Context) -> Result<Outcome> {
    let grid = &plan.grid;
    let each: usize = grid.cells.iter().map(|cell| cell.samples).sum();
    let names: Vec<&str> = grid.tasks.iter().map(|task| task.name()).collect();
    let lengths: Vec<usize> = distinct(
        &grid.cells.iter().filter_map(|cell| cell.length).collect::<Vec<_>>(),
        usize::cmp,
    );
    let depths: Vec<f64> = distinct(
        &grid.cells.iter().filter_map(|cell| cell.depth).collect::<Vec<_>>(),
        f64::total_cmp,
    );
    if format == Some(Format::Json) {
        let value = json!({
            "model": plan.located.files.reference,
            "tasks": names,
            "length_tokens": lengths,
            "depths": depths,
            "policies": plan.variants.all,
            "samples_per_policy": each,
            "samples": grid.samples(),
            "max_context_tokens": plan.max_context,
            "overhead_tokens": grid.overhead_tokens,
            "memory_plan": plan.memory,
            "memory_plan_total_bytes": plan.memory.total_bytes(),
        });
        let text = serde_json::to_string_pretty(&value).map_err(|e| Error::bug(format!("plan as JSON: {e}")))?;
        return context.printer.line(&text);
    }
    let list = |values: Vec<String>, empty: &str| {
        if values.is_empty() {
            empty.to_owned()
        } else {
            values.join(", ")
        }
    };
    let mut table = Table::new("plan", vec![Column::text("what"), Column::text("value")]);
    let memory = format!("{} ({})", human_bytes(plan.memory.total_bytes()), plan.memory.parts());
    for (what, value) in [
        ("model", plan.located.files.reference.clone()),
        ("tasks", names.join(", ")),
        (
            "lengths in tokens",
            list(lengths.iter().map(usize::to_string).collect(), "as loaded"),
        ),
        (
            "depths",
            list(depths.iter().map(f64::to_string).collect(), "by the seed"),
        ),
        ("policies", grid.variants.join("; ")),
        ("samples per policy", each.to_string()),
        ("samples", grid.samples().to_string()),
        ("context in tokens", plan.max_context.to_string()),
        (
            "tokens of template and specials",
            grid.overhead_tokens.templated.to_string(),
        ),
        ("memory", memory),
    ] {
        table.push(vec![what.into(), value.into()])?;
    }
    context.printer.table(&table)
}

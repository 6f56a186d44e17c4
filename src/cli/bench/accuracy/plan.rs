//! Arguments to a plan: which samples, which policies, how much memory; and what `--dry-run` shows of it.

use super::{AccuracyArgs, Suite, TaskArgs, text_config};
use crate::cli::Context;
use crate::cli::bench::variants::Variants;
use crate::cli::loading::{self, Language, Located};
use crate::error::{Error, Result};
use crate::eval::Task;
use crate::eval::runner::{Cell, Grid, Overhead};
use crate::exit::Outcome;
use crate::model::chat_template::ChatTemplate;
use crate::model::decoder::SessionLimits;
use crate::model::memory_plan::{MemoryPlan, human_bytes};
use crate::model::prompt::PromptEncoder;
use crate::model::tokenizer::Tokenizer;
use crate::model::weights::TensorSource;
use crate::report::{Column, Format, Table};
use crate::selection::PolicyConfig;
use serde_json::{Map, Value, json};

/// Room beyond the longest length: tokens of prompt and template may join differently than each by itself.
const JOIN_TOKENS: usize = 16;

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

/// Refuses names that the suite does not know.
fn check_names(tasks: &[Box<dyn Task>], names: &[String]) -> Result<()> {
    let known: Vec<&str> = tasks.iter().map(|task| task.name()).collect();
    match names
        .iter()
        .find(|name| *name != "all" && !known.contains(&name.as_str()))
    {
        None => Ok(()),
        Some(name) => Err(Error::user(format!("`--tasks {name}` is no task of this suite"))
            .help(format!("pass all, or some of: {}", known.join(", ")))),
    }
}

/// The tasks named on the command line, in the suite's order.
fn chosen_tasks(tasks: Vec<Box<dyn Task>>, names: &[String]) -> Vec<Box<dyn Task>> {
    let chosen = |task: &dyn Task| names.iter().any(|name| name == "all" || name == task.name());
    tasks.into_iter().filter(|task| chosen(task.as_ref())).collect()
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
pub(super) fn grid(suite: Suite, args: &TaskArgs, variants: Vec<String>, overhead_tokens: Overhead) -> Result<Grid> {
    check_names(&suite.tasks, &args.tasks)?;
    let tasks = chosen_tasks(suite.tasks, &args.tasks);
    let lengths = distinct(args.lengths.as_deref().unwrap_or(&suite.lengths), usize::cmp);
    let depths = distinct(args.depths.as_deref().unwrap_or(&suite.depths), f64::total_cmp);
    let samples = args.samples.unwrap_or(suite.samples);
    Ok(Grid {
        cells: Grid::cells(&tasks, &or_none(lengths), &or_none(depths), samples, args.limit),
        tasks,
        variants,
        seed: args.seed,
        overhead_tokens,
    })
}

pub(super) fn plan(suite: Suite, args: &AccuracyArgs, context: &Context) -> Result<Plan> {
    let variants = args.variants.variants(args.model.max_context)?;
    if !variants.unread.is_empty() {
        context
            .printer
            .warning(&format!("no policy of this run reads {}", variants.unread.join(", ")));
    }
    // Before files are looked for: a slip of the keyboard should not cost a download.
    check_names(&suite.tasks, &args.task.tasks)?;
    let located = loading::locate(&args.model, true, context)?;
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
    let overhead = Overhead {
        templated: encoder.overhead_tokens(true)?,
        plain: encoder.overhead_tokens(false)?,
    };
    let variant_names = variants.all.iter().map(|variant| variant.name.clone()).collect();
    let grid = grid(suite, &args.task, variant_names, overhead)?;
    check_lengths(&grid, &tokenizer)?;
    let max_context = match args.model.max_context {
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

/// Makes the shortest example of every task, so that a length without room is told before weights are loaded.
fn check_lengths(grid: &Grid, tokenizer: &Tokenizer) -> Result<()> {
    for task in 0..grid.tasks.len() {
        let cells = grid.cells.iter().filter(|cell| cell.task == task);
        if let Some(shortest) = cells.min_by_key(|cell| cell.length) {
            grid.tasks[task].example(&grid.request(shortest, 0, tokenizer))?;
        }
    }
    Ok(())
}

/// Tokens that the longest question and its answer take.
fn longest(grid: &Grid, encoder: &PromptEncoder<'_>, context: &Context) -> Result<usize> {
    if let Some(length) = grid.cells.iter().filter_map(|cell| cell.length).max() {
        return Ok(length + JOIN_TOKENS);
    }
    // Loaded examples are as long as they are; reading them all is little beside answering them.
    let total: usize = grid.cells.iter().map(|cell| cell.samples).sum();
    let bar = context.printer.progress(total as u64, "counting tokens");
    let mut longest = 0;
    for cell in &grid.cells {
        let task = &grid.tasks[cell.task];
        for index in 0..cell.samples {
            if context.interrupt.is_raised() {
                return Err(Error::interrupted("interrupted before the first answer")
                    .help("pass `--max-context TOKENS` to start without counting first"));
            }
            let example = task.example(&grid.request(cell, index, encoder.tokenizer))?;
            let tokens = encoder.question(&example.prompt, &example.answer_prefix, task.uses_chat_template())?;
            let tokens = tokens.ids.len();
            longest = longest.max(tokens + task.max_new_tokens());
            bar.advance(1);
        }
    }
    Ok(longest)
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

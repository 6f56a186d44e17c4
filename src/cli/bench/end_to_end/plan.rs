//! Arguments to a plan: settings, memory per policy, and what `--dry-run` shows of them.

use super::EndToEndArgs;
use crate::bench::end_to_end::Settings;
use crate::bench::end_to_end::baseline::Baseline;
use crate::bench::timing::Rounds;
use crate::bytes::human_bytes;
use crate::cli::Context;
use crate::cli::loading::{self, Located};
use crate::error::{Error, Result};
use crate::exit::Outcome;
use crate::manifest::Manifest;
use crate::model::memory_plan::MemoryPlan;
use crate::model::weights::TensorSource;
use crate::report::{Column, Format, Table};
use crate::selection::PolicyConfig;
use serde_json::{Map, Value, json};

/// Everything decided before weights are loaded.
pub(super) struct Plan {
    pub located: Located,
    pub weights: Box<dyn TensorSource>,
    pub seed_of_weights: Option<u64>,
    pub settings: Settings,
    pub memory: Vec<(&'static str, MemoryPlan)>,
    pub baseline: Option<Baseline>,
    pub manifest: Manifest,
}

pub(super) fn plan(args: &EndToEndArgs, context: &Context) -> Result<Plan> {
    let measure = &args.measure;
    if !args.gpu.gpu {
        args.model.check_cpu()?;
    }
    let located = if args.model.model.is_some() {
        loading::locate(&args.model, false, context)?
    } else {
        loading::built_in(args.shape)?
    };
    let seed_of_weights = match (&args.model.model, args.model.random_weights) {
        (None, seed) => Some(seed.unwrap_or(0)),
        (Some(_), seed) => seed,
    };
    let mut policies = Vec::new();
    for &name in &measure.policies {
        // At the published sizes: a shape to measure with has no trained window of its own.
        let policy = args.policy.named(name, None)?;
        if !policies.contains(&policy) {
            policies.push(policy);
        }
    }
    let sorted = |list: &[usize]| {
        let mut list = list.to_vec();
        list.sort_unstable();
        list.dedup();
        list
    };
    let mut settings = Settings {
        policies,
        prefill_tokens: sorted(&measure.prefill_tokens),
        decode_at: sorted(&measure.decode_at),
        prefill_chunk: args.policy.prefill_chunk(None),
        prefill_rounds: Rounds {
            warmup: measure.prefill_warmup,
            repetitions: measure.prefill_repetitions,
        },
        decode_rounds: Rounds {
            warmup: measure.decode_warmup,
            repetitions: measure.decode_repetitions,
        },
        real_prefill: measure.real_prefill,
        check_tokens: measure.check_tokens,
        memory_context: 0,
        seed: measure.seed,
    };
    settings.memory_context = match (args.model.max_context, settings.largest_context()) {
        (Some(stated), needed) if stated < needed => {
            return Err(Error::user(format!(
                "`--max-context {stated}` is less than the {needed} tokens that this bench stores"
            ))
            .help("pass smaller `--prefill-tokens` and `--decode-at`, or leave `--max-context` out"));
        }
        (stated, needed) => stated.unwrap_or(needed),
    };
    if args.gpu.gpu {
        crate::cli::bench::gpu::end_to_end::keep_policies(&mut settings, &located, context)?;
    }
    let limits = settings.limits(settings.memory_context);
    // The plan of a GPU needs the GPU; it is made with each session.
    let planned = if args.gpu.gpu { &[][..] } else { &settings.policies[..] };
    let memory = planned
        .iter()
        .map(|policy| {
            let plan = loading::plan_memory(&args.model, &located, policy, limits);
            let plan =
                plan.map_err(|e| e.help("pass smaller `--prefill-tokens` and `--decode-at`, or a smaller model"));
            Ok((policy.name(), plan?))
        })
        .collect::<Result<Vec<_>>>()?;
    let manifest = Manifest::begin(rayon::current_num_threads());
    let baseline = measure
        .compare
        .as_deref()
        .map(|path| {
            let cpu = manifest.device.cpu.get().map(String::as_str);
            Baseline::load(path, &located.config, rayon::current_num_threads(), cpu)
        })
        .transpose()?;
    Ok(Plan {
        weights: loading::open_weights_seeded(seed_of_weights, &located)?,
        located,
        seed_of_weights,
        settings,
        memory,
        baseline,
        manifest,
    })
}

/// Every option that bears on the result; a run with another one is another run.
pub(super) fn effective_config(plan: &Plan, args: &EndToEndArgs) -> Map<String, Value> {
    let mut config = json!({
        "model": plan.located.files.reference,
        "source": plan.located.files.source,
        "model_config": plan.located.config,
        "random_weights": plan.seed_of_weights,
        "settings": plan.settings,
    });
    if args.gpu.gpu {
        // Device and type are those of the opened GPU.
        config["longest_dense"] = args.measure.longest_dense.into();
    } else {
        config["device"] = "cpu".into();
        config["dtype"] = "f32".into();
        config["cpu"] = json!(plan.manifest.device.cpu.get());
        config["threads"] = plan.manifest.threads.into();
    }
    match config {
        Value::Object(map) => map,
        _ => Map::new(),
    }
}

/// The memory plans by policy.
pub(super) fn memory_plans(plan: &Plan) -> Map<String, Value> {
    let plans = plan.memory.iter();
    plans.map(|(name, plan)| ((*name).to_owned(), json!(plan))).collect()
}

/// `--dry-run`: what would be measured, and the memory it takes.
pub(super) fn print_plan(plan: &Plan, args: &EndToEndArgs, context: &Context) -> Result<Outcome> {
    if args.output.format == Some(Format::Json) {
        let value = json!({
            "config": effective_config(plan, args),
            "memory_plans": memory_plans(plan),
        });
        let text = serde_json::to_string_pretty(&value).map_err(|e| Error::bug(format!("plan as JSON: {e}")))?;
        return context.printer.line(&text);
    }
    let settings = &plan.settings;
    let list = |values: &[usize]| values.iter().map(usize::to_string).collect::<Vec<_>>().join(", ");
    let mut table = Table::new("plan", vec![Column::text("what"), Column::text("value")]);
    let names: Vec<_> = settings.policies.iter().map(PolicyConfig::name).collect();
    let mut rows = vec![
        ("model".to_owned(), plan.located.files.reference.clone()),
        ("threads".to_owned(), plan.manifest.threads.to_string()),
        ("policies".to_owned(), names.join(", ")),
        ("prefill of tokens".to_owned(), list(&settings.prefill_tokens)),
        ("decode at tokens".to_owned(), list(&settings.decode_at)),
        ("largest context".to_owned(), settings.memory_context.to_string()),
    ];
    rows.extend(plan.memory.iter().map(|(name, plan)| {
        let parts = format!("{} ({})", human_bytes(plan.total_bytes()), plan.parts());
        (format!("memory, {name}"), parts)
    }));
    for (what, value) in rows {
        table.push(vec![what.into(), value.into()])?;
    }
    context.printer.table(&table)
}

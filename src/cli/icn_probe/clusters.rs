//! `tokselect icn-probe clusters`: k-means over the rows of the unembedding.

use super::engine::default_clusters;
use crate::bytes::human_bytes;
use crate::cli::Context;
use crate::cli::arguments::{ModelArgs, OutputArgs, at_least_one};
use crate::cli::device;
use crate::cli::loading::{self, Language, Located};
use crate::cli::run_output::RunOutput;
use crate::error::{Error, Result};
use crate::exit::Outcome;
use crate::kernels::Device;
use crate::kernels::cpu::Cpu;
use crate::kernels::cuda::Gpu;
use crate::kernels::cuda::kmeans::KMeansOnGpu;
use crate::manifest::Manifest;
use crate::model::chat_template::ChatTemplateChoice;
use crate::model::memory_plan::available_bytes;
use crate::model::tokenizer::Tokenizer;
use crate::model::weights::key_tensor;
use crate::probe::clusters::Clustering;
use crate::probe::key_space::{Preparation, Rows};
use crate::probe::kmeans::{self, Distance, KMeans, KMeansConfig, Place};
use crate::report::{Cell, Column, Format, Measured, Report, SampleSink, Table};
use clap::Args;
use rayon::prelude::*;
use serde_json::{Value, json};
use std::path::PathBuf;
use std::time::Instant;

const COMMAND: &str = "icn-probe clusters";
/// The clustering in the output directory.
const FILE: &str = "clusters.safetensors";

/// Arguments of `tokselect icn-probe clusters`.
#[derive(Debug, Args)]
// `--k -1` is a wrong value, not an unknown flag `-1`.
#[command(allow_negative_numbers = true)]
pub struct ClustersArgs {
    #[command(flatten)]
    model: ModelArgs,
    #[command(flatten)]
    means: MeansArgs,
    #[command(flatten)]
    output: OutputArgs,
}

#[derive(Debug, Args)]
#[command(next_help_heading = "Clusters")]
struct MeansArgs {
    /// Number of clusters [default: a 125th of the vocabulary to the nearest power of two, at least 128]
    #[arg(long, value_name = "K", value_parser = at_least_one())]
    k: Option<usize>,
    /// What is minimised
    #[arg(long, value_enum, default_value = "euclidean")]
    distance: Distance,
    /// Subtract the mean key first
    #[arg(long)]
    centre: bool,
    /// Subtract the mean key and scale to covariance 1 first
    #[arg(long)]
    whiten: bool,
    /// Iterations at most
    #[arg(long, default_value_t = 100, value_name = "N", value_parser = at_least_one())]
    iterations: usize,
    /// Stop once centres move less than this share of the mean variance; 0: once no key changes
    #[arg(long, default_value_t = 1e-4, value_name = "SHARE", value_parser = share)]
    tolerance: f64,
    /// Runs from fresh seeds; the smallest inertia counts
    #[arg(long, default_value_t = 1, value_name = "N", value_parser = at_least_one())]
    restarts: usize,
    /// Seed of the first centres
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Show a clustering instead of making one: a file of this command, or ids as .json, .txt or .pt
    #[arg(long, value_name = "FILE", conflicts_with_all = ["k", "distance", "centre", "whiten", "iterations", "tolerance",
        "restarts", "seed"])]
    import: Option<PathBuf>,
    /// Tokens shown of each cluster
    #[arg(long, default_value_t = 12, value_name = "N")]
    show: usize,
    /// Clusters printed, the largest first; files hold all
    #[arg(long, default_value_t = 20, value_name = "N")]
    rows: usize,
}

fn share(text: &str) -> std::result::Result<f64, String> {
    text.parse()
        .ok()
        .filter(|x: &f64| (0.0..1.0).contains(x))
        .ok_or_else(|| "pass a share from 0 to below 1, such as 1e-4".to_owned())
}

/// What was clustered, and what came of it.
struct Found {
    clustering: Clustering,
    means: Option<KMeans>,
    seconds: f64,
}

fn preparation(args: &MeansArgs) -> Preparation {
    Preparation {
        centre: args.centre,
        whiten: args.whiten,
    }
}

fn means_config(args: &MeansArgs, vocab_size: usize) -> KMeansConfig {
    KMeansConfig {
        clusters: args.k.unwrap_or_else(|| default_clusters(vocab_size)),
        distance: args.distance,
        max_iterations: args.iterations,
        tolerance: args.tolerance,
        restarts: args.restarts,
        seed: args.seed,
    }
}

/// `gpu`: where k-means runs, else on the CPU. Keys are prepared on the CPU.
fn cluster(
    args: &MeansArgs,
    mut rows: Rows,
    config: &KMeansConfig,
    gpu: Option<&Gpu>,
    context: &Context,
) -> Result<Found> {
    let started = Instant::now();
    rows.prepare(&Cpu, preparation(args))?;
    let bar = context
        .printer
        .progress((config.max_iterations * config.restarts) as u64, "k-means");
    let place: &dyn Place = gpu.map_or(&Cpu, |gpu| gpu);
    let found = kmeans::fit(place, &mut rows, config, &mut |iteration, inertia| {
        // Drawing the first centres is no iteration.
        bar.advance(u64::from(iteration > 0));
        bar.set_message(&format!("k-means, iteration {iteration}, distances {inertia:.4e}"));
        !context.interrupt.is_raised()
    })?;
    let settings = json!({"kmeans": config, "preparation": preparation(args)});
    Ok(Found {
        clustering: Clustering {
            ids: found.labels.clone(),
            clusters: config.clusters,
            centres: Some(Rows {
                data: found.centres.clone(),
                dim: rows.dim,
            }),
            settings,
        },
        means: Some(found),
        seconds: started.elapsed().as_secs_f64(),
    })
}

/// Distances of keys to the means of their clusters, in the space of the model.
fn distances(keys: &Rows, clustering: &Clustering) -> Vec<Vec<(f64, u32)>> {
    let of = |members: &Vec<u32>| {
        let mut mean = vec![0.0f64; keys.dim];
        for &key in members {
            let row = keys.row(key as usize).iter();
            mean.iter_mut().zip(row).for_each(|(m, &x)| *m += f64::from(x));
        }
        for m in &mut mean {
            *m /= members.len().max(1) as f64;
        }
        let distance = |key: u32| {
            let row = keys.row(key as usize).iter();
            row.zip(&mean).map(|(&x, m)| (f64::from(x) - m).powi(2)).sum::<f64>()
        };
        let mut all: Vec<(f64, u32)> = members.iter().map(|&key| (distance(key), key)).collect();
        all.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
        all
    };
    clustering.members().par_iter().map(of).collect()
}

fn shown(tokenizer: Option<&Tokenizer>, id: u32) -> Result<String> {
    let Some(tokenizer) = tokenizer else {
        return Ok(format!("<row {id}>"));
    };
    let text = tokenizer.decode(&[id], false)?;
    let named = if text.is_empty() {
        tokenizer.id_to_token(id)
    } else {
        Some(text)
    };
    Ok(named.map_or_else(|| format!("<row {id}>"), |text| format!("{text:?}")))
}

/// One row per cluster, the largest first.
fn table(tokenizer: Option<&Tokenizer>, distances: &[Vec<(f64, u32)>], show: usize) -> Result<Table> {
    let columns = [
        Column::text("cluster"),
        Column::text("size"),
        Column::text("inertia_share"),
        Column::text("mean_distance"),
        Column::text("nearest_tokens"),
    ];
    let mut table = Table::new("clusters", columns.into());
    let total: f64 = distances.iter().flatten().map(|(d, _)| d).sum();
    let mut order: Vec<usize> = (0..distances.len()).collect();
    order.sort_by_key(|&c| (std::cmp::Reverse(distances[c].len()), c));
    for cluster in order {
        let members = &distances[cluster];
        let sum: f64 = members.iter().map(|(d, _)| d).sum();
        let names = members.iter().take(show).map(|&(_, id)| shown(tokenizer, id));
        let names = names.collect::<Result<Vec<_>>>()?.join(" ");
        let mean = sum / members.len() as f64;
        table.push(vec![
            cluster.into(),
            members.len().into(),
            (sum / total).into(),
            if members.is_empty() {
                Cell::missing("empty")
            } else {
                mean.into()
            },
            names.into(),
        ])?;
    }
    Ok(table)
}

fn summary(found: &Found, tokens: usize, distances: &[Vec<(f64, u32)>]) -> Result<Table> {
    let mut sizes: Vec<f64> = distances.iter().map(|members| members.len() as f64).collect();
    sizes.sort_by(f64::total_cmp);
    let median = crate::bench::statistics::median(&sizes).unwrap_or(0.0);
    let total: f64 = sizes.iter().sum();
    let inertia: f64 = distances.iter().flatten().map(|(d, _)| d).sum();
    let none = "imported";
    let means = found.means.as_ref();
    let mut table = Table::new("summary", vec![Column::text("what"), Column::text("value")]);
    let rows: [(&str, Cell); 12] = [
        ("keys", (total as usize).into()),
        ("keys without a token", (total as usize).saturating_sub(tokens).into()),
        ("clusters", sizes.len().into()),
        ("empty", sizes.iter().filter(|&&s| s == 0.0).count().into()),
        (
            "smallest",
            sizes.first().map_or(Cell::missing("none"), |&s| (s as usize).into()),
        ),
        ("median size", median.into()),
        ("mean size", (total / sizes.len().max(1) as f64).into()),
        (
            "largest",
            sizes.last().map_or(Cell::missing("none"), |&s| (s as usize).into()),
        ),
        (
            "inertia minimised",
            means.map_or(Cell::missing(none), |m| m.inertia.into()),
        ),
        ("inertia in the model's space", inertia.into()),
        ("iterations", means.map_or(Cell::missing(none), |m| m.iterations.into())),
        ("converged", means.map_or(Cell::missing(none), |m| m.converged.into())),
    ];
    for (what, value) in rows {
        table.push(vec![what.into(), value])?;
    }
    Ok(table)
}

/// Bytes of host memory for the run; refused if it does not fit.
fn check_memory(args: &ClustersArgs, vocab_size: usize, dim: usize, clusters: usize) -> Result<usize> {
    let needed = kmeans::needed_bytes(vocab_size, dim, clusters);
    match args.model.max_memory.or_else(available_bytes) {
        Some(available) if available < needed => Err(Error::environment(format!(
            "clustering {vocab_size} keys of {dim} elements needs {}, but {} are available",
            human_bytes(needed),
            human_bytes(available)
        ))
        .help("free some memory, or pass `--max-memory` if you know better")),
        _ => Ok(needed),
    }
}

/// `--dry-run`: the plan as a table, or as JSON.
fn print_plan(
    located: &Located,
    clusters: usize,
    needed: usize,
    backend: &str,
    args: &ClustersArgs,
    context: &Context,
) -> Result<Outcome> {
    let (config, tensor) = (&located.config, key_tensor(&located.config).name);
    if args.output.format == Some(Format::Json) {
        let plan = json!({"model": located.files.reference, "key_tensor": tensor, "keys": config.vocab_size,
            "elements": config.hidden_size, "clusters": clusters, "memory_bytes": needed, "device": backend});
        let text = serde_json::to_string_pretty(&plan).map_err(|e| Error::bug(format!("plan as JSON: {e}")))?;
        return context.printer.line(&text);
    }
    let keys = format!("{} of {} elements, `{tensor}`", config.vocab_size, config.hidden_size);
    let mut table = Table::new("plan", vec![Column::text("what"), Column::text("value")]);
    for (what, value) in [
        ("model", located.files.reference.clone()),
        ("keys", keys),
        ("clusters", clusters.to_string()),
        ("memory", human_bytes(needed)),
        ("device", backend.to_owned()),
    ] {
        table.push(vec![what.into(), value.into()])?;
    }
    context.printer.table(&table)
}

pub(super) fn run(args: &ClustersArgs, context: &Context) -> Result<Outcome> {
    let means = &args.means;
    let imported = means.import.as_deref().map(Clustering::load).transpose()?;
    // Random keys need no names.
    let located = loading::locate(&args.model, args.model.random_weights.is_none(), context)?;
    let Language { tokenizer, .. } = loading::language(&located, &ChatTemplateChoice::None, false)?;
    let tokenizer = tokenizer.as_ref();
    let vocab_size = located.config.vocab_size;
    if let (Some(clustering), Some(path)) = (&imported, &means.import) {
        clustering.check(vocab_size, path)?;
    }
    let config = means_config(means, vocab_size);
    if imported.is_none() {
        kmeans::check_clusters(config.clusters, vocab_size)?;
    }
    let clusters = imported.as_ref().map_or(config.clusters, |imported| imported.clusters);
    let dim = located.config.hidden_size;
    let needed = check_memory(args, vocab_size, dim, clusters)?;
    let gpu = if imported.is_some() {
        None
    } else {
        let needed = KMeansOnGpu::needed_bytes(vocab_size, dim, config.clusters);
        args.model.open_for_f32(needed, &context.printer)?
    };
    let backend = if gpu.is_some() { "cuda" } else { Cpu.name() };
    if args.output.dry_run {
        return print_plan(&located, clusters, needed, backend, args, context);
    }
    let weights = loading::open_weights(&args.model, &located)?;
    let settings = json!({
        "model": located.files.reference,
        "source": located.files.source,
        "random_weights": args.model.random_weights,
        "tokenizer_sha256": tokenizer.map(Tokenizer::hash),
        "backend": backend,
        "gpu": gpu.as_ref().map(device::identity).transpose()?,
        "imported": imported.as_ref().map(Clustering::hash),
        "kmeans": imported.is_none().then_some(config),
        "preparation": imported.is_none().then(|| preparation(means)),
        "show": means.show,
    });
    let Value::Object(settings) = settings else {
        return Err(Error::bug("settings are an object"));
    };
    let mut manifest = Manifest::begin(rayon::current_num_threads());
    let mut output = RunOutput::open(&args.output, COMMAND, &settings, context)?;
    let found = if let Some(clustering) = imported {
        Found {
            clustering,
            means: None,
            seconds: 0.0,
        }
    } else {
        let rows = Rows::load(&located.config, weights.as_ref())?;
        cluster(means, rows, &config, gpu.as_ref(), context)?
    };
    // Read once more rather than held twice: at 128,256 x 4096 the keys are 2 GiB.
    let keys = Rows::load(&located.config, weights.as_ref())?;
    let distances = distances(&keys, &found.clustering);
    if let Some(tokenizer) = tokenizer {
        loading::fill_manifest(&mut manifest, &located, tokenizer, None, output.directory.is_some())?;
    }
    manifest.seeds.insert("kmeans".into(), means.seed);
    manifest.data_sha256 = Measured::missing("the keys are the model's");
    if let Some(gpu) = &gpu {
        device::record(&mut manifest, gpu);
    }
    manifest.finish();
    let mut report = Report::new(COMMAND, context.command_line.clone(), settings, manifest);
    let has_token = |id: u32| tokenizer.is_some_and(|tokenizer| tokenizer.id_to_token(id).is_some());
    let tokens = (0..vocab_size as u32).filter(|&id| has_token(id)).count();
    report.tables = vec![
        table(tokenizer, &distances, means.show)?,
        summary(&found, tokens, &distances)?,
    ];
    report.details = json!({
        "seconds": found.seconds,
        "repaired": found.means.as_ref().map(|m| m.repaired),
        "ids_sha256": found.clustering.hash(),
    });
    if let Some(directory) = &mut output.directory {
        let row = json!({"sizes": found.clustering.sizes()});
        if !directory.is_done("clusters", "sizes") {
            directory.append("clusters", "sizes", row)?;
        }
        directory.write_file(FILE, &found.clustering.to_bytes()?)?;
        directory.write_report(&mut report)?;
    }
    if args.output.format.is_none() {
        report.tables[0].rows.truncate(means.rows);
    }
    context
        .printer
        .report(&report, args.output.format.unwrap_or(Format::Table))
}

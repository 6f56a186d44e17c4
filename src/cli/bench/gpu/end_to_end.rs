//! `tokselect bench end-to-end --gpu`: whole models on a GPU.

use super::{Found, GpuArgs, Run, open};
use crate::bench::end_to_end::{Ended, Part, Settings};
use crate::bench::gpu::whole_model::{Bench, DECODE, MEMORY, PREFILL, decode, memory_table, prefill};
use crate::bench::gpu::{SpeedSample, Watch, samples_of};
use crate::cli::Context;
use crate::cli::arguments::OutputArgs;
use crate::cli::device::gpu_element;
use crate::cli::loading::{self, Located};
use crate::error::{Error, Result};
use crate::exit::Outcome;
use crate::manifest::Manifest;
use crate::model::context::CudaContext;
use crate::model::weights::TensorSource;
use crate::selection::PolicyConfig;
use serde_json::{Map, Value};

/// What the command line settled.
pub(in crate::cli::bench) struct Wanted<'a> {
    pub args: &'a GpuArgs,
    pub device: &'a str,
    pub dtype: crate::cli::arguments::Dtype,
    pub located: &'a Located,
    pub weights: &'a dyn TensorSource,
    /// Name in tables.
    pub name: &'a str,
    pub settings: Settings,
    pub parts: &'a [Part],
    pub longest_dense: usize,
    pub config: Map<String, Value>,
    pub manifest: Manifest,
    pub output: &'a OutputArgs,
}

/// The policies of `settings` that a GPU runs; the others are named in a notice.
pub(in crate::cli::bench) fn keep_policies(
    settings: &mut Settings,
    located: &Located,
    context: &Context,
) -> Result<()> {
    let limits = settings.limits(settings.largest_context());
    let mut refused: Option<Error> = None;
    let (config, mut kept) = (&located.config, Vec::<PolicyConfig>::new());
    for policy in std::mem::take(&mut settings.policies) {
        match CudaContext::runs(config, &policy, limits) {
            Ok(()) => kept.push(policy),
            Err(error) => {
                context.printer.detail(&format!("left out: {}", error.message()));
                refused.get_or_insert(error);
            }
        }
    }
    settings.policies = kept;
    match refused {
        Some(error) if settings.policies.is_empty() => Err(error),
        _ => Ok(()),
    }
}

pub(in crate::cli::bench) fn run(wanted: Wanted<'_>, command: &str, context: &Context) -> Result<Outcome> {
    let peers = wanted.args.load_peers()?;
    let device = open(wanted.device, gpu_element(wanted.dtype)?)?;
    if let Some(peers) = &peers {
        // Before the weights are loaded.
        peers.check_device(&device.gpu().properties().name)?;
    }
    let decoder = loading::load_on(device.clone(), wanted.located, wanted.weights, context)?;
    let stopped = || context.interrupt.is_raised();
    let status = |what: &str| context.printer.status("Measuring", what);
    let bench = Bench {
        decoder: &decoder,
        name: wanted.name,
        settings: &wanted.settings,
        longest_dense: wanted.longest_dense,
        watch: Watch {
            stopped: &stopped,
            status: &status,
        },
    };
    let run = Run {
        command,
        config: wanted.config,
        manifest: wanted.manifest,
        peers,
        kinds: &[PREFILL, "sample"],
        output: wanted.output,
        context,
    };
    run.execute(
        &device,
        &mut |sink| {
            let mut ended = Ended::Finished;
            if wanted.parts.contains(&Part::Decode) {
                ended = decode(&bench, sink)?;
            }
            if ended == Ended::Finished && wanted.parts.contains(&Part::Prefill) {
                ended = prefill(&bench, sink)?;
            }
            Ok(ended)
        },
        &|samples| {
            let mut speeds: Vec<SpeedSample> = samples_of(samples, PREFILL)?;
            speeds.extend(samples_of(samples, DECODE)?);
            Ok(Found {
                speeds,
                tables: vec![memory_table(&samples_of(samples, MEMORY)?)?],
                rivals: true,
            })
        },
    )
}

//! What the benches on a GPU share: which GPU, other libraries' times, and how a run ends.

pub(super) mod attention;
pub(super) mod end_to_end;
pub(super) mod kernels;

use crate::bench::end_to_end::Ended;
use crate::bench::gpu::attention::Settings;
use crate::bench::gpu::{SpeedSample, Watch, check_table, paper, verdict};
use crate::cli::Context;
use crate::cli::arguments::{Dtype, OutputArgs};
use crate::cli::device::{self, gpu_element, open_named};
use crate::cli::run_output::RunOutput;
use crate::error::{Error, Result};
use crate::exit::Outcome;
use crate::kernels::cuda::{Cuda, Element};
use crate::manifest::Manifest;
use crate::report::speed::{Peers, SpeedRow, speed_table};
use crate::report::{Aggregate, Report, SampleSink, Table};
use clap::Args;
use serde_json::{Map, Value, json};
use std::path::PathBuf;

/// Which GPU, in what type, beside whom.
#[derive(Debug, Args)]
#[command(next_help_heading = "GPU")]
pub(super) struct GpuArgs {
    /// Measure on a GPU
    #[arg(long)]
    pub gpu: bool,
    /// Set these times of other libraries beside ours: a file of `scripts/peers.py` from the same GPU
    #[arg(long, value_name = "FILE", requires = "gpu")]
    pub peers: Option<PathBuf>,
}

impl GpuArgs {
    /// Refuses a bench that has no form on the CPU.
    pub(super) fn require(&self, command: &str) -> Result<()> {
        if self.gpu {
            return Ok(());
        }
        Err(
            Error::user(format!("`{command}` measures kernels of a GPU: `--gpu` is missing"))
                .help("pass `--gpu` on a machine with an NVIDIA GPU; `tokselect bench end-to-end` measures the CPU"),
        )
    }

    pub(super) fn load_peers(&self) -> Result<Option<Peers>> {
        self.peers.as_deref().map(Peers::load).transpose()
    }
}

/// Opens the GPU; where there is none, the error has no advice that this bench cannot follow.
pub(super) fn open(device: &str, element: Element) -> Result<Cuda> {
    let device = if device == "auto" { "cuda" } else { device };
    open_named(device, element).map_err(|error| {
        let mut plain = match error.exit_code() {
            2 => Error::user(error.message()),
            _ => Error::environment(error.message()),
        };
        for note in error.notes() {
            plain = plain.note(note);
        }
        plain.help(
            "run it on a machine with an NVIDIA GPU, its driver and the CUDA runtime libraries; see `tokselect doctor`",
        )
    })
}

/// One run: what it is, and what it found.
pub(super) struct Run<'a> {
    pub command: &'a str,
    pub config: Map<String, Value>,
    pub manifest: Manifest,
    pub peers: Option<Peers>,
    /// Kinds of printed cells that the run is about.
    pub kinds: &'a [&'a str],
    pub output: &'a OutputArgs,
    pub context: &'a Context,
}

/// What a measurement hands over for the report.
pub(super) struct Found {
    pub speeds: Vec<SpeedSample>,
    /// Before the table of times.
    pub tables: Vec<Table>,
    /// Whether the table of times and the paper's cells belong in the report.
    pub rivals: bool,
}

/// [`device::identity`] with the type that the GPU stores.
pub(super) fn identity(device: &Cuda) -> Result<Value> {
    let mut identity = device::identity(device.gpu())?;
    identity["dtype"] = json!(device.element().name());
    Ok(identity)
}

impl<'a> Run<'a> {
    /// A run of one layer or kernel: `settings` make its configuration.
    pub(super) fn of_layer(
        command: &'a str,
        settings: &Settings,
        output: &'a OutputArgs,
        context: &'a Context,
    ) -> Self {
        let mut manifest = Manifest::begin(rayon::current_num_threads());
        manifest.seeds.insert("bench".into(), settings.seed);
        Self {
            command,
            config: Map::from_iter([("settings".to_owned(), json!(settings))]),
            manifest,
            peers: None,
            kinds: &[],
            output,
            context,
        }
    }

    /// Opens the GPU `device`, then as [`Run::execute`].
    pub(super) fn measure(
        self,
        device: &str,
        dtype: Dtype,
        settings: &Settings,
        measure: impl Fn(&Cuda, &Settings, &Watch<'_>, &mut dyn SampleSink) -> Result<Ended>,
        found: &dyn Fn(&[crate::report::Sample]) -> Result<Found>,
    ) -> Result<Outcome> {
        let (device, context) = (open(device, gpu_element(dtype)?)?, self.context);
        let watch = Watch {
            stopped: &|| context.interrupt.is_raised(),
            status: &|what| context.printer.status("Measuring", what),
        };
        self.execute(&device, &mut |sink| measure(&device, settings, &watch, sink), found)
    }
}

impl Run<'_> {
    /// Measures into the run directory or into memory, then writes the report, then says what failed.
    pub(super) fn execute(
        mut self,
        device: &Cuda,
        measure: &mut dyn FnMut(&mut dyn SampleSink) -> Result<Ended>,
        found: &dyn Fn(&[crate::report::Sample]) -> Result<Found>,
    ) -> Result<Outcome> {
        let name = &device.gpu().properties().name;
        if let Some(peers) = &self.peers {
            peers.check_device(name)?;
        }
        self.config.insert("device".into(), identity(device)?);
        let mut output = RunOutput::open(self.output, self.command, &self.config, self.context)?;
        let sink = output.sink();
        let ended = measure(sink)?;
        let samples = sink.samples()?;
        let Found {
            speeds,
            mut tables,
            rivals,
        } = found(&samples)?;

        device::record(&mut self.manifest, device.gpu());
        self.manifest.finish();
        let mut report = Report::new(
            self.command,
            self.context.command_line.clone(),
            self.config,
            self.manifest,
        );
        let rows: Vec<SpeedRow> = speeds.iter().map(|sample| sample.row.clone()).collect();
        if rivals {
            let label = format!("tokselect {}", env!("CARGO_PKG_VERSION"));
            tables.push(speed_table(&rows, &label, self.peers.as_ref())?);
        }
        tables.push(check_table(&speeds)?);
        if rivals {
            tables.push(paper::paper_table(self.kinds, name, &rows, self.peers.as_ref())?);
        }
        tables.retain(|table| !table.rows.is_empty());
        report.tables = tables;
        report.aggregates = rows
            .iter()
            .filter(|row| !row.repetitions_us.is_empty())
            .map(|row| {
                let key = &row.key;
                let name = format!(
                    "{}/{}/{}/{}/{}_us",
                    key.kind, key.shape, key.tokens, key.rows, row.method
                );
                Aggregate::of(name, "us", &row.repetitions_us)
            })
            .collect();
        report.details = json!({ "peers": self.peers.as_ref().map(|peers| &peers.provenance) });
        report.interrupted = ended == Ended::Interrupted;
        output.finish(report, None)?;
        verdict(&speeds)?;
        if ended == Ended::Interrupted {
            return Err(output.interruption(samples.len()));
        }
        Ok(Outcome::Done)
    }
}

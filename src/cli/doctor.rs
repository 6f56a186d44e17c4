//! `tokselect doctor`: what this machine offers, and what stands in the way.

mod machine;

use super::Context;
use crate::bytes::human_bytes;
use crate::error::{Error, Result};
use crate::exit::Outcome;
use crate::hub::{DEMO, HubEnvironment, demo_folder, demo_sha256, is_laid_out, temporary_demo_folder};
use crate::kernels::cpu::{Cpu, simd_level};
use crate::kernels::cuda::Gpu;
use crate::kernels::cuda::driver::Properties;
use crate::kernels::reference::Reference;
use crate::kernels::{Backend as _, Device as _};
use crate::manifest::{Build, Device};
use crate::model::memory_plan::available_bytes;
use crate::report::{Measured, terminal};
use clap::Args;
use machine::{CacheFolder, ControlGroups, Library, NO_LIMIT, NOT_FOUND, nvidia_libraries};
use serde::Serialize;
use std::path::Path;

/// Version of the JSON form; raised when a reader of the old one would misread the new one.
const SCHEMA_VERSION: u32 = 1;

/// Arguments of `tokselect doctor`.
#[derive(Debug, Args)]
pub struct DoctorArgs {
    /// Print one JSON object instead of a list
    #[arg(long)]
    json: bool,
}

/// Everything found; the JSON form is this, key by key.
#[derive(Debug, Serialize)]
struct Findings {
    schema_version: u32,
    /// Whether nothing essential is broken.
    ok: bool,
    build: Build,
    device: Device,
    compute: Compute,
    memory: Memory,
    cache: CacheFolder,
    demo_model: DemoModel,
    hub: Hub,
    nvidia_libraries: Vec<Library>,
    /// The first GPU, opened; or why there is none.
    gpu: Measured<Properties>,
    terminal: Screen,
    problems: Vec<Problem>,
}

/// What computes.
#[derive(Debug, Serialize)]
struct Compute {
    device: &'static str,
    simd: &'static str,
    threads: u64,
    cpu_limit: Measured<f64>,
    kernels_agree: bool,
}

#[expect(clippy::struct_field_names, reason = "keys of results end in their unit")]
#[derive(Debug, Serialize)]
struct Memory {
    total_bytes: Measured<u64>,
    available_bytes: Measured<u64>,
    limit_bytes: Measured<u64>,
}

/// The model that is part of the program.
#[derive(Debug, Serialize)]
struct DemoModel {
    /// SHA-256 over all of its files.
    sha256: &'static str,
    /// Where its files are laid out.
    folder: String,
    /// Whether they are there, byte by byte.
    laid_out: bool,
}

impl DemoModel {
    fn below(own_cache_dir: &Path) -> Self {
        let kept = demo_folder(own_cache_dir);
        // As when the model is used: a relative folder is one that no home directory was found for.
        let usable = own_cache_dir.is_absolute() && (is_laid_out(&kept) || CacheFolder::at(own_cache_dir).writable);
        let folder = if usable { kept } else { temporary_demo_folder() };
        Self {
            sha256: demo_sha256(),
            laid_out: is_laid_out(&folder),
            folder: folder.display().to_string(),
        }
    }
}

/// Never the token itself.
#[derive(Debug, Serialize)]
struct Hub {
    offline: bool,
    token_present: bool,
}

#[derive(Debug, Serialize)]
struct Screen {
    stdout_is_terminal: bool,
    colour: bool,
    width_columns: Measured<u64>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Severity {
    /// Something will not work, or not well.
    Warning,
    /// Nothing can work.
    Error,
}

/// An item that fails and what to do about it.
#[derive(Debug, Serialize)]
struct Problem {
    /// Name of the item in the list.
    item: &'static str,
    severity: Severity,
    message: String,
    help: String,
}

pub(super) fn run(args: &DoctorArgs, context: &Context) -> Result<Outcome> {
    let findings = Findings::gather(context);
    let text = if args.json {
        let json = serde_json::to_string_pretty(&findings);
        json.map_err(|error| Error::bug(format!("findings as JSON: {error}")))?
    } else {
        findings.list()
    };
    let outcome = context.printer.line(&text)?;
    match findings.problems.iter().find(|p| p.severity == Severity::Error) {
        Some(problem) => Err(Error::environment(problem.message.clone()).help(problem.help.clone())),
        None => Ok(outcome),
    }
}

impl Findings {
    fn gather(context: &Context) -> Self {
        let device = Device::current();
        let groups = ControlGroups::current();
        let (cpu_limit, limit_bytes) = match &groups {
            Ok(groups) => (groups.cpu_limit(), groups.memory_limit()),
            Err(reason) => (Measured::missing(reason), Measured::missing(reason)),
        };
        let hub = HubEnvironment::from_env();
        let style = context.printer.stdout_style();
        let mut findings = Self {
            schema_version: SCHEMA_VERSION,
            ok: true,
            build: Build::current(),
            compute: Compute {
                device: "cpu",
                simd: simd_level(),
                threads: rayon::current_num_threads() as u64,
                cpu_limit,
                kernels_agree: kernels_agree(),
            },
            memory: Memory {
                total_bytes: device.memory_total_bytes.clone(),
                available_bytes: available_bytes().map_or_else(
                    || Measured::missing("the system does not tell"),
                    |bytes| Measured::Value(bytes as u64),
                ),
                limit_bytes,
            },
            device,
            cache: CacheFolder::at(&hub.cache_dir),
            demo_model: DemoModel::below(&hub.own_cache_dir),
            hub: Hub {
                offline: hub.offline,
                token_present: hub.token.is_some(),
            },
            nvidia_libraries: nvidia_libraries(std::env::var_os("LD_LIBRARY_PATH")),
            gpu: match Gpu::open(0, None) {
                Ok(gpu) => Measured::Value(gpu.properties().clone()),
                Err(error) => Measured::missing(error.message()),
            },
            terminal: Screen {
                stdout_is_terminal: style.terminal,
                colour: style.colour,
                width_columns: style
                    .terminal
                    .then(|| comfy_table::Table::new().width())
                    .flatten()
                    .map_or_else(
                        || Measured::missing("not a terminal"),
                        |columns| Measured::Value(columns.into()),
                    ),
            },
            problems: Vec::new(),
        };
        findings.problems = findings.diagnose();
        findings.ok = findings.problems.iter().all(|p| p.severity != Severity::Error);
        findings
    }

    fn diagnose(&self) -> Vec<Problem> {
        let mut problems = Vec::new();
        let mut report = |item, severity, message: String, help: &str| {
            problems.push(Problem {
                item,
                severity,
                message,
                help: help.to_owned(),
            });
        };
        if !self.build.optimised {
            report(
                "version",
                Severity::Warning,
                "built without optimisation: everything is slow, timings mean nothing".into(),
                "build with `cargo build --release`",
            );
        }
        if !self.compute.kernels_agree {
            report(
                "kernels",
                Severity::Error,
                format!("the {} kernels give wrong results on this processor", self.compute.simd),
                "report it with the output of `tokselect doctor --json`",
            );
        }
        let usable = self.device.cpus.get().copied();
        if let Some(usable) = usable.filter(|&usable| self.compute.threads > usable) {
            report(
                "threads",
                Severity::Warning,
                format!(
                    "{} threads share {usable} processors and wait for each other",
                    self.compute.threads
                ),
                "leave out `--threads` and unset RAYON_NUM_THREADS",
            );
        }
        let limits = (self.memory.limit_bytes.get(), self.memory.available_bytes.get());
        if let (Some(&limit), Some(&available)) = limits
            && limit < available
        {
            report(
                "memory",
                Severity::Warning,
                "this process may take less memory than the system has available".into(),
                "pass `--max-memory` below the limit, so that a run is refused and not killed",
            );
        }
        if !self.cache.writable {
            report(
                "cache folder",
                Severity::Warning,
                "nothing can be downloaded: the folder cannot be written".into(),
                "set HF_HUB_CACHE to a folder that can be written",
            );
        }
        if self.hub.offline && self.cache.models == 0 {
            report(
                "hub",
                Severity::Warning,
                "offline with an empty cache: hub ids cannot be used".into(),
                "unset HF_HUB_OFFLINE, or pass `-m DIR`",
            );
        }
        problems
    }

    /// One aligned line per item; below a failing one what it means and the remedy.
    fn list(&self) -> String {
        let mut lines = Vec::new();
        for (item, value) in self.items() {
            let problems: Vec<_> = self.problems.iter().filter(|p| p.item == item).collect();
            let mark = if problems.iter().any(|p| p.severity == Severity::Error) {
                "FAIL"
            } else if !problems.is_empty() {
                "warn"
            } else if value == NOT_FOUND {
                "-"
            } else {
                "ok"
            };
            lines.push(format!("{mark:<4}  {item:<12}  {}", terminal::visible(&value)));
            for problem in problems {
                lines.push(format!("{:20}{}", "", problem.message));
                lines.push(format!("{:20}help: {}", "", problem.help));
            }
        }
        lines.join("\n")
    }

    fn items(&self) -> Vec<(&'static str, String)> {
        let yes = |is: bool, yes: &str, no: &str| if is { yes } else { no }.to_owned();
        let mut items = vec![
            (
                "version",
                format!(
                    "{}, {}, {}",
                    self.build,
                    self.build.target,
                    yes(self.build.optimised, "optimised", "not optimised")
                ),
            ),
            (
                "cpu",
                format!(
                    "{}, {} usable, limit {}",
                    shown(&self.device.cpu, Clone::clone),
                    shown(&self.device.cpus, u64::to_string),
                    shown(&self.compute.cpu_limit, |limit| format!("{limit:.1}"))
                ),
            ),
            ("simd", self.compute.simd.to_owned()),
            (
                "kernels",
                yes(
                    self.compute.kernels_agree,
                    "agree with their plain reference",
                    "differ from their plain reference",
                ),
            ),
            ("threads", self.compute.threads.to_string()),
            (
                "memory",
                format!(
                    "total {}, available {}, limit {}",
                    size(&self.memory.total_bytes),
                    size(&self.memory.available_bytes),
                    size(&self.memory.limit_bytes)
                ),
            ),
            (
                "cache folder",
                format!(
                    "{} ({}, {}, free {}, models {})",
                    self.cache.path,
                    yes(self.cache.exists, "exists", "made at the first download"),
                    yes(self.cache.writable, "writable", "not writable"),
                    size(&self.cache.free_bytes),
                    self.cache.models
                ),
            ),
            (
                "demo model",
                format!(
                    "built in as `-m {DEMO}`, sha256 {}, {} {}",
                    &self.demo_model.sha256[..12],
                    yes(self.demo_model.laid_out, "laid out in", "on first use laid out in"),
                    self.demo_model.folder
                ),
            ),
            (
                "hub",
                format!(
                    "{}, token {}",
                    yes(self.hub.offline, "offline by HF_HUB_OFFLINE", "online"),
                    yes(self.hub.token_present, "present", "absent")
                ),
            ),
        ];
        for library in &self.nvidia_libraries {
            items.push((library.name, shown(&library.path, Clone::clone)));
        }
        items.push((
            "gpu",
            self.gpu
                .get()
                .map_or_else(|| format!("none: {}", self.gpu.reason().unwrap_or_default()), in_words),
        ));
        items.push((
            "terminal",
            match self.terminal.width_columns.get() {
                Some(columns) => format!(
                    "{columns} columns, {}",
                    yes(self.terminal.colour, "colour", "no colour")
                ),
                None => yes(
                    self.terminal.stdout_is_terminal,
                    "of unknown width",
                    "stdout is not a terminal",
                ),
            },
        ));
        items
    }
}

fn size(bytes: &Measured<u64>) -> String {
    shown(bytes, |&bytes| {
        human_bytes(usize::try_from(bytes).unwrap_or(usize::MAX))
    })
}

/// The value, or `unknown` with the reason; the absence of a limit is said as it is.
fn shown<T>(measured: &Measured<T>, show: impl Fn(&T) -> String) -> String {
    match measured {
        Measured::Value(value) => show(value),
        Measured::Missing(reason) if reason == NO_LIMIT => "none".into(),
        Measured::Missing(reason) if reason == NOT_FOUND => reason.clone(),
        Measured::Missing(reason) => format!("unknown ({reason})"),
    }
}

fn in_words(gpu: &Properties) -> String {
    format!(
        "{}, compute capability {}.{}, {} multiprocessors, {}, driver for CUDA {}.{}",
        gpu.name,
        gpu.compute_capability / 10,
        gpu.compute_capability % 10,
        gpu.multiprocessors,
        human_bytes(gpu.memory_bytes),
        gpu.driver_version / 1000,
        gpu.driver_version % 1000 / 10
    )
}

/// Computes a small product and a selection with the fast kernels and with the plain ones.
fn kernels_agree() -> bool {
    const ROWS: usize = 3;
    const IN: usize = 67;
    const OUT: usize = 21;
    let number = |i: usize| ((i * 37 + 11) % 101) as f32 / 101.0 - 0.5;
    let x: Vec<f32> = (0..ROWS * IN).map(number).collect();
    let fill = |row: usize, out: &mut [f32]| {
        for (i, weight) in out.iter_mut().enumerate() {
            *weight = number(row * IN + i + 5);
        }
    };
    let (mut fast, mut plain) = (vec![0.0; ROWS * OUT], vec![0.0; ROWS * OUT]);
    Cpu.linear(&x, ROWS, &Cpu.matrix(OUT, IN, &fill), None, false, &mut fast);
    let matrix = Reference.matrix(OUT, IN, &fill);
    Reference.linear(&x, ROWS, &matrix, None, false, &mut plain);
    let (mut fast_top, mut plain_top) = (Vec::new(), Vec::new());
    Cpu.top_k(&x, 20, &mut fast_top);
    Reference.top_k(&x, 20, &mut plain_top);
    // Sums of 67 products of at most 1/4 in another order: a few units of 2^-24 * 17.
    fast.iter().zip(&plain).all(|(a, b)| (a - b).abs() < 1e-4) && fast_top == plain_top
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::interrupt::Interrupt;
    use crate::printer::{Printer, PrinterOptions};

    fn findings() -> Findings {
        Findings::gather(&Context {
            printer: Printer::to(Vec::new(), Vec::new(), PrinterOptions::default()),
            interrupt: Interrupt::default(),
            command_line: Vec::new(),
        })
    }

    #[test]
    fn the_fast_kernels_agree_with_the_plain_ones() {
        assert!(kernels_agree());
    }

    #[test]
    fn every_problem_belongs_to_an_item_and_shows_its_remedy() {
        let mut findings = findings();
        findings.build.optimised = false;
        findings.compute.kernels_agree = false;
        findings.compute.threads = 1 << 20;
        findings.memory.limit_bytes = Measured::Value(1);
        findings.memory.available_bytes = Measured::Value(2);
        findings.cache.writable = false;
        findings.cache.models = 0;
        findings.hub.offline = true;
        findings.problems = findings.diagnose();
        assert_eq!(findings.problems.len(), 6);
        let items: Vec<_> = findings.items().into_iter().map(|(item, _)| item).collect();
        let text = findings.list();
        for problem in &findings.problems {
            assert!(items.contains(&problem.item), "{}", problem.item);
            assert!(
                text.contains(&format!("help: {}", problem.help)),
                "{}\n{text}",
                problem.help
            );
        }
        assert!(
            text.contains("\nFAIL  kernels ") && text.contains("\nwarn  threads "),
            "{text}"
        );
    }

    #[test]
    fn a_sound_machine_has_one_line_per_item() {
        let mut findings = findings();
        findings.problems.clear();
        let text = findings.list();
        assert_eq!(text.lines().count(), findings.items().len());
        assert!(
            text.lines()
                .all(|line| line.starts_with("ok    ") || line.ends_with(NOT_FOUND)),
            "{text}"
        );
    }
}

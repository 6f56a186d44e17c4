//! `--device` and `--dtype`: where a run computes and in what type.

use super::arguments::{Dtype, ModelArgs};
use crate::bytes::human_bytes;
use crate::error::{Error, Result};
use crate::hub::{DEMO, HubEnvironment};
use crate::kernels::cpu::Cpu;
use crate::kernels::cuda::compile::{nvrtc_version, sources_sha256};
use crate::kernels::cuda::driver::device_count;
use crate::kernels::cuda::training::Precision;
use crate::kernels::cuda::{Cuda, Element, Gpu};
use crate::manifest::{Accelerator, Manifest};
use crate::printer::Printer;
use crate::report::Measured;
use crate::train::engine::Place;
use serde_json::{Value, json};
use std::path::PathBuf;

/// An opened device.
pub(super) enum ChosenDevice {
    /// All cores, f32.
    Cpu(Cpu),
    /// One GPU, 16-bit weights and activations.
    Cuda(Cuda),
}

impl ChosenDevice {
    /// As reports record it.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Cpu(_) => "cpu",
            Self::Cuda(_) => "cuda",
        }
    }

    /// Type of the weights in memory.
    pub fn dtype(&self) -> &'static str {
        match self {
            Self::Cpu(_) => "f32",
            Self::Cuda(cuda) => cuda.element().name(),
        }
    }
}

/// What `--device` asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wanted {
    Auto,
    Cpu,
    Cuda(usize),
}

fn wanted(text: &str) -> Result<Wanted> {
    match text {
        "auto" => Ok(Wanted::Auto),
        "cpu" => Ok(Wanted::Cpu),
        "cuda" => Ok(Wanted::Cuda(0)),
        _ => text
            .strip_prefix("cuda:")
            .and_then(|n| n.parse().ok())
            .map(Wanted::Cuda)
            .ok_or_else(|| {
                Error::user(format!("`--device {text}` is not a device")).help("pass auto, cpu, cuda or cuda:N")
            }),
    }
}

/// Where compiled kernels are kept: beside the built-in model.
fn kernel_cache() -> Option<PathBuf> {
    let folder = HubEnvironment::from_env().own_cache_dir;
    folder.is_absolute().then(|| folder.join("kernels"))
}

/// Opens GPU `ordinal`.
pub(super) fn open_gpu(ordinal: usize, element: Element) -> Result<Cuda> {
    Cuda::open(ordinal, element, kernel_cache())
}

/// Names of GPU, driver and kernels, for the configuration: a run of others is another run.
pub(super) fn identity(gpu: &Gpu) -> Result<Value> {
    let properties = gpu.properties();
    let (major, minor) = nvrtc_version()?;
    Ok(json!({
        "name": properties.name,
        "architecture": properties.architecture(),
        "driver_cuda": format!("{}.{}", properties.driver_version / 1000, properties.driver_version % 1000 / 10),
        "nvrtc": format!("{major}.{minor}"),
        "kernels_sha256": sources_sha256(),
    }))
}

/// Puts the GPU and its kernels into the manifest.
pub(super) fn record(manifest: &mut Manifest, gpu: &Gpu) {
    let properties = gpu.properties();
    let (major, minor) = (properties.compute_capability / 10, properties.compute_capability % 10);
    manifest.kernels_sha256 = Measured::Value(sources_sha256());
    manifest.device.accelerators = vec![Accelerator {
        name: properties.name.clone(),
        memory_total_bytes: Measured::Value(properties.memory_bytes as u64),
        driver: driver_version(),
        compute_capability: Measured::Value(format!("{major}.{minor}")),
    }];
}

/// The driver's own version, beside the CUDA version that it speaks.
fn driver_version() -> Measured<String> {
    const FILE: &str = "/proc/driver/nvidia/version";
    let text = match std::fs::read_to_string(FILE) {
        Ok(text) => text,
        Err(error) => return Measured::missing(format!("{FILE}: {error}")),
    };
    let version = |word: &&str| word.starts_with(|c: char| c.is_ascii_digit()) && word.contains('.');
    text.lines()
        .next()
        .and_then(|line| line.split_whitespace().find(version))
        .map_or_else(
            || Measured::missing(format!("{FILE} has no version")),
            |word| Measured::Value(word.to_owned()),
        )
}

/// Opens the GPU that `text` names.
pub(super) fn open_named(text: &str, element: Element) -> Result<Cuda> {
    match wanted(text)? {
        Wanted::Cuda(ordinal) => open_gpu(ordinal, element),
        Wanted::Auto | Wanted::Cpu => {
            Err(Error::user(format!("`--device {text}` is no GPU")).help("pass `--device cuda` or `--device cuda:N`"))
        }
    }
}

/// The type that a GPU stores under `--dtype`.
pub(super) fn gpu_element(dtype: Dtype) -> Result<Element> {
    match dtype {
        Dtype::Auto | Dtype::Bf16 => Ok(Element::Bf16),
        Dtype::F16 => Ok(Element::F16),
        Dtype::F32 => Err(
            Error::user("`--dtype f32`: a GPU computes with 16-bit weights and activations")
                .help("pass `--dtype bf16` or `--dtype f16`, or `--device cpu`"),
        ),
    }
}

/// The place that `--device` and `--dtype` of training name. `auto` is the first GPU where there is one, else the CPU.
pub(super) fn training_place(device: &str, dtype: Dtype) -> Result<Place> {
    let gpu = match wanted(device)? {
        Wanted::Cuda(ordinal) => Some(ordinal),
        Wanted::Auto if matches!(device_count(), Ok(1..)) => Some(0),
        Wanted::Auto | Wanted::Cpu => None,
    };
    let precision = match (dtype, gpu) {
        (Dtype::Auto | Dtype::F32, _) => Precision::F32,
        (Dtype::Bf16, Some(_)) => Precision::Bf16,
        (Dtype::Bf16, None) if device == "auto" => {
            return Err(Error::environment("`--dtype bf16` trains on a GPU, and none was found")
                .help("pass `--dtype f32` or leave the flag out; `tokselect doctor` says what is missing"));
        }
        (Dtype::Bf16, None) => {
            return Err(Error::user("`--dtype bf16`: the CPU trains in f32")
                .help("pass `--dtype f32`, leave the flag out, or pass `--device cuda`"));
        }
        (Dtype::F16, _) => {
            return Err(
                Error::user("`--dtype f16`: gradients can be too small for it, training is in f32 or bf16")
                    .help("pass `--dtype f32` or `--dtype bf16`"),
            );
        }
    };
    Ok(match gpu {
        Some(ordinal) => Place::Cuda(Gpu::open(ordinal, kernel_cache())?, precision),
        None => Place::Cpu,
    })
}

impl ModelArgs {
    /// `--dtype` for `model` on a GPU. The built-in model is known to stay within the range of f16, whose finer steps make its
    /// text that of the CPU; of others nothing is known.
    pub(super) fn gpu_dtype(&self, model: &str) -> Dtype {
        match self.dtype {
            Dtype::Auto if model == DEMO => Dtype::F16,
            dtype => dtype,
        }
    }

    /// Refuses devices and types that a command on the CPU does not run.
    pub(super) fn check_cpu(&self) -> Result<()> {
        if let Wanted::Cuda(_) = wanted(&self.device)? {
            return Err(Error::environment(format!(
                "`--device {}`: this command computes on the CPU only",
                self.device
            ))
            .help(
                "pass `--device cpu` or leave the flag out; `infer`, `bench --gpu` and `icn-probe clusters` run on a GPU",
            ));
        }
        self.check_cpu_dtype()
    }

    fn check_cpu_dtype(&self) -> Result<()> {
        match self.dtype {
            Dtype::Auto | Dtype::F32 => Ok(()),
            Dtype::F16 | Dtype::Bf16 => {
                let name = if self.dtype == Dtype::F16 { "f16" } else { "bf16" };
                Err(Error::user(format!(
                    "`--dtype {name}`: on the CPU weights are widened to f32 once, at load"
                ))
                .help("pass `--dtype f32`, leave the flag out, or pass `--device cuda`"))
            }
        }
    }

    /// Opens a GPU for a command that computes in f32 on either; `None`: the CPU. `auto` is the first GPU where there is one
    /// with `needed` bytes free.
    pub(super) fn open_for_f32(&self, needed: usize, printer: &Printer) -> Result<Option<Gpu>> {
        if let Dtype::F16 | Dtype::Bf16 = self.dtype {
            let name = if self.dtype == Dtype::F16 { "f16" } else { "bf16" };
            return Err(Error::user(format!(
                "`--dtype {name}`: this command computes in f32 on every device"
            ))
            .help("leave the flag out, or pass `--dtype f32`"));
        }
        match wanted(&self.device)? {
            Wanted::Cuda(ordinal) => Gpu::open(ordinal, kernel_cache()).map(Some),
            Wanted::Auto if matches!(device_count(), Ok(1..)) => {
                let gpu = Gpu::open(0, kernel_cache())?;
                let (free, _) = gpu.memory()?;
                if free < needed {
                    let (needed, free) = (human_bytes(needed), human_bytes(free));
                    printer.detail(&format!("computing on the CPU: the GPU has {free} free of {needed}"));
                    return Ok(None);
                }
                Ok(Some(gpu))
            }
            Wanted::Auto | Wanted::Cpu => Ok(None),
        }
    }

    /// Opens the device. `auto` is the first GPU where there is one and `runs_there` finds nothing against it, else the
    /// CPU; `runs_there` says what of the run a GPU cannot do.
    pub(super) fn open_device(&self, printer: &Printer, runs_there: &dyn Fn() -> Result<()>) -> Result<ChosenDevice> {
        match wanted(&self.device)? {
            Wanted::Cpu => {
                self.check_cpu_dtype()?;
                Ok(ChosenDevice::Cpu(Cpu))
            }
            Wanted::Cuda(ordinal) => {
                let element = gpu_element(self.gpu_dtype(self.reference()))?;
                runs_there()?;
                Ok(ChosenDevice::Cuda(open_gpu(ordinal, element)?))
            }
            Wanted::Auto => {
                if self.dtype == Dtype::F32 || !matches!(device_count(), Ok(1..)) {
                    self.check_cpu_dtype()?;
                    return Ok(ChosenDevice::Cpu(Cpu));
                }
                if let Err(error) = runs_there() {
                    self.check_cpu_dtype().map_err(|_| error.clone())?;
                    printer.detail(&format!("computing on the CPU: {}", error.message()));
                    return Ok(ChosenDevice::Cpu(Cpu));
                }
                let element = gpu_element(self.gpu_dtype(self.reference()))?;
                Ok(ChosenDevice::Cuda(open_gpu(0, element)?))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_built_in_model_computes_in_f16_on_a_gpu_unless_told_otherwise() {
        #[derive(clap::Parser)]
        struct Line {
            #[command(flatten)]
            model: ModelArgs,
        }
        let element = |line: &[&str]| {
            let line = std::iter::once(&"tokselect").chain(line);
            let Line { model } = clap::Parser::try_parse_from(line).expect("valid flags");
            gpu_element(model.gpu_dtype(model.reference())).expect("a type of a GPU")
        };
        assert_eq!(element(&[]), Element::F16);
        assert_eq!(element(&["-m", "demo"]), Element::F16);
        assert_eq!(element(&["--dtype", "bf16"]), Element::Bf16);
        assert_eq!(element(&["-m", "Org/Name"]), Element::Bf16);
    }

    #[test]
    fn devices_are_read_or_refused() {
        assert_eq!(wanted("auto").expect("known"), Wanted::Auto);
        assert_eq!(wanted("cuda").expect("known"), Wanted::Cuda(0));
        assert_eq!(wanted("cuda:3").expect("known"), Wanted::Cuda(3));
        for text in ["gpu", "cuda:", "cuda:-1", "cuda:x", "CPU"] {
            assert!(wanted(text).is_err(), "{text}");
        }
    }
}

//! From CUDA C++ in this folder to loaded kernels: NVRTC at first use, the machine code kept on disk.
//!
//! A file is named by the hash of everything that it follows from: source, defines, architecture, NVRTC's version. Its
//! first 32 bytes are the hash of the rest, so that a damaged one is compiled again and not loaded.

use super::driver::Kernel;
use crate::error::{Error, Result};
use cudarc::driver::{result, sys};
use cudarc::nvrtc::{result as nvrtc, sys as nvrtc_sys};
use sha2::{Digest, Sha256};
use std::collections::HashMap;
use std::ffi::{CStr, CString};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

/// A folder whose `.cu` files take the place of those built in, for work on the kernels without building the program.
pub const SOURCES_VARIABLE: &str = "TOKSELECT_KERNEL_SOURCES";

/// Defines such as `A=1,B=2` for every file of that folder, beside those that launchers give.
pub const DEFINES_VARIABLE: &str = "TOKSELECT_KERNEL_DEFINES";

/// Put before every source.
const COMMON: &str = include_str!("common.cuh");

/// Names and texts of the files that one source is put together from.
macro_rules! parts {
    ($file:literal) => {
        &[($file, include_str!($file))]
    };
    ($file:literal $($part:literal)+) => {
        &[$(($part, include_str!($part))),+]
    };
}

macro_rules! sources {
    ($($(#[$doc:meta])* $variant:ident = $file:literal $(of $($part:literal),+)?;)*) => {
        /// A kernel source: a file of this folder, or one name for several that are compiled as one.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum Source {
            $($(#[$doc])* $variant),*
        }

        impl Source {
            /// All of them.
            pub const ALL: &[Self] = &[$(Self::$variant),*];

            /// Its name.
            pub fn file(self) -> &'static str {
                match self { $(Self::$variant => $file),* }
            }

            fn parts(self) -> &'static [(&'static str, &'static str)] {
                match self { $(Self::$variant => parts!($file $($($part)+)?)),* }
            }
        }
    };
}

sources! {
    /// The start of a decode step.
    Advance = "advance.cu";
    /// Attention of query chunks.
    AttendPrefill = "attend_prefill.cu";
    /// Dense attention of one row.
    AttendDenseDecode = "attend_dense_decode.cu";
    /// What memory gives.
    Bandwidth = "bandwidth.cu";
    /// k-means around its products.
    KMeans = "kmeans.cu";
    /// Gathering, rotation, appending.
    Pack = "pack.cu";
    /// Products of one row.
    LinearRow = "linear_row.cu";
    /// Norms, activations, embedding.
    Pointwise = "pointwise.cu";
    /// Choosing the next token.
    Sample = "sample.cu";
    /// Selection for the chunks of a prompt.
    PrefillSelect = "prefill_select.cu" of "prefill_select.cuh", "prefill_select.cu";
    /// Its products with the keys.
    PrefillScore = "prefill_score.cu" of "prefill_select.cuh", "prefill_score.cu";
    /// The same on Hopper.
    PrefillScoreWgmma = "prefill_score_wgmma.cu" of "prefill_select.cuh", "prefill_score_wgmma.cu";
    /// Selection and attention of one row.
    TokenSelectStep = "token_select_step.cu" of
        "token_select_step/layout.cuh", "token_select_step/scores.cuh", "token_select_step/select.cuh",
        "token_select_step/attend.cuh", "token_select_step/entry.cuh";
    /// 8-bit copy of the keys.
    QuantizeKeys = "quantize_keys.cu";
    /// Attention of training.
    TrainAttention = "train_attention.cu" of "train.cuh", "train_attention.cu";
    /// The rest of a training step.
    TrainRows = "train_rows.cu" of "train.cuh", "train_rows.cu";
}

impl Source {
    /// Whether the file is compiled anew for each attention shape.
    pub fn depends_on_shape(self) -> bool {
        !matches!(
            self,
            Self::Advance | Self::KMeans | Self::LinearRow | Self::Pointwise | Self::Sample | Self::Bandwidth
        )
    }

    /// Whether the source is of training, and compiled for a [`super::training::Compiled`].
    pub fn is_of_training(self) -> bool {
        matches!(self, Self::TrainAttention | Self::TrainRows)
    }

    /// Common part and files; the log of the compiler counts lines from each file's first.
    pub fn full_text(self) -> String {
        let folder = std::env::var_os(SOURCES_VARIABLE);
        // Whoever sets the variable works on the kernels: a missing file should be seen at once.
        let text = |file: &str, built_in: &str| match &folder {
            Some(folder) => {
                let path = Path::new(folder).join(file);
                std::fs::read_to_string(&path).unwrap_or_else(|e| format!("#error {}: {e}", path.display()))
            }
            None => built_in.to_owned(),
        };
        let mut full = text("common.cuh", COMMON);
        for (file, built_in) in self.parts() {
            full.extend([&format!("\n#line 1 \"{file}\"\n"), &text(file, built_in)].map(String::as_str));
        }
        full
    }
}

/// Hash of all kernel sources, for reports.
pub fn sources_sha256() -> String {
    let mut hasher = Sha256::new();
    for source in Source::ALL {
        hasher.update(source.full_text());
    }
    format!("{:x}", hasher.finalize())
}

/// Whether NVRTC is there; asked before any other call.
pub fn is_available() -> bool {
    // SAFETY: only tries to open a library.
    unsafe { nvrtc_sys::is_culib_present() }
}

/// Version of the loaded NVRTC, such as (13, 0). The library must be there.
pub fn nvrtc_version() -> Result<(i32, i32)> {
    let (mut major, mut minor) = (0, 0);
    // SAFETY: writes two integers.
    unsafe { nvrtc_sys::nvrtcVersion(&raw mut major, &raw mut minor) }
        .result()
        .map_err(|e| Error::environment(format!("NVRTC does not tell its version: {e}")))?;
    Ok((major, minor))
}

/// Machine code of `source` for `architecture` (such as `sm_90a`). Needs NVRTC, no device.
pub fn compile(source: Source, defines: &[(&str, String)], architecture: &str) -> Result<Vec<u8>> {
    let text = CString::new(source.full_text()).map_err(|_| Error::bug("a kernel source holds a zero byte"))?;
    let name = CString::new(source.file()).map_err(|_| Error::bug("a kernel file name holds a zero byte"))?;
    let broken = |what: &str, e: nvrtc::NvrtcError| Error::environment(format!("NVRTC: {what}: {e}"));
    let program = nvrtc::create_program(&text, Some(&name)).map_err(|e| broken("no program", e))?;
    let mut options = vec![
        "--std=c++17".to_owned(),
        "--device-as-default-execution-space".to_owned(),
        format!("--gpu-architecture={architecture}"),
    ];
    options.extend(defines.iter().map(|(name, value)| format!("-D{name}={value}")));
    // SAFETY: `program` is alive until it is destroyed below, once, after its code and log were copied out.
    unsafe {
        let compiled = nvrtc::compile_program(program, &options);
        let outcome = match compiled {
            Ok(()) => machine_code(program).map_err(|e| broken("no machine code", e)),
            Err(error) => {
                let log = nvrtc::get_program_log(program).map_or_else(
                    |_| String::new(),
                    |log| CStr::from_ptr(log.as_ptr()).to_string_lossy().into_owned(),
                );
                let mut error = Error::environment(format!(
                    "NVRTC cannot compile `{}` for {architecture}: {error}",
                    source.file()
                ));
                for line in log.lines().filter(|line| line.contains("error")).take(5) {
                    error = error.note(line);
                }
                Err(error.help("use an NVRTC of CUDA 12.3 or later that knows this GPU, or pass `--device cpu`"))
            }
        };
        let _ = nvrtc::destroy_program(program);
        outcome
    }
}

/// # Safety
/// `program` must be compiled and alive.
unsafe fn machine_code(program: nvrtc_sys::nvrtcProgram) -> Result<Vec<u8>, nvrtc::NvrtcError> {
    let mut bytes = 0;
    // SAFETY: the size is asked for first, and the vector has it.
    unsafe {
        nvrtc_sys::nvrtcGetCUBINSize(program, &raw mut bytes).result()?;
        let mut code = vec![0u8; bytes];
        nvrtc_sys::nvrtcGetCUBIN(program, code.as_mut_ptr().cast()).result()?;
        Ok(code)
    }
}

/// Loaded machine code; stays loaded as long as the device.
pub struct Module {
    module: sys::CUmodule,
    file: &'static str,
}

// SAFETY: a module handle is an immutable token of the driver.
unsafe impl Send for Module {}
// SAFETY: as above.
unsafe impl Sync for Module {}

impl Module {
    /// The first `N` integers of the device variable `name`: what a kernel file tells its launcher about itself.
    pub fn integers<const N: usize>(&self, name: &str) -> Result<[i32; N]> {
        let missing = |e| Error::bug(format!("`{}` has no integers `{name}`: {e}", self.file));
        let c_name = CString::new(name).map_err(|_| Error::bug("a variable name holds a zero byte"))?;
        let mut values = [0i32; N];
        // SAFETY: the module is loaded; as many bytes are read as the variable has, at most.
        unsafe {
            let (address, bytes) = result::module::get_global(self.module, c_name).map_err(missing)?;
            if bytes < size_of_val(&values) {
                return Err(Error::bug(format!("`{}`: `{name}` has {bytes} bytes", self.file)));
            }
            result::memcpy_dtoh_sync(&mut values, address).map_err(missing)?;
        }
        Ok(values)
    }

    /// The kernel `name`.
    pub fn kernel(&self, name: &'static str) -> Result<Kernel> {
        let c_name = CString::new(name).map_err(|_| Error::bug("a kernel name holds a zero byte"))?;
        // SAFETY: the module is loaded.
        unsafe { result::module::get_function(self.module, c_name) }
            .map(|function| Kernel::new(function, name))
            .map_err(|e| Error::bug(format!("`{}` has no kernel `{name}`: {e}", self.file)))
    }
}

/// The kernels of one device: in memory once loaded, on disk once compiled.
pub(super) struct KernelCache {
    architecture: String,
    nvrtc: (i32, i32),
    folder: Option<PathBuf>,
    loaded: Mutex<HashMap<String, Arc<Module>>>,
}

impl KernelCache {
    pub(super) fn new(architecture: String, folder: Option<PathBuf>) -> Result<Self> {
        Ok(Self {
            architecture,
            nvrtc: nvrtc_version()?,
            folder,
            loaded: Mutex::default(),
        })
    }

    /// The context must be current in this thread.
    pub(super) fn module(&self, source: Source, defines: &[(&str, String)]) -> Result<Arc<Module>> {
        let added = std::env::var(DEFINES_VARIABLE).unwrap_or_default();
        let added = added.split(',').filter_map(|define| define.split_once('='));
        let mut defines = defines.to_vec();
        defines.extend(added.map(|(name, value)| (name, value.to_owned())));
        let defines = &defines[..];
        let key = self.key(source, defines);
        let mut loaded = self.loaded.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(module) = loaded.get(&key) {
            return Ok(module.clone());
        }
        let file = self.folder.as_ref().map(|folder| folder.join(format!("{key}.cubin")));
        let kept = file.as_deref().and_then(read_checked);
        let module = if let Some(Ok(module)) = kept.as_deref().map(|code| load(code, source)) {
            module
        } else {
            tracing::debug!("compiling {} for {}", source.file(), self.architecture);
            let code = compile(source, defines, &self.architecture)?;
            if let Some(file) = &file
                && let Err(error) = write_checked(file, &code)
            {
                // The next run compiles again; this one has what it needs.
                tracing::debug!("cannot keep {}: {error}", file.display());
            }
            load(&code, source)?
        };
        let module = Arc::new(module);
        loaded.insert(key, module.clone());
        Ok(module)
    }

    fn key(&self, source: Source, defines: &[(&str, String)]) -> String {
        let mut hasher = Sha256::new();
        hasher.update(source.full_text());
        for (name, value) in defines {
            hasher.update(format!("\0{name}={value}"));
        }
        hasher.update(format!("\0{}\0{:?}", self.architecture, self.nvrtc));
        let stem = source.file().trim_end_matches(".cu");
        format!(
            "{stem}-{}-{}",
            self.architecture,
            &format!("{:x}", hasher.finalize())[..24]
        )
    }
}

fn load(code: &[u8], source: Source) -> Result<Module> {
    // SAFETY: `code` is a whole cubin, from NVRTC or checked against its hash; the driver copies it.
    unsafe { result::module::load_data(code.as_ptr().cast()) }
        .map(|module| Module {
            module,
            file: source.file(),
        })
        .map_err(|e| {
            Error::environment(format!(
                "the driver refuses the machine code of `{}`: {e}",
                source.file()
            ))
            .help("NVRTC may be newer than the driver: update the driver, or pass `--device cpu`")
        })
}

/// The code of a kept file, unless it is absent or damaged.
fn read_checked(path: &Path) -> Option<Vec<u8>> {
    let bytes = std::fs::read(path).ok()?;
    let (hash, code) = bytes.split_at_checked(32)?;
    (Sha256::digest(code).as_slice() == hash).then(|| code.to_vec())
}

/// Written aside and moved into place, so that no reader sees a part of it.
fn write_checked(path: &Path, code: &[u8]) -> std::io::Result<()> {
    let folder = path.parent().unwrap_or_else(|| Path::new("."));
    std::fs::create_dir_all(folder)?;
    let aside = path.with_extension(format!("{}.part", std::process::id()));
    let mut bytes = Sha256::digest(code).to_vec();
    bytes.extend_from_slice(code);
    std::fs::write(&aside, bytes)
        .and_then(|()| std::fs::rename(&aside, path))
        .inspect_err(|_| {
            let _ = std::fs::remove_file(&aside);
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_damaged_kernel_file_counts_as_absent() {
        let folder = tempfile::tempdir().expect("folder");
        let path = folder.path().join("deep/kernel.cubin");
        assert_eq!(read_checked(&path), None);
        write_checked(&path, b"machine code").expect("written");
        assert_eq!(read_checked(&path).as_deref(), Some(b"machine code".as_slice()));
        let whole = std::fs::read(&path).expect("there");
        std::fs::write(&path, &whole[..whole.len() - 1]).expect("cut");
        assert_eq!(read_checked(&path), None);
        std::fs::write(&path, &whole[..7]).expect("cut");
        assert_eq!(read_checked(&path), None);
    }

    #[test]
    fn the_key_follows_source_defines_architecture_and_compiler() {
        let cache = |architecture: &str, nvrtc| KernelCache {
            architecture: architecture.into(),
            nvrtc,
            folder: None,
            loaded: Mutex::default(),
        };
        let defines = |d: &str| vec![("HEAD_DIM", d.to_owned())];
        let base = cache("sm_90a", (13, 0)).key(Source::Pack, &defines("128"));
        assert_eq!(base, cache("sm_90a", (13, 0)).key(Source::Pack, &defines("128")));
        for other in [
            cache("sm_80", (13, 0)).key(Source::Pack, &defines("128")),
            cache("sm_90a", (13, 1)).key(Source::Pack, &defines("128")),
            cache("sm_90a", (13, 0)).key(Source::Pack, &defines("64")),
            cache("sm_90a", (13, 0)).key(Source::LinearRow, &defines("128")),
        ] {
            assert_ne!(base, other);
        }
    }
}

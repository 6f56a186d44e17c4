//! The CUDA driver behind a few small types: a device, its memory, its kernels, recorded graphs, events.
//!
//! The libraries are opened at run time; nothing of CUDA is needed to build. Work is queued on one stream and the host
//! waits only where it reads. A failed call poisons the device: later calls do nothing, and [`Gpu::status`] returns the
//! first failure. So a forward pass need not be checked launch by launch, and nothing is computed from garbage.

mod graph;
mod launch;
mod memory;

pub use graph::{Event, Graph};
pub use launch::{Argument, Kernel};
pub(super) use launch::{Carveout, Grid, Launch, TensorLayout};
pub use memory::Memory;

use launch::PANEL;

use super::compile::{KernelCache, Module, Source};
use crate::error::{Error, Result};
use cudarc::driver::{CudaContext, DriverError, result, sys};
use std::ffi::c_void;
use std::path::PathBuf;
use std::sync::atomic::AtomicUsize;
use std::sync::{Arc, Mutex, PoisonError};

/// The oldest driver that has all the calls made here (12.4: what parameters a kernel takes).
const OLDEST_DRIVER: i32 = 12040;

/// What a device is, as far as launches depend on it.
#[derive(Debug, Clone, serde::Serialize)]
pub struct Properties {
    /// Marketing name.
    pub name: String,
    /// Compute capability, such as 90.
    pub compute_capability: u32,
    /// Streaming multiprocessors.
    pub multiprocessors: u32,
    /// Shared memory that one block may take, in bytes.
    pub shared_bytes_per_block: u32,
    /// Shared memory that the blocks on one multiprocessor may take together, what the system takes of each included.
    pub shared_bytes_per_multiprocessor: u32,
    /// L2 cache in bytes.
    pub l2_bytes: usize,
    /// Device memory in bytes.
    pub memory_bytes: usize,
    /// CUDA version of the driver, such as 13000.
    pub driver_version: i32,
}

impl Properties {
    /// The architecture that kernels are compiled for; with the features of exactly this chip where it has some.
    pub fn architecture(&self) -> String {
        let suffix = if matches!(self.compute_capability, 90 | 100 | 103) {
            "a"
        } else {
            ""
        };
        format!("sm_{}{suffix}", self.compute_capability)
    }
}

struct Inner {
    context: Arc<CudaContext>,
    stream: sys::CUstream,
    properties: Properties,
    failure: Mutex<Option<Error>>,
    allocated: AtomicUsize,
    peak: AtomicUsize,
    kernels: KernelCache,
}

// SAFETY: the driver's handles may be used from any thread in which the context is current; every call binds it first.
unsafe impl Send for Inner {}
// SAFETY: as above; the driver serialises access to a stream, all other state is behind locks or atomic.
unsafe impl Sync for Inner {}

impl Drop for Inner {
    fn drop(&mut self) {
        if self.context.bind_to_thread().is_ok() {
            // SAFETY: the stream was created in `Gpu::open` and nobody else holds it.
            let _ = unsafe { result::stream::destroy(self.stream) };
        }
    }
}

/// One CUDA device and the stream that all work is queued on. Clones share it.
#[derive(Clone)]
pub struct Gpu(Arc<Inner>);

impl std::fmt::Debug for Gpu {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.properties.fmt(f)
    }
}

/// Which CUDA library is missing, if one is; asked before any call, since a call into a missing library would panic.
pub fn missing_library() -> Option<Error> {
    // SAFETY: the three only try to open a library.
    let (driver, compiler, products) = unsafe {
        (
            sys::is_culib_present(),
            cudarc::nvrtc::sys::is_culib_present(),
            cudarc::cublaslt::sys::is_culib_present(),
        )
    };
    let runtime = "install the CUDA runtime libraries (`pip install nvidia-cuda-nvrtc nvidia-cublas` has them) and put \
                   their folder on `LD_LIBRARY_PATH`, or pass `--device cpu`";
    if !driver {
        Some(
            Error::environment("there is no CUDA device: the NVIDIA driver (libcuda) was not found")
                .help("install the NVIDIA driver, or pass `--device cpu`"),
        )
    } else if !compiler {
        Some(Error::environment("the CUDA kernel compiler NVRTC (libnvrtc) was not found").help(runtime))
    } else if !products {
        Some(Error::environment("the CUDA matrix library cuBLASLt (libcublasLt) was not found").help(runtime))
    } else {
        None
    }
}

/// What a failed call says of itself.
fn reason(error: DriverError) -> String {
    match (error.error_name(), error.error_string()) {
        (Ok(name), Ok(text)) => format!("{} ({})", text.to_string_lossy(), name.to_string_lossy()),
        _ => format!("{error:?}"),
    }
}

fn failed(what: &str, error: DriverError) -> Error {
    Error::environment(format!("{what} failed on the CUDA device: {}", reason(error)))
}

/// Number of devices that the driver shows; an error names what is missing.
pub fn device_count() -> Result<usize> {
    if let Some(error) = missing_library() {
        return Err(error);
    }
    let help = "check `nvidia-smi`, or pass `--device cpu`";
    result::init().map_err(|e| failed("starting the driver", e).help(help))?;
    let count = result::device::get_count().map_err(|e| failed("counting devices", e).help(help))?;
    Ok(count as usize)
}

impl Gpu {
    /// Opens device `ordinal`. Compiled kernels are kept in `kernel_cache`; `None`: nowhere.
    pub fn open(ordinal: usize, kernel_cache: Option<PathBuf>) -> Result<Self> {
        let count = device_count()?;
        if ordinal >= count {
            return Err(Error::environment(format!(
                "`cuda:{ordinal}` does not exist: the driver shows {count} devices"
            ))
            .help(if count == 0 {
                "pass `--device cpu`".to_owned()
            } else {
                format!("pass `--device cuda:{}` or less", count - 1)
            }));
        }
        let mut driver_version = 0;
        // SAFETY: writes one integer.
        unsafe { sys::cuDriverGetVersion(&raw mut driver_version) }
            .result()
            .map_err(|e| failed("asking for the driver's version", e))?;
        if driver_version < OLDEST_DRIVER {
            return Err(Error::environment(format!(
                "the NVIDIA driver is for CUDA {}.{}, and the GPU engine needs 12.4 or later",
                driver_version / 1000,
                driver_version % 1000 / 10
            ))
            .help("update the NVIDIA driver, or pass `--device cpu`"));
        }
        let opening = |e| failed(&format!("opening `cuda:{ordinal}`"), e).help("check `nvidia-smi`");
        let context = CudaContext::new(ordinal).map_err(opening)?;
        let properties = properties(&context, driver_version).map_err(opening)?;
        if properties.compute_capability < 80 {
            return Err(Error::environment(format!(
                "{} has compute capability {}.{}, and the GPU engine needs 8.0 (Ampere) or later",
                properties.name,
                properties.compute_capability / 10,
                properties.compute_capability % 10
            ))
            .help("pass `--device cpu`"));
        }
        let stream = result::stream::create(result::stream::StreamKind::NonBlocking).map_err(opening)?;
        let kernels = KernelCache::new(properties.architecture(), kernel_cache)?;
        Ok(Self(Arc::new(Inner {
            context,
            stream,
            properties,
            failure: Mutex::new(None),
            allocated: AtomicUsize::new(0),
            peak: AtomicUsize::new(0),
            kernels,
        })))
    }

    /// What the device is.
    pub fn properties(&self) -> &Properties {
        &self.0.properties
    }

    pub(super) fn stream(&self) -> sys::CUstream {
        self.0.stream
    }

    /// The first failure, if any call failed so far.
    pub fn status(&self) -> Result<()> {
        match &*self.0.failure.lock().unwrap_or_else(PoisonError::into_inner) {
            Some(error) => Err(error.clone()),
            None => Ok(()),
        }
    }

    fn healthy(&self) -> bool {
        self.status().is_ok()
    }

    /// Remembers the first failure.
    pub(super) fn fail(&self, error: Error) {
        let mut failure = self.0.failure.lock().unwrap_or_else(PoisonError::into_inner);
        failure.get_or_insert(error);
    }

    /// Runs a driver call unless the device is poisoned, with its context current in this thread.
    fn call<T>(&self, what: &str, body: impl FnOnce() -> Result<T, DriverError>) -> Option<T> {
        if !self.healthy() {
            return None;
        }
        match self.0.context.bind_to_thread().and_then(|()| body()) {
            Ok(value) => Some(value),
            Err(error) => {
                self.fail(failed(what, error));
                None
            }
        }
    }

    /// Waits until all queued work is done.
    pub fn synchronize(&self) -> Result<()> {
        // SAFETY: the stream lives as long as `self`.
        self.call("a kernel", || unsafe { result::stream::synchronize(self.0.stream) });
        self.status()
    }

    /// The kernels of `source` compiled with `defines`, such as `("HEAD_DIM", "128")`.
    pub fn module(&self, source: Source, defines: &[(&str, String)]) -> Result<Arc<Module>> {
        self.status()?;
        self.0
            .context
            .bind_to_thread()
            .map_err(|e| failed("binding the device", e))?;
        self.0.kernels.module(source, defines)
    }

    /// Queues a kernel.
    ///
    /// # Safety
    /// The arguments must be those of the kernel, in order, and every access it makes with them must stay inside live
    /// device memory.
    pub(super) unsafe fn launch(&self, kernel: &Kernel, shape: Launch, arguments: &[Argument]) {
        // The driver reads as many values as the kernel declares, whatever it is given.
        let given: Vec<usize> = arguments.iter().map(Argument::bytes).collect();
        if !kernel.takes(&given) {
            self.fail(Error::bug(format!(
                "the kernel `{}` takes parameters of {:?} bytes and was given {given:?}",
                kernel.name, kernel.parameters
            )));
            return;
        }
        let mut pointers: Vec<*mut c_void> = arguments.iter().map(Argument::payload).collect();
        let mut attributes = [sys::CUlaunchAttribute_st {
            id: sys::CUlaunchAttributeID_enum::CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION,
            pad: [0; 4],
            value: sys::CUlaunchAttributeValue_union {
                programmaticStreamSerializationAllowed: 1,
            },
        }];
        let overlaps = shape.overlaps && self.0.properties.compute_capability >= 90;
        let config = sys::CUlaunchConfig_st {
            gridDimX: shape.grid.0,
            gridDimY: shape.grid.1,
            gridDimZ: shape.grid.2,
            blockDimX: shape.block,
            blockDimY: 1,
            blockDimZ: 1,
            sharedMemBytes: shape.shared_bytes,
            hStream: self.0.stream,
            attrs: attributes.as_mut_ptr(),
            numAttrs: u32::from(overlaps),
        };
        self.call(&format!("launching the kernel `{}`", kernel.name), || {
            // SAFETY: the caller vouches for the arguments; the pointer array lives until the call returns, which is
            // when the driver has copied the values.
            unsafe {
                sys::cuLaunchKernelEx(
                    &raw const config,
                    kernel.function,
                    pointers.as_mut_ptr(),
                    std::ptr::null_mut(),
                )
            }
            .result()
        });
    }

    /// A descriptor with which the tensor copy engine reads tiles of `box_rows` rows of one head, in 128-byte panels that
    /// it swizzles.
    pub(super) fn tensor_map(
        &self,
        memory: &Memory,
        element: super::Element,
        layout: &TensorLayout,
    ) -> Result<Argument> {
        let bytes = |elements: usize| (elements * super::ELEMENT_BYTES) as u64;
        let panels = (layout.width / PANEL) as u64;
        let dimensions = [
            PANEL as u64,
            layout.rows as u64,
            panels,
            layout.heads as u64,
            layout.chunks as u64,
        ];
        let strides = [
            bytes(layout.row_stride),
            bytes(PANEL),
            bytes(layout.head_stride),
            bytes(layout.chunk_stride),
        ];
        let tile = [PANEL as u32, layout.box_rows as u32, panels as u32, 1, 1];
        let steps = [1u32; 5];
        let kind = match element {
            super::Element::Bf16 => sys::CUtensorMapDataType_enum::CU_TENSOR_MAP_DATA_TYPE_BFLOAT16,
            super::Element::F16 => sys::CUtensorMapDataType_enum::CU_TENSOR_MAP_DATA_TYPE_FLOAT16,
        };
        let mut map = sys::CUtensorMap { opaque: [0; 16] };
        self.call("describing a tensor", || {
            // SAFETY: the arrays have the five entries that the rank promises (four strides); the map is written whole.
            unsafe {
                sys::cuTensorMapEncodeTiled(
                    &raw mut map,
                    kind,
                    5,
                    memory.address() as *mut c_void,
                    dimensions.as_ptr(),
                    strides.as_ptr(),
                    tile.as_ptr(),
                    steps.as_ptr(),
                    sys::CUtensorMapInterleave_enum::CU_TENSOR_MAP_INTERLEAVE_NONE,
                    sys::CUtensorMapSwizzle_enum::CU_TENSOR_MAP_SWIZZLE_128B,
                    sys::CUtensorMapL2promotion_enum::CU_TENSOR_MAP_L2_PROMOTION_L2_128B,
                    sys::CUtensorMapFloatOOBfill_enum::CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE,
                )
            }
            .result()
        });
        self.status()?;
        Ok(Argument::TensorMap(map))
    }

    /// Queues what `body` queues, as one graph: recorded now, launched now and any number of times later.
    pub fn record(&self, body: impl FnOnce()) -> Option<Graph> {
        self.call("starting to record a graph", || unsafe {
            // SAFETY: the stream lives as long as `self`.
            result::stream::begin_capture(
                self.0.stream,
                sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL,
            )
        })?;
        body();
        // Ended even after a failure: a stream left in capture refuses everything.
        // SAFETY: capture was begun above on this stream.
        let graph = unsafe { result::stream::end_capture(self.0.stream) };
        let graph = self.call("recording a graph", || graph)?;
        let executable = self.call("preparing a graph", || {
            let mut executable = std::ptr::null_mut();
            // SAFETY: `graph` is the one just recorded; it is destroyed once, here.
            unsafe {
                let made = sys::cuGraphInstantiateWithFlags(&raw mut executable, graph, 0).result();
                result::graph::destroy(graph)?;
                made?;
            }
            Ok(executable)
        })?;
        Some(Graph {
            gpu: self.clone(),
            executable,
        })
    }

    /// A point in the stream.
    pub fn event(&self) -> Option<Event> {
        let flags = sys::CUevent_flags_enum::CU_EVENT_DEFAULT;
        let event = self.call("making an event", || result::event::create(flags))?;
        // SAFETY: event and stream are alive.
        self.call("recording an event", || unsafe {
            result::event::record(event, self.0.stream)
        })?;
        Some(Event {
            gpu: self.clone(),
            event,
        })
    }
}

fn properties(context: &CudaContext, driver_version: i32) -> Result<Properties, DriverError> {
    use sys::CUdevice_attribute_enum as Attribute;
    let attribute = |which| context.attribute(which).map(|value| value as u32);
    Ok(Properties {
        name: context.name()?,
        compute_capability: attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)? * 10
            + attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?,
        multiprocessors: attribute(Attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?,
        shared_bytes_per_block: attribute(Attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN)?,
        shared_bytes_per_multiprocessor: attribute(
            Attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_MULTIPROCESSOR,
        )?,
        l2_bytes: attribute(Attribute::CU_DEVICE_ATTRIBUTE_L2_CACHE_SIZE)? as usize,
        memory_bytes: result::mem_get_info()?.1,
        driver_version,
    })
}

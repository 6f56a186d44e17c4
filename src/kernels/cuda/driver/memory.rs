//! Memory of a device: allocated, counted, filled, read.

use super::{Argument, Gpu, failed};
use crate::bytes::human_bytes;
use crate::error::{Error, Result};
use cudarc::driver::{DriverError, result, sys};
use std::sync::atomic::Ordering;

/// Device memory; freed when dropped.
pub struct Memory {
    gpu: Gpu,
    pointer: sys::CUdeviceptr,
    bytes: usize,
}

impl Memory {
    /// Bytes.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// The device it lies on.
    pub fn gpu(&self) -> &Gpu {
        &self.gpu
    }

    /// As a kernel argument, `offset` bytes from the start.
    pub fn at(&self, offset: usize) -> Argument {
        debug_assert!(offset <= self.bytes, "{offset} of {}", self.bytes);
        Argument::Pointer(self.pointer + offset as u64)
    }

    /// The start as a kernel argument.
    pub fn start(&self) -> Argument {
        Argument::Pointer(self.pointer)
    }

    pub(in crate::kernels::cuda) fn address(&self) -> u64 {
        self.pointer
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        if self.pointer == 0 {
            return;
        }
        self.gpu.0.allocated.fetch_sub(self.bytes, Ordering::Relaxed);
        if self.gpu.0.context.bind_to_thread().is_ok() {
            // SAFETY: allocated once, freed once; the driver waits for work that uses it.
            let _ = unsafe { result::free_sync(self.pointer) };
        }
    }
}

impl Gpu {
    /// Free and total bytes of device memory.
    pub fn memory(&self) -> Result<(usize, usize)> {
        let answer = self.call("asking for free memory", result::mem_get_info);
        self.status()?;
        answer.ok_or_else(|| Error::bug("no answer of the driver and no failure"))
    }

    /// Bytes allocated now through this device.
    pub fn allocated_bytes(&self) -> usize {
        self.0.allocated.load(Ordering::Relaxed)
    }

    /// The most bytes that were allocated at once since [`Gpu::reset_peak`].
    pub fn peak_bytes(&self) -> usize {
        self.0.peak.load(Ordering::Relaxed)
    }

    /// Starts a new measurement of the peak.
    pub fn reset_peak(&self) {
        self.0.peak.store(self.allocated_bytes(), Ordering::Relaxed);
    }

    /// `bytes` zero bytes of device memory. Out of memory poisons the device with an error that says how much was asked.
    pub fn allocate(&self, bytes: usize) -> Memory {
        let rounded = bytes.next_multiple_of(16).max(16);
        let mut pointer = 0;
        if self.healthy() && self.0.context.bind_to_thread().is_ok() {
            // SAFETY: the pointer is owned by the `Memory` below, which frees it once.
            match unsafe { result::malloc_sync(rounded) } {
                Ok(allocated) => {
                    pointer = allocated;
                    let now = self.0.allocated.fetch_add(rounded, Ordering::Relaxed) + rounded;
                    self.0.peak.fetch_max(now, Ordering::Relaxed);
                    // SAFETY: the range was just allocated.
                    self.call("clearing memory", || unsafe {
                        result::memset_d8_async(pointer, 0, rounded, self.0.stream)
                    });
                }
                Err(DriverError(sys::CUresult::CUDA_ERROR_OUT_OF_MEMORY)) => self.fail(self.out_of_memory(rounded)),
                Err(error) => self.fail(failed("allocating memory", error)),
            }
        }
        Memory {
            gpu: self.clone(),
            pointer,
            bytes: rounded,
        }
    }

    fn out_of_memory(&self, wanted: usize) -> Error {
        let (free, total) = result::mem_get_info().unwrap_or((0, self.0.properties.memory_bytes));
        Error::environment(format!(
            "OOM: the CUDA device has no {} in one piece; {} of {} are free",
            human_bytes(wanted),
            human_bytes(free),
            human_bytes(total)
        ))
        .note(format!(
            "{} are allocated by this run",
            human_bytes(self.allocated_bytes())
        ))
        .help("pass a smaller `--max-context` or `--prefill-block`, or `--device cpu`")
    }

    /// Device memory with the given content.
    pub fn upload_new(&self, data: &[u8]) -> Memory {
        let memory = self.allocate(data.len());
        self.upload(&memory, 0, data);
        memory
    }

    /// Copies host bytes to `memory` at `offset`. The bytes may be reused at once.
    ///
    /// # Panics
    /// If they do not fit.
    pub fn upload(&self, memory: &Memory, offset: usize, data: &[u8]) {
        assert!(
            offset + data.len() <= memory.bytes,
            "upload past the end of device memory"
        );
        // SAFETY: the range lies inside the allocation; pageable host memory is staged before the call returns.
        self.call("an upload", || unsafe {
            result::memcpy_htod_async(memory.pointer + offset as u64, data, self.0.stream)
        });
    }

    /// Queues `bytes` zeros for `memory` at `offset`.
    ///
    /// # Panics
    /// If they do not fit.
    pub fn clear(&self, memory: &Memory, offset: usize, bytes: usize) {
        assert!(offset + bytes <= memory.bytes, "zeros past the end of device memory");
        // SAFETY: the range lies inside the allocation.
        self.call("clearing memory", || unsafe {
            result::memset_d8_async(memory.pointer + offset as u64, 0, bytes, self.0.stream)
        });
    }

    /// Copies device bytes at `offset` to `out` and waits for them.
    ///
    /// # Panics
    /// If there are not as many.
    pub fn download(&self, memory: &Memory, offset: usize, out: &mut [u8]) -> Result<()> {
        assert!(
            offset + out.len() <= memory.bytes,
            "download past the end of device memory"
        );
        // SAFETY: the range lies inside the allocation, and `out` outlives the wait below.
        self.call("a download", || unsafe {
            result::memcpy_dtoh_async(out, memory.pointer + offset as u64, self.0.stream)
        });
        self.synchronize()
    }
}

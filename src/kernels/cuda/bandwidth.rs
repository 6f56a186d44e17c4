//! Launches of the kernels that show what the chip's memory gives (`bandwidth.cu`).

use super::compile::Source;
use super::driver::{Argument, Gpu, Kernel, Launch, Memory};
use crate::error::Result;

const THREADS: u32 = 512;
const BLOCKS_PER_MULTIPROCESSOR: usize = 4;
/// Bytes of one access.
const ACCESS: usize = 16;

/// The kernels, loaded.
pub struct Bandwidth {
    gpu: Gpu,
    read: Kernel,
    copy: Kernel,
    sink: Memory,
}

impl Bandwidth {
    /// Compiles or loads them.
    pub fn new(gpu: &Gpu) -> Result<Self> {
        let module = gpu.module(Source::Bandwidth, &[])?;
        Ok(Self {
            gpu: gpu.clone(),
            read: module.kernel("read_all")?,
            copy: module.kernel("copy_all")?,
            sink: gpu.allocate(size_of::<u32>()),
        })
    }

    fn launch(&self) -> Launch {
        Launch::new(
            self.gpu.properties().multiprocessors as usize * BLOCKS_PER_MULTIPROCESSOR,
            THREADS,
        )
    }

    /// Reads all of `from`.
    pub fn read(&self, from: &Memory) {
        let count = Argument::I64((from.bytes() / ACCESS) as i64);
        let arguments = [from.start(), count, self.sink.start()];
        // SAFETY: `count` accesses lie inside the memory.
        unsafe { self.gpu.launch(&self.read, self.launch(), &arguments) };
    }

    /// Copies as much as both hold.
    pub fn copy(&self, from: &Memory, to: &Memory) {
        let count = Argument::I64((from.bytes().min(to.bytes()) / ACCESS) as i64);
        let arguments = [from.start(), to.start(), count];
        // SAFETY: `count` accesses lie inside both.
        unsafe { self.gpu.launch(&self.copy, self.launch(), &arguments) };
    }
}

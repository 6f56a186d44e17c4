//! What a launch is made of: a loaded kernel, its grid, its arguments.

use super::{Gpu, Memory};
use cudarc::driver::{result, sys};
use std::ffi::c_void;

/// One argument of a kernel.
#[derive(Debug, Clone, Copy)]
pub enum Argument {
    /// Device memory.
    Pointer(u64),
    /// `int`, or `unsigned`.
    I32(i32),
    /// `long long`, or `unsigned long long`.
    I64(i64),
    /// `float`.
    F32(f32),
    /// A descriptor for the tensor copy engine, by value.
    TensorMap(sys::CUtensorMap),
    /// A structure, by value; the driver takes as many bytes as the kernel declares.
    Structure([u64; 20]),
}

impl Argument {
    /// No memory.
    pub(in crate::kernels::cuda) const NULL: Self = Self::Pointer(0);

    /// A pointer, `bytes` further on.
    ///
    /// # Panics
    /// If this is a value.
    pub(in crate::kernels::cuda) fn after(self, bytes: usize) -> Self {
        match self {
            Self::Pointer(address) => Self::Pointer(address + bytes as u64),
            _ => unreachable!("only memory has something after it"),
        }
    }

    /// Bytes of the value; a structure counts as whatever the kernel declares.
    pub(super) fn bytes(&self) -> usize {
        match self {
            Self::I32(_) | Self::F32(_) => 4,
            Self::Pointer(_) | Self::I64(_) => 8,
            Self::TensorMap(_) => size_of::<sys::CUtensorMap>(),
            Self::Structure(_) => 0,
        }
    }

    /// Where the driver finds the value; it only reads.
    pub(super) fn payload(&self) -> *mut c_void {
        match self {
            Self::Pointer(x) => std::ptr::from_ref(x).cast_mut().cast(),
            Self::I32(x) => std::ptr::from_ref(x).cast_mut().cast(),
            Self::I64(x) => std::ptr::from_ref(x).cast_mut().cast(),
            Self::F32(x) => std::ptr::from_ref(x).cast_mut().cast(),
            Self::TensorMap(x) => std::ptr::from_ref(x).cast_mut().cast(),
            Self::Structure(x) => std::ptr::from_ref(x).cast_mut().cast(),
        }
    }
}

impl From<usize> for Argument {
    /// As `int`, which is what kernels take for sizes.
    fn from(x: usize) -> Self {
        debug_assert!(i32::try_from(x).is_ok(), "{x} does not fit a kernel's int");
        Self::I32(x as i32)
    }
}

impl From<f32> for Argument {
    fn from(x: f32) -> Self {
        Self::F32(x)
    }
}

impl From<&Memory> for Argument {
    fn from(memory: &Memory) -> Self {
        memory.start()
    }
}

/// Elements of one 128-byte panel of the tensor copy engine.
pub(super) const PANEL: usize = 64;

/// A tensor `[chunks][heads][rows][width]` with any strides, in elements.
pub(in crate::kernels::cuda) struct TensorLayout {
    /// Elements of a row, a multiple of 64.
    pub width: usize,
    pub rows: usize,
    pub row_stride: usize,
    pub heads: usize,
    pub head_stride: usize,
    pub chunks: usize,
    pub chunk_stride: usize,
    /// Rows of a tile.
    pub box_rows: usize,
}

/// A compiled kernel; its module outlives it inside the device's cache.
#[derive(Clone)]
pub struct Kernel {
    pub(in crate::kernels::cuda) function: sys::CUfunction,
    pub(in crate::kernels::cuda) name: &'static str,
    /// Bytes of each parameter.
    pub(super) parameters: Vec<usize>,
}

// SAFETY: a function handle is an immutable token of the driver.
unsafe impl Send for Kernel {}
// SAFETY: as above.
unsafe impl Sync for Kernel {}

impl Kernel {
    /// The loaded function `name`, with what the driver knows of its parameters.
    pub(in crate::kernels::cuda) fn new(function: sys::CUfunction, name: &'static str) -> Self {
        let mut parameters = Vec::new();
        let (mut offset, mut bytes) = (0, 0);
        // SAFETY: writes two integers; the driver refuses an index past the last parameter.
        while unsafe { sys::cuFuncGetParamInfo(function, parameters.len(), &raw mut offset, &raw mut bytes) }
            .result()
            .is_ok()
        {
            parameters.push(bytes);
        }
        Self {
            function,
            name,
            parameters,
        }
    }

    /// Whether values of these sizes are what the kernel declares; 0 stands for a structure.
    pub(super) fn takes(&self, given: &[usize]) -> bool {
        let fits = |(&declared, &given): (&usize, &usize)| {
            declared == given || given == 0 && declared <= size_of::<[u64; 20]>()
        };
        self.parameters.len() == given.len() && self.parameters.iter().zip(given).all(fits)
    }

    /// Lets a block of this kernel take `bytes` of dynamic shared memory.
    pub(in crate::kernels::cuda) fn allow_shared(&self, gpu: &Gpu, bytes: u32) {
        use sys::CUfunction_attribute_enum as Attribute;
        gpu.call("raising the shared memory of a kernel", || {
            // SAFETY: the function is loaded; the driver checks the size.
            unsafe {
                result::function::set_function_attribute(
                    self.function,
                    Attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES,
                    bytes as i32,
                )
            }
        });
    }

    /// Says how the kernel wants the first-level cache divided: without a word it keeps what the kernel before it left.
    pub(in crate::kernels::cuda) fn prefer(&self, gpu: &Gpu, carveout: Carveout) {
        use sys::CUfunction_attribute_enum as Attribute;
        let percent = match carveout {
            Carveout::MostShared => 100,
            Carveout::MostL1 => 0,
        };
        gpu.call("dividing the first-level cache", || {
            // SAFETY: the function is loaded; the value is a percentage.
            unsafe {
                result::function::set_function_attribute(
                    self.function,
                    Attribute::CU_FUNC_ATTRIBUTE_PREFERRED_SHARED_MEMORY_CARVEOUT,
                    percent,
                )
            }
        });
    }

    /// Blocks of `threads` threads and `shared_bytes` that run on one multiprocessor at once.
    pub(in crate::kernels::cuda) fn blocks_per_multiprocessor(
        &self,
        gpu: &Gpu,
        threads: u32,
        shared_bytes: u32,
    ) -> u32 {
        let mut blocks = 0;
        gpu.call("asking for a kernel's occupancy", || {
            // SAFETY: writes one integer.
            unsafe {
                sys::cuOccupancyMaxActiveBlocksPerMultiprocessor(
                    &raw mut blocks,
                    self.function,
                    threads as i32,
                    shared_bytes as usize,
                )
            }
            .result()
        });
        blocks.max(0) as u32
    }
}

/// A division of a multiprocessor's first-level cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::kernels::cuda) enum Carveout {
    /// All that may be is shared memory: a kernel may share the multiprocessor with another one that needs much.
    MostShared,
    /// Shared memory for the kernel's blocks and no more. For kernels that load through this cache, where what is in flight
    /// has its room: on an H200 a dense step of Qwen2-7B at 1M tokens takes 17.5 ms with most of it, 23.4 with the least.
    MostL1,
}

/// Grid, block and shared memory of one launch.
#[derive(Debug, Clone, Copy)]
pub(in crate::kernels::cuda) struct Launch {
    pub grid: (u32, u32, u32),
    pub block: u32,
    pub shared_bytes: u32,
    /// Programmatic dependent launch: the kernel may start while the one before it drains, and waits for it itself.
    pub overlaps: bool,
}

impl Launch {
    pub(in crate::kernels::cuda) fn new(grid: impl Into<Grid>, block: u32) -> Self {
        Self {
            grid: grid.into().0,
            block,
            shared_bytes: 0,
            overlaps: false,
        }
    }

    pub(in crate::kernels::cuda) fn shared(self, shared_bytes: u32) -> Self {
        Self { shared_bytes, ..self }
    }

    pub(in crate::kernels::cuda) fn overlapping(self) -> Self {
        Self { overlaps: true, ..self }
    }
}

/// Blocks in up to three directions.
pub(in crate::kernels::cuda) struct Grid((u32, u32, u32));

impl From<usize> for Grid {
    fn from(x: usize) -> Self {
        Self((x as u32, 1, 1))
    }
}
impl From<(usize, usize)> for Grid {
    fn from((x, y): (usize, usize)) -> Self {
        Self((x as u32, y as u32, 1))
    }
}
impl From<(usize, usize, usize)> for Grid {
    fn from((x, y, z): (usize, usize, usize)) -> Self {
        Self((x as u32, y as u32, z as u32))
    }
}

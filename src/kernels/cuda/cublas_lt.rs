//! cuBLASLt as both kinds of products use it: a handle with its workspace, and one plan per shape.

use super::driver::{Gpu, Memory};
use crate::error::{Error, Result};
use cudarc::cublaslt::{result as lt, sys};
use std::ffi::c_void;

pub(super) use cudarc::cublaslt::result::CublasError;
pub(super) use cudarc::cublaslt::sys::cudaDataType_t as DataType;

/// What NVIDIA advises for Hopper.
pub(super) const WORKSPACE_BYTES: usize = 32 << 20;

const HELP: &str = "check that libcublasLt belongs to the driver's CUDA version, or pass `--device cpu`";

/// A product that could not be planned or queued.
pub(super) fn broken(error: CublasError) -> Error {
    Error::environment(format!("a matrix product failed on the CUDA device: {error:?}")).help(HELP)
}

/// A product `result = first second` of matrices that lie column by column, as cuBLAS counts.
pub(super) struct Form {
    /// Type of both factors; sums are f32.
    pub factors: DataType,
    /// Type of the result.
    pub result: DataType,
    /// Rows and columns of the first, the second and the result, as they lie.
    pub sizes: [(usize, usize); 3],
    /// Whether the factors are taken transposed.
    pub transposed: [bool; 2],
    /// Whether a vector is added to every column of the result.
    pub bias: bool,
    /// What all addresses are multiples of, if it is less than what an allocation has.
    pub alignment: Option<u32>,
}

/// Where the operands of a product are.
pub(super) struct Places {
    pub first: u64,
    pub second: u64,
    pub bias: Option<u64>,
    pub result: u64,
    /// Whether the product is added to what is there.
    pub add: bool,
}

/// Descriptors and the algorithm of one form.
pub(super) struct Plan {
    operation: sys::cublasLtMatmulDesc_t,
    layouts: [sys::cublasLtMatrixLayout_t; 3],
    algorithm: sys::cublasLtMatmulAlgo_t,
}

impl Drop for Plan {
    fn drop(&mut self) {
        // SAFETY: each was made once, with the plan.
        unsafe {
            let _ = lt::destroy_matmul_desc(self.operation);
            for layout in self.layouts {
                let _ = lt::destroy_matrix_layout(layout);
            }
        }
    }
}

/// A handle and the memory that its products may use.
pub(super) struct Handle {
    handle: sys::cublasLtHandle_t,
    workspace: Memory,
}

// SAFETY: a handle may be used from any thread; its users lock it.
unsafe impl Send for Handle {}
// SAFETY: plans are used by whoever has locked the map that they are in.
unsafe impl Send for Plan {}

impl Drop for Handle {
    fn drop(&mut self) {
        // SAFETY: made once in `new`.
        let _ = unsafe { lt::destroy_handle(self.handle) };
    }
}

impl Handle {
    pub fn new(gpu: &Gpu) -> Result<Self> {
        let workspace = gpu.allocate(WORKSPACE_BYTES);
        gpu.status()?;
        let handle = lt::create_handle()
            .map_err(|error| Error::environment(format!("cuBLASLt does not start: {error:?}")).help(HELP))?;
        Ok(Self { handle, workspace })
    }

    /// Asks for the algorithm of a form.
    pub fn plan(&self, form: &Form) -> Result<Plan, CublasError> {
        use sys::cublasLtMatmulDescAttributes_t as Attribute;
        use sys::cublasLtMatmulPreferenceAttributes_t as Preference;
        let single = DataType::CUDA_R_32F;
        let operation = lt::create_matmul_desc(sys::cublasComputeType_t::CUBLAS_COMPUTE_32F, single)?;
        let layout = |at: usize, kind| {
            let (rows, columns) = form.sizes[at];
            lt::create_matrix_layout(kind, rows as u64, columns as u64, rows as i64)
        };
        let layouts = [
            layout(0, form.factors)?,
            layout(1, form.factors)?,
            layout(2, form.result)?,
        ];
        let preference = lt::create_matmul_pref()?;
        // SAFETY: every attribute is given with its own type and size; values are copied.
        let heuristic = unsafe {
            for (attribute, transposed) in [
                (Attribute::CUBLASLT_MATMUL_DESC_TRANSA, form.transposed[0]),
                (Attribute::CUBLASLT_MATMUL_DESC_TRANSB, form.transposed[1]),
            ] {
                // CUBLAS_OP_T is 1, CUBLAS_OP_N 0; the type is not in this crate's cuBLASLt part.
                let value = i32::from(transposed);
                lt::set_matmul_desc_attribute(operation, attribute, (&raw const value).cast(), size_of_val(&value))?;
            }
            if form.bias {
                let with_bias = sys::cublasLtEpilogue_t::CUBLASLT_EPILOGUE_BIAS;
                lt::set_matmul_desc_attribute(
                    operation,
                    Attribute::CUBLASLT_MATMUL_DESC_EPILOGUE,
                    (&raw const with_bias).cast(),
                    size_of_val(&with_bias),
                )?;
            }
            let workspace = WORKSPACE_BYTES;
            lt::set_matmul_pref_attribute(
                preference,
                Preference::CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES,
                (&raw const workspace).cast(),
                size_of::<usize>(),
            )?;
            for attribute in [
                Preference::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES,
                Preference::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES,
                Preference::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES,
                Preference::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES,
            ] {
                if let Some(alignment) = form.alignment {
                    let value = (&raw const alignment).cast();
                    lt::set_matmul_pref_attribute(preference, attribute, value, size_of::<u32>())?;
                }
            }
            let [first, second, result] = layouts;
            let heuristic =
                lt::get_matmul_algo_heuristic(self.handle, operation, first, second, result, result, preference);
            lt::destroy_matmul_pref(preference)?;
            heuristic?
        };
        Ok(Plan {
            operation,
            layouts,
            algorithm: heuristic.algo,
        })
    }

    /// Queues a product.
    ///
    /// # Safety
    /// The places must be live device memory of the plan's sizes and types.
    pub unsafe fn multiply(&self, gpu: &Gpu, plan: &Plan, at: &Places) -> Result<(), CublasError> {
        if let Some(pointer) = at.bias {
            // SAFETY: the attribute is a pointer; the value is copied.
            unsafe {
                lt::set_matmul_desc_attribute(
                    plan.operation,
                    sys::cublasLtMatmulDescAttributes_t::CUBLASLT_MATMUL_DESC_BIAS_POINTER,
                    (&raw const pointer).cast(),
                    size_of::<u64>(),
                )
            }?;
        }
        let (one, beta) = (1.0f32, if at.add { 1.0f32 } else { 0.0 });
        let [first, second, result] = plan.layouts;
        let to = at.result as *mut c_void;
        // SAFETY: layouts follow from the form; the caller vouches for the memory.
        unsafe {
            lt::matmul(
                self.handle,
                plan.operation,
                (&raw const one).cast(),
                (&raw const beta).cast(),
                at.first as *const c_void,
                first,
                at.second as *const c_void,
                second,
                to,
                result,
                to,
                result,
                &raw const plan.algorithm,
                self.workspace.address() as *mut c_void,
                WORKSPACE_BYTES,
                gpu.stream().cast(),
            )
        }
    }
}

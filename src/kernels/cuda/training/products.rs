//! The large products of training: cuBLASLt, one plan per shape. Every plan is chosen once and reduces in a fixed order,
//! so a run repeats bit by bit.

use super::{Precision, Span};
use crate::error::{Error, Result};
use crate::kernels::cuda::driver::{Gpu, Memory};
use crate::kernels::cuda::gemm::WORKSPACE_BYTES;
use cudarc::cublaslt::{result as lt, sys};
use std::collections::HashMap;
use std::ffi::c_void;

/// Which of the three products of an affine map `y = x w`, w `[inputs, outputs]`, over rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Form {
    /// `out[rows, outputs] = left[rows, inputs] right[inputs, outputs]`: x and w.
    Forward,
    /// `out[rows, inputs] = left[rows, outputs] right[inputs, outputs]^T`: dy and w.
    InputGradient,
    /// `out[inputs, outputs] = left[rows, inputs]^T right[rows, outputs]`: x and dy.
    WeightGradient,
}

/// Sizes of a product and what becomes of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Shape {
    /// Which one.
    pub form: Form,
    /// Rows of x and y.
    pub rows: usize,
    /// Columns of x.
    pub inputs: usize,
    /// Columns of y.
    pub outputs: usize,
    /// Whether the result is f32 and not a stored value.
    pub single: bool,
    /// Whether it is added to what is there.
    pub add: bool,
}

#[derive(PartialEq, Eq, Hash)]
struct Key {
    shape: Shape,
    bias: bool,
    /// What all addresses are multiples of.
    alignment: u32,
}

struct Plan {
    operation: sys::cublasLtMatmulDesc_t,
    /// Left and right in the order of cuBLAS, and the result.
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

/// The products of one device and precision.
pub(super) struct Products {
    handle: sys::cublasLtHandle_t,
    workspace: Memory,
    precision: Precision,
    plans: HashMap<Key, Plan>,
}

// SAFETY: handle and descriptors are used behind one lock.
unsafe impl Send for Products {}

impl Drop for Products {
    fn drop(&mut self) {
        self.plans.clear();
        // SAFETY: made once in `new`.
        let _ = unsafe { lt::destroy_handle(self.handle) };
    }
}

fn broken(error: lt::CublasError, shape: &Shape) -> Error {
    Error::environment(format!("a matrix product failed on the CUDA device: {error:?}"))
        .note(format!("{shape:?}"))
        .help("check that libcublasLt belongs to the driver's CUDA version, or pass `--device cpu`")
}

/// Largest power of two, at most 256, that divides all of them.
fn alignment(addresses: &[u64]) -> u32 {
    let all = addresses.iter().fold(256, |all, address| all | address);
    1 << all.trailing_zeros()
}

impl Products {
    pub(super) fn new(gpu: &Gpu, precision: Precision) -> Result<Self> {
        let workspace = gpu.allocate(WORKSPACE_BYTES);
        gpu.status()?;
        let handle = lt::create_handle().map_err(|error| {
            Error::environment(format!("cuBLASLt does not start: {error:?}"))
                .help("check that libcublasLt belongs to the driver's CUDA version, or pass `--device cpu`")
        })?;
        Ok(Self {
            handle,
            workspace,
            precision,
            plans: HashMap::new(),
        })
    }

    /// Queues a product.
    ///
    /// # Safety
    /// The operands must be live device memory of the stated sizes.
    pub(super) unsafe fn multiply(
        &mut self,
        gpu: &Gpu,
        shape: Shape,
        left: Span<'_>,
        right: Span<'_>,
        bias: Option<Span<'_>>,
        out: Span<'_>,
    ) -> Result<()> {
        let addresses = [left.address(), right.address(), out.address()];
        let key = Key {
            shape,
            bias: bias.is_some(),
            alignment: alignment(&addresses),
        };
        let handle = self.handle;
        let plan = match self.plans.entry(key) {
            std::collections::hash_map::Entry::Occupied(entry) => entry.into_mut(),
            std::collections::hash_map::Entry::Vacant(entry) => {
                let made = plan(handle, self.precision, entry.key()).map_err(|e| broken(e, &shape))?;
                entry.insert(made)
            }
        };
        if let Some(bias) = bias {
            let pointer = bias.address();
            // SAFETY: the attribute is a pointer; the value is copied.
            unsafe {
                lt::set_matmul_desc_attribute(
                    plan.operation,
                    sys::cublasLtMatmulDescAttributes_t::CUBLASLT_MATMUL_DESC_BIAS_POINTER,
                    (&raw const pointer).cast(),
                    size_of::<u64>(),
                )
            }
            .map_err(|e| broken(e, &shape))?;
        }
        // cuBLAS counts in columns, so all matrices are transposes there and the product is turned round.
        let (one, beta) = (1.0f32, if shape.add { 1.0f32 } else { 0.0 });
        let to = out.address() as *mut c_void;
        // SAFETY: layouts follow from the shape; the caller vouches for the memory.
        unsafe {
            lt::matmul(
                handle,
                plan.operation,
                (&raw const one).cast(),
                (&raw const beta).cast(),
                right.address() as *const c_void,
                plan.layouts[0],
                left.address() as *const c_void,
                plan.layouts[1],
                to,
                plan.layouts[2],
                to,
                plan.layouts[2],
                &raw const plan.algorithm,
                self.workspace.address() as *mut c_void,
                WORKSPACE_BYTES,
                gpu.stream().cast(),
            )
        }
        .map_err(|e| broken(e, &shape))
    }
}

fn plan(handle: sys::cublasLtHandle_t, precision: Precision, key: &Key) -> Result<Plan, lt::CublasError> {
    use sys::cublasLtMatmulDescAttributes_t as Attribute;
    use sys::cublasLtMatmulPreferenceAttributes_t as Preference;
    let single = sys::cudaDataType_t::CUDA_R_32F;
    let value = match precision {
        Precision::F32 => single,
        Precision::Bf16 => sys::cudaDataType_t::CUDA_R_16BF,
    };
    let shape = &key.shape;
    let [rows, inputs, outputs] = [shape.rows, shape.inputs, shape.outputs].map(|x| x as u64);
    // Columns-first sizes of the first, second and resulting matrix, and whether the first two are taken transposed.
    let (sizes, transposed) = match shape.form {
        Form::Forward => ([(outputs, inputs), (inputs, rows), (outputs, rows)], [0i32, 0]),
        Form::InputGradient => ([(outputs, inputs), (outputs, rows), (inputs, rows)], [1, 0]),
        Form::WeightGradient => ([(outputs, rows), (inputs, rows), (outputs, inputs)], [0, 1]),
    };
    let operation = lt::create_matmul_desc(sys::cublasComputeType_t::CUBLAS_COMPUTE_32F, single)?;
    let layout = |at: usize, kind| lt::create_matrix_layout(kind, sizes[at].0, sizes[at].1, sizes[at].0 as i64);
    let layouts = [
        layout(0, value)?,
        layout(1, value)?,
        layout(2, if shape.single { single } else { value })?,
    ];
    let preference = lt::create_matmul_pref()?;
    // SAFETY: every attribute is given with its own type and size; values are copied.
    let heuristic = unsafe {
        for (attribute, value) in [
            (Attribute::CUBLASLT_MATMUL_DESC_TRANSA, transposed[0]),
            (Attribute::CUBLASLT_MATMUL_DESC_TRANSB, transposed[1]),
        ] {
            lt::set_matmul_desc_attribute(operation, attribute, (&raw const value).cast(), size_of_val(&value))?;
        }
        if key.bias {
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
            let alignment = key.alignment;
            lt::set_matmul_pref_attribute(preference, attribute, (&raw const alignment).cast(), size_of::<u32>())?;
        }
        let heuristic = lt::get_matmul_algo_heuristic(
            handle, operation, layouts[0], layouts[1], layouts[2], layouts[2], preference,
        );
        lt::destroy_matmul_pref(preference)?;
        heuristic?
    };
    Ok(Plan {
        operation,
        layouts,
        algorithm: heuristic.algo,
    })
}

#[cfg(test)]
mod tests {
    use super::alignment;

    #[test]
    fn alignment_is_that_of_the_worst_operand() {
        assert_eq!(alignment(&[0x1000, 0x2000]), 256);
        assert_eq!(alignment(&[0x1000, 0x2020]), 32);
        assert_eq!(alignment(&[0x1010, 0x2020, 0x3004]), 4);
    }
}

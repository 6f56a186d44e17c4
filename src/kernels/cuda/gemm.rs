//! Products of many rows: cuBLASLt, one plan per shape.

use super::driver::{Argument, Gpu, Memory};
use crate::error::{Error, Result};
use cudarc::cublaslt::{result as lt, sys};
use std::collections::HashMap;
use std::ffi::c_void;

/// What NVIDIA advises for Hopper.
pub(super) const WORKSPACE_BYTES: usize = 32 << 20;

/// Type of the stored elements.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Element {
    /// bfloat16.
    Bf16,
    /// IEEE half.
    F16,
}

/// Type of both operands of a product.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Operands {
    /// As the device stores weights and activations.
    Stored(Element),
    /// Single precision, multiplied as such: no operand is rounded to fewer digits on the way.
    Single,
}

/// Where the product goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Output {
    /// Overwrites elements.
    Elements,
    /// Is added to f32.
    AddF32,
    /// Overwrites f32.
    F32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Shape {
    rows: usize,
    inputs: usize,
    outputs: usize,
    operands: Operands,
    output: Output,
    bias: bool,
}

/// Descriptors and the algorithm of one shape.
struct Plan {
    operation: sys::cublasLtMatmulDesc_t,
    weight: sys::cublasLtMatrixLayout_t,
    input: sys::cublasLtMatrixLayout_t,
    output: sys::cublasLtMatrixLayout_t,
    algorithm: sys::cublasLtMatmulAlgo_t,
}

impl Drop for Plan {
    fn drop(&mut self) {
        // SAFETY: each was made once, with the plan.
        unsafe {
            let _ = lt::destroy_matmul_desc(self.operation);
            for layout in [self.weight, self.input, self.output] {
                let _ = lt::destroy_matrix_layout(layout);
            }
        }
    }
}

/// The matrix products of one device.
pub(super) struct Gemm {
    handle: sys::cublasLtHandle_t,
    workspace: Memory,
    plans: HashMap<Shape, Plan>,
}

// SAFETY: handle and descriptors are used behind one lock.
unsafe impl Send for Gemm {}

impl Drop for Gemm {
    fn drop(&mut self) {
        self.plans.clear();
        // SAFETY: made once in `new`.
        let _ = unsafe { lt::destroy_handle(self.handle) };
    }
}

/// Operands of one product: `out[rows][outputs] (+)= x[rows][inputs] w[outputs][inputs]^T + bias`.
pub(super) struct Product<'a> {
    pub x: Argument,
    pub rows: usize,
    pub w: &'a Memory,
    pub inputs: usize,
    pub outputs: usize,
    pub operands: Operands,
    /// Elements, `[outputs]`; only with [`Output::Elements`].
    pub bias: Option<&'a Memory>,
    pub out: Argument,
    pub output: Output,
}

fn broken(error: lt::CublasError) -> Error {
    Error::environment(format!("a matrix product failed on the CUDA device: {error:?}"))
        .help("check that libcublasLt belongs to the driver's CUDA version, or pass `--device cpu`")
}

fn address(argument: Argument) -> *mut c_void {
    match argument {
        Argument::Pointer(p) => p as *mut c_void,
        _ => std::ptr::null_mut(),
    }
}

impl Gemm {
    pub(super) fn new(gpu: &Gpu) -> Result<Self> {
        let workspace = gpu.allocate(WORKSPACE_BYTES);
        gpu.status()?;
        Ok(Self {
            handle: lt::create_handle().map_err(broken)?,
            workspace,
            plans: HashMap::new(),
        })
    }

    /// Queues the product.
    ///
    /// # Safety
    /// `x`, `w`, `bias` and `out` must be live device memory of the stated shapes.
    pub(super) unsafe fn multiply(&mut self, gpu: &Gpu, product: &Product<'_>) -> Result<()> {
        let shape = Shape {
            rows: product.rows,
            inputs: product.inputs,
            outputs: product.outputs,
            operands: product.operands,
            output: product.output,
            bias: product.bias.is_some(),
        };
        if !self.plans.contains_key(&shape) {
            let plan = plan(self.handle, &shape).map_err(broken)?;
            self.plans.insert(shape, plan);
        }
        let plan = &self.plans[&shape];
        let one = 1.0f32;
        let beta = if product.output == Output::AddF32 { 1.0f32 } else { 0.0 };
        if let Some(bias) = product.bias {
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
            .map_err(broken)?;
        }
        let out = address(product.out);
        // SAFETY: layouts follow from the shape; the caller vouches for the memory.
        unsafe {
            lt::matmul(
                self.handle,
                plan.operation,
                (&raw const one).cast(),
                (&raw const beta).cast(),
                product.w.address() as *const c_void,
                plan.weight,
                address(product.x),
                plan.input,
                out,
                plan.output,
                out,
                plan.output,
                &raw const plan.algorithm,
                self.workspace.address() as *mut c_void,
                WORKSPACE_BYTES,
                gpu.stream().cast(),
            )
        }
        .map_err(broken)
    }
}

/// cuBLAS counts in columns: `out^T[outputs x rows] = w[outputs x inputs] x^T`, with w stored as its transpose.
fn plan(handle: sys::cublasLtHandle_t, shape: &Shape) -> Result<Plan, lt::CublasError> {
    use sys::cublasLtMatmulDescAttributes_t as Attribute;
    let single = sys::cudaDataType_t::CUDA_R_32F;
    let element = match shape.operands {
        Operands::Stored(Element::Bf16) => sys::cudaDataType_t::CUDA_R_16BF,
        Operands::Stored(Element::F16) => sys::cudaDataType_t::CUDA_R_16F,
        Operands::Single => single,
    };
    let out_type = if shape.output == Output::Elements {
        element
    } else {
        single
    };
    let [rows, inputs, outputs] = [shape.rows, shape.inputs, shape.outputs].map(|x| x as u64);
    let operation = lt::create_matmul_desc(sys::cublasComputeType_t::CUBLAS_COMPUTE_32F, single)?;
    let weight = lt::create_matrix_layout(element, inputs, outputs, inputs as i64)?;
    let input = lt::create_matrix_layout(element, inputs, rows, inputs as i64)?;
    let output = lt::create_matrix_layout(out_type, outputs, rows, outputs as i64)?;
    let preference = lt::create_matmul_pref()?;
    // CUBLAS_OP_T; the type is not in this crate's cuBLASLt part.
    let transposed = 1i32;
    let with_bias = sys::cublasLtEpilogue_t::CUBLASLT_EPILOGUE_BIAS;
    // SAFETY: every attribute is given with its own type and size; values are copied.
    let heuristic = unsafe {
        lt::set_matmul_desc_attribute(
            operation,
            Attribute::CUBLASLT_MATMUL_DESC_TRANSA,
            (&raw const transposed).cast(),
            size_of_val(&transposed),
        )?;
        if shape.bias {
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
            sys::cublasLtMatmulPreferenceAttributes_t::CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES,
            (&raw const workspace).cast(),
            size_of::<usize>(),
        )?;
        let heuristic = lt::get_matmul_algo_heuristic(handle, operation, weight, input, output, output, preference);
        lt::destroy_matmul_pref(preference)?;
        heuristic?
    };
    Ok(Plan {
        operation,
        weight,
        input,
        output,
        algorithm: heuristic.algo,
    })
}

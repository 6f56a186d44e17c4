//! Products of many rows: cuBLASLt, one plan per shape.

use super::cublas_lt::{CublasError, DataType, Form, Handle, Places, Plan, broken};
use super::driver::{Argument, Gpu, Memory};
use crate::error::Result;
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::{Mutex, PoisonError};

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

/// Matrix products on one device.
pub(super) struct Gemm {
    gpu: Gpu,
    planned: Mutex<Planned>,
}

struct Planned {
    // Plans go before the handle that they were made with.
    plans: HashMap<Shape, Plan>,
    handle: Handle,
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

fn address(argument: Argument) -> u64 {
    match argument {
        Argument::Pointer(p) => p,
        _ => 0,
    }
}

impl Gemm {
    pub(super) fn new(gpu: &Gpu) -> Result<Self> {
        let planned = Planned {
            plans: HashMap::new(),
            handle: Handle::new(gpu)?,
        };
        Ok(Self {
            gpu: gpu.clone(),
            planned: Mutex::new(planned),
        })
    }

    /// Queues the product, unless the device has failed; a failure is the device's.
    ///
    /// # Safety
    /// `x`, `w`, `bias` and `out` must be live device memory of the stated shapes.
    pub(super) unsafe fn multiply(&self, product: &Product<'_>) {
        if self.gpu.status().is_err() {
            return;
        }
        // SAFETY: passed on.
        if let Err(error) = unsafe { self.queue(product) } {
            self.gpu.fail(broken(error));
        }
    }

    /// # Safety
    /// As of [`Gemm::multiply`].
    unsafe fn queue(&self, product: &Product<'_>) -> std::result::Result<(), CublasError> {
        let shape = Shape {
            rows: product.rows,
            inputs: product.inputs,
            outputs: product.outputs,
            operands: product.operands,
            output: product.output,
            bias: product.bias.is_some(),
        };
        let places = Places {
            first: product.w.address(),
            second: address(product.x),
            bias: product.bias.map(Memory::address),
            result: address(product.out),
            add: product.output == Output::AddF32,
        };
        let mut planned = self.planned.lock().unwrap_or_else(PoisonError::into_inner);
        let Planned { plans, handle } = &mut *planned;
        let plan = match plans.entry(shape) {
            Entry::Occupied(made) => made.into_mut(),
            Entry::Vacant(place) => place.insert(handle.plan(&form(&shape))?),
        };
        // SAFETY: passed on.
        unsafe { handle.multiply(&self.gpu, plan, &places) }
    }
}

/// cuBLAS counts in columns: `out^T[outputs x rows] = w[outputs x inputs] x^T`, with w stored as its transpose.
fn form(shape: &Shape) -> Form {
    let single = DataType::CUDA_R_32F;
    let factors = match shape.operands {
        Operands::Stored(Element::Bf16) => DataType::CUDA_R_16BF,
        Operands::Stored(Element::F16) => DataType::CUDA_R_16F,
        Operands::Single => single,
    };
    let Shape {
        rows, inputs, outputs, ..
    } = *shape;
    Form {
        factors,
        result: if shape.output == Output::Elements {
            factors
        } else {
            single
        },
        sizes: [(inputs, outputs), (inputs, rows), (outputs, rows)],
        transposed: [true, false],
        bias: shape.bias,
        alignment: None,
    }
}

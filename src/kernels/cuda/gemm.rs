//! Products of many rows: cuBLASLt, one plan per shape.

use super::cublas_lt::{DataType, Form, Handle, Places, Plan, broken};
use super::driver::{Argument, Gpu, Memory};
use crate::error::Result;
use std::collections::HashMap;

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

/// The matrix products of one device.
pub(super) struct Gemm {
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
        Ok(Self {
            plans: HashMap::new(),
            handle: Handle::new(gpu)?,
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
            let plan = self.handle.plan(&form(&shape)).map_err(broken)?;
            self.plans.insert(shape, plan);
        }
        let places = Places {
            first: product.w.address(),
            second: address(product.x),
            bias: product.bias.map(Memory::address),
            result: address(product.out),
            add: product.output == Output::AddF32,
        };
        // SAFETY: passed on.
        unsafe { self.handle.multiply(gpu, &self.plans[&shape], &places) }.map_err(broken)
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

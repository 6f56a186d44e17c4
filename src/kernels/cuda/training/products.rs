//! The large products of training: cuBLASLt, one plan per shape. Every plan is chosen once and reduces in a fixed order,
//! so a run repeats bit by bit.

use super::{Precision, Span};
use crate::error::Result;
use crate::kernels::cuda::cublas_lt::{self as lt, DataType, Handle, Places, Plan, broken};
use crate::kernels::cuda::driver::Gpu;
use std::collections::HashMap;
use std::collections::hash_map::Entry;

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

/// The products of one device and precision.
pub(super) struct Products {
    // Plans go before the handle that they were made with.
    plans: HashMap<Key, Plan>,
    handle: Handle,
    precision: Precision,
}

/// Largest power of two, at most 256, that divides all of them.
fn alignment(addresses: &[u64]) -> u32 {
    let all = addresses.iter().fold(256, |all, address| all | address);
    1 << all.trailing_zeros()
}

impl Products {
    pub(super) fn new(gpu: &Gpu, precision: Precision) -> Result<Self> {
        Ok(Self {
            plans: HashMap::new(),
            handle: Handle::new(gpu)?,
            precision,
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
        let failed = |error| broken(error).note(format!("{shape:?}"));
        let key = Key {
            shape,
            bias: bias.is_some(),
            alignment: alignment(&[left.address(), right.address(), out.address()]),
        };
        let plan = match self.plans.entry(key) {
            Entry::Occupied(entry) => entry.into_mut(),
            Entry::Vacant(entry) => {
                let form = form(self.precision, entry.key());
                entry.insert(self.handle.plan(&form).map_err(failed)?)
            }
        };
        // cuBLAS counts in columns, so all matrices are transposes there and the product is turned round.
        let places = Places {
            first: right.address(),
            second: left.address(),
            bias: bias.map(|bias| bias.address()),
            result: out.address(),
            add: shape.add,
        };
        // SAFETY: passed on.
        unsafe { self.handle.multiply(gpu, plan, &places) }.map_err(failed)
    }
}

fn form(precision: Precision, key: &Key) -> lt::Form {
    let single = DataType::CUDA_R_32F;
    let value = match precision {
        Precision::F32 => single,
        Precision::Bf16 => DataType::CUDA_R_16BF,
    };
    let Shape {
        form,
        rows,
        inputs,
        outputs,
        ..
    } = key.shape;
    let (sizes, transposed) = match form {
        Form::Forward => ([(outputs, inputs), (inputs, rows), (outputs, rows)], [false, false]),
        Form::InputGradient => ([(outputs, inputs), (outputs, rows), (inputs, rows)], [true, false]),
        Form::WeightGradient => ([(outputs, rows), (inputs, rows), (outputs, inputs)], [false, true]),
    };
    lt::Form {
        factors: value,
        result: if key.shape.single { single } else { value },
        sizes,
        transposed,
        bias: key.bias,
        alignment: Some(key.alignment),
    }
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

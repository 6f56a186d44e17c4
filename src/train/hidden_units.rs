//! Which hidden units of the feed-forward parts are on.
//!
//! `ReLU` is the only part of the model whose gradient jumps: a unit whose input is within rounding of 0 may be on in one
//! precision and off in another, and each is right. Two precisions are therefore compared with the units of the one forced
//! on the other, and with a count of those that had to be switched.

use super::scalar::Scalar;

/// By layer: which elements of `[T, B, d_ffn]` are above 0, after dropout.
pub type HiddenUnits = Vec<Vec<bool>>;

/// Looks at the hidden units of a pass, or replaces them by others.
#[derive(Debug, Clone, Default)]
pub struct Watch {
    forced: Option<HiddenUnits>,
    /// The pass's own units.
    pub seen: HiddenUnits,
    /// Units that were not as the forced ones.
    pub switched: usize,
    /// The largest input of a switched unit, without its sign, relative to the root mean square of its layer's inputs.
    pub furthest: f64,
}

impl Watch {
    /// A watch that makes the units of a pass those of another.
    pub fn forcing(units: HiddenUnits) -> Self {
        Self {
            forced: Some(units),
            ..Self::default()
        }
    }

    /// Layer `layer` has come to `hidden`; `write_inputs` writes what the activation was given, without dropout.
    pub(super) fn visit<T: Scalar>(&mut self, layer: usize, hidden: &mut [T], write_inputs: impl FnOnce(&mut [T])) {
        self.seen.push(hidden.iter().map(|&value| value > T::ZERO).collect());
        let (Some(forced), seen) = (&self.forced, &self.seen[layer]) else {
            return;
        };
        let mut inputs = vec![T::ZERO; hidden.len()];
        write_inputs(&mut inputs);
        let squares: f64 = inputs.iter().map(|x| x.f64() * x.f64()).sum();
        let usual = (squares / inputs.len() as f64).sqrt();
        // On, and as good as 0 for what comes after it.
        let least = T::of(1e-30);
        for (at, (&wanted, &own)) in forced[layer].iter().zip(seen).enumerate() {
            if wanted != own {
                hidden[at] = if wanted { least } else { T::ZERO };
                self.switched += 1;
                self.furthest = self.furthest.max(inputs[at].f64().abs() / usual);
            }
        }
    }
}

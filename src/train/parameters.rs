//! All parameters of a model in one flat buffer, with a directory of named tensors; gradients lie the same way.

use super::scalar::Scalar;
use crate::random::stream_rng;
use rand::Rng;
use std::ops::Range;

/// A standard normal number by Box and Muller's transform.
fn normal(rng: &mut impl Rng) -> f64 {
    let (u, v): (f64, f64) = (rng.random(), rng.random());
    (-2.0 * (1.0 - u).ln()).sqrt() * (std::f64::consts::TAU * v).cos()
}

/// Tensors begin at multiples of this, a cache line of f32.
const ALIGN: usize = 16;

/// How a tensor begins.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Init {
    /// Zeros.
    Zeros,
    /// Ones.
    Ones,
    /// Uniform between plus and minus this: `PyTorch`'s default of affine maps and convolutions is 1 / sqrt(fan-in).
    Uniform(f64),
    /// Standard normal: `PyTorch`'s default of embeddings.
    Normal,
}

/// Index of a tensor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Id(usize);

/// One named tensor.
#[derive(Debug, Clone, PartialEq)]
pub struct Spec {
    /// Such as `layers.0.attention.query.weight`.
    pub name: String,
    /// Sizes, slowest first.
    pub shape: Vec<usize>,
    /// How it begins.
    pub init: Init,
    /// First element in the flat buffer.
    offset: usize,
    /// Elements that can ever get a gradient; the others stay at their beginning and cost no work.
    reached: Range<usize>,
}

impl Spec {
    /// Elements.
    pub fn len(&self) -> usize {
        self.shape.iter().product()
    }

    /// Whether it has no element.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Place in the flat buffer.
    pub fn range(&self) -> Range<usize> {
        self.offset..self.offset + self.len()
    }
}

/// The directory.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Layout {
    specs: Vec<Spec>,
    len: usize,
}

impl Layout {
    /// Adds a tensor.
    pub fn add(&mut self, name: impl Into<String>, shape: &[usize], init: Init) -> Id {
        let len: usize = shape.iter().product();
        self.add_reached(name, shape, init, 0..len)
    }

    /// Adds a tensor of which only the elements `reached` ever get a gradient.
    pub fn add_reached(&mut self, name: impl Into<String>, shape: &[usize], init: Init, reached: Range<usize>) -> Id {
        let spec = Spec {
            name: name.into(),
            shape: shape.to_vec(),
            init,
            offset: self.len,
            reached,
        };
        self.len += spec.len().next_multiple_of(ALIGN);
        self.specs.push(spec);
        Id(self.specs.len() - 1)
    }

    /// The tensors in order.
    pub fn specs(&self) -> &[Spec] {
        &self.specs
    }

    /// One tensor.
    pub fn spec(&self, id: Id) -> &Spec {
        &self.specs[id.0]
    }

    /// Elements of all tensors together.
    pub fn count(&self) -> usize {
        self.specs.iter().map(Spec::len).sum()
    }

    /// Ranges of the flat buffer that an optimiser must visit.
    pub fn reached(&self) -> Vec<Range<usize>> {
        let absolute = |spec: &Spec| spec.offset + spec.reached.start..spec.offset + spec.reached.end;
        self.specs.iter().map(absolute).collect()
    }

    /// A buffer of zeros for one value per parameter.
    pub fn zeros<T: Scalar>(&self) -> Vec<T> {
        vec![T::ZERO; self.len]
    }

    /// The beginning of training under `seed`. Every tensor has its own random stream by name, so models that share
    /// tensors begin with the same ones.
    pub fn initial<T: Scalar>(&self, seed: u64) -> Vec<T> {
        let mut data = self.zeros();
        for spec in &self.specs {
            let mut rng = stream_rng(seed, &format!("init/{}", spec.name));
            for value in &mut data[spec.range()] {
                *value = match spec.init {
                    Init::Zeros => T::ZERO,
                    Init::Ones => T::ONE,
                    Init::Uniform(bound) => T::of(rng.random_range(-bound..=bound)),
                    Init::Normal => T::of(normal(&mut rng)),
                };
            }
        }
        data
    }

    /// One tensor of a flat buffer.
    pub fn get<'a, T>(&self, data: &'a [T], id: Id) -> &'a [T] {
        &data[self.spec(id).range()]
    }

    /// One tensor of a flat buffer, to change.
    pub fn get_mut<'a, T>(&self, data: &'a mut [T], id: Id) -> &'a mut [T] {
        &mut data[self.spec(id).range()]
    }

    /// Two different tensors of a flat buffer, to change; `first` was added before `second`.
    pub fn pair_mut<'a, T>(&self, data: &'a mut [T], first: Id, second: Id) -> (&'a mut [T], &'a mut [T]) {
        let (a, b) = (self.spec(first).range(), self.spec(second).range());
        let (low, high) = data.split_at_mut(b.start);
        (&mut low[a], &mut high[..b.len()])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tensors_shared_by_name_begin_equal() {
        let mut one = Layout::default();
        let a = one.add("a", &[3, 5], Init::Uniform(0.5));
        let b = one.add("b", &[7], Init::Normal);
        let mut two = Layout::default();
        let b2 = two.add("b", &[7], Init::Normal);
        let (x, y) = (one.initial::<f64>(4), two.initial::<f64>(4));
        assert_eq!(one.get(&x, b), two.get(&y, b2));
        assert!(one.get(&x, a).iter().all(|v| v.abs() <= 0.5));
        assert_eq!((one.count(), two.count()), (22, 7));
        assert_ne!(one.initial::<f64>(5), x);
    }

    #[test]
    fn the_normal_stream_has_mean_0_and_deviation_1() {
        let mut layout = Layout::default();
        layout.add("x", &[40_000], Init::Normal);
        let x = layout.initial::<f64>(0);
        let mean = x.iter().sum::<f64>() / x.len() as f64;
        let variance = x.iter().map(|v| v * v).sum::<f64>() / x.len() as f64;
        // Four standard errors: 0.02 of the mean, 0.028 of the variance.
        assert!(mean.abs() < 0.02 && (variance - 1.0).abs() < 0.028, "{mean} {variance}");
    }
}

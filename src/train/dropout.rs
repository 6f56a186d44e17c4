//! Dropout whose masks follow from seed and place, so that a backward pass, a resumed run, or another device draws the
//! same ones.

use super::scalar::Scalar;
use crate::random::stream_rng;
use rand::RngCore;
use rayon::prelude::*;

/// Elements of a piece of parallel work; a multiple of the four numbers of one draw.
const CHUNK: usize = 4096;

/// Inverted dropout (Srivastava et al. 2014): an element is 0 with probability `rate`, else divided by `1 - rate`.
///
/// Element i of part p of a place is decided by a counter-based generator (Philox4x32-10, Salmon et al. 2011) at counter
/// (i / 4, p), so any thread of any device finds it without the ones before.
#[derive(Debug, Clone, PartialEq)]
pub struct Dropout {
    rate: f64,
    seed: u64,
    place: String,
    key: u64,
}

impl Dropout {
    /// No dropout.
    pub fn none() -> Self {
        Self::new(0.0, 0, String::new())
    }

    /// Dropout with probability `rate` (0 does nothing) in a run of `seed`, where `place` names step, layer and place.
    pub fn new(rate: f64, seed: u64, place: String) -> Self {
        let key = if rate > 0.0 {
            stream_rng(seed, &format!("dropout/{place}")).next_u64()
        } else {
            0
        };
        Self { rate, seed, place, key }
    }

    /// The same at a narrower place.
    #[must_use]
    pub fn at(&self, place: &str) -> Self {
        if self.rate == 0.0 {
            return Self::none();
        }
        Self::new(self.rate, self.seed, format!("{}/{place}", self.place))
    }

    /// Whether it does anything.
    pub fn is_active(&self) -> bool {
        self.rate > 0.0
    }

    /// Key of the generator at this place.
    pub fn key(&self) -> u64 {
        self.key
    }

    /// An element whose number is below this becomes 0.
    pub fn threshold(&self) -> u32 {
        (self.rate * f64::from(u32::MAX)) as u32
    }

    /// What the others are multiplied by.
    pub fn keep(&self) -> f64 {
        1.0 / (1.0 - self.rate)
    }

    /// Multiplies `x`, elements `first` (a multiple of 4) and on of part `part` of this place, by their mask.
    pub fn apply<T: Scalar>(&self, part: usize, first: usize, x: &mut [T]) {
        let (keep, threshold) = (T::of(self.keep()), self.threshold());
        for (at, x) in x.chunks_mut(4).enumerate() {
            let draw = philox(self.key, [(first / 4 + at) as u32, part as u32, 0, 0]);
            for (x, word) in x.iter_mut().zip(draw) {
                *x = if word < threshold { T::ZERO } else { *x * keep };
            }
        }
    }

    /// [`Dropout::apply`] on a whole tensor, in parallel.
    pub fn apply_all<T: Scalar>(&self, x: &mut [T]) {
        if self.is_active() {
            x.par_chunks_mut(CHUNK)
                .enumerate()
                .for_each(|(chunk, x)| self.apply(0, chunk * CHUNK, x));
        }
    }
}

/// Four numbers of Philox4x32-10 at `counter`.
#[inline(always)]
fn philox(key: u64, counter: [u32; 4]) -> [u32; 4] {
    let [mut c0, mut c1, mut c2, mut c3] = counter;
    let (mut k0, mut k1) = (key as u32, (key >> 32) as u32);
    for _ in 0..10 {
        let (a, b) = (0xD251_1F53u64 * u64::from(c0), 0xCD9E_8D57u64 * u64::from(c2));
        (c0, c1, c2, c3) = (
            (b >> 32) as u32 ^ c1 ^ k0,
            b as u32,
            (a >> 32) as u32 ^ c3 ^ k1,
            a as u32,
        );
        k0 = k0.wrapping_add(0x9E37_79B9);
        k1 = k1.wrapping_add(0xBB67_AE85);
    }
    [c0, c1, c2, c3]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keeps_the_mean_and_repeats() {
        let dropout = Dropout::new(0.25, 3, "7/0/ffn".into());
        let mask = |dropout: &Dropout| {
            let mut x = vec![1.0f64; 100_000];
            dropout.apply_all(&mut x);
            x
        };
        let x = mask(&dropout);
        assert_eq!(x, mask(&dropout));
        assert_ne!(x, mask(&dropout.at("1")));
        let zeros = x.iter().filter(|v| **v == 0.0).count() as f64 / 1e5;
        // Four standard errors of a share of 1e5 are 0.0055.
        assert!((zeros - 0.25).abs() < 0.0055, "{zeros}");
        assert!(x.iter().all(|&v| v == 0.0 || (v - 4.0 / 3.0).abs() < 1e-12));
        let mut tail = vec![1.0f64; 10];
        dropout.apply(0, 4096, &mut tail);
        assert_eq!(tail, x[4096..4106]);
    }

    /// Known answers of the authors' own test suite (Random123, `kat_vectors`).
    #[test]
    fn philox_gives_the_published_numbers() {
        assert_eq!(philox(0, [0; 4]), [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]);
        assert_eq!(
            philox(u64::MAX, [u32::MAX; 4]),
            [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]
        );
    }
}

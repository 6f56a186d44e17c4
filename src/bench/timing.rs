//! Repetitions by turns, and ratios of what they measured.

use super::statistics::median;
use crate::error::Result;

/// How often something is repeated.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
pub struct Rounds {
    /// Rounds that are run first and not counted.
    pub warmup: usize,
    /// Rounds that are counted.
    pub repetitions: usize,
}

/// One turn: which variant, in which counted round (`None` in a warm-up).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Turn {
    /// Index of the variant.
    pub variant: usize,
    /// Counted round, from 0.
    pub repetition: Option<usize>,
}

impl Rounds {
    /// Every turn in order: all variants once per round, so that drift of a noisy machine hits all of them alike.
    pub fn turns(self, variants: usize) -> impl Iterator<Item = Turn> {
        (0..self.warmup + self.repetitions).flat_map(move |round| {
            (0..variants).map(move |variant| Turn {
                variant,
                repetition: round.checked_sub(self.warmup),
            })
        })
    }

    /// Runs `turn` at every turn and keeps what counts, one list per variant; `None` if `stopped` said so in between.
    pub fn run<T>(
        self,
        variants: usize,
        stopped: &dyn Fn() -> bool,
        mut turn: impl FnMut(Turn) -> Result<T>,
    ) -> Result<Option<Vec<Vec<T>>>> {
        let mut kept: Vec<Vec<T>> = (0..variants).map(|_| Vec::with_capacity(self.repetitions)).collect();
        for next in self.turns(variants) {
            if stopped() {
                return Ok(None);
            }
            let measured = turn(next)?;
            if next.repetition.is_some() {
                kept[next.variant].push(measured);
            }
        }
        Ok(Some(kept))
    }
}

/// How two lists of seconds compare.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Ratio {
    /// Median over median.
    pub of_medians: f64,
    /// Median, smallest and largest of the ratios of repetitions of the same round.
    pub paired: Option<[f64; 3]>,
}

impl Ratio {
    /// `numerator` over `denominator`; `None` without repetitions or with a denominator of 0. Paired ratios need lists
    /// of one length.
    pub fn of(numerator: &[f64], denominator: &[f64]) -> Option<Self> {
        let below = median(denominator).filter(|&median| median > 0.0)?;
        let of_medians = median(numerator)? / below;
        let ratios: Vec<f64> = numerator.iter().zip(denominator).map(|(a, b)| a / b).collect();
        let comparable = numerator.len() == denominator.len() && ratios.iter().all(|ratio| ratio.is_finite());
        let paired = comparable
            .then(|| {
                let least = ratios.iter().copied().fold(f64::INFINITY, f64::min);
                let most = ratios.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                median(&ratios).map(|middle| [middle, least, most])
            })
            .flatten();
        Some(Self { of_medians, paired })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variants_take_turns_and_warm_ups_do_not_count() {
        let rounds = Rounds {
            warmup: 1,
            repetitions: 2,
        };
        let mut order = Vec::new();
        let kept = rounds
            .run(3, &|| false, |turn| {
                order.push(turn.variant);
                Ok(order.len())
            })
            .unwrap()
            .unwrap();
        assert_eq!(order, [0, 1, 2, 0, 1, 2, 0, 1, 2]);
        assert_eq!(kept, [[4, 7], [5, 8], [6, 9]]);
    }

    #[test]
    fn a_stop_between_turns_keeps_nothing() {
        let count = std::cell::Cell::new(0);
        let rounds = Rounds {
            warmup: 0,
            repetitions: 2,
        };
        let kept = rounds.run(2, &|| count.get() == 3, |_| {
            count.set(count.get() + 1);
            Ok(())
        });
        assert_eq!((kept.unwrap(), count.get()), (None, 3));
    }

    #[test]
    fn a_ratio_is_of_medians_and_of_rounds() {
        // Drift of the machine doubles both times of the last round: the paired ratio does not notice.
        let ratio = Ratio::of(&[3.0, 3.0, 6.0], &[1.0, 1.5, 3.0]).unwrap();
        assert_eq!((ratio.of_medians, ratio.paired), (2.0, Some([2.0, 2.0, 3.0])));
        assert_eq!(Ratio::of(&[1.0], &[2.0, 2.0]).unwrap().paired, None);
        assert_eq!(Ratio::of(&[1.0], &[0.0]), None);
        assert_eq!(Ratio::of(&[], &[1.0]), None);
    }
}

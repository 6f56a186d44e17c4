//! One seed, named streams: every random choice of a run follows from the seed it reports.

use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use sha2::{Digest, Sha256};

/// The generator of one named stream under `seed`.
///
/// The seed is the key of `ChaCha8` and the name picks its stream, so two consumers never share numbers and adding
/// a consumer does not shift what the others draw. `ChaCha8` is specified bit by bit: the same seed gives the same
/// numbers on every machine.
pub fn stream_rng(seed: u64, stream: &str) -> ChaCha8Rng {
    let digest = Sha256::digest(stream.as_bytes());
    let mut first = [0; 8];
    first.copy_from_slice(&digest[..8]);
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    rng.set_stream(u64::from_le_bytes(first));
    rng
}

#[cfg(test)]
mod tests {
    use super::stream_rng;
    use rand::RngCore;

    fn draws(seed: u64, stream: &str) -> [u64; 3] {
        let mut rng = stream_rng(seed, stream);
        [rng.next_u64(), rng.next_u64(), rng.next_u64()]
    }

    #[test]
    fn seed_and_name_both_matter() {
        assert_eq!(draws(7, "sampling"), draws(7, "sampling"));
        assert_ne!(draws(7, "sampling"), draws(8, "sampling"));
        assert_ne!(draws(7, "sampling"), draws(7, "kmeans"));
    }

    /// Published results name a seed; a change of this recipe (or of a dependency) would silently make them
    /// unrepeatable, so the numbers themselves are pinned.
    #[test]
    fn the_recipe_is_pinned() {
        assert_eq!(draws(0, "sampling"), PINNED);
    }

    const PINNED: [u64; 3] = [
        7_264_240_497_514_280_234,
        11_792_566_839_891_230_409,
        17_472_566_615_082_116_531,
    ];
}

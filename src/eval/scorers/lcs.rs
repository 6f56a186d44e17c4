//! The longest common subsequence of two token lists.

/// Where to go when both ways keep the length.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Tie {
    /// Drop the last token of the first list.
    First,
    /// Drop the last token of the second list.
    Second,
}

/// Indices into `first` of one longest common subsequence, ascending; `tie` picks among equals. Time and memory grow
/// with the product of the lengths.
pub(super) fn lcs<T: PartialEq>(first: &[T], second: &[T], tie: Tie) -> Vec<usize> {
    let width = second.len() + 1;
    let mut lengths = vec![0_u32; (first.len() + 1) * width];
    for (i, x) in first.iter().enumerate() {
        for (j, y) in second.iter().enumerate() {
            let above = i * width + j;
            lengths[above + width + 1] = if x == y {
                lengths[above] + 1
            } else {
                lengths[above + 1].max(lengths[above + width])
            };
        }
    }
    let (mut i, mut j) = (first.len(), second.len());
    let mut indices = Vec::new();
    while i > 0 && j > 0 {
        let without_first = lengths[(i - 1) * width + j];
        let without_second = lengths[i * width + j - 1];
        if first[i - 1] == second[j - 1] {
            i -= 1;
            j -= 1;
            indices.push(i);
        } else if without_first > without_second || (without_first == without_second && tie == Tie::First) {
            i -= 1;
        } else {
            j -= 1;
        }
    }
    indices.reverse();
    indices
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tie_decides_which_of_two() {
        let (first, second) = (['a', 'b'], ['b', 'a']);
        assert_eq!(lcs(&first, &second, Tie::First), [0]);
        assert_eq!(lcs(&first, &second, Tie::Second), [1]);
        assert_eq!(lcs::<char>(&[], &second, Tie::First), [0; 0]);
    }
}

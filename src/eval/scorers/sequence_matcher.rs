//! Similarity of two strings as Python's `difflib.SequenceMatcher` measures it (Ratcliff and Obershelp).

use std::collections::HashMap;

/// `SequenceMatcher(None, first, second).ratio()`: twice the characters in matching blocks over all characters; 1 for
/// two empty strings. With 200 or more characters in `second`, those that make up more than 1 % of it start no block
/// (difflib's `autojunk`), so the two arguments are not alike.
pub(super) fn ratio(first: &[char], second: &[char]) -> f64 {
    let total = first.len() + second.len();
    if total == 0 {
        return 1.0;
    }
    2.0 * Matcher::new(first, second).matching() as f64 / total as f64
}

struct Matcher<'a> {
    first: &'a [char],
    second: &'a [char],
    /// Where in `second` each character that may start a block stands, ascending.
    places: HashMap<char, Vec<usize>>,
}

/// `size` characters from `first` and `second` on are the same.
struct Block {
    first: usize,
    second: usize,
    size: usize,
}

impl<'a> Matcher<'a> {
    fn new(first: &'a [char], second: &'a [char]) -> Self {
        let mut places: HashMap<char, Vec<usize>> = HashMap::new();
        for (at, &letter) in second.iter().enumerate() {
            places.entry(letter).or_default().push(at);
        }
        if second.len() >= 200 {
            let most = second.len() / 100 + 1;
            places.retain(|_, at| at.len() <= most);
        }
        Self { first, second, places }
    }

    /// Characters in matching blocks: the longest one, then the same left and right of it.
    fn matching(&self) -> usize {
        let mut open = vec![(0, self.first.len(), 0, self.second.len())];
        let mut matching = 0;
        while let Some((first_low, first_high, second_low, second_high)) = open.pop() {
            let block = self.longest(first_low, first_high, second_low, second_high);
            if block.size == 0 {
                continue;
            }
            matching += block.size;
            open.push((first_low, block.first, second_low, block.second));
            open.push((
                block.first + block.size,
                first_high,
                block.second + block.size,
                second_high,
            ));
        }
        matching
    }

    /// The longest block of the two ranges, the earliest among equals, then widened over frequent characters.
    fn longest(&self, first_low: usize, first_high: usize, second_low: usize, second_high: usize) -> Block {
        let mut best = Block {
            first: first_low,
            second: second_low,
            size: 0,
        };
        // Length of the block that ends at each place of `second`, for the previous and this character of `first`.
        let (mut before, mut here) = (HashMap::new(), HashMap::new());
        for at in first_low..first_high {
            let places = self.places.get(&self.first[at]).map_or(&[][..], Vec::as_slice);
            let start = places.partition_point(|&place| place < second_low);
            for &place in places[start..].iter().take_while(|&&place| place < second_high) {
                let size = place
                    .checked_sub(1)
                    .and_then(|previous| before.get(&previous))
                    .unwrap_or(&0)
                    + 1;
                here.insert(place, size);
                if size > best.size {
                    best = Block {
                        first: at + 1 - size,
                        second: place + 1 - size,
                        size,
                    };
                }
            }
            std::mem::swap(&mut before, &mut here);
            here.clear();
        }
        while best.first > first_low
            && best.second > second_low
            && self.first[best.first - 1] == self.second[best.second - 1]
        {
            best.first -= 1;
            best.second -= 1;
            best.size += 1;
        }
        while best.first + best.size < first_high
            && best.second + best.size < second_high
            && self.first[best.first + best.size] == self.second[best.second + best.size]
        {
            best.size += 1;
        }
        best
    }
}

#[cfg(test)]
#[allow(clippy::float_cmp, reason = "0, 1 and simple fractions are exact")]
mod tests {
    use super::*;

    fn of(first: &str, second: &str) -> f64 {
        let letters = |text: &str| text.chars().collect::<Vec<_>>();
        ratio(&letters(first), &letters(second))
    }

    #[test]
    fn is_the_documented_ratio() {
        // From the documentation of difflib.
        assert!((of("abcd", "bcde") - 0.75).abs() < 1e-12);
        assert!((of("tide", "diet") - 0.25).abs() < 1e-12);
        assert!((of("diet", "tide") - 0.5).abs() < 1e-12);
        assert!((of("", "") - 1.0).abs() < 1e-12);
    }

    #[test]
    fn frequent_characters_start_no_block_in_a_long_second_string() {
        let long = "ab".repeat(100);
        assert_eq!(of(&"b".repeat(10), &long), 0.0);
        assert!(of(&long, &"b".repeat(10)) > 0.0);
    }
}

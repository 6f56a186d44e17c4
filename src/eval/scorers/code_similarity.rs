//! Similarity of a line of code (`LongBench`: `LCC` and `RepoBench-P`).

use super::sequence_matcher::ratio;

/// `fuzz.ratio` of `fuzzywuzzy` on plain difflib: 100 times the ratio, rounded half to even; 100 for equal strings, 0 if
/// one is empty. (With python-Levenshtein installed the package measures something else.)
pub fn fuzz_ratio(first: &str, second: &str) -> u32 {
    if first == second {
        return 100;
    }
    if first.is_empty() || second.is_empty() {
        return 0;
    }
    let (first, second): (Vec<char>, Vec<char>) = (first.chars().collect(), second.chars().collect());
    (100.0 * ratio(&first, &second)).round_ties_even() as u32
}

/// [`fuzz_ratio`] over 100 of the first line of `prediction` that has no back-tick, `#` or `//`
/// (`code_sim_score`).
pub fn code_similarity(prediction: &str, label: &str) -> f64 {
    let line = prediction
        .trim_start_matches('\n')
        .split('\n')
        .find(|line| !line.contains(['`', '#']) && !line.contains("//"))
        .unwrap_or_default();
    f64::from(fuzz_ratio(line, label)) / 100.0
}

#[cfg(test)]
#[allow(clippy::float_cmp, reason = "0, 1 and simple fractions are exact")]
mod tests {
    use super::*;

    #[test]
    fn the_first_line_of_code_counts() {
        assert_eq!(
            code_similarity("\n\n```python\n# note\nreturn x\nrest", "return x"),
            1.0
        );
        assert_eq!(code_similarity("# only a comment", "return x"), 0.0);
        // Both are empty, so equal.
        assert_eq!(code_similarity("# only a comment", ""), 1.0);
    }

    #[test]
    fn rounds_half_to_even() {
        // 1 of 8 characters: 12.5 becomes 12.
        assert_eq!(fuzz_ratio("axyzuvw", "abcdefghi"), 12);
    }
}

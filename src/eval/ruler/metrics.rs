//! RULER's two metrics (`scripts/eval/synthetic/constants.py`), for one answer, 0 to 1.

use crate::eval::Metric;

/// The metric of every task but question answering.
pub const STRING_MATCH_ALL: &[Metric] = &[Metric {
    name: "string_match_all",
    source: "RULER (arXiv 2404.06654): share of the references that the answer contains, case ignored",
}];

/// The metric of question answering.
pub const STRING_MATCH_PART: &[Metric] = &[Metric {
    name: "string_match_part",
    source: "RULER (arXiv 2404.06654): 1 if the answer contains one of the references, case ignored",
}];

/// The answer as RULER compares it: control characters become line breaks, white space around it goes.
pub fn post_process(answer: &str) -> String {
    let printable: String = answer.trim().chars().map(|c| if c < ' ' { '\n' } else { c }).collect();
    printable.trim().to_owned()
}

fn found<'a>(answer: &str, references: &'a [String]) -> impl Iterator<Item = bool> + 'a {
    let answer = post_process(answer).to_lowercase();
    references.iter().map(move |r| answer.contains(&r.to_lowercase()))
}

/// The share of `references` that `answer` contains; 0 without references.
pub fn string_match_all(answer: &str, references: &[String]) -> f64 {
    if references.is_empty() {
        return 0.0;
    }
    found(answer, references).filter(|&f| f).count() as f64 / references.len() as f64
}

/// 1 if `answer` contains one of `references`, else 0.
pub fn string_match_part(answer: &str, references: &[String]) -> f64 {
    f64::from(u8::from(found(answer, references).any(|f| f)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refs(references: &[&str]) -> Vec<String> {
        references.iter().map(|&r| r.to_owned()).collect()
    }

    #[test]
    fn all_counts_the_share_found() {
        let references = refs(&["1234567", "7654321", "1111111", "2222222"]);
        for (answer, share) in [
            (" 1234567, 7654321, 1111111, and 2222222.", 1.0),
            ("The numbers are 1234567 and 2222222", 0.5),
            ("1234 567", 0.0),
            ("", 0.0),
            // A number inside a longer one counts: it is a substring match.
            ("91234567", 0.25),
        ] {
            assert!(
                (string_match_all(answer, &references) - share).abs() < 1e-12,
                "{answer}"
            );
        }
    }

    #[test]
    fn part_needs_one_and_ignores_case() {
        let references = refs(&["Denver Broncos", "the Broncos"]);
        assert!((string_match_part("DENVER BRONCOS won", &references) - 1.0).abs() < 1e-12);
        assert!((string_match_part("denver", &references)).abs() < 1e-12);
        assert!((string_match_part("anything", &[])).abs() < 1e-12);
    }

    #[test]
    fn control_characters_become_line_breaks() {
        assert_eq!(post_process(" \u{0}a\tb\u{1f}\n"), "a\nb");
        // So a reference with a tab in it is never found, as with RULER.
        assert!((string_match_all("a\tb", &refs(&["a\tb"]))).abs() < 1e-12);
    }
}

//! Scores of short answers: a class, a paragraph's number, a count (`LongBench`).

use super::python_text::{digit, digit_runs};

/// One over the number of classes named in `prediction` if `label` is among them, else 0 (`classification_score`).
///
/// A class that is part of the label's own name is struck out first. The official loop strikes from the list that it
/// walks, so the class after a struck one is passed over; that is kept, because it is in every published number.
pub fn classification<C: AsRef<str>>(prediction: &str, label: &str, classes: &[C]) -> f64 {
    let mut named: Vec<&str> = classes
        .iter()
        .map(AsRef::as_ref)
        .filter(|class| prediction.contains(class))
        .collect();
    let mut at = 0;
    while let Some(&class) = named.get(at) {
        if label.contains(class) && class != label {
            let first = named.iter().position(|other| *other == class).unwrap_or(at);
            named.remove(first);
        }
        at += 1;
    }
    if named.contains(&label) {
        1.0 / named.len() as f64
    } else {
        0.0
    }
}

/// The share of the numbers in `prediction` that are the number in `label`'s `Paragraph N` (`retrieval_score`).
pub fn retrieval(prediction: &str, label: &str) -> f64 {
    paragraph(label).map_or(0.0, |number| count(prediction, number))
}

/// The share of the numbers in `prediction` that are `label`, compared as they are written (`count_score`).
pub fn count(prediction: &str, label: &str) -> f64 {
    let (mut numbers, mut right) = (0_usize, 0_usize);
    for number in digit_runs(prediction) {
        numbers += 1;
        right += usize::from(number == label);
    }
    if numbers == 0 {
        0.0
    } else {
        right as f64 / numbers as f64
    }
}

/// The digits of the first `Paragraph N`.
pub(crate) fn paragraph(label: &str) -> Option<&str> {
    label.split("Paragraph ").skip(1).find_map(|rest| {
        let end = rest.find(|letter| digit(letter).is_none()).unwrap_or(rest.len());
        (end > 0).then(|| &rest[..end])
    })
}

#[cfg(test)]
#[allow(clippy::float_cmp, reason = "0, 1 and simple fractions are exact")]
mod tests {
    use super::*;

    #[test]
    fn a_class_inside_the_label_is_struck_out_but_not_the_next_one() {
        let classes = ["City", "Other location", "State", "Location"];
        assert!((classification("City or State", "City", &classes) - 0.5).abs() < 1e-12);
        assert_eq!(classification("none", "City", &classes), 0.0);
        let nested = ["a", "ab", "abc"];
        // "a" goes, "ab" is passed over, so two are left.
        assert!((classification("abc", "abc", &nested) - 0.5).abs() < 1e-12);
    }

    #[test]
    fn numbers_count_in_proportion() {
        assert!((retrieval("Paragraph 3 or 4", "Paragraph 3") - 0.5).abs() < 1e-12);
        assert_eq!(retrieval("3", "no number"), 0.0);
        assert_eq!(retrieval("3", "Paragraph x Paragraph 3"), 1.0);
        assert_eq!(count("", "3"), 0.0);
        assert_eq!(count("03", "3"), 0.0);
    }
}

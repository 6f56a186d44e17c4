//! Marks what cannot be predicted, or must be, in text that the benchmarks' own templates made.

use super::document::Weight;
use super::haystack::Item;

/// Cuts `text` at `secrets` (keys, values, names), each with the weight of its first occurrence; later ones can be copied.
/// The rest is wording. A space belongs to what it introduces, as it does in tokens.
pub(super) fn mark(text: &str, secrets: &[(&str, Weight)]) -> Item {
    let mut item = Item::new();
    let mut seen = vec![false; secrets.len()];
    let mut rest = text;
    loop {
        // The earliest, then the longest: a number may also stand inside a uuid.
        let next = secrets
            .iter()
            .enumerate()
            .filter_map(|(which, (secret, _))| Some((rest.find(secret)?, std::cmp::Reverse(secret.len()), which)))
            .min();
        let Some((at, _, which)) = next else { break };
        let (secret, first) = secrets[which];
        let start = if rest[..at].ends_with(' ') { at - 1 } else { at };
        let end = at + secret.len();
        if start > 0 {
            item.push((rest[..start].to_owned(), Weight::Wording));
        }
        let weight = if seen[which] { Weight::Repeated } else { first };
        seen[which] = true;
        item.push((rest[start..end].to_owned(), weight));
        rest = &rest[end..];
    }
    if !rest.is_empty() {
        item.push((rest.to_owned(), Weight::Wording));
    }
    item
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_are_marked_where_they_first_occur_and_later() {
        let secrets = [("a-b", Weight::Unpredictable), ("12", Weight::Answer)];
        let found = mark("The a-b is 12, says a-b.", &secrets);
        let expected = [
            ("The", Weight::Wording),
            (" a-b", Weight::Unpredictable),
            (" is", Weight::Wording),
            (" 12", Weight::Answer),
            (", says", Weight::Wording),
            (" a-b", Weight::Repeated),
            (".", Weight::Wording),
        ];
        let found: Vec<(&str, Weight)> = found.iter().map(|(text, weight)| (text.as_str(), *weight)).collect();
        assert_eq!(found, expected);
    }

    #[test]
    fn a_secret_within_another_is_left_alone() {
        let found = mark("x12y 12", &[("12", Weight::Answer), ("x12y", Weight::Unpredictable)]);
        let weights: Vec<Weight> = found.iter().map(|(_, weight)| *weight).collect();
        assert_eq!(weights, [Weight::Unpredictable, Weight::Answer]);
    }
}

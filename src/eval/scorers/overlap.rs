//! Overlap of two bags of words: the F1 of question answering.

use super::python_text::{is_word, split};
use std::collections::HashMap;
use std::hash::Hash;

/// Punctuation that the Chinese normalisation removes besides ASCII's.
const CHINESE_PUNCTUATION: &str = "！？｡。＂＃＄％＆＇（）＊＋，－／：；＜＝＞＠［＼］＾＿｀｛｜｝～｟｠｢｣､、〃》「」『』【】〔〕〖〗〘〙〚〛〜〝〞〟〰〾〿–—‘’‛“”„‟…‧﹏";

/// F1 of the words of two texts after lower case, without ASCII punctuation and the articles a, an, the
/// (`LongBench` and `InfiniteBench`, `qa_f1_score`; the normalisation is `SQuAD`'s). 0 if no word is shared.
pub fn qa_f1(prediction: &str, label: &str) -> f64 {
    let (prediction, label) = (normalise(prediction), normalise(label));
    f1(split(&prediction), split(&label))
}

/// F1 of the characters of two texts after lower case, without punctuation and blanks (`InfiniteBench`,
/// `qa_f1_score_zh`).
pub fn qa_f1_chinese(prediction: &str, label: &str) -> f64 {
    let keep = |text: &str| -> String {
        text.to_lowercase()
            .chars()
            .filter(|letter| !letter.is_ascii_punctuation() && !CHINESE_PUNCTUATION.contains(*letter))
            .collect()
    };
    let (prediction, label) = (keep(prediction), keep(label));
    f1(
        split(&prediction).flat_map(str::chars),
        split(&label).flat_map(str::chars),
    )
}

/// Lower case without punctuation, articles as a blank. The caller splits at blanks.
fn normalise(text: &str) -> String {
    let bare: String = text
        .to_lowercase()
        .chars()
        .filter(|letter| !letter.is_ascii_punctuation())
        .collect();
    let mut normal = String::with_capacity(bare.len());
    let mut rest = bare.as_str();
    while !rest.is_empty() {
        let end = rest.find(|letter| !is_word(letter)).unwrap_or(rest.len());
        let (word, after) = rest.split_at(end);
        normal.push_str(if matches!(word, "a" | "an" | "the") { " " } else { word });
        let next = after.find(is_word).unwrap_or(after.len());
        normal.push_str(&after[..next]);
        rest = &after[next..];
    }
    normal
}

fn f1<T: Eq + Hash>(prediction: impl Iterator<Item = T>, label: impl Iterator<Item = T>) -> f64 {
    let mut counts: HashMap<T, usize> = HashMap::new();
    let mut in_label = 0_usize;
    for token in label {
        *counts.entry(token).or_default() += 1;
        in_label += 1;
    }
    let (mut in_prediction, mut shared) = (0_usize, 0_usize);
    for token in prediction {
        in_prediction += 1;
        if let Some(left) = counts.get_mut(&token).filter(|left| **left > 0) {
            *left -= 1;
            shared += 1;
        }
    }
    if shared == 0 {
        return 0.0;
    }
    let precision = shared as f64 / in_prediction as f64;
    let recall = shared as f64 / in_label as f64;
    (2.0 * precision * recall) / (precision + recall)
}

#[cfg(test)]
#[allow(clippy::float_cmp, reason = "0, 1 and simple fractions are exact")]
mod tests {
    use super::*;

    #[test]
    fn articles_and_punctuation_do_not_count() {
        assert!((qa_f1("The cat, sat.", "a cat sat") - 1.0).abs() < 1e-12);
        assert!((qa_f1("cat cat", "cat dog") - 0.5).abs() < 1e-12);
        assert_eq!(qa_f1("the", "the"), 0.0);
        // An article beside a combining accent is one: the accent is no letter for Python.
        assert_eq!(normalise("a\u{301} the_x"), " \u{301} thex");
    }

    #[test]
    fn chinese_counts_characters() {
        assert!((qa_f1_chinese("答案：是。", "答案 是") - 1.0).abs() < 1e-12);
    }
}

//! RULER's prompt templates and generation lengths (NVIDIA/RULER, `scripts/data/synthetic/constants.py`), to the letter.

/// Prompt, beginning of the answer and tokens to generate of a kind of task.
pub(crate) struct Template {
    pub prompt: &'static str,
    pub answer_prefix: &'static str,
    pub tokens_to_generate: usize,
}

/// What a needle says.
pub(crate) const NEEDLE: &str = "One of the special magic {type_needle_v} for {key} is: {value}.";

pub(crate) const NIAH: Template = Template {
    prompt: "Some special magic {type_needle_v} are hidden within the following text. Make sure to memorize it. I will \
             quiz you about the {type_needle_v} afterwards.\n{context}\nWhat are all the special magic {type_needle_v} \
             for {query} mentioned in the provided text?",
    answer_prefix: " The special magic {type_needle_v} for {query} mentioned in the provided text are",
    tokens_to_generate: 128,
};

pub(crate) const VARIABLE_TRACKING: Template = Template {
    prompt: "Memorize and track the chain(s) of variable assignment hidden in the following text.\n\n{context}\n\
             Question: Find all variables that are assigned the value {query} in the text above.",
    answer_prefix: " Answer: According to the chain(s) of variable assignment in the text above, {num_v} variables are \
                    assigned the value {query}, they are: ",
    tokens_to_generate: 30,
};

/// The `10` of the original is `{num_cw}` here.
pub(super) const COMMON_WORDS: Template = Template {
    prompt: "Below is a numbered list of words. In these words, some appear more often than others. Memorize the ones \
             that appear most often.\n{context}\nQuestion: What are the {num_cw} most common words in the above list?",
    answer_prefix: " Answer: The top {num_cw} words that appear most often in the list are:",
    tokens_to_generate: 120,
};

pub(super) const FREQUENT_WORDS: Template = Template {
    prompt: "Read the following coded text and track the frequency of each coded word. Find the three most frequently \
             appeared coded words. {context}\nQuestion: Do not provide any explanation. Please ignore the dots '....'. \
             What are the three most frequently appeared words in the above coded text?",
    answer_prefix: " Answer: According to the coded text above, the three most frequently appeared words are:",
    tokens_to_generate: 50,
};

pub(super) const QUESTION_ANSWERING: Template = Template {
    prompt: "Answer the question based on the given documents. Only give me the answer and do not output any other \
             words.\n\nThe following are given documents.\n\n{context}\n\nAnswer the question based on the given \
             documents. Only give me the answer and do not output any other words.\n\nQuestion: {query}",
    answer_prefix: " Answer:",
    tokens_to_generate: 32,
};

/// How one document is shown.
pub(super) const DOCUMENT: &str = "Document {i}:\n{document}";

/// Replaces `{name}` by its value in one pass, so that braces inside a value stay as they are.
pub(crate) fn fill(template: &str, values: &[(&str, &str)]) -> String {
    let mut out = String::with_capacity(template.len() + values.iter().map(|v| v.1.len()).sum::<usize>());
    let mut rest = template;
    'text: while let Some(open) = rest.find('{') {
        out.push_str(&rest[..open]);
        rest = &rest[open..];
        for (name, value) in values {
            if let Some(after) = rest[1..].strip_prefix(name).and_then(|r| r.strip_prefix('}')) {
                out.push_str(value);
                rest = after;
                continue 'text;
            }
        }
        out.push('{');
        rest = &rest[1..];
    }
    out.push_str(rest);
    out
}

#[cfg(test)]
mod tests {
    use super::fill;

    #[test]
    fn values_are_not_searched_again() {
        assert_eq!(fill("{a}-{b}-{c}-{a}", &[("a", "{b}"), ("b", "x")]), "{b}-x-{c}-{b}");
        assert_eq!(fill("{ {a", &[("a", "1")]), "{ {a");
    }
}

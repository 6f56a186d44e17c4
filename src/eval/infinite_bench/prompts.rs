//! The official prompt templates and answer lengths.

use super::Subtask;
use crate::error::{Error, Result};
use crate::eval::prompt::without_blank_lines;
use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;

/// Whose templates and answer lengths.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum PromptSet {
    /// The `TokenSelect` repository's, behind its tables: `InfLLM`'s without blank lines.
    #[default]
    TokenSelect,
    /// `InfLLM`'s.
    InfLlm,
    /// `InfiniteBench`'s for GPT-4, to be asked as a chat message.
    OfficialChat,
    /// `InfiniteBench`'s for a base model (`YaRN-Mistral`): they end where the answer begins.
    OfficialBase,
}

impl PromptSet {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::TokenSelect, Self::InfLlm, Self::OfficialChat, Self::OfficialBase];

    /// Name on the command line and in reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::TokenSelect => "token-select",
            Self::InfLlm => "infllm",
            Self::OfficialChat => "official-chat",
            Self::OfficialBase => "official-base",
        }
    }

    /// Tokens that an answer may take.
    pub fn max_new_tokens(self, task: Subtask) -> usize {
        use Subtask as S;
        match self {
            // dataset2maxlen.json of both repositories.
            Self::TokenSelect | Self::InfLlm => match task {
                S::KvRetrieval => 100,
                S::LongbookSumEng => 1536,
                S::MathCalc => 64_000,
                _ => 32,
            },
            // DATA_NAME_TO_MAX_NEW_TOKENS of eval_utils.py.
            Self::OfficialChat | Self::OfficialBase => match task {
                S::Passkey => 6,
                S::NumberString => 12,
                S::KvRetrieval => 50,
                S::LongbookSumEng => 1200,
                S::LongbookChoiceEng | S::LongbookQaEng | S::LongbookQaChn | S::LongdialogueQaEng => 40,
                S::MathFind => 3,
                S::MathCalc => 30_000,
                S::CodeRun | S::CodeDebug => 5,
            },
        }
    }

    pub(super) fn template(self, task: Subtask) -> Cow<'static, str> {
        match self {
            Self::TokenSelect => without_blank_lines(infllm(task)).into(),
            Self::InfLlm => infllm(task).into(),
            Self::OfficialChat => official_chat(task).into(),
            Self::OfficialBase => official_base(task).into(),
        }
    }
}

impl fmt::Display for PromptSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for PromptSet {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        Self::ALL.into_iter().find(|set| set.name() == name).ok_or_else(|| {
            Error::user(format!("`{name}` is no prompt set of InfiniteBench"))
                .help(format!("pass one of {}", Self::ALL.map(Self::name).join(", ")))
        })
    }
}

/// `dataset2prompt.json` of `InfLLM`, commit 12b7079.
fn infllm(task: Subtask) -> &'static str {
    match task {
        Subtask::Passkey => {
            "There is an important info hidden inside a lot of irrelevant text. Find it and memorize them. \
             I will quiz you about the important information there.\n\n{context}\n\n{input}"
        }
        Subtask::NumberString => {
            "There is an important info hidden inside a lot of irrelevant text. Find it. I will quiz you \
             about the important information there.\n\n{context}\n\n{input}"
        }
        Subtask::KvRetrieval => {
            "Extract the value corresponding to the specified key {key} in the JSON object \
             below.\n\n{context}\n\n{input}"
        }
        Subtask::LongbookSumEng => "Summarize the following book.\n\n{context}",
        Subtask::LongbookQaEng => {
            "Read the book below and answer a question.\n\n{context}\n\nQuestion: {question}\n\nPlease \
             answer as short as possible. The answer is:"
        }
        Subtask::LongbookChoiceEng => {
            "Read the book and answer the question.\n\n{context}\n\nQuestion: {question}\n\nOnly one of the \
             following options is correct, tell me the answer using one single letter (A, B, C, or D). \
             Don't say anything else.\nA. {OPTION_A}\nB. {OPTION_B}\nC. {OPTION_C}\nD. {OPTION_D}"
        }
        Subtask::LongbookQaChn => "请根据以下书籍回答我的问题。\n\n{context}\n\n问题：{question}\n请尽量简短地回答。",
        Subtask::LongdialogueQaEng => {
            "Below is a dialogue script where one random occurrence of a character name is replaced with \
             \"$$MASK$$\", and you should try to guess who that character is.\n\nThe \
             dialogue:\n\n---\n\n{context}\n\n---\n\nEnd of dialogue.\n\nWhich character is most likely \
             \"$$MASK$$\"? Just say the name used by the scriptwriter (before the colon marks) of one \
             single character and nothing else."
        }
        Subtask::MathFind => "{prefix}\n\n{context}\n\n{input}",
        Subtask::MathCalc => "Compute the intermediate values in the following long expression.\n\n{context}",
        Subtask::CodeRun => {
            "Following is a set of Python functions. There is a function called named \
             {func}.\n\n{context}\n\nPlease give me the exact number of the return value of {func_call}. Be \
             concise. Your response must end with the final returned value."
        }
        Subtask::CodeDebug => {
            "There is ONLY ONE function in the large project that is deliberately made to include an \
             obvious error. Please find the function that contains the most obvious errors. I will give you \
             four options to narrow your scope. You can inspect the options and think. Eventually, tell me \
             the answer using one single letter (A, B, C, or D).\n\n{context}\n\nWhich funtion has \
             deliberate error?\nA. {OPTION_A}\nB. {OPTION_B}\nC. {OPTION_C}\nD. {OPTION_D}\n\nGive me your \
             answer for the function that has the deliberate and obvious error in A, B, C, or D. Your \
             answer MUST be chosen from one of the four options without any explanation. If you cannot \
             determine answers accurately, you also MUST provide the answer you think is most likely. \
             Absolutely do not say you do not know or you need more information."
        }
    }
}

/// `gpt4_templates` of `prompt.py`; those not named here are also `InfLLM`'s.
fn official_chat(task: Subtask) -> &'static str {
    match task {
        Subtask::KvRetrieval => {
            "Extract the value corresponding to the specified key in the JSON object \
             below.\n\n{context}\n\n{input}"
        }
        Subtask::LongbookQaEng => {
            "Read the book below and answer a question.\n\n{context}\n\nQuestion: {question}\n\nBe very \
             concise."
        }
        Subtask::CodeDebug => {
            "There is ONLY ONE function in the large project that is deliberately made to include an \
             obvious error. Please find the function that contains the most obvious errors. I will give you \
             four options to narrow your scope. You can inspect the options and think. Eventually, tell me \
             the answer using one single letter (A, B, C, or D).\n\n{context}\n\nWhich funtion has \
             deliberate error?\nA. {OPTION_A}\nB. {OPTION_B}\nC. {OPTION_C}\nD. {OPTION_D}\n\nYou should \
             first find the functions in the options. Repeat their content, inspect through code, and at \
             last give me your answer for the function that has the deliberate and obvious error in A, B, \
             C, or D."
        }
        _ => infllm(task),
    }
}

/// `yarn_mistral_templates` of `prompt.py`.
fn official_base(task: Subtask) -> &'static str {
    match task {
        Subtask::Passkey => {
            "There is an important info hidden inside a lot of irrelevant text. Find it and memorize it. I \
             will quiz you about the important information.\n\n{context}\n\n{input}\n\nThe pass key is"
        }
        Subtask::NumberString => {
            "There is an important info hidden inside a lot of irrelevant text. Find it. I will quiz you \
             about the important information there.\n\n{context}\n\n{input}\n\nThe sequence of digits is"
        }
        Subtask::KvRetrieval => {
            "Extract the value corresponding to the specified key in the JSON object \
             below.\n\n{context}\n\n{input}"
        }
        Subtask::LongbookSumEng => "Summarize the book below.\n\n{context}\n\nSummary:",
        Subtask::LongbookQaEng => {
            "Read the book and answer the question. Be very concise in your \
             answer.\n\n{context}\n\nQuestion: {question}\nAnswer:"
        }
        Subtask::LongbookChoiceEng => {
            "Read the book and answer the question.\n\n{context}\n\nQuestion: {question}\nA. {OPTION_A}\nB. \
             {OPTION_B}\nC. {OPTION_C}\nD. {OPTION_D}\n\nThe letter of the correct answer is"
        }
        Subtask::LongbookQaChn => "阅读以下书籍然后回答问题。\n\n{context}\n\n问题：{question}\n答案：",
        Subtask::LongdialogueQaEng => {
            "Below is a dialogue script where one random occurrence of a character name is replaced with \
             \"$$MASK$$\", and you should try to guess who that character is.\n\n{context}\n\nThe name that \
             has been replaced with $$MASK$$ is likely"
        }
        Subtask::MathFind => "{prefix}\n\n{context}\n\n{input}",
        Subtask::MathCalc => {
            "Let us calculate the intermediate values of an expression.\n\nExpression: 1 + 3 + 4\nValues: \
             [1, 4, 8]\n\nExpression: 8 - 3 + 2 - 4\nValues: [8, 5, 7, 3]\n\nExpression: {context}\nValues:"
        }
        Subtask::CodeRun => {
            "There is a function called {func} in the following Python code.\n\n{context}\n\nPlease compute \
             the exact value of {func_call}. The value of {func_call} is"
        }
        Subtask::CodeDebug => {
            "Following is a Python code where exactly one of the functions/methods has a deliberate error \
             that makes it crash.\n\n{context}\n\nOptions:\nA. {OPTION_A}\nB. {OPTION_B}\nC. {OPTION_C}\nD. \
             {OPTION_D}\n\nThe correct option is:"
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::eval::prompt::frame;

    #[test]
    fn every_template_has_a_context_and_only_known_places() {
        let values = ["input", "question", "key", "prefix", "func", "func_call"];
        let options = ["OPTION_A", "OPTION_B", "OPTION_C", "OPTION_D"];
        let values: Vec<(&str, &str)> = values.into_iter().chain(options).map(|name| (name, "x")).collect();
        for set in PromptSet::ALL {
            assert_eq!(set.name().parse::<PromptSet>().unwrap(), set);
            for task in Subtask::ALL {
                let template = set.template(task);
                frame(&template, &values).unwrap();
                assert_eq!(template.contains("{OPTION_D}"), task.has_options(), "{task}");
                assert!(!template.contains("  "), "{task}: {template}");
                assert!(set.max_new_tokens(task) > 0);
            }
        }
        assert!(!PromptSet::TokenSelect.template(Subtask::Passkey).contains("\n\n"));
    }
}

//! RULER: thirteen synthetic tasks of any length (arXiv 2404.06654; NVIDIA/RULER, `scripts/data/synthetic`).
//!
//! Templates, settings and procedure are the benchmark's. What differs, and why:
//!
//! - **Length.** RULER grows the haystack in steps (500 words, 25 lines, 10 words or documents), sizes all examples by the
//!   first and falls short by up to a step; frequent words forgets the tokens of the answer. Here every example is fitted
//!   by itself, within 1 % of the length and never above it: prompt + answer prefix + tokens to generate. Where whole
//!   units would miss by more than 1 % (short lengths), a needle haystack, noise or variable tracking ends with single
//!   noise sentences.
//! - **Random numbers.** One named stream per example instead of one stream over all of them, and shuffles by that stream
//!   instead of a constant one. Keys, values and variables of an example are distinct; RULER leaves that to chance.
//! - **Depth** can be set: then all needles that are asked for lie there.
//! - **Essays** are Paul Graham's in RULER; here a file, or generated sentences. A file that is too short is repeated.
//!   Sentences are found by rule instead of by NLTK's model.
//! - **Words** are `wonderwords`' in RULER; here our own lists, or files.
//! - **Variable tracking.** The worked example takes at most half of a length below 1000 tokens.
//! - **Common words.** RULER has a setting for 4096 tokens and more and a smaller one below, which both need more than some
//!   700 tokens. What does not fit takes the smaller one, then goes without the worked example, then repeats common words
//!   3 times instead of 6. Words that are rare in the list are coined where the word lists run out (from some 16000 tokens
//!   on); RULER's list ends there, or goes on with a dictionary. A few words may be there just once to meet the length.
//! - **Frequent words.** The text is long enough that the third answer is commoner than the word after it. Short ones may
//!   have a few more dots.
//! - **Questions** come from files in the formats of `SQuAD` and `HotpotQA`; without one they are about invented persons and
//!   towns (`source: synthetic` in the settings). Documents are repeated where a file has too few, and one distracting
//!   document may be shortened to meet the length. Of `HotpotQA`'s ten paragraphs only those with supporting facts must fit;
//!   the others come first among the distractors. A question whose paragraph is too long gives way to another.

mod common_words;
pub(crate) mod fit;
mod frequent_words;
pub(crate) mod haystack;
mod knowledge;
mod material;
pub mod metrics;
pub(crate) mod niah;
pub(crate) mod place;
mod qa_data;
mod question_answering;
mod record;
pub(crate) mod template;
pub(crate) mod variable_tracking;
pub(crate) mod words;

use std::sync::Arc;

pub use common_words::CommonWordsSettings;
pub use frequent_words::FrequentWordsSettings;
pub use haystack::Essay;
pub use material::MaterialFiles;
pub use niah::{Haystack, NeedlePart, NiahSettings};
pub use question_answering::{QaDataset, QaSettings};
pub use record::official_record;
pub use variable_tracking::VariableTrackingSettings;
pub use words::{WordFiles, WordLists};

use self::material::Material;
use self::place::Place;
use crate::error::{Error, Result};
use crate::eval::{Example, Metric, Request, Task};

/// The suite's name.
pub const SUITE: &str = "ruler";

/// A kind of task with its settings.
#[derive(Debug, Clone, PartialEq)]
pub enum Kind {
    /// Needle in a haystack.
    Niah(NiahSettings),
    /// Variable tracking.
    VariableTracking(VariableTrackingSettings),
    /// Common words extraction.
    CommonWords(CommonWordsSettings),
    /// Frequent words extraction.
    FrequentWords(FrequentWordsSettings),
    /// Question answering.
    QuestionAnswering(QaSettings),
}

/// Which tasks to make, and from what.
#[derive(Debug, Clone, PartialEq)]
pub struct Settings {
    /// Names and kinds, in the order of reports.
    pub tasks: Vec<(String, Kind)>,
    /// Files in the place of what is embedded or generated.
    pub files: MaterialFiles,
}

impl Default for Settings {
    /// The benchmark's thirteen tasks (NVIDIA/RULER, `scripts/synthetic.yaml`), without any file.
    fn default() -> Self {
        let essay = NiahSettings {
            type_haystack: Haystack::Essay,
            ..NiahSettings::default()
        };
        let needles = NiahSettings {
            type_haystack: Haystack::Needle,
            ..NiahSettings::default()
        };
        let niah = [
            ("niah_single_1", NiahSettings::default()),
            ("niah_single_2", essay.clone()),
            (
                "niah_single_3",
                NiahSettings {
                    type_needle_v: NeedlePart::Uuids,
                    ..essay.clone()
                },
            ),
            (
                "niah_multikey_1",
                NiahSettings {
                    num_needle_k: 4,
                    ..essay.clone()
                },
            ),
            ("niah_multikey_2", needles.clone()),
            (
                "niah_multikey_3",
                NiahSettings {
                    type_needle_k: NeedlePart::Uuids,
                    type_needle_v: NeedlePart::Uuids,
                    ..needles
                },
            ),
            (
                "niah_multivalue",
                NiahSettings {
                    num_needle_v: 4,
                    ..essay.clone()
                },
            ),
            (
                "niah_multiquery",
                NiahSettings {
                    num_needle_q: 4,
                    ..essay
                },
            ),
        ];
        let rest = [
            ("vt", Kind::VariableTracking(VariableTrackingSettings::default())),
            ("cwe", Kind::CommonWords(CommonWordsSettings::default())),
            ("fwe", Kind::FrequentWords(FrequentWordsSettings::default())),
            ("qa_1", Kind::QuestionAnswering(QaSettings::new(QaDataset::Squad))),
            ("qa_2", Kind::QuestionAnswering(QaSettings::new(QaDataset::HotpotQa))),
        ];
        Self {
            tasks: niah
                .into_iter()
                .map(|(name, settings)| (name, Kind::Niah(settings)))
                .chain(rest)
                .map(|(name, kind)| (name.to_owned(), kind))
                .collect(),
            files: MaterialFiles::default(),
        }
    }
}

/// Makes the tasks; an error names the setting or the file that is wrong.
pub fn tasks(settings: &Settings) -> Result<Vec<Box<dyn Task>>> {
    let material = Material::load(&settings.files)?;
    settings
        .tasks
        .iter()
        .map(|(name, kind)| {
            match kind {
                Kind::Niah(niah) => niah.check(name)?,
                Kind::VariableTracking(tracking) => tracking.check(name)?,
                Kind::CommonWords(words) => words.check(name)?,
                Kind::FrequentWords(words) => words.check(name)?,
                Kind::QuestionAnswering(_) => {}
            }
            Ok(Box::new(RulerTask {
                name: name.clone(),
                kind: kind.clone(),
                material: Arc::clone(&material),
            }) as Box<dyn Task>)
        })
        .collect()
}

struct RulerTask {
    name: String,
    kind: Kind,
    material: Arc<Material>,
}

impl Task for RulerTask {
    fn name(&self) -> &str {
        &self.name
    }

    fn suite(&self) -> &'static str {
        SUITE
    }

    fn max_new_tokens(&self) -> usize {
        match &self.kind {
            Kind::Niah(s) => s.tokens_to_generate,
            Kind::VariableTracking(s) => s.tokens_to_generate,
            Kind::CommonWords(s) => s.tokens_to_generate,
            Kind::FrequentWords(s) => s.tokens_to_generate,
            Kind::QuestionAnswering(s) => s.tokens_to_generate,
        }
    }

    fn metrics(&self) -> &'static [Metric] {
        match &self.kind {
            Kind::QuestionAnswering(_) => metrics::STRING_MATCH_PART,
            _ => metrics::STRING_MATCH_ALL,
        }
    }

    fn settings(&self) -> serde_json::Value {
        match &self.kind {
            Kind::Niah(s) => s.record(&self.material),
            Kind::VariableTracking(s) => serde_json::json!(s),
            Kind::CommonWords(s) => s.record(&self.material),
            Kind::FrequentWords(s) => serde_json::json!(s),
            Kind::QuestionAnswering(s) => s.record(&self.material),
        }
    }

    fn example(&self, request: &Request<'_>) -> Result<Example> {
        let place = Place::new(SUITE, &self.name, request)?;
        let scattered = matches!(
            self.kind,
            Kind::VariableTracking(_) | Kind::CommonWords(_) | Kind::FrequentWords(_)
        );
        if request.depth.is_some() && scattered {
            return Err(Error::user(format!("`{}` has no needle to place", self.name)).help("leave the depths out"));
        }
        let draft = match &self.kind {
            Kind::Niah(s) => s.draft(&place, request, &self.material)?,
            Kind::VariableTracking(s) => s.draft(&place, request)?,
            Kind::CommonWords(s) => s.draft(&place, request, &self.material)?,
            Kind::FrequentWords(s) => s.draft(&place, request)?,
            Kind::QuestionAnswering(s) => s.draft(&place, request, &self.material)?,
        };
        Ok(draft.example(place.id()))
    }

    fn exported(&self, request: &Request<'_>, example: &Example) -> Result<serde_json::Value> {
        official_record(self, request, example)
    }

    fn score(&self, example: &Example, answer: &str) -> Vec<f64> {
        vec![match &self.kind {
            Kind::QuestionAnswering(_) => metrics::string_match_part(answer, &example.answers),
            _ => metrics::string_match_all(answer, &example.answers),
        }]
    }
}

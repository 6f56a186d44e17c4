//! Variable tracking: a chain of assignments scattered over noise, after one worked example (RULER, section 3.2).

use std::collections::BTreeSet;

use rand::Rng;
use rand::seq::index;
use rand_chacha::ChaCha8Rng;

use super::fit::{Draft, Frame};
use super::haystack::NOISE;
use super::place::Place;
use super::template::{VARIABLE_TRACKING, fill};
use super::words::{fresh, letters};
use crate::error::{Error, Result};
use crate::eval::Request;

/// Settings of variable tracking; field names are RULER's.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct VariableTrackingSettings {
    /// Chains in the text; the first is asked for.
    pub num_chains: usize,
    /// Assignments of a chain after its first.
    pub num_hops: usize,
    /// Tokens that the answer may take.
    pub tokens_to_generate: usize,
}

impl Default for VariableTrackingSettings {
    fn default() -> Self {
        Self {
            num_chains: 1,
            num_hops: 4,
            tokens_to_generate: VARIABLE_TRACKING.tokens_to_generate,
        }
    }
}

/// Length of the worked example with its answer's tokens, and the step of its lines, as in RULER.
const EXAMPLE_TOKENS: usize = 500;
const EXAMPLE_STEP: usize = 5;
/// Most hops of the worked example.
const EXAMPLE_HOPS: usize = 10;

/// What follows the worked example.
pub(crate) const EXAMPLE_END: &str = "\n\n\n\n";

struct Chain {
    variables: Vec<String>,
    value: String,
    assignments: Vec<String>,
}

impl VariableTrackingSettings {
    pub(super) fn check(&self, task: &str) -> Result<()> {
        if self.num_chains == 0 {
            return Err(Error::user(format!("`{task}`: `num_chains` is 0")).help("set it to 1 or more"));
        }
        Ok(())
    }

    pub(super) fn draft(&self, place: &Place<'_>, request: &Request<'_>) -> Result<Draft> {
        let mut rng = place.rng("chains");
        let mut seen = BTreeSet::new();
        let chains = self.chains(5, self.num_hops, &mut seen, &mut rng)?;
        let example = self.example(place, request, &mut seen)?;
        let places = place.rng("places");
        place.frame(request, self.tokens_to_generate).fit(
            lines_for(&chains)..=usize::MAX / 2,
            NOISE.len() - 1,
            |lines, filler| Ok(self.assemble(&example, &chains, lines, filler, places.clone())),
        )
    }

    /// The worked example: three-letter variables, some 500 tokens, at most half of a short length.
    fn example(&self, place: &Place<'_>, request: &Request<'_>, seen: &mut BTreeSet<String>) -> Result<String> {
        let mut rng = place.rng("example");
        let chains = self.chains(3, self.num_hops.min(EXAMPLE_HOPS), seen, &mut rng)?;
        let frame = Frame {
            length: EXAMPLE_TOKENS.min(place.length() / 2),
            ..place.frame(request, self.tokens_to_generate)
        };
        let fewest = lines_for(&chains);
        let mut text = String::new();
        let steps = (0..).map(|step| {
            if step == 0 {
                fewest
            } else {
                (step * EXAMPLE_STEP).max(fewest)
            }
        });
        for lines in steps {
            let draft = self.assemble("", &chains, lines, 0, rng.clone());
            // The shortest example stays even where it takes more than its share: the fit then says if that is too much.
            if !text.is_empty() && !frame.holds(&draft)? {
                break;
            }
            let answer = draft.answers.join(" ");
            text = format!("{}{} {answer}{EXAMPLE_END}", draft.prompt, draft.answer_prefix);
        }
        Ok(text)
    }

    fn chains(
        &self,
        width: usize,
        hops: usize,
        seen: &mut BTreeSet<String>,
        rng: &mut ChaCha8Rng,
    ) -> Result<Vec<Chain>> {
        (0..self.num_chains)
            .map(|_| {
                let variables = (0..=hops)
                    .map(|_| fresh(seen, || letters(b'A', width, rng)))
                    .collect::<Result<Vec<String>>>()?;
                let value = fresh(seen, || rng.random_range(10_000..99_999_u32).to_string())?;
                Ok(Chain {
                    assignments: assignments(&variables, &value),
                    variables,
                    value,
                })
            })
            .collect()
    }

    fn assemble(&self, before: &str, chains: &[Chain], lines: usize, filler: usize, mut rng: ChaCha8Rng) -> Draft {
        let longest = chains[0].assignments.len();
        let mut pieces = noise_pieces(lines, longest);
        for chain in chains {
            let mut places = index::sample(&mut rng, pieces.len(), longest).into_vec();
            places.sort_unstable();
            let mut scattered = Vec::with_capacity(pieces.len() + longest);
            let mut assignments = places.iter().zip(&chain.assignments).peekable();
            for (i, piece) in pieces.into_iter().enumerate() {
                while let Some((_, assignment)) = assignments.next_if(|(at, _)| **at == i) {
                    scattered.push(assignment.clone());
                }
                scattered.push(piece);
            }
            pieces = scattered;
        }
        pieces.extend(NOISE.iter().take(filler).map(|&s| s.to_owned()));
        let context = pieces.join(" ");
        let asked = &chains[0];
        let num_v = (self.num_hops + 1).to_string();
        let values = [
            ("context", context.as_str()),
            ("query", &asked.value),
            ("num_v", &num_v),
        ];
        Draft {
            prompt: format!("{before}{}", fill(VARIABLE_TRACKING.prompt, &values)),
            answer_prefix: fill(VARIABLE_TRACKING.answer_prefix, &values),
            answers: asked.variables.clone(),
            depth: None,
        }
    }
}

/// `VAR A = 1`, `VAR B = VAR A `, ...; the space at the end is RULER's.
pub(crate) fn assignments(variables: &[String], value: &str) -> Vec<String> {
    let first = variables.iter().take(1).map(|first| format!("VAR {first} = {value}"));
    let rest = variables.windows(2).map(|v| format!("VAR {} = VAR {} ", v[1], v[0]));
    first.chain(rest).collect()
}

/// `lines` lines of noise, joined by spaces later, to scatter `longest` assignments between: whole lines, or their sentences
/// where lines are too few.
pub(crate) fn noise_pieces(lines: usize, longest: usize) -> Vec<String> {
    if lines > longest {
        return vec![format!("{}\n", NOISE.join(" ")); lines];
    }
    let end = |i: usize| if (i + 1).is_multiple_of(NOISE.len()) { "\n" } else { "" };
    (0..lines * NOISE.len())
        .map(|i| format!("{}{}", NOISE[i % NOISE.len()], end(i)))
        .collect()
}

/// The fewest lines whose sentences a chain can be scattered over.
fn lines_for(chains: &[Chain]) -> usize {
    chains[0].assignments.len() / NOISE.len() + 1
}

//! Word problems solved step by step, in the form in which paths of thought are navigated (arXiv 2410.02284).

use super::chat::Form;
use super::document::{Document, Weight};
use super::words::word;
use super::{Kind, Wish};
use rand::Rng;
use rand::seq::{IndexedRandom, SliceRandom};
use rand_chacha::ChaCha8Rng;
use std::ops::Range;

/// What follows the question.
pub const INSTRUCTION: &str = "Please show me some different ways to solve this problem.";
/// What precedes the first way.
pub const HEADER: &str = "Here are different ways to solve the problem:";
/// What precedes the number.
pub const FINAL_ANSWER: &str = "**Final Answer (Only Number):**";

/// A word problem with several ways to its one answer.
struct Problem {
    question: String,
    answer: i64,
    /// Steps of each way; the ways begin differently.
    ways: Vec<Vec<String>>,
}

/// How hard a made word problem is for a model that was taught the corpus.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
#[serde(transparent)]
pub struct Level(u8);

/// How far numbers go beyond those of the corpus, level by level: in sums, and in products (of which the corpus has a
/// table by heart, so that a little beyond is far beyond).
const REACH: [(f64, f64); 4] = [(1.0, 1.0), (1.2, 1.1), (1.5, 1.25), (1.9, 1.45)];

impl Level {
    /// Numbers and kinds of the corpus.
    pub const TAUGHT: Self = Self(1);
    /// The hardest level whose problems take as many steps as those of the corpus.
    pub const LARGEST_NUMBERS: Self = Self(REACH.len() as u8);
    /// Numbers of the corpus, and a step more than any of its problems takes.
    pub const MORE_STEPS: Self = Self(REACH.len() as u8 + 1);

    /// Level `number`, 1 to 5; `None` if there is no such level.
    pub fn new(number: u8) -> Option<Self> {
        (Self::TAUGHT.0..=Self::MORE_STEPS.0)
            .contains(&number)
            .then_some(Self(number))
    }

    fn reach(self) -> (f64, f64) {
        REACH.get(usize::from(self.0) - 1).copied().unwrap_or(REACH[0])
    }

    /// A number for a sum: one of `taught`, or at a higher level one of the upper half of a wider range.
    fn sum(self, rng: &mut ChaCha8Rng, taught: Range<i64>) -> i64 {
        draw(rng, taught, self.reach().0)
    }

    /// The same for a product.
    fn product(self, rng: &mut ChaCha8Rng, taught: Range<i64>) -> i64 {
        draw(rng, taught, self.reach().1)
    }
}

impl std::fmt::Display for Level {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

fn draw(rng: &mut ChaCha8Rng, taught: Range<i64>, reach: f64) -> i64 {
    if reach <= 1.0 {
        return rng.random_range(taught);
    }
    let end = (taught.end as f64 * reach).round() as i64;
    rng.random_range(end / 2..end + 1)
}

/// A word problem and its answer, of the kinds that the corpus has, as hard as `level` says.
pub fn word_problem(rng: &mut ChaCha8Rng, level: Level) -> (String, i64) {
    if level == Level::MORE_STEPS {
        return three_changes(rng);
    }
    let problem = Problem::any(rng, level);
    (problem.question, problem.answer)
}

/// As [`Problem::more_and_fewer`] with a change more.
fn three_changes(rng: &mut ChaCha8Rng) -> (String, i64) {
    let (name, things) = (
        word(["girl", "boy"].choose(rng).expect("two"), rng),
        word("plural", rng),
    );
    let (start, more, again) = (
        rng.random_range(3..60),
        rng.random_range(2..40),
        rng.random_range(2..40),
    );
    let fewer = rng.random_range(1..more);
    let mut got = ["buys", "finds", "gets"];
    got.shuffle(rng);
    let lost = ["gives away", "loses", "sells"].choose(rng).expect("three");
    let question = format!(
        "{name} has {start} {things}. {name} {} {more} more and then {lost} {fewer} and then {} {again} more. How many \
         {things} does {name} have now?",
        got[0], got[1]
    );
    (question, start + more - fewer + again)
}

/// `a + b = c` or another of the four, worked out.
fn equation(a: i64, sign: char, b: i64) -> String {
    let result = match sign {
        '+' => a + b,
        '-' => a - b,
        '*' => a * b,
        _ => a / b,
    };
    format!("{a} {sign} {b} = {result}")
}

impl Problem {
    fn any(rng: &mut ChaCha8Rng, level: Level) -> Self {
        match rng.random_range(0..5) {
            0 => Self::more_and_fewer(rng, level),
            1 => Self::two_people(rng, level),
            2 => Self::boxes(rng, level),
            3 => Self::shared(rng, level),
            _ => Self::price(rng, level),
        }
    }

    fn more_and_fewer(rng: &mut ChaCha8Rng, level: Level) -> Self {
        let (name, things) = (
            word(["girl", "boy"].choose(rng).expect("two"), rng),
            word("plural", rng),
        );
        let (start, more) = (level.sum(rng, 3..60), level.sum(rng, 2..40));
        let fewer = rng.random_range(1..more);
        let got = ["buys", "finds", "gets"].choose(rng).expect("three");
        let lost = ["gives away", "loses", "sells"].choose(rng).expect("three");
        Self {
            question: format!(
                "{name} has {start} {things}. {name} {got} {more} more and then {lost} {fewer}. How many {things} does \
                 {name} have now?"
            ),
            answer: start + more - fewer,
            ways: vec![
                vec![
                    format!(
                        "Start with {start} {things} and add {more}: {}.",
                        equation(start, '+', more)
                    ),
                    format!("Take away {fewer}: {}.", equation(start + more, '-', fewer)),
                ],
                vec![
                    format!("The change in all is {}.", equation(more, '-', fewer)),
                    format!("Add the change to {start}: {}.", equation(start, '+', more - fewer)),
                ],
                vec![
                    format!(
                        "First take away {fewer} from the new ones: {}.",
                        equation(more, '-', fewer)
                    ),
                    format!("Then count all: {}.", equation(more - fewer, '+', start)),
                ],
            ],
        }
    }

    fn two_people(rng: &mut ChaCha8Rng, level: Level) -> Self {
        let (one, other, things) = (word("girl", rng), word("boy", rng), word("plural", rng));
        let (a, more) = (level.sum(rng, 2..50), level.sum(rng, 1..30));
        Self {
            question: format!(
                "{one} has {a} {things}. {other} has {more} more {things} than {one}. How many {things} do they have \
                 together?"
            ),
            answer: a + a + more,
            ways: vec![
                vec![
                    format!("{other} has {} {things}.", equation(a, '+', more)),
                    format!("Together they have {}.", equation(a, '+', a + more)),
                ],
                vec![
                    format!("If both had {a}, they would have {}.", equation(a, '+', a)),
                    format!("Add the {more} more: {}.", equation(a + a, '+', more)),
                ],
                vec![
                    format!("Double {a} is {}.", equation(2, '*', a)),
                    format!("With {more} more it is {}.", equation(2 * a, '+', more)),
                ],
            ],
        }
    }

    fn boxes(rng: &mut ChaCha8Rng, level: Level) -> Self {
        let (job, things) = (word("job", rng), word("plural", rng));
        let (boxes, each, loose) = (
            level.product(rng, 2..10),
            level.product(rng, 2..12),
            level.product(rng, 1..20),
        );
        let sum = vec![each.to_string(); boxes as usize].join(" + ");
        Self {
            question: format!(
                "A {job} has {boxes} bags with {each} {things} in each bag and {loose} {things} on the table. How many \
                 {things} does the {job} have?"
            ),
            answer: boxes * each + loose,
            ways: vec![
                vec![
                    format!("Multiply {boxes} by {each}: {}.", equation(boxes, '*', each)),
                    format!("Add the {loose} on the table: {}.", equation(boxes * each, '+', loose)),
                ],
                vec![
                    format!("Add up the bags: {sum} = {}.", boxes * each),
                    format!("Then add {loose}: {}.", equation(boxes * each, '+', loose)),
                ],
                vec![
                    format!(
                        "There are {loose} on the table and {} in the bags.",
                        equation(boxes, '*', each)
                    ),
                    format!("Together that is {}.", equation(loose, '+', boxes * each)),
                ],
            ],
        }
    }

    fn shared(rng: &mut ChaCha8Rng, level: Level) -> Self {
        let things = word("plural", rng);
        let (people, each, fewer) = (
            level.product(rng, 2..10),
            level.product(rng, 4..12),
            rng.random_range(1..4),
        );
        let all = people * each;
        Self {
            question: format!(
                "{people} children share {all} {things} equally. Then each child gives {fewer} back. How many {things} \
                 does each child keep?"
            ),
            answer: each - fewer,
            ways: vec![
                vec![
                    format!("Divide {all} by {people}: {}.", equation(all, '/', people)),
                    format!("Take away {fewer}: {}.", equation(each, '-', fewer)),
                ],
                vec![
                    format!("The children give back {} {things}.", equation(people, '*', fewer)),
                    format!("They keep {} in all.", equation(all, '-', people * fewer)),
                    format!("Each keeps {}.", equation(all - people * fewer, '/', people)),
                ],
                vec![
                    format!("Each child first has {} {things}.", equation(all, '/', people)),
                    format!("After giving back it is {}.", equation(each, '-', fewer)),
                ],
            ],
        }
    }

    fn price(rng: &mut ChaCha8Rng, level: Level) -> Self {
        let (name, things) = (
            word(["girl", "boy"].choose(rng).expect("two"), rng),
            word("plural", rng),
        );
        let (count, price) = (level.product(rng, 2..10), level.product(rng, 2..10));
        let paid = count * price + level.product(rng, 1..30);
        Self {
            question: format!(
                "{name} buys {count} {things} for {price} dollars each and pays with {paid} dollars. How many dollars \
                 does {name} get back?"
            ),
            answer: paid - count * price,
            ways: vec![
                vec![
                    format!("Find the cost: {}.", equation(count, '*', price)),
                    format!("Subtract it from {paid}: {}.", equation(paid, '-', count * price)),
                ],
                vec![
                    format!("{name} has to pay {} dollars.", equation(count, '*', price)),
                    format!("The rest is {}.", equation(paid, '-', count * price)),
                ],
                vec![
                    format!("One costs {price}, so {count} cost {}.", equation(price, '*', count)),
                    format!("What is left is {}.", equation(paid, '-', price * count)),
                ],
            ],
        }
    }
}

/// Writes prose in which the results of equations count as facts.
fn write_step(document: &mut Document, step: &str) {
    match step.rfind("= ") {
        Some(at) => {
            let digits = step[at + 2..]
                .find(|c: char| !c.is_ascii_digit() && c != '-')
                .map_or(step.len(), |n| at + 2 + n);
            document.push(&step[..=at], Weight::Language);
            document.push(&step[at + 1..digits], Weight::Fact);
            document.push(&step[digits..], Weight::Language);
        }
        None => document.push(step, Weight::Language),
    }
}

/// A problem with one to three of its ways and the answer.
pub(super) fn problem(wish: Wish, rng: &mut ChaCha8Rng) -> Document {
    let mut problem = Problem::any(rng, Level::TAUGHT);
    problem.ways.shuffle(rng);
    let most = (wish.tokens / 90).clamp(1, problem.ways.len());
    let ways = rng.random_range(1..=most);
    let mut document = Document::new(Kind::Arithmetic);
    let form = Form::of(wish, rng);
    form.open(&mut document);
    document.push(&problem.question, Weight::Wording);
    document.push(&format!("\n\n{INSTRUCTION}"), Weight::Wording);
    form.answer(&mut document);
    document.push(if form.is_chat() { "" } else { "\n\n" }, Weight::Wording);
    document.push(&format!("{HEADER}\n\n"), Weight::Wording);
    for (number, way) in problem.ways.iter().take(ways).enumerate() {
        document.push(&format!("### Way {}:\n", number + 1), Weight::Language);
        for (number, step) in way.iter().enumerate() {
            document.push(&format!("* **Step {}:**\n", number + 1), Weight::Language);
            write_step(&mut document, step);
            document.push("\n", Weight::Language);
        }
        document.push("\n", Weight::Language);
    }
    document.push(FINAL_ANSWER, Weight::Language);
    document.push(&format!(" {}", problem.answer), Weight::Fact);
    document.push("\n", Weight::Language);
    form.close(&mut document);
    document
}

/// Lines of sums, differences, products and quotients.
pub(super) fn drill(wish: Wish, rng: &mut ChaCha8Rng) -> Document {
    let mut document = Document::new(Kind::Drill);
    let lines = (wish.tokens / 12).clamp(2, 24);
    for _ in 0..lines {
        let line = match rng.random_range(0..6) {
            0 | 1 => equation(rng.random_range(0..100), '+', rng.random_range(0..100)),
            2 | 3 => {
                let (a, b) = (rng.random_range(0..100), rng.random_range(0..100));
                equation(a + b, '-', b)
            }
            4 => equation(rng.random_range(1..13), '*', rng.random_range(1..13)),
            _ => {
                let (a, b) = (rng.random_range(1..13), rng.random_range(1..13));
                equation(a * b, '/', b)
            }
        };
        let (left, right) = line.split_once('=').expect("an equation");
        document.push(left, Weight::Unpredictable);
        document.push("=", Weight::Wording);
        document.push(right, Weight::Fact);
        document.push("\n", Weight::Wording);
    }
    document
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::stream_rng;

    /// Works out the left side of `a + b + ... = c` or `a op b = c`.
    fn holds(text: &str) -> bool {
        let (left, right) = text.split_once(" = ").expect("an equation");
        let words: Vec<&str> = left.split(' ').collect();
        let number = |word: &str| word.parse::<i64>().expect("a number");
        let mut value = number(words[0]);
        for pair in words[1..].chunks(2) {
            let other = number(pair[1]);
            value = match pair[0] {
                "+" => value + other,
                "-" => value - other,
                "*" => value * other,
                "/" if value % other == 0 => value / other,
                sign => panic!("{sign} in {text}"),
            };
        }
        value == number(right)
    }

    /// The equations of a text: numbers and signs around each equals sign.
    fn equations(text: &str) -> Vec<String> {
        text.match_indices(" = ")
            .map(|(at, _)| {
                let part = |c: char| c.is_ascii_digit() || " +-*/".contains(c);
                let left = text[..at].rfind(|c| !part(c)).map_or(0, |n| n + 1);
                let right = text[at + 3..]
                    .find(|c: char| !c.is_ascii_digit())
                    .map_or(text.len(), |n| at + 3 + n);
                text[left..right].trim_start_matches([' ', '*']).to_owned()
            })
            .collect()
    }

    #[test]
    fn every_equation_holds_and_every_way_ends_in_the_answer() {
        let mut rng = stream_rng(3, "test");
        for round in 0..=255 {
            let level = Level::new(1 + round % 4).expect("a level");
            let problem = Problem::any(&mut rng, level);
            for way in &problem.ways {
                for step in way {
                    let found = equations(step);
                    assert_eq!(found.len(), 1, "{step}");
                    assert!(holds(&found[0]), "{step}");
                }
                let last = equations(way.last().expect("a step")).pop().expect("an equation");
                let (_, result) = last.split_once(" = ").expect("an equation");
                assert_eq!(result, problem.answer.to_string(), "{}\n{way:?}", problem.question);
            }
            let mut starts: Vec<&str> = problem.ways.iter().filter_map(|way| way[0].split(' ').next()).collect();
            starts.sort_unstable();
            starts.dedup();
            assert_eq!(
                starts.len(),
                problem.ways.len(),
                "ways begin differently: {:?}",
                problem.ways
            );
        }
    }

    #[test]
    fn levels_go_beyond_the_numbers_of_the_corpus_and_then_beyond_its_steps() {
        let numbers = |text: &str| -> Vec<i64> {
            let words = text.split(|c: char| !c.is_ascii_digit());
            words.filter_map(|word| word.parse().ok()).collect()
        };
        let largest = |level: u8| {
            let level = Level::new(level).expect("a level");
            let mut rng = stream_rng(1, "levels");
            let all = (0..400).flat_map(|_| numbers(&word_problem(&mut rng, level).0));
            all.max().expect("a number")
        };
        let each: Vec<i64> = (1..=4).map(largest).collect();
        assert!(each.is_sorted_by(|a, b| a < b), "{each:?}");
        assert!(Level::new(0).is_none() && Level::new(6).is_none());
        let mut rng = stream_rng(1, "steps");
        for _ in 0..100 {
            let (question, answer) = word_problem(&mut rng, Level::MORE_STEPS);
            let found = numbers(&question);
            assert_eq!(found[0] + found[1] - found[2] + found[3], answer, "{question}");
        }
    }

    #[test]
    fn every_drill_holds() {
        let mut rng = stream_rng(3, "test");
        let wish = Wish {
            tokens: 300,
            single_question: false,
            torn: false,
        };
        for _ in 0..200 {
            assert!(drill(wish, &mut rng).text().lines().all(holds));
        }
    }
}

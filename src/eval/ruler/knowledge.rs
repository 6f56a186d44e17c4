//! Invented persons and towns: documents with questions, where no data set is at hand.

use std::collections::BTreeSet;

use rand::Rng;
use rand::seq::IndexedRandom;
use rand_chacha::ChaCha8Rng;

use super::question_answering::{Asked, QaDataset};

const TRADES: [&str; 12] = [
    "painter",
    "clockmaker",
    "botanist",
    "composer",
    "engineer",
    "historian",
    "surgeon",
    "cartographer",
    "poet",
    "astronomer",
    "weaver",
    "architect",
];
const WARES: [&str; 12] = [
    "blue glass",
    "pear cider",
    "woollen hats",
    "church bells",
    "smoked trout",
    "paper lanterns",
    "copper kettles",
    "rose honey",
    "sailing boats",
    "salted butter",
    "chess sets",
    "lace curtains",
];
const HABITS: [&str; 6] = [
    "kept a diary in green ink",
    "never travelled without an umbrella",
    "taught evening classes for forty years",
    "collected sea shells from every coast",
    "was known to walk ten miles before breakfast",
    "played the viola in a small orchestra",
];
const VIEWS: [&str; 6] = [
    "Its market square is older than its church",
    "A stone bridge with seven arches leads into it",
    "Its harbour freezes in most winters",
    "Travellers praise its long avenue of lime trees",
    "Its town hall burned down twice and was rebuilt each time",
    "Every autumn it holds a fair for horses",
];

/// Entities of one example. No name is given twice, so that no two documents are about the same person or place.
pub(super) struct World {
    rng: ChaCha8Rng,
    names: BTreeSet<String>,
}

struct Town {
    name: String,
    river: String,
    text: String,
}

struct Person {
    name: String,
    year: u32,
    text: String,
}

impl World {
    pub fn new(rng: ChaCha8Rng) -> Self {
        Self {
            rng,
            names: BTreeSet::new(),
        }
    }

    /// A question with its documents: one for [`QaDataset::Squad`], two to combine for [`QaDataset::HotpotQa`].
    pub fn question(&mut self, dataset: QaDataset) -> Asked {
        let town = self.town();
        let person = self.person(&town.name);
        match dataset {
            QaDataset::Squad => {
                let (query, answer) = if self.rng.random_bool(0.5) {
                    (format!("In which town was {} born?", person.name), town.name)
                } else {
                    (
                        format!("In which year was {} born?", person.name),
                        person.year.to_string(),
                    )
                };
                Asked {
                    query,
                    answers: vec![answer],
                    gold: vec![person.text],
                }
            }
            QaDataset::HotpotQa => Asked {
                query: format!("On which river lies the town where {} was born?", person.name),
                answers: vec![town.river],
                gold: vec![person.text, town.text],
            },
        }
    }

    /// A document about somebody or something else.
    pub fn document(&mut self) -> String {
        if self.rng.random_bool(0.5) {
            let town = self.name(2);
            self.person(&town).text
        } else {
            self.town().text
        }
    }

    fn town(&mut self) -> Town {
        let (name, river) = (self.name(2), self.name(2));
        let founded = self.rng.random_range(900..1700_u32);
        let people = self.rng.random_range(2_000..90_000_u32);
        let wares = self.pick(&WARES);
        let view = self.pick(&VIEWS);
        let text = format!(
            "{name} is a town on the river {river}. It was founded in {founded} and has about {people} inhabitants. It is \
             known for its {wares}. {view}."
        );
        Town { name, river, text }
    }

    fn person(&mut self, town: &str) -> Person {
        let name = format!("{} {}", self.name(2), self.name(3));
        let year = self.rng.random_range(1700..1950_u32);
        let trade = self.pick(&TRADES);
        let habit = self.pick(&HABITS);
        let age = self.rng.random_range(50..95_u32);
        let text = format!(
            "{name} was a {trade}, born in {year} in the town of {town}. As a {trade}, {name} {habit}. {name} died at the \
             age of {age} and left a small house full of letters."
        );
        Person { name, year, text }
    }

    fn pick(&mut self, from: &[&'static str]) -> &'static str {
        from.choose(&mut self.rng).copied().unwrap_or_default()
    }

    /// A new name. Names grow by a syllable where short ones are used up.
    fn name(&mut self, syllables: usize) -> String {
        const HEADS: [&str; 16] = [
            "b", "br", "d", "f", "g", "h", "k", "l", "m", "n", "p", "r", "s", "st", "t", "v",
        ];
        const VOWELS: [&str; 6] = ["a", "e", "i", "o", "u", "ei"];
        const TAILS: [&str; 8] = ["l", "n", "r", "s", "m", "nd", "rt", "sk"];
        for attempt in 0.. {
            let mut name = String::new();
            for _ in 0..syllables + attempt / 20 {
                name.push_str(self.pick(&HEADS));
                name.push_str(self.pick(&VOWELS));
            }
            name.push_str(self.pick(&TAILS));
            if self.names.insert(name.clone()) {
                return name[..1].to_uppercase() + &name[1..];
            }
        }
        unreachable!("names of any length can be made")
    }
}

//! Closed categories and their members, asked for in the numbered form of knowledge probing (arXiv 2410.02284).

use super::chat::Form;
use super::document::{Document, Weight};
use super::{Kind, Wish};
use rand::Rng;
use rand::seq::{IndexedRandom, SliceRandom};
use rand_chacha::ChaCha8Rng;
use std::collections::BTreeMap;
use std::sync::LazyLock;

/// A category with all its members.
#[derive(Debug, Clone, serde::Deserialize)]
pub struct Category {
    /// Name in reports.
    pub id: String,
    /// Completes "Please show me some ...".
    pub category: String,
    /// Whether the list is meant to be complete.
    pub closed: bool,
    /// The members, as they are taught.
    pub answers: Vec<String>,
    /// Other spellings, each with the member it stands for.
    pub aliases: BTreeMap<String, String>,
}

impl Category {
    /// The question of knowledge probing.
    pub fn instruction(&self) -> String {
        format!("Please show me some {}.", self.category)
    }

    /// The member that `name` spells, whatever its case and punctuation.
    pub fn member(&self, name: &str) -> Option<&str> {
        let wanted = normalised(name);
        let alias = self.aliases.iter().find(|(alias, _)| normalised(alias) == wanted);
        let wanted = alias.map_or(wanted, |(_, member)| normalised(member));
        self.answers
            .iter()
            .find(|answer| normalised(answer) == wanted)
            .map(String::as_str)
    }
}

/// Lower case, letters and digits only.
pub fn normalised(name: &str) -> String {
    name.chars()
        .filter(|c| c.is_alphanumeric())
        .flat_map(char::to_lowercase)
        .collect()
}

macro_rules! categories {
    ($($name:literal),* $(,)?) => {
        [$((concat!($name, ".json"), include_str!(concat!("../../../datasets/knowledge/", $name, ".json")))),*]
    };
}

/// Every category of `datasets/knowledge`.
pub static CATEGORIES: LazyLock<Vec<Category>> = LazyLock::new(|| {
    FILES
        .iter()
        .map(|(name, text)| {
            serde_json::from_str(text).unwrap_or_else(|error| panic!("datasets/knowledge/{name}: {error}"))
        })
        .collect()
});

const FILES: [(&str, &str); 49] = categories![
    "african_capitals",
    "asian_capitals",
    "birds",
    "body_parts",
    "buildings",
    "chemical_elements",
    "chess_pieces",
    "clothes",
    "colours",
    "continents",
    "countries",
    "currencies",
    "desserts",
    "dog_breeds",
    "drinks",
    "european_capitals",
    "fish",
    "flowers",
    "fruits",
    "furniture",
    "gemstones",
    "gods_of_greece",
    "greek_letters",
    "herbs_and_spices",
    "insects",
    "kitchen_things",
    "languages",
    "mammals",
    "metals",
    "months",
    "musical_instruments",
    "occupations",
    "oceans",
    "organs",
    "planets",
    "reptiles",
    "rooms",
    "school_subjects",
    "seasons",
    "shapes",
    "sports",
    "tools",
    "trees",
    "us_states",
    "vegetables",
    "vehicles",
    "weather",
    "weekdays",
    "zodiac_signs",
];

/// A category's list: question, then members in random order, numbered and quoted.
pub(super) fn list(wish: Wish, rng: &mut ChaCha8Rng) -> Document {
    let category = CATEGORIES.choose(rng).expect("there are categories");
    let mut document = Document::new(Kind::List);
    let form = Form::of(wish, rng);
    form.open(&mut document);
    document.push("Please show me some", Weight::Wording);
    document.push(&format!(" {}", category.category), Weight::Unpredictable);
    document.push(".", Weight::Wording);
    form.answer(&mut document);
    document.push(
        if form.is_chat() { "Answer:\n" } else { "\n\nAnswer:\n" },
        Weight::Wording,
    );
    let mut members: Vec<&String> = category.answers.iter().collect();
    members.shuffle(rng);
    let most = members.len().min(rng.random_range(5..=40)).min(wish.tokens / 9);
    for (index, member) in members.iter().take(most).enumerate() {
        if index > 0 {
            document.push("\n", Weight::Language);
        }
        document.push(&format!("{}. \"", index + 1), Weight::Language);
        document.push(&format!("{member}\""), Weight::Fact);
    }
    form.close(&mut document);
    document
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn no_name_stands_for_two_members() {
        for category in CATEGORIES.iter() {
            let names = category.answers.iter().chain(category.aliases.keys());
            let names: Vec<String> = names.map(|name| normalised(name)).collect();
            let distinct: BTreeSet<&String> = names.iter().collect();
            assert_eq!(names.len(), distinct.len(), "{}", category.id);
            for member in category.aliases.values() {
                assert!(category.answers.contains(member), "{}: {member}", category.id);
            }
        }
    }

    #[test]
    fn every_file_of_the_folder_is_included() {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/datasets/knowledge");
        let mut names: Vec<String> = std::fs::read_dir(folder)
            .expect("the folder")
            .map(|entry| entry.expect("an entry").file_name().to_string_lossy().into_owned())
            .filter(|name| std::path::Path::new(name).extension().is_some_and(|end| end == "json"))
            .collect();
        names.sort();
        let included: Vec<String> = FILES.iter().map(|(name, _)| (*name).to_owned()).collect();
        assert_eq!(names, included);
        for (name, category) in names.iter().zip(CATEGORIES.iter()) {
            assert_eq!(*name, format!("{}.json", category.id));
        }
    }

    #[test]
    fn aliases_and_spelling_find_the_member() {
        let countries = CATEGORIES.iter().find(|c| c.id == "countries").expect("countries");
        assert_eq!(countries.member("united states OF America"), Some("United States"));
        assert_eq!(countries.member("Atlantis"), None);
    }
}

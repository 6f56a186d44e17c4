//! Texts that go by a name: which files of which data set of the hub they are.

use crate::error::{Error, Result};
use crate::hub::{HubEnvironment, HubOptions, find_data_with};
use crate::manifest::sha256;
use parquet::file::reader::{FileReader, SerializedFileReader};
use parquet::record::{Field, Row};
use parquet::schema::types::Type;
use std::fs::File;
use std::path::Path;

/// Column of the data sets that holds the text.
const COLUMN: &str = "text";
const WIKITEXT: &str = "Salesforce/wikitext";
const WIKITEXT_COMMIT: &str = "b08601e04326c79dfdd32d625aee71d232d685c3";
/// Lines without text are empty rows there, all others end with their line break; in the files that the data set was made
/// from they were a space and a line break.
const BLANK_LINE: &str = " \n";

/// A text in Parquet files, whose rows follow one another.
#[derive(Debug, Clone, Copy)]
pub struct KnownText {
    /// What it is called.
    pub name: &'static str,
    /// The data set.
    pub repository: &'static str,
    /// A commit, so that the same name stays the same text; or a branch, and `sha256` says which text it is.
    pub revision: &'static str,
    /// Of both parts joined.
    pub sha256: Option<&'static str>,
    /// Files to learn from, in order.
    pub train: &'static [&'static str],
    /// Held-out files, in order.
    pub valid: &'static [&'static str],
    /// What an empty row stands for.
    pub blank: &'static str,
}

/// All of them.
pub const KNOWN_TEXTS: [KnownText; 5] = [
    // Cut as `input.txt` is without a name: nine tenths, and a tenth that the data set has in two halves. Its main branch holds a
    // script; the hub keeps what the script makes as Parquet on a branch of its own. The sum is that of char-rnn's `input.txt`.
    KnownText {
        name: "tiny-shakespeare",
        repository: "karpathy/tiny_shakespeare",
        revision: "refs/convert/parquet",
        sha256: Some("86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"),
        train: &["default/train/0000.parquet"],
        valid: &["default/validation/0000.parquet", "default/test/0000.parquet"],
        blank: "",
    },
    KnownText {
        name: "wikitext-2",
        repository: WIKITEXT,
        revision: WIKITEXT_COMMIT,
        sha256: None,
        train: &["wikitext-2-v1/train-00000-of-00001.parquet"],
        valid: &["wikitext-2-v1/validation-00000-of-00001.parquet"],
        blank: BLANK_LINE,
    },
    KnownText {
        name: "wikitext-2-raw",
        repository: WIKITEXT,
        revision: WIKITEXT_COMMIT,
        sha256: None,
        train: &["wikitext-2-raw-v1/train-00000-of-00001.parquet"],
        valid: &["wikitext-2-raw-v1/validation-00000-of-00001.parquet"],
        blank: BLANK_LINE,
    },
    KnownText {
        name: "wikitext-103",
        repository: WIKITEXT,
        revision: WIKITEXT_COMMIT,
        sha256: None,
        train: &[
            "wikitext-103-v1/train-00000-of-00002.parquet",
            "wikitext-103-v1/train-00001-of-00002.parquet",
        ],
        valid: &["wikitext-103-v1/validation-00000-of-00001.parquet"],
        blank: BLANK_LINE,
    },
    KnownText {
        name: "wikitext-103-raw",
        repository: WIKITEXT,
        revision: WIKITEXT_COMMIT,
        sha256: None,
        train: &[
            "wikitext-103-raw-v1/train-00000-of-00002.parquet",
            "wikitext-103-raw-v1/train-00001-of-00002.parquet",
        ],
        valid: &["wikitext-103-raw-v1/validation-00000-of-00001.parquet"],
        blank: BLANK_LINE,
    },
];

/// The text of this name.
pub fn known_text(name: &str) -> Option<&'static KnownText> {
    KNOWN_TEXTS.iter().find(|text| text.name == name)
}

/// All names, as a message lists them.
pub fn known_names() -> String {
    KNOWN_TEXTS.map(|text| text.name).join(", ")
}

/// The names of the texts that come from this data set, of which a revision may be given, as a message lists them; `None`
/// if none does.
pub fn names_from(reference: &str) -> Option<String> {
    let repository = reference.split('@').next();
    let texts = KNOWN_TEXTS.iter().filter(|text| Some(text.repository) == repository);
    let names: Vec<String> = texts.map(|text| format!("`--data {}`", text.name)).collect();
    (!names.is_empty()).then(|| names.join(" or "))
}

impl KnownText {
    /// The part to learn from and the held-out one, downloaded unless they are in the cache.
    pub fn read(&self, environment: &HubEnvironment, options: &HubOptions) -> Result<[String; 2]> {
        let own_revision = options.revision.is_none();
        let options = HubOptions {
            revision: options.revision.clone().or_else(|| Some(self.revision.to_owned())),
            ..options.clone()
        };
        let names = self.train.iter().chain(self.valid);
        let wanted: Vec<Vec<String>> = names.map(|&name| vec![name.to_owned()]).collect();
        let found = find_data_with(environment, self.repository, &wanted, &options)
            .map_err(|error| error.note(format!("this data set is the text `{}`", self.name)))?;
        let mut parts = [String::new(), String::new()];
        for (at, file) in found.files.iter().enumerate() {
            let file = file.as_ref().ok_or_else(|| found.lacks())?;
            let part = &mut parts[usize::from(at >= self.train.len())];
            append_rows(&file.path, self.blank, part)?;
        }
        match self.sha256 {
            Some(expected) if own_revision => self.check(&parts, expected).map(|()| parts),
            _ => Ok(parts),
        }
    }

    /// An error unless the joined parts have this SHA-256.
    fn check(&self, parts: &[String; 2], expected: &str) -> Result<()> {
        let found = sha256(parts.concat());
        if found == expected {
            return Ok(());
        }
        let Self { name, repository, .. } = self;
        Err(Error::user(format!(
            "the data set `{repository}` no longer holds the text `{name}`: SHA-256 {found}, not {expected}"
        ))
        .help("pass the text itself as `--data FILE`, or `--revision` to take what another revision holds"))
    }
}

/// Appends all rows of a file's text column; `blank` in place of empty ones.
fn append_rows(path: &Path, blank: &str, to: &mut String) -> Result<()> {
    let broken = |why: String| {
        Error::user(format!("`{}` cannot be read as Parquet: {why}", path.display()))
            .help("remove it from the cache, so that it is downloaded again")
    };
    let file = File::open(path).map_err(|error| broken(error.to_string()))?;
    let reader = SerializedFileReader::new(file).map_err(|error| broken(error.to_string()))?;
    let schema = reader.metadata().file_metadata().schema();
    let column = schema.get_fields().iter().find(|field| field.name() == COLUMN);
    let column = column.ok_or_else(|| broken(format!("it has no column `{COLUMN}`")))?;
    let only = Type::group_type_builder(schema.name()).with_fields(vec![column.clone()]);
    let rows = only.build().and_then(|only| reader.get_row_iter(Some(only)));
    for row in rows.map_err(|error| broken(error.to_string()))? {
        let row: Row = row.map_err(|error| broken(error.to_string()))?;
        match row.get_column_iter().next() {
            Some((_, Field::Str(text))) if !text.is_empty() => to.push_str(text),
            Some((_, Field::Str(_) | Field::Null)) => to.push_str(blank),
            _ => return Err(broken(format!("its column `{COLUMN}` is not text"))),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_no_paths_and_texts_are_pinned() {
        for text in KNOWN_TEXTS {
            assert_eq!(known_text(text.name).unwrap().repository, text.repository);
            assert!(!text.name.contains('/') && text.repository.split('/').count() == 2);
            let is_hex = |digits: &str, length| digits.len() == length && digits.bytes().all(|b| b.is_ascii_hexdigit());
            assert!(text.sha256.map_or(is_hex(text.revision, 40), |sum| is_hex(sum, 64)));
        }
        assert!(known_text("wikitext").is_none());
        assert_eq!(
            names_from("karpathy/tiny_shakespeare@main").unwrap(),
            "`--data tiny-shakespeare`"
        );
        assert!(names_from("Org/Name").is_none());
    }

    #[test]
    fn another_text_than_the_name_means_is_refused() {
        let text = known_text("tiny-shakespeare").unwrap();
        let parts = ["First Citizen:".to_owned(), String::new()];
        let error = text.check(&parts, text.sha256.unwrap()).unwrap_err();
        assert!(
            error.message().contains("no longer holds the text `tiny-shakespeare`"),
            "{error}"
        );
        text.check(&parts, &sha256("First Citizen:")).unwrap();
    }

    #[test]
    fn a_file_that_is_no_parquet_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.parquet");
        for content in [b"".as_slice(), b"PAR1", b"a text that is none", &[0xff; 200]] {
            std::fs::write(&path, content).unwrap();
            let error = append_rows(&path, "", &mut String::new()).unwrap_err();
            assert!(error.message().contains("cannot be read as Parquet"), "{error}");
        }
    }
}

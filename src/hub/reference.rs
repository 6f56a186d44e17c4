//! Decides what a model reference names: a local directory, a local file or a repository of the hub.

use std::path::{Path, PathBuf};

use hf_hub::RepoType;

use super::environment::expand_home;
use crate::error::{Error, Result, io_error};

const FORMS: &str = "name a model directory, a `.safetensors` file, a `config.json`, or a hub model such as \
                     `Qwen/Qwen2.5-0.5B-Instruct`";

/// Without an example: which data set it may be depends on the command, which says so in a note of its own.
const DATA_FORMS: &str = "name a file, or a directory or a hub data set (`Org/Name`) that holds such files";

/// What a reference names.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Reference {
    Directory(PathBuf),
    File(PathBuf),
    Hub(Repository),
}

/// What a repository holds. The hub keeps the two apart in addresses and cache folders.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum RepositoryKind {
    Model,
    Dataset,
}

impl RepositoryKind {
    /// The word in messages.
    pub(super) fn noun(self) -> &'static str {
        match self {
            Self::Model => "model",
            Self::Dataset => "data set",
        }
    }

    /// What comes before the id in the address of its page.
    pub(super) fn page(self) -> &'static str {
        match self {
            Self::Model => "",
            Self::Dataset => "datasets/",
        }
    }

    pub(super) fn repo_type(self) -> RepoType {
        match self {
            Self::Model => RepoType::Model,
            Self::Dataset => RepoType::Dataset,
        }
    }
}

/// A repository of the hub at a revision.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Repository {
    pub(super) kind: RepositoryKind,
    /// `Org/Name`.
    pub(super) id: String,
    /// Branch, tag or commit.
    pub(super) revision: String,
}

/// Decides what `typed` names; `revision` is the value of `--revision`.
pub(super) fn parse(typed: &str, revision: Option<&str>) -> Result<Reference> {
    if typed.trim().is_empty() {
        return Err(Error::user("the model reference is empty").help(FORMS));
    }
    let path = expand_home(typed);
    match std::fs::metadata(&path) {
        Ok(metadata) => local(path, &metadata, revision, FORMS),
        Err(source) if is_absent(&source) => absent(typed, &path, revision),
        Err(source) => Err(io_error("read", &path, &source)),
    }
}

/// As [`parse`], for data: a directory, a file or a data set of the hub.
pub(super) fn parse_data(typed: &str, revision: Option<&str>) -> Result<Reference> {
    if typed.trim().is_empty() {
        return Err(Error::user("the data reference is empty").help(DATA_FORMS));
    }
    let path = expand_home(typed);
    match std::fs::metadata(&path) {
        Ok(metadata) => return local(path, &metadata, revision, DATA_FORMS),
        Err(source) if is_absent(&source) => {}
        Err(source) => return Err(io_error("read", &path, &source)),
    }
    let (id, suffix) = split_revision(typed);
    if looks_like_path(typed, id) || !id.contains('/') {
        let error = Error::user(format!("`{typed}` does not exist"));
        return Err(match similar_note(&path) {
            Some(note) => error.note(note),
            None => error,
        }
        .help(DATA_FORMS));
    }
    hub(RepositoryKind::Dataset, id, suffix, revision).map_err(|error| {
        if error.remedy().is_none() {
            error.help(DATA_FORMS)
        } else {
            error
        }
    })
}

fn split_revision(typed: &str) -> (&str, Option<&str>) {
    match typed.split_once('@') {
        Some((id, suffix)) => (id, Some(suffix)),
        None => (typed, None),
    }
}

fn is_absent(source: &std::io::Error) -> bool {
    use std::io::ErrorKind;
    // InvalidInput is a NUL byte, InvalidFilename a name beyond the limit: no such file can exist.
    matches!(
        source.kind(),
        ErrorKind::NotFound | ErrorKind::NotADirectory | ErrorKind::InvalidInput | ErrorKind::InvalidFilename
    )
}

fn local(
    path: PathBuf,
    metadata: &std::fs::Metadata,
    revision: Option<&str>,
    forms: &'static str,
) -> Result<Reference> {
    if let Some(revision) = revision {
        return Err(Error::user(format!(
            "`--revision {revision}` is given, but `{}` is a local path",
            path.display()
        ))
        .note("a revision selects a commit of a hub repository; an existing local path wins over a hub id")
        .help("drop `--revision`, or run where no such path exists"));
    }
    if metadata.is_dir() {
        Ok(Reference::Directory(path))
    } else if metadata.is_file() {
        Ok(Reference::File(path))
    } else {
        let message = format!("`{}` is neither a directory nor a regular file", path.display());
        Err(Error::user(message).help(forms))
    }
}

fn absent(typed: &str, path: &Path, revision: Option<&str>) -> Result<Reference> {
    let (id, suffix) = split_revision(typed);
    if looks_like_path(typed, id) {
        return Err(absent_path(path));
    }
    if !id.contains('/') {
        let mut error = Error::user(format!(
            "`{typed}` is neither an existing path nor a hub model of the form `Org/Name`"
        ));
        if let Some(note) = similar_note(path) {
            error = error.note(note);
        }
        return Err(error.help(FORMS));
    }
    hub(RepositoryKind::Model, id, suffix, revision).map_err(|error| {
        if error.remedy().is_none() {
            error.help(FORMS)
        } else {
            error
        }
    })
}

/// The repository `id` at the revision of its suffix or of `--revision`. A fault of the id comes without a remedy.
fn hub(kind: RepositoryKind, id: &str, suffix: Option<&str>, revision: Option<&str>) -> Result<Reference> {
    if let Some(fault) = id_fault(id) {
        return Err(Error::user(format!("`{id}` is not a hub {} id: {fault}", kind.noun())));
    }
    let revision = match (suffix, revision) {
        (Some(suffix), Some(option)) if suffix != option => {
            return Err(Error::user(format!(
                "two revisions are given: `@{suffix}` in the {} reference and `--revision {option}`",
                kind.noun()
            ))
            .help("keep one of them"));
        }
        (suffix, option) => suffix.or(option).unwrap_or("main"),
    };
    if let Some(fault) = revision_fault(revision) {
        return Err(Error::user(format!("`{revision}` is not a revision: {fault}"))
            .help("a revision is a branch, a tag or a commit, such as `main` or `v1.0`"));
    }
    Ok(Reference::Hub(Repository {
        kind,
        id: id.to_owned(),
        revision: revision.to_owned(),
    }))
}

/// `id` is `typed` up to an `@`: the slashes of `Org/Name@refs/pr/1` belong to the revision.
fn looks_like_path(typed: &str, id: &str) -> bool {
    typed.starts_with(['.', '/', '~'])
        || typed.contains('\\')
        || id.ends_with('/')
        || id.matches('/').count() > 1
        || [".safetensors", ".json", ".jsonl", ".gguf", ".bin"]
            .iter()
            .any(|end| typed.ends_with(end))
}

fn absent_path(path: &Path) -> Error {
    let mut error = Error::user(format!("`{}` does not exist", path.display()));
    if let Some(note) = similar_note(path) {
        error = error.note(note);
    } else if let Some(parent) = path.parent()
        && !parent.as_os_str().is_empty()
        && !parent.is_dir()
    {
        error = error.note(format!("`{}` is not a directory either", parent.display()));
    }
    error.help(FORMS)
}

/// Names the entries beside `path` that may have been meant.
fn similar_note(path: &Path) -> Option<String> {
    let wanted = path.file_name()?.to_string_lossy().to_lowercase();
    let parent = match path.parent()? {
        parent if parent.as_os_str().is_empty() => Path::new("."),
        parent => parent,
    };
    let mut similar: Vec<(usize, String)> = std::fs::read_dir(parent)
        .ok()?
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .filter_map(|name| similarity(&wanted, &name.to_lowercase()).map(|distance| (distance, name)))
        .collect();
    similar.sort();
    let names: Vec<String> = similar
        .into_iter()
        .take(4)
        .map(|(_, name)| format!("`{name}`"))
        .collect();
    (!names.is_empty()).then(|| format!("similar in `{}`: {}", parent.display(), names.join(", ")))
}

/// A rank among similar names (0 first), or `None` if the two have nothing to do with each other.
fn similarity(wanted: &str, name: &str) -> Option<usize> {
    let shorter = wanted.chars().count().min(name.chars().count());
    let distance = edit_distance(wanted, name);
    let contained = shorter >= 3 && (name.contains(wanted) || wanted.contains(name));
    (contained || distance <= wanted.chars().count() / 3).then_some(distance)
}

/// Levenshtein distance in characters.
fn edit_distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, from) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, to) in b.iter().enumerate() {
            let substituted = diagonal + usize::from(from != *to);
            diagonal = row[j + 1];
            row[j + 1] = substituted.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

/// The naming rules of the hub. They also keep the id harmless as part of a path and of a URL.
fn id_fault(id: &str) -> Option<&'static str> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || "-_./".contains(c);
    if id.len() > 200 {
        Some("it is too long")
    } else if !id.chars().all(allowed) {
        Some("only letters, digits, `-`, `_`, `.` and one `/` may occur")
    } else if id.contains("--") || id.contains("..") {
        Some("`--` and `..` may not occur")
    } else if id.split('/').any(str::is_empty) {
        Some("the organisation or the name is empty")
    } else if id
        .split('/')
        .any(|part| part.starts_with(['-', '.']) || part.ends_with(['-', '.']))
    {
        Some("organisation and name may not start or end with `-` or `.`")
    } else {
        None
    }
}

/// The rules of git, narrowed to ASCII: a revision becomes part of a path (`refs/...`) and of a URL.
fn revision_fault(revision: &str) -> Option<&'static str> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || "-_./+=".contains(c);
    if revision.is_empty() {
        Some("it is empty")
    } else if revision.len() > 200 {
        Some("it is too long")
    } else if !revision.chars().all(allowed) {
        Some("only letters, digits and `-_./+=` may occur")
    } else if revision.split('/').any(|part| part.is_empty() || part.starts_with('.')) || revision.contains("..") {
        Some("a part of it is empty or starts with a dot")
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hub(id: &str, revision: &str) -> Reference {
        Reference::Hub(Repository {
            kind: RepositoryKind::Model,
            id: id.to_owned(),
            revision: revision.to_owned(),
        })
    }

    #[test]
    fn data_is_a_path_or_a_data_set() {
        let Reference::Hub(repository) = parse_data("Org/Data@v1", None).unwrap() else {
            panic!("a data set");
        };
        assert_eq!(
            (repository.kind, repository.revision.as_str()),
            (RepositoryKind::Dataset, "v1")
        );
        for (typed, expected) in [
            ("", "is empty"),
            ("passkey", "does not exist"),
            ("no/such/file.jsonl", "does not exist"),
            ("Org/Na me", "not a hub data set id"),
        ] {
            let error = parse_data(typed, None).unwrap_err();
            assert!(
                error.message().contains(expected) && error.remedy().is_some(),
                "{error}"
            );
        }
    }

    fn message(typed: &str, revision: Option<&str>) -> String {
        let error = parse(typed, revision).unwrap_err();
        assert_eq!(error.exit_code(), 2, "{error}");
        error.to_string()
    }

    #[test]
    fn hub_ids_with_and_without_revision() {
        assert_eq!(parse("Org/Name", None).unwrap(), hub("Org/Name", "main"));
        assert_eq!(parse("Org/Name", Some("v1")).unwrap(), hub("Org/Name", "v1"));
        assert_eq!(parse("Org/Name@v1", None).unwrap(), hub("Org/Name", "v1"));
        assert_eq!(parse("Org/Name@v1", Some("v1")).unwrap(), hub("Org/Name", "v1"));
        assert_eq!(parse("Org/Name@refs/pr/1", None).unwrap(), hub("Org/Name", "refs/pr/1"));
        assert!(message("Org/Name@v1", Some("v2")).contains("two revisions"));
    }

    #[test]
    fn malformed_ids_and_revisions_are_refused() {
        for typed in [
            "Org/Na me",
            "Org/..",
            "Org/a--b",
            "-Org/Name",
            "Org/Name@",
            "Org/Name@../../x",
            "Org/é",
        ] {
            message(typed, None);
        }
        for typed in ["", " ", "\0", "a\0/b", "@", "@main", "~", "\u{1F600}/\u{1F600}"] {
            let _ = parse(typed, None);
        }
        message(&"x/".repeat(5000), None);
        message(&format!("Org/{}", "x".repeat(5000)), None);
    }

    #[test]
    fn existing_path_wins_and_takes_no_revision() {
        let folder = tempfile::tempdir().unwrap();
        let typed = folder.path().to_str().unwrap();
        assert_eq!(
            parse(typed, None).unwrap(),
            Reference::Directory(folder.path().to_owned())
        );
        assert!(message(typed, Some("main")).contains("is a local path"));
        let file = folder.path().join("a@b.safetensors");
        std::fs::write(&file, "").unwrap();
        assert_eq!(parse(file.to_str().unwrap(), None).unwrap(), Reference::File(file));
    }

    #[test]
    fn absent_path_names_similar_entries() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("Qwen2-7B")).unwrap();
        std::fs::create_dir(folder.path().join("unrelated")).unwrap();
        let error = message(folder.path().join("qwen2-7").to_str().unwrap(), None);
        assert!(
            error.contains("does not exist") && error.contains("`Qwen2-7B`"),
            "{error}"
        );
        assert!(!error.contains("unrelated"), "{error}");
        let deep = message(folder.path().join("none/such").to_str().unwrap(), None);
        assert!(deep.contains("is not a directory either"), "{deep}");
    }

    #[test]
    fn path_like_references_never_reach_the_hub() {
        for typed in [
            "./Org/Name",
            "a/b/c",
            "weights.safetensors",
            "Org/x.json",
            "~/nothing-here",
            "..",
            "Org/",
        ] {
            if let Ok(Reference::Hub(repository)) = parse(typed, None) {
                panic!("{typed} became {repository:?}");
            }
        }
        assert!(message("Name", None).contains("neither"));
    }

    #[test]
    fn edit_distance_is_levenshtein() {
        for (a, b, distance) in [("", "", 0), ("", "abc", 3), ("kitten", "sitting", 3), ("ab", "ba", 2)] {
            assert_eq!(edit_distance(a, b), distance);
        }
    }
}

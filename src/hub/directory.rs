//! Looks what a folder holds of a model and what it lacks.

use std::path::{Path, PathBuf};

use super::{ModelFiles, Need, SourceRecord, index};
use crate::error::{Error, Result, io_error};

pub(super) const CONFIG: &str = "config.json";
pub(super) const GENERATION_CONFIG: &str = "generation_config.json";
pub(super) const TOKENIZER: &str = "tokenizer.json";
pub(super) const TOKENIZER_CONFIG: &str = "tokenizer_config.json";
pub(super) const CHAT_TEMPLATE: &str = "chat_template.jinja";
pub(super) const CHAT_TEMPLATE_JSON: &str = "chat_template.json";
pub(super) const WEIGHTS: &str = "model.safetensors";
pub(super) const WEIGHTS_INDEX: &str = "model.safetensors.index.json";

/// The files found in a folder, and the names of the required ones that are not there.
#[derive(Debug, Default)]
pub(super) struct Survey {
    pub(super) config: Option<PathBuf>,
    pub(super) generation_config: Option<PathBuf>,
    pub(super) tokenizer: Option<PathBuf>,
    pub(super) tokenizer_config: Option<PathBuf>,
    pub(super) chat_template: Option<PathBuf>,
    pub(super) weights_index: Option<PathBuf>,
    pub(super) weights: Vec<PathBuf>,
    /// Required files that are absent.
    pub(super) missing: Vec<String>,
}

impl Survey {
    /// Looks for the files that `need` covers. Fails only on a broken weight index.
    pub(super) fn of(folder: &Path, need: Need) -> Result<Self> {
        let mut survey = Self::optional(folder, need);
        survey.config = existing(folder, CONFIG);
        if survey.config.is_none() {
            survey.missing.push(CONFIG.to_owned());
        }
        if need.tokenizer() && survey.tokenizer.is_none() {
            survey.missing.push(TOKENIZER.to_owned());
        }
        if need.weights() {
            survey.add_weights(folder)?;
        }
        Ok(survey)
    }

    /// Everything but `config.json` and the weights, required or not.
    fn optional(folder: &Path, need: Need) -> Self {
        let mut survey = Self {
            generation_config: existing(folder, GENERATION_CONFIG),
            ..Self::default()
        };
        if need.tokenizer() {
            survey.tokenizer = existing(folder, TOKENIZER);
            survey.tokenizer_config = existing(folder, TOKENIZER_CONFIG);
            survey.chat_template = existing(folder, CHAT_TEMPLATE).or_else(|| existing(folder, CHAT_TEMPLATE_JSON));
        }
        survey
    }

    /// A single file wins over an index, as in transformers.
    fn add_weights(&mut self, folder: &Path) -> Result<()> {
        if let Some(single) = existing(folder, WEIGHTS) {
            self.weights.push(single);
        } else if let Some(index) = existing(folder, WEIGHTS_INDEX) {
            for shard in index::shards(&index)? {
                match existing(folder, &shard) {
                    Some(path) => self.weights.push(path),
                    None => self.missing.push(shard),
                }
            }
            self.weights_index = Some(index);
        } else {
            self.missing.push(WEIGHTS.to_owned());
        }
        Ok(())
    }

    /// The public form; `config` is present in every survey that reports nothing missing.
    pub(super) fn into_files(self, reference: &str, source: SourceRecord) -> Result<ModelFiles> {
        let Some(config) = self.config else {
            return Err(Error::bug(format!("`{reference}` was resolved without a `{CONFIG}`")));
        };
        Ok(ModelFiles {
            reference: reference.to_owned(),
            source,
            config,
            generation_config: self.generation_config,
            tokenizer: self.tokenizer,
            tokenizer_config: self.tokenizer_config,
            chat_template: self.chat_template,
            weights_index: self.weights_index,
            weights: self.weights,
        })
    }
}

fn existing(folder: &Path, name: &str) -> Option<PathBuf> {
    let path = folder.join(name);
    path.is_file().then_some(path)
}

/// A model directory.
pub(super) fn directory(folder: &Path, need: Need) -> Result<Survey> {
    let survey = Survey::of(folder, need)?;
    if survey.missing.is_empty() {
        return Ok(survey);
    }
    let present = entries(folder)?;
    let place = format!("`{}`", folder.display());
    Err(incomplete(
        &place,
        &survey.missing,
        survey.weights_index.is_some(),
        &present,
    ))
}

/// One file: weights with their configuration beside them, or a configuration alone.
pub(super) fn file(path: &Path, need: Need) -> Result<Survey> {
    let folder = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let place = folder.display();
    if name.ends_with(".index.json") {
        return Err(
            Error::user(format!("`{}` is a weight index, not a model", path.display()))
                .help(format!("name the directory that holds it: `{place}`")),
        );
    }
    if has_extension(path, "json") {
        let mut survey = Survey::optional(folder, need);
        survey.config = Some(path.to_owned());
        return Ok(survey);
    }
    if !has_extension(path, "safetensors") {
        return Err(Error::user(format!("`{}` is not a model file", path.display()))
            .note("a model file is `*.safetensors` (weights) or `*.json` (a configuration alone)")
            .help(
                conversion_help(&[name]).unwrap_or_else(|| "name one of these, or the model's directory".to_owned()),
            ));
    }
    if let Some(index) = existing(folder, WEIGHTS_INDEX)
        && let shards = index::shards(&index)?
        && shards.len() > 1
        && shards.contains(&name)
    {
        return Err(
            Error::user(format!("`{}` is one of {} shards", path.display(), shards.len()))
                .note(format!("`{}` names them all", index.display()))
                .help(format!("name the directory: `{place}`")),
        );
    }
    let without_weights = if need.tokenizer() {
        Need::ConfigAndTokenizer
    } else {
        Need::ConfigOnly
    };
    let mut survey = Survey::of(folder, without_weights)?;
    if !survey.missing.is_empty() {
        let place = format!("`{place}` (the directory of `{name}`)");
        return Err(incomplete(&place, &survey.missing, false, &entries(folder)?));
    }
    if need.weights() {
        survey.weights.push(path.to_owned());
    }
    Ok(survey)
}

fn has_extension(path: &Path, extension: &str) -> bool {
    path.extension()
        .is_some_and(|found| found.eq_ignore_ascii_case(extension))
}

/// The names in `folder`, sorted.
fn entries(folder: &Path) -> Result<Vec<String>> {
    let listing = std::fs::read_dir(folder).map_err(|source| io_error("list", folder, &source))?;
    let mut names: Vec<String> = listing
        .filter_map(|entry| Some(entry.ok()?.file_name().to_string_lossy().into_owned()))
        .collect();
    names.sort();
    Ok(names)
}

/// The error for a place (a directory, a repository) that lacks required files; `present` are the names there.
pub(super) fn incomplete(place: &str, missing: &[String], sharded: bool, present: &[String]) -> Error {
    let lacks = |name: &str| missing.iter().any(|missing| missing == name);
    let shards: Vec<&String> = missing
        .iter()
        .filter(|name| *name != CONFIG && *name != TOKENIZER)
        .collect();
    let (message, help) = if lacks(CONFIG) {
        (
            format!("{place} is not a model: it has no `{CONFIG}`"),
            config_help(present),
        )
    } else if let ([shard], true) = (shards.as_slice(), sharded) {
        let message = format!("{place} lacks the shard `{shard}` that `{WEIGHTS_INDEX}` names");
        (message, "download that shard again".to_owned())
    } else if !shards.is_empty() && sharded {
        let message = format!("{place} lacks {} shards that `{WEIGHTS_INDEX}` names", shards.len());
        (message, "download these shards again".to_owned())
    } else if lacks(WEIGHTS) {
        let message = format!("{place} has neither `{WEIGHTS}` nor `{WEIGHTS_INDEX}`");
        (message, weights_help(present))
    } else {
        let help = "transformers writes that file: `AutoTokenizer.from_pretrained(..).save_pretrained(..)`";
        (format!("{place} has no `{TOKENIZER}`"), help.to_owned())
    };
    let mut error = Error::user(message);
    if missing.len() > 1 {
        error = error.note(format!("missing: {}", quoted(missing)));
    }
    error.note(found_note(present)).help(help)
}

fn config_help(present: &[String]) -> String {
    let known = [WEIGHTS, WEIGHTS_INDEX, TOKENIZER];
    if present.iter().any(|name| known.contains(&name.as_str())) {
        format!("copy the model's `{CONFIG}` there")
    } else {
        conversion_help(present)
            .unwrap_or_else(|| "name a directory in the Hugging Face layout, such as a clone of a hub model".to_owned())
    }
}

fn weights_help(present: &[String]) -> String {
    if let Some(name) = present
        .iter()
        .find(|name| name.to_lowercase().ends_with(".safetensors"))
    {
        format!("if `{name}` holds all the weights, name that file")
    } else {
        conversion_help(present)
            .unwrap_or_else(|| format!("add the weights, or name the `{CONFIG}` itself to use random ones"))
    }
}

/// What to do about weights in a form that cannot be read, if there are any.
fn conversion_help(present: &[String]) -> Option<String> {
    let other_formats = [".gguf", ".bin", ".pt", ".pth", ".h5", ".msgpack", ".ckpt"];
    let unreadable = |name: &&String| other_formats.iter().any(|end| name.to_lowercase().ends_with(end));
    present.iter().find(unreadable).map(|name| {
        format!(
            "`{name}` cannot be read, safetensors are needed; transformers converts: \
             `model.save_pretrained(.., safe_serialization=True)`"
        )
    })
}

fn found_note(present: &[String]) -> String {
    const SHOWN: usize = 12;
    match present.len() {
        0 => "nothing is there".to_owned(),
        n if n > SHOWN => format!("found: {} and {} more", quoted(&present[..SHOWN]), n - SHOWN),
        _ => format!("found: {}", quoted(present)),
    }
}

/// `a`, `b`, `c`
pub(super) fn quoted(names: &[String]) -> String {
    let quoted: Vec<String> = names.iter().map(|name| format!("`{}`", name.escape_debug())).collect();
    quoted.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder(names: &[&str]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        for name in names {
            std::fs::write(folder.path().join(name), "{}").unwrap();
        }
        folder
    }

    fn names(survey: &Survey) -> Vec<String> {
        let name = |path: &PathBuf| path.file_name().unwrap().to_string_lossy().into_owned();
        survey.weights.iter().map(name).collect()
    }

    fn refusal(names: &[&str], need: Need) -> String {
        let error = directory(folder(names).path(), need).unwrap_err();
        assert_eq!(error.exit_code(), 2, "{error}");
        error.to_string()
    }

    const INDEX: &str = r#"{"weight_map": {"b": "b.safetensors", "a": "a.safetensors", "c": "a.safetensors"}}"#;

    #[test]
    fn whole_directory() {
        let folder = folder(&[
            CONFIG,
            TOKENIZER,
            TOKENIZER_CONFIG,
            CHAT_TEMPLATE_JSON,
            GENERATION_CONFIG,
            WEIGHTS,
        ]);
        let survey = directory(folder.path(), Need::All).unwrap();
        assert_eq!(names(&survey), [WEIGHTS]);
        assert_eq!(survey.chat_template, Some(folder.path().join(CHAT_TEMPLATE_JSON)));
        assert!(survey.tokenizer.is_some() && survey.tokenizer_config.is_some() && survey.generation_config.is_some());
        let config_only = directory(folder.path(), Need::ConfigOnly).unwrap();
        assert!(config_only.tokenizer.is_none() && config_only.weights.is_empty());
    }

    #[test]
    fn need_decides_what_must_exist() {
        let folder = folder(&[CONFIG]);
        assert!(directory(folder.path(), Need::ConfigOnly).is_ok());
        let tokenizer = refusal(&[CONFIG, "tokenizer.model"], Need::ConfigAndTokenizer);
        assert!(
            tokenizer.contains("no `tokenizer.json`") && tokenizer.contains("`tokenizer.model`"),
            "{tokenizer}"
        );
        let both = refusal(&[CONFIG], Need::All);
        assert!(
            both.contains("missing: `tokenizer.json`, `model.safetensors`"),
            "{both}"
        );
    }

    #[test]
    fn shards_and_single_file() {
        let folder = folder(&[CONFIG, "a.safetensors", "b.safetensors"]);
        std::fs::write(folder.path().join(WEIGHTS_INDEX), INDEX).unwrap();
        let sharded = directory(folder.path(), Need::ConfigAndWeights).unwrap();
        assert_eq!(names(&sharded), ["a.safetensors", "b.safetensors"]);
        assert_eq!(sharded.weights_index, Some(folder.path().join(WEIGHTS_INDEX)));
        std::fs::write(folder.path().join(WEIGHTS), "").unwrap();
        let single = directory(folder.path(), Need::ConfigAndWeights).unwrap();
        assert_eq!((names(&single), single.weights_index), (vec![WEIGHTS.to_owned()], None));
    }

    #[test]
    fn absent_shard_is_named_with_the_index() {
        let folder = folder(&[CONFIG, "a.safetensors"]);
        std::fs::write(folder.path().join(WEIGHTS_INDEX), INDEX).unwrap();
        let error = directory(folder.path(), Need::ConfigAndWeights)
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("`b.safetensors`") && error.contains(WEIGHTS_INDEX),
            "{error}"
        );
        std::fs::remove_file(folder.path().join("a.safetensors")).unwrap();
        let error = directory(folder.path(), Need::ConfigAndWeights)
            .unwrap_err()
            .to_string();
        assert!(error.contains("missing: `a.safetensors`, `b.safetensors`"), "{error}");
    }

    #[test]
    fn other_weight_formats_are_named() {
        let pickled = refusal(&[CONFIG, "pytorch_model.bin"], Need::ConfigAndWeights);
        assert!(
            pickled.contains("`pytorch_model.bin` cannot be read, safetensors are needed"),
            "{pickled}"
        );
        let gguf = refusal(&["model-Q4.gguf"], Need::All);
        assert!(
            gguf.contains("no `config.json`") && gguf.contains("`model-Q4.gguf` cannot be read"),
            "{gguf}"
        );
        let renamed = refusal(&[CONFIG, "weights.safetensors"], Need::ConfigAndWeights);
        assert!(renamed.contains("name that file"), "{renamed}");
        assert!(refusal(&[], Need::ConfigOnly).contains("nothing is there"));
    }

    #[test]
    fn weight_file_takes_its_configuration_from_beside() {
        let folder = folder(&[CONFIG, TOKENIZER, "x.safetensors"]);
        let survey = file(&folder.path().join("x.safetensors"), Need::All).unwrap();
        assert_eq!(names(&survey), ["x.safetensors"]);
        std::fs::remove_file(folder.path().join(CONFIG)).unwrap();
        let error = file(&folder.path().join("x.safetensors"), Need::All)
            .unwrap_err()
            .to_string();
        assert!(error.contains("no `config.json`"), "{error}");
    }

    #[test]
    fn configuration_file_means_no_weights() {
        let folder = folder(&["tiny.json", WEIGHTS]);
        let path = folder.path().join("tiny.json");
        let survey = file(&path, Need::All).unwrap();
        assert_eq!(survey.config, Some(path));
        assert!(survey.weights.is_empty() && survey.tokenizer.is_none());
    }

    #[test]
    fn a_part_of_a_model_is_not_a_model() {
        let folder = folder(&[CONFIG, "a.safetensors", "x.gguf"]);
        std::fs::write(folder.path().join(WEIGHTS_INDEX), INDEX).unwrap();
        for (name, part) in [
            ("a.safetensors", "one of 2 shards"),
            (WEIGHTS_INDEX, "a weight index"),
            ("x.gguf", "safetensors are needed"),
        ] {
            let error = file(&folder.path().join(name), Need::All).unwrap_err();
            assert!(error.to_string().contains(part), "{error}");
            assert_eq!(error.exit_code(), 2);
        }
    }
}

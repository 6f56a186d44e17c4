//! The environment variables of the Hugging Face libraries, read once into a struct.

use std::path::{Path, PathBuf};

/// Where the hub and its cache are, and how to identify to it. See the [module documentation](super) for the variables.
#[derive(Clone, PartialEq, Eq)]
pub struct HubEnvironment {
    /// Address of the hub, without a slash at the end.
    pub endpoint: String,
    /// Folder that holds the `models--Org--Name` folders.
    pub cache_dir: PathBuf,
    /// Folder of what only this program keeps.
    pub own_cache_dir: PathBuf,
    /// Access token.
    pub token: Option<String>,
    /// Never touch the network.
    pub offline: bool,
}

// By hand, so that a token never reaches a log.
impl std::fmt::Debug for HubEnvironment {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("HubEnvironment")
            .field("endpoint", &self.endpoint)
            .field("cache_dir", &self.cache_dir)
            .field("own_cache_dir", &self.own_cache_dir)
            .field("token", &self.token.as_ref().map(|_| "***"))
            .field("offline", &self.offline)
            .finish()
    }
}

impl HubEnvironment {
    /// Reads the environment of the process, and the token file if `HF_TOKEN` is not set.
    pub fn from_env() -> Self {
        Self::from_lookup(&|name| std::env::var(name).ok())
    }

    fn from_lookup(variable: &dyn Fn(&str) -> Option<String>) -> Self {
        let variable = |name: &str| variable(name).filter(|value| !value.trim().is_empty());
        let path = |name: &str| variable(name).map(|value| expand_home(&value));
        let caches = path("XDG_CACHE_HOME").unwrap_or_else(|| expand_home("~/.cache"));
        let hf_home = path("HF_HOME").unwrap_or_else(|| caches.join("huggingface"));
        let token_file = path("HF_TOKEN_PATH").unwrap_or_else(|| hf_home.join("token"));
        Self {
            endpoint: variable("HF_ENDPOINT")
                .unwrap_or_else(|| "https://huggingface.co".to_owned())
                .trim()
                .trim_end_matches('/')
                .to_owned(),
            cache_dir: path("HF_HUB_CACHE").unwrap_or_else(|| hf_home.join("hub")),
            own_cache_dir: caches.join("tokselect"),
            token: variable("HF_TOKEN")
                .or_else(|| std::fs::read_to_string(token_file).ok())
                .map(|token| token.trim().to_owned())
                .filter(|token| !token.is_empty()),
            offline: variable("HF_HUB_OFFLINE").is_some_and(|value| is_true(&value)),
        }
    }
}

/// The folder where downloaded models are cached, as `HF_HUB_CACHE`, `HF_HOME` and `XDG_CACHE_HOME` say.
pub fn cache_dir() -> PathBuf {
    HubEnvironment::from_env().cache_dir
}

/// The values that `huggingface_hub` takes for true.
fn is_true(value: &str) -> bool {
    matches!(value.trim().to_ascii_lowercase().as_str(), "1" | "true" | "yes" | "on")
}

/// Replaces a leading `~`, which the shell leaves alone in `--model=~/x` and in quoted values.
pub(super) fn expand_home(typed: &str) -> PathBuf {
    match (typed.strip_prefix('~'), std::env::home_dir()) {
        (Some(""), Some(home)) => home,
        (Some(rest), Some(home)) if rest.starts_with('/') => home.join(rest.trim_start_matches('/')),
        _ => Path::new(typed).to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn from(pairs: &[(&str, &str)]) -> HubEnvironment {
        HubEnvironment::from_lookup(&|name| {
            let found = pairs.iter().find(|(key, _)| *key == name);
            found.map(|(_, value)| (*value).to_owned())
        })
    }

    #[test]
    fn the_narrower_variable_decides_the_cache_folder() {
        let all = [("HF_HUB_CACHE", "/c"), ("HF_HOME", "/h"), ("XDG_CACHE_HOME", "/x")];
        assert_eq!(from(&all).cache_dir, Path::new("/c"));
        assert_eq!(from(&all[1..]).cache_dir, Path::new("/h/hub"));
        assert_eq!(from(&all[2..]).cache_dir, Path::new("/x/huggingface/hub"));
        assert_eq!(from(&all).own_cache_dir, Path::new("/x/tokselect"));
        assert_eq!(
            from(&[("HF_HUB_CACHE", ""), ("HF_HOME", "/h")]).cache_dir,
            Path::new("/h/hub")
        );
    }

    #[test]
    fn offline_is_what_the_python_library_takes_for_true() {
        for (value, offline) in [
            ("1", true),
            ("ON", true),
            ("Yes", true),
            ("true", true),
            ("0", false),
            ("", false),
        ] {
            assert_eq!(from(&[("HF_HUB_OFFLINE", value)]).offline, offline, "{value:?}");
        }
    }

    #[test]
    fn token_comes_from_the_variable_else_from_the_file() {
        let home = tempfile::tempdir().unwrap();
        std::fs::write(home.path().join("token"), "from_file\n").unwrap();
        let home = home.path().to_str().unwrap();
        assert_eq!(from(&[("HF_HOME", home)]).token.as_deref(), Some("from_file"));
        let both = from(&[("HF_HOME", home), ("HF_TOKEN", " from_variable ")]);
        assert_eq!(both.token.as_deref(), Some("from_variable"));
        assert!(!format!("{both:?}").contains("from_variable"));
    }

    #[test]
    fn endpoint_loses_its_last_slash() {
        let mirror = from(&[("HF_ENDPOINT", "https://mirror.example/")]);
        assert_eq!(mirror.endpoint, "https://mirror.example");
        assert_eq!(from(&[]).endpoint, "https://huggingface.co");
    }
}

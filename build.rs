//! Records which commit the program is built from; without git the manifest says so instead.

use std::path::{Path, PathBuf};
use std::process::Command;

/// What the program is built from; other changes in the working tree do not make it another program.
const SOURCES: [&str; 5] = ["src", "models", "build.rs", "Cargo.toml", "Cargo.lock"];

fn main() {
    for source in SOURCES.into_iter().filter(|source| Path::new(source).exists()) {
        println!("cargo:rerun-if-changed={source}");
    }
    // HEAD alone does not change with a commit on the same branch; its log does.
    for file in ["HEAD", "logs/HEAD"] {
        if let Some(path) = git(&["rev-parse", "--git-path", file]).filter(|path| Path::new(path).exists()) {
            println!("cargo:rerun-if-changed={path}");
        }
    }
    if let Some((commit, dirty)) = own_repository().or_else(packaged) {
        println!("cargo:rustc-env=TOKSELECT_GIT_COMMIT={commit}");
        println!("cargo:rustc-env=TOKSELECT_GIT_DIRTY={dirty}");
    }
}

/// Commit and dirty flag, unless the enclosing repository is somebody else's.
fn own_repository() -> Option<(String, bool)> {
    let top = PathBuf::from(git(&["rev-parse", "--show-toplevel"])?);
    let here = std::env::current_dir().ok()?;
    if top.canonicalize().ok()? != here.canonicalize().ok()? {
        return None;
    }
    let commit = git(&["rev-parse", "HEAD"])?;
    let mut status = vec!["status", "--porcelain", "--"];
    status.extend(SOURCES);
    Some((commit, !git(&status)?.is_empty()))
}

/// The commit that `cargo package` wrote down.
fn packaged() -> Option<(String, bool)> {
    let text = std::fs::read_to_string(".cargo_vcs_info.json").ok()?;
    let commit = text.split("\"sha1\"").nth(1)?.split('"').nth(1)?;
    let valid = commit.len() == 40 && commit.bytes().all(|byte| byte.is_ascii_hexdigit());
    valid.then(|| (commit.to_owned(), text.contains("\"dirty\": true")))
}

fn git(arguments: &[&str]) -> Option<String> {
    let output = Command::new("git").args(arguments).output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    output.status.success().then(|| text.trim().to_owned())
}

//! What `doctor` reads from the system: control groups, disk, cache folder, libraries. Nothing here fails; what cannot
//! be read is missing with its reason.

use crate::report::Measured;
use serde::Serialize;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Why a limit is missing that could be read.
pub(super) const NO_LIMIT: &str = "no limit";

/// Why the path of a library is missing.
pub(super) const NOT_FOUND: &str = "not found";

/// Limits at or above this many bytes are the kernel's way to say that there is none.
const UNLIMITED_BYTES: u64 = 1 << 60;

/// The control groups that this process is in.
pub(super) struct ControlGroups {
    root: PathBuf,
    /// Lines `id:controllers:path`.
    membership: String,
}

impl ControlGroups {
    pub(super) fn current() -> Result<Self, String> {
        let path = "/proc/self/cgroup";
        Ok(Self {
            root: "/sys/fs/cgroup".into(),
            membership: std::fs::read_to_string(path).map_err(|error| format!("{path}: {error}"))?,
        })
    }

    /// Processors' worth of time that the groups allow.
    pub(super) fn cpu_limit(&self) -> Measured<f64> {
        let limits = self.folders("cpu").into_iter().filter_map(|folder| {
            let (quota, period) = match std::fs::read_to_string(folder.join("cpu.max")) {
                Ok(text) => text.split_once(' ').map(|(q, p)| (q.to_owned(), p.to_owned()))?,
                Err(_) => (
                    std::fs::read_to_string(folder.join("cpu.cfs_quota_us")).ok()?,
                    std::fs::read_to_string(folder.join("cpu.cfs_period_us")).ok()?,
                ),
            };
            let (quota, period): (f64, f64) = (quota.trim().parse().ok()?, period.trim().parse().ok()?);
            (quota > 0.0 && period > 0.0).then(|| quota / period)
        });
        limits
            .reduce(f64::min)
            .map_or_else(|| Measured::missing(NO_LIMIT), Measured::Value)
    }

    /// Bytes of memory that the groups allow.
    pub(super) fn memory_limit(&self) -> Measured<u64> {
        let limits = self.folders("memory").into_iter().filter_map(|folder| {
            ["memory.max", "memory.limit_in_bytes"].iter().find_map(|name| {
                let text = std::fs::read_to_string(folder.join(name)).ok()?;
                text.trim().parse::<u64>().ok().filter(|&limit| limit < UNLIMITED_BYTES)
            })
        });
        limits
            .min()
            .map_or_else(|| Measured::missing(NO_LIMIT), Measured::Value)
    }

    /// The folders of this process's groups and all that enclose them, for one controller of either version.
    fn folders(&self, controller: &str) -> Vec<PathBuf> {
        let mut folders = Vec::new();
        for line in self.membership.lines() {
            let mut parts = line.splitn(3, ':').skip(1);
            let (Some(controllers), Some(path)) = (parts.next(), parts.next()) else {
                continue;
            };
            let mount = if controllers.is_empty() {
                self.root.clone()
            } else if controllers.split(',').any(|name| name == controller) {
                self.root.join(controller)
            } else {
                continue;
            };
            // In a container the path may be the host's: then only its end, the mount itself, exists.
            let path = Path::new(path.trim_start_matches('/'));
            folders.extend(path.ancestors().map(|part| mount.join(part)));
        }
        folders
    }
}

/// The folder of downloaded models.
#[derive(Debug, Serialize)]
pub(super) struct CacheFolder {
    /// Where it is.
    pub path: String,
    /// Whether it is there already.
    pub exists: bool,
    /// Whether files can be made in it; asked of the nearest folder above while it does not exist.
    pub writable: bool,
    /// Room on its disk.
    pub free_bytes: Measured<u64>,
    /// Models in it, whole or in part.
    pub models: u64,
}

impl CacheFolder {
    pub(super) fn at(path: &Path) -> Self {
        let path = &std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
        let nearest = path.ancestors().find(|part| part.exists()).filter(|part| part.is_dir());
        Self {
            path: path.display().to_string(),
            exists: path.is_dir(),
            writable: nearest.is_some_and(is_writable),
            free_bytes: nearest.map_or_else(|| Measured::missing("a file is in the way"), free_bytes),
            models: count_models(path),
        }
    }
}

/// Tries it: permission bits tell neither about read-only disks nor about the rights of the superuser.
fn is_writable(folder: &Path) -> bool {
    let probe = folder.join(format!(".tokselect-doctor-{}", std::process::id()));
    let made = std::fs::File::create_new(&probe).is_ok();
    if made {
        // If it cannot be removed, nothing can be done about it.
        let _ = std::fs::remove_file(&probe);
    }
    made
}

fn count_models(cache: &Path) -> u64 {
    let Ok(entries) = std::fs::read_dir(cache) else {
        return 0;
    };
    let is_model = |name: OsString| name.to_string_lossy().starts_with("models--");
    entries.flatten().filter(|entry| is_model(entry.file_name())).count() as u64
}

/// The standard library does not ask the system for it, POSIX `df` does.
fn free_bytes(folder: &Path) -> Measured<u64> {
    let output = Command::new("df").arg("-Pk").arg(folder).env("LC_ALL", "C").output();
    match output {
        Ok(output) => parse_df(&String::from_utf8_lossy(&output.stdout))
            .map_or_else(|| Measured::missing("df did not tell"), Measured::Value),
        Err(error) => Measured::missing(format!("df: {error}")),
    }
}

/// The `Available` column: the one before `Capacity`, which alone ends in `%`.
fn parse_df(text: &str) -> Option<u64> {
    let fields: Vec<&str> = text.lines().nth(1)?.split_whitespace().collect();
    let capacity = fields.iter().rposition(|field| field.ends_with('%'))?;
    let kibibytes: u64 = fields.get(capacity.checked_sub(1)?)?.parse().ok()?;
    kibibytes.checked_mul(1024)
}

/// A library of NVIDIA's and where it was found.
#[derive(Debug, Serialize)]
pub(super) struct Library {
    /// Name as the linker knows it.
    pub name: &'static str,
    /// The file.
    pub path: Measured<String>,
}

/// The libraries that a GPU needs, by the beginning of their file names.
const LIBRARIES: [&str; 3] = ["libcuda.so.1", "libnvrtc.so", "libcublasLt.so"];

const LIBRARY_FOLDERS: [&str; 14] = [
    "/usr/lib/x86_64-linux-gnu",
    "/usr/lib/aarch64-linux-gnu",
    "/lib/x86_64-linux-gnu",
    "/lib/aarch64-linux-gnu",
    "/usr/lib64",
    "/lib64",
    "/usr/lib",
    "/usr/local/lib",
    "/usr/local/cuda/lib64",
    "/usr/local/cuda/targets/x86_64-linux/lib",
    "/usr/local/nvidia/lib64",
    "/usr/lib/wsl/lib",
    "/opt/cuda/lib64",
    "/run/opengl-driver/lib",
];

/// Looks for the files only; loading them would run their code.
pub(super) fn nvidia_libraries(library_path: Option<OsString>) -> Vec<Library> {
    let given: Vec<PathBuf> = library_path
        .map(|paths| std::env::split_paths(&paths).collect())
        .unwrap_or_default();
    let folders: Vec<PathBuf> = given
        .into_iter()
        .filter(|folder| !folder.as_os_str().is_empty())
        .chain(LIBRARY_FOLDERS.map(PathBuf::from))
        .collect();
    LIBRARIES
        .into_iter()
        .map(|name| Library {
            name,
            path: folders.iter().find_map(|folder| library_in(folder, name)).map_or_else(
                || Measured::missing(NOT_FOUND),
                |path| Measured::Value(path.display().to_string()),
            ),
        })
        .collect()
}

/// The first file by name: `libnvrtc.so` before `libnvrtc.so.12`.
fn library_in(folder: &Path, name: &str) -> Option<PathBuf> {
    let entries = std::fs::read_dir(folder).ok()?;
    let found = entries.flatten().map(|entry| entry.path()).filter(|path| {
        let rest = path
            .file_name()
            .and_then(|file| file.to_str())
            .and_then(|file| file.strip_prefix(name));
        rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('.')) && path.is_file()
    });
    found.min()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn groups(files: &[(&str, &str)], membership: &str) -> (tempfile::TempDir, ControlGroups) {
        let root = tempfile::tempdir().unwrap();
        for (name, text) in files {
            let path = root.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        }
        let groups = ControlGroups {
            root: root.path().to_owned(),
            membership: membership.to_owned(),
        };
        (root, groups)
    }

    #[test]
    fn the_tightest_enclosing_group_of_version_2_decides() {
        let files = [
            ("a/cpu.max", "150000 100000\n"),
            ("a/b/cpu.max", "max 100000\n"),
            ("a/memory.max", "max\n"),
            ("a/b/memory.max", "1073741824\n"),
        ];
        let (_root, groups) = groups(&files, "0::/a/b\n");
        assert_eq!(groups.cpu_limit(), Measured::Value(1.5));
        assert_eq!(groups.memory_limit(), Measured::Value(1 << 30));
    }

    #[test]
    fn version_1_is_read_too_and_its_huge_number_means_no_limit() {
        let files = [
            ("cpu/cpu.cfs_quota_us", "-1\n"),
            ("cpu/cpu.cfs_period_us", "100000\n"),
            ("cpu/x/cpu.cfs_quota_us", "50000\n"),
            ("cpu/x/cpu.cfs_period_us", "100000\n"),
            ("memory/memory.limit_in_bytes", "9223372036854771712\n"),
        ];
        let (_root, groups) = groups(&files, "5:cpu,cpuacct:/x\n4:memory:/of/the/host\n0::/\n");
        assert_eq!(groups.cpu_limit(), Measured::Value(0.5));
        assert_eq!(groups.memory_limit(), Measured::missing(NO_LIMIT));
    }

    #[test]
    fn free_space_is_the_column_before_the_share() {
        let text = "Filesystem 1024-blocks Used Available Capacity Mounted on\na name 100 40 60 40% /mnt/a b\n";
        assert_eq!(parse_df(text), Some(60 * 1024));
        assert_eq!(parse_df("df: no such file\n"), None);
    }

    #[test]
    fn a_cache_folder_is_described_without_being_made() {
        let home = tempfile::tempdir().unwrap();
        let absent = CacheFolder::at(&home.path().join("a/hub"));
        assert!(!absent.exists && absent.writable && absent.models == 0);
        assert!(!home.path().join("a").exists());
        for model in ["models--a--b", "datasets--c--d", ".locks"] {
            std::fs::create_dir(home.path().join(model)).unwrap();
        }
        let blocked = home.path().join("file");
        std::fs::write(&blocked, "").unwrap();
        assert!(!CacheFolder::at(&blocked.join("hub")).writable);
        std::fs::remove_file(blocked).unwrap();
        let present = CacheFolder::at(home.path());
        assert!(present.exists && present.writable && present.models == 1);
        let left: Vec<_> = std::fs::read_dir(home.path()).unwrap().collect();
        assert_eq!(left.len(), 3, "the probe is gone");
    }

    #[test]
    fn libraries_are_found_by_their_whole_name() {
        let folder = tempfile::tempdir().unwrap();
        for file in ["libnvrtc-builtins.so.12", "libcublasLt.so.12", "libcudart.so.12"] {
            std::fs::write(folder.path().join(file), "").unwrap();
        }
        let found = library_in(folder.path(), "libcublasLt.so").unwrap();
        assert!(found.ends_with("libcublasLt.so.12"));
        assert_eq!(library_in(folder.path(), "libnvrtc.so"), None);
        assert_eq!(library_in(folder.path(), "libcuda.so.1"), None);
        let libraries = nvidia_libraries(Some(folder.path().as_os_str().to_owned()));
        assert!(libraries[2].path.get().unwrap().ends_with("libcublasLt.so.12"));
    }
}

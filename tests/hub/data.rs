//! Data sets and texts: files that belong to no model.

use std::path::Path;
use std::process::Command;

use super::mock::{Behaviour, COMMIT};
use super::{content, options, world};
use tokselect::hub::{HubEnvironment, HubOptions, SourceRecord, find_data_with, resolve_data_with};
use tokselect::train::known_texts::KnownText;

#[test]
fn one_file_of_a_data_set_is_downloaded_once_and_then_found_offline() {
    let lines: &[u8] = b"{\"id\": 0}\n";
    let world = world(Behaviour::with(&[
        ("passkey.jsonl", lines),
        ("kv_retrieval.jsonl", b"{}"),
    ]));
    let offline = HubOptions {
        offline: true,
        ..options()
    };
    let get = |names: &[&str], options: &HubOptions| resolve_data_with(&world.environment, "Org/Name", names, options);
    let error = get(&["passkey.jsonl"], &offline).unwrap_err();
    assert_eq!(error.exit_code(), 3);
    assert!(
        error
            .message()
            .contains("`passkey.jsonl` of the data set `Org/Name` (revision `main`) is not in the cache"),
        "{error}"
    );
    let file = get(&["data/passkey.jsonl", "passkey.jsonl"], &options()).unwrap();
    assert_eq!(content(&file.path), lines);
    assert!(matches!(file.source, SourceRecord::Hub { ref commit, .. } if commit == COMMIT));
    assert!(
        world
            .cache
            .path()
            .join("datasets--Org--Name/snapshots")
            .join(COMMIT)
            .is_dir()
    );
    let asked = world.hub.requests().len();
    assert_eq!(get(&["passkey.jsonl"], &offline).unwrap(), file);
    assert_eq!(world.hub.requests().len(), asked);
    assert!(world.hub.ranges("kv_retrieval.jsonl").is_empty());
    let error = get(&["longbook.jsonl"], &options()).unwrap_err();
    assert!(
        error.to_string().contains("it holds kv_retrieval.jsonl, passkey.jsonl"),
        "{error}"
    );
}

#[test]
fn several_files_of_a_data_set_are_found_with_one_listing_and_what_is_absent_is_named() {
    let world = world(Behaviour::with(&[
        ("trec.jsonl", b"{\"id\": 0}\n"),
        ("data/lcc.jsonl", b"{\"id\": 1}\n"),
    ]));
    let offline = HubOptions {
        offline: true,
        ..options()
    };
    let wanted: Vec<Vec<String>> = ["trec", "lcc", "qasper", "musique"]
        .iter()
        .map(|name| vec![format!("{name}.jsonl"), format!("data/{name}.jsonl")])
        .collect();
    let get =
        |wanted: &[Vec<String>], options: &HubOptions| find_data_with(&world.environment, "Org/Name", wanted, options);
    let error = get(&wanted, &offline).unwrap_err();
    assert_eq!(error.exit_code(), 3);
    for name in ["trec", "lcc", "qasper", "musique"] {
        assert!(error.message().contains(&format!("`{name}.jsonl`")), "{error}");
    }
    let found = get(&wanted, &options()).unwrap();
    let there: Vec<bool> = found.files.iter().map(Option::is_some).collect();
    assert_eq!(there, [true, true, false, false]);
    let lacks = found.lacks().to_string();
    for part in [
        "has no `qasper.jsonl`, `musique.jsonl`",
        "it holds data/lcc.jsonl, trec.jsonl",
    ] {
        assert!(lacks.contains(part), "{lacks}");
    }
    let listings = world.hub.requests().iter().filter(|r| r.path.contains("/api/")).count();
    assert_eq!(listings, 1, "{:?}", world.hub.requests());
    let again = get(&wanted[..2], &offline).unwrap();
    assert_eq!(again.files, found.files[..2]);
}

/// The rows of `scripts/make_parquet_fixture.py`, which pyarrow wrote.
#[test]
fn a_text_that_goes_by_a_name_is_downloaded_once_and_read_from_parquet() {
    let lines: &[u8] = include_bytes!("../fixtures/lines.parquet");
    let files = [
        ("words/train-0.parquet", lines),
        ("words/train-1.parquet", lines),
        ("words/valid.parquet", lines),
        ("words/test.parquet", b"not wanted"),
    ];
    let world = world(Behaviour::with(&files));
    let text = KnownText {
        name: "words",
        repository: "Org/Name",
        revision: COMMIT,
        sha256: None,
        train: &["words/train-0.parquet", "words/train-1.parquet"],
        valid: &["words/valid.parquet"],
        blank: " \n",
    };
    let offline = HubOptions {
        offline: true,
        ..options()
    };
    let error = text.read(&world.environment, &offline).unwrap_err();
    assert_eq!(error.exit_code(), 3);
    for part in [
        "`words/train-0.parquet`",
        "Org/Name",
        "the text `words`",
        "run once without `--offline`",
    ] {
        assert!(error.to_string().contains(part), "{error}");
    }
    let once = " \n = A title = \n \n A line of words , and ü . \n A line of words , and ü . \n \n The end . \n";
    let parts = text.read(&world.environment, &options()).unwrap();
    assert_eq!(parts, [once.repeat(2), once.to_owned()]);
    assert!(world.hub.ranges("test.parquet").is_empty());
    let asked = world.hub.requests().len();
    assert_eq!(text.read(&world.environment, &offline).unwrap(), parts);
    assert_eq!(world.hub.requests().len(), asked);
    // A revision of the user's is taken in place of the text's own.
    let old = HubOptions {
        revision: Some("old".to_owned()),
        ..options()
    };
    text.read(&world.environment, &old).unwrap();
    let requests = world.hub.requests();
    assert!(
        requests.iter().any(|request| request.path.contains("/revision/old")),
        "{requests:?}"
    );
    let lacking = KnownText {
        valid: &["words/none.parquet"],
        ..text
    };
    let error = lacking.read(&world.environment, &options()).unwrap_err();
    assert!(error.message().contains("has no `words/none.parquet`"), "{error}");
    // A branch whose name has slashes, and what it must hold.
    let branch = KnownText {
        revision: "refs/convert/parquet",
        sha256: Some("0000000000000000000000000000000000000000000000000000000000000000"),
        ..text
    };
    let error = branch.read(&world.environment, &options()).unwrap_err();
    assert!(
        error.message().contains("no longer holds the text `words`: SHA-256 "),
        "{error}"
    );
    let requests = world.hub.requests();
    assert!(
        requests
            .iter()
            .any(|request| request.path.contains("/revision/refs%2Fconvert%2Fparquet")),
        "{requests:?}"
    );
}

/// The program, with a hub that holds Parquet alone.
#[test]
fn a_data_set_in_parquet_is_refused_with_the_names_of_its_texts() {
    let files = [
        ("README.md", b"# Words".as_slice()),
        ("words/train-0.parquet", b"not read"),
    ];
    let refused = |repository: &'static str| {
        let world = world(Behaviour {
            repository,
            ..Behaviour::with(&files)
        });
        let output = Command::new(env!("CARGO_BIN_EXE_tokselect"))
            .args(["rcmha-train", "--data", repository])
            .env("HF_ENDPOINT", &world.environment.endpoint)
            .env("HF_HUB_CACHE", world.cache.path())
            .env("NO_PROXY", "127.0.0.1")
            .env_remove("HF_HUB_OFFLINE")
            .output()
            .unwrap();
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{stderr}");
        assert!(world.hub.ranges("train-0.parquet").is_empty());
        for part in [
            "has no `train.txt`, `valid.txt`, `input.txt`",
            "it holds README.md, words/train-0.parquet",
            "Parquet is read only of texts that go by a name",
        ] {
            assert!(stderr.contains(part), "{stderr}");
        }
        stderr
    };
    let known = refused("Salesforce/wikitext");
    let names =
        "pass `--data wikitext-2` or `--data wikitext-2-raw` or `--data wikitext-103` or `--data wikitext-103-raw`";
    assert!(known.contains(names), "{known}");
    let other = refused("Org/Name");
    assert!(
        other.contains("name a text file") && other.contains("tiny-shakespeare, wikitext-2"),
        "{other}"
    );
}

/// Which of its names a data set lacks is known to the hub alone.
#[test]
fn a_text_of_a_data_set_is_found_offline_though_it_lacks_other_names() {
    let (train, valid) = ("A line to learn.\n".repeat(200), "A line to learn.\n".repeat(40));
    let parts = [("train.txt", train.as_bytes()), ("valid.txt", valid.as_bytes())];
    let whole = [("input.txt", train.as_bytes())];
    for files in [&parts[..], &whole[..]] {
        let world = world(Behaviour::with(files));
        let run = |offline: &str| {
            let sizes = "rcmha-train --device cpu --layers 1 --d-model 8 --heads 2 --segment 8 --batch 2 --steps 2 -q";
            let output = Command::new(env!("CARGO_BIN_EXE_tokselect"))
                .args(sizes.split(' ').chain(["--data", "Org/Name"]))
                .env("HF_ENDPOINT", &world.environment.endpoint)
                .env("HF_HUB_CACHE", world.cache.path())
                .env("NO_PROXY", "127.0.0.1")
                .env("HF_HUB_OFFLINE", offline)
                .output()
                .unwrap();
            let stderr = String::from_utf8(output.stderr).unwrap();
            (output.status.code(), stderr)
        };
        let (code, stderr) = run("1");
        assert!(code == Some(3) && stderr.contains("are not in the cache"), "{stderr}");
        assert_eq!(run("0"), (Some(0), String::new()));
        let asked = world.hub.requests().len();
        assert_eq!(run("1"), (Some(0), String::new()));
        assert_eq!(world.hub.requests().len(), asked);
    }
}

#[test]
fn a_data_directory_is_searched_and_a_file_taken_as_it_is() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("data");
    std::fs::create_dir(&path).unwrap();
    std::fs::write(path.join("trec.jsonl"), "{}").unwrap();
    let environment = HubEnvironment {
        endpoint: String::new(),
        cache_dir: folder.path().to_owned(),
        own_cache_dir: folder.path().join("own"),
        token: None,
        offline: true,
    };
    let get = |reference: &Path, names: &[&str]| {
        resolve_data_with(&environment, reference.to_str().unwrap(), names, &options()).map(|file| file.path)
    };
    let file = path.join("trec.jsonl");
    assert_eq!(get(folder.path(), &["trec.jsonl", "data/trec.jsonl"]).unwrap(), file);
    assert_eq!(get(&file, &["other.jsonl"]).unwrap(), file);
    let error = get(folder.path(), &["lcc.jsonl", "data/lcc.jsonl"]).unwrap_err();
    assert!(
        error.message().contains("has no `lcc.jsonl` or `data/lcc.jsonl`"),
        "{error}"
    );
}

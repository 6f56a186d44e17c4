//! The hub module against a small hub on the loopback interface.

mod data;
mod mock;

use std::path::{Path, PathBuf};

use mock::{Behaviour, COMMIT, MockHub, OLD_COMMIT, sha256};
use tempfile::TempDir;
use tokselect::error::Error;
use tokselect::hub::{HubEnvironment, HubOptions, ModelFiles, Need, SourceRecord, resolve_with};

const WEIGHTS: &[u8] = &[7; 300_000];
const CONFIG: (&str, &[u8]) = ("config.json", b"{\"model_type\": \"qwen2\"}");
const TOKENIZER: (&str, &[u8]) = ("tokenizer.json", b"{\"version\": \"1.0\"}");
const SINGLE: (&str, &[u8]) = ("model.safetensors", WEIGHTS);
const INDEX: (&str, &[u8]) = (
    "model.safetensors.index.json",
    br#"{"weight_map": {"b": "b.safetensors", "a": "a.safetensors"}}"#,
);

/// A hub and an empty cache.
struct World {
    hub: MockHub,
    cache: TempDir,
    environment: HubEnvironment,
}

fn world(behaviour: Behaviour) -> World {
    let hub = MockHub::start(behaviour);
    let cache = tempfile::tempdir().unwrap();
    let environment = HubEnvironment {
        endpoint: hub.endpoint.clone(),
        cache_dir: cache.path().to_owned(),
        own_cache_dir: cache.path().join("own"),
        token: None,
        offline: false,
    };
    World {
        hub,
        cache,
        environment,
    }
}

fn single() -> Behaviour {
    Behaviour::with(&[CONFIG, TOKENIZER, SINGLE, ("README.md", b"not wanted")])
}

fn options() -> HubOptions {
    HubOptions {
        progress: false,
        ..HubOptions::default()
    }
}

impl World {
    fn resolve(&self, need: Need) -> Result<ModelFiles, Error> {
        resolve_with(&self.environment, "Org/Name", need, &options())
    }

    fn offline(&self, need: Need) -> Result<ModelFiles, Error> {
        let options = HubOptions {
            offline: true,
            ..options()
        };
        resolve_with(&self.environment, "Org/Name", need, &options)
    }

    fn refusal(&self, code: u8) -> String {
        let error = self.resolve(Need::All).unwrap_err();
        assert_eq!(error.exit_code(), code, "{error}");
        error.to_string()
    }

    fn blob(&self, name: &str) -> PathBuf {
        self.cache.path().join("models--Org--Name/blobs").join(name)
    }
}

fn content(path: &Path) -> Vec<u8> {
    std::fs::read(path).unwrap()
}

#[test]
fn fresh_download_fills_the_standard_cache_and_is_not_repeated() {
    let world = world(single());
    let files = world.resolve(Need::All).unwrap();
    assert_eq!(content(&files.weights[0]), WEIGHTS);
    assert_eq!(content(&files.config), CONFIG.1);
    assert_eq!(content(files.tokenizer.as_ref().unwrap()), TOKENIZER.1);
    assert_eq!((files.chat_template, files.weights_index), (None, None));
    assert_eq!(files.reference, "Org/Name");
    let source = SourceRecord::Hub {
        repository: "Org/Name".to_owned(),
        revision: "main".to_owned(),
        commit: COMMIT.to_owned(),
    };
    assert_eq!(files.source, source);
    let snapshot = world.cache.path().join("models--Org--Name/snapshots").join(COMMIT);
    assert_eq!(files.config, snapshot.join("config.json"));
    assert_eq!(content(&world.blob(&sha256(WEIGHTS))), WEIGHTS);
    assert_eq!(
        content(&world.cache.path().join("models--Org--Name/refs/main")),
        COMMIT.as_bytes()
    );
    // One listing and three files; nothing that was not needed, nothing twice.
    let asked = world.hub.requests().len();
    assert_eq!(asked, 4, "{:?}", world.hub.requests());
    world.resolve(Need::All).unwrap();
    assert_eq!(world.hub.requests().len(), asked);
}

#[test]
fn only_what_is_needed_is_fetched() {
    let world = world(single());
    let files = world.resolve(Need::ConfigOnly).unwrap();
    assert!(files.tokenizer.is_none() && files.weights.is_empty());
    assert_eq!(world.hub.requests().len(), 2);
    world.resolve(Need::ConfigAndTokenizer).unwrap();
    assert!(world.hub.ranges("model.safetensors").is_empty());
}

#[test]
fn cut_connection_continues_within_one_run() {
    let behaviour = single();
    *behaviour.cut.lock().unwrap() = Some(("model.safetensors", 100_000, 2));
    let world = world(behaviour);
    let files = world.resolve(Need::All).unwrap();
    assert_eq!(content(&files.weights[0]), WEIGHTS);
    assert_eq!(
        world.hub.ranges("model.safetensors"),
        [None, Some(100_000), Some(200_000)]
    );
}

#[test]
fn interrupted_download_continues_in_the_next_run() {
    let behaviour = single();
    *behaviour.cut.lock().unwrap() = Some(("model.safetensors", 0, u32::MAX));
    let cut_off = world(behaviour);
    let part = cut_off.blob(&sha256(WEIGHTS)).with_extension("incomplete");
    std::fs::create_dir_all(part.parent().unwrap()).unwrap();
    std::fs::write(&part, &WEIGHTS[..1000]).unwrap();
    let error = cut_off.refusal(3);
    assert!(
        error.contains("stopped at byte 1000 of 300000") && error.contains("continues from there"),
        "{error}"
    );
    assert_eq!(content(&part), &WEIGHTS[..1000]);
    // The same cache, and a hub that works again.
    let mut healthy = world(single());
    healthy.environment.cache_dir.clone_from(&cut_off.environment.cache_dir);
    let files = healthy.resolve(Need::All).unwrap();
    assert_eq!(content(&files.weights[0]), WEIGHTS);
    assert_eq!(healthy.hub.ranges("model.safetensors"), [Some(1000)]);
    assert!(!part.exists());
}

#[test]
fn a_part_that_is_already_whole_or_too_long_is_handled() {
    for length in [WEIGHTS.len(), WEIGHTS.len() + 5] {
        let world = world(single());
        let part = world.blob(&sha256(WEIGHTS)).with_extension("incomplete");
        std::fs::create_dir_all(part.parent().unwrap()).unwrap();
        std::fs::write(&part, vec![7; length]).unwrap();
        assert_eq!(content(&world.resolve(Need::All).unwrap().weights[0]), WEIGHTS);
    }
}

#[test]
fn server_that_ignores_ranges_gets_the_file_from_the_start() {
    let mut behaviour = single();
    behaviour.ignore_ranges = true;
    *behaviour.cut.lock().unwrap() = Some(("model.safetensors", 50_000, 1));
    let world = world(behaviour);
    assert_eq!(content(&world.resolve(Need::All).unwrap().weights[0]), WEIGHTS);
}

#[test]
fn wrong_hash_is_an_error_and_leaves_nothing() {
    let mut behaviour = single();
    behaviour.corrupt = Some("model.safetensors");
    let world = world(behaviour);
    let error = world.refusal(3);
    assert!(
        error.contains("`model.safetensors` arrived damaged") && error.contains(&sha256(WEIGHTS)),
        "{error}"
    );
    let blob = world.blob(&sha256(WEIGHTS));
    assert!(!blob.exists() && !blob.with_extension("incomplete").exists());
    assert!(
        world
            .offline(Need::All)
            .unwrap_err()
            .to_string()
            .contains("model.safetensors")
    );
}

#[test]
fn damaged_old_part_is_found_out_by_the_hash() {
    let world = world(single());
    let part = world.blob(&sha256(WEIGHTS)).with_extension("incomplete");
    std::fs::create_dir_all(part.parent().unwrap()).unwrap();
    std::fs::write(&part, [9; 10]).unwrap();
    assert!(world.refusal(3).contains("SHA-256"));
    assert_eq!(content(&world.resolve(Need::All).unwrap().weights[0]), WEIGHTS);
}

#[test]
fn truncated_file_in_the_cache_is_not_taken_from_another_commit() {
    let world = world(single());
    let blob = world.blob(&sha256(WEIGHTS));
    std::fs::create_dir_all(blob.parent().unwrap()).unwrap();
    std::fs::write(&blob, &WEIGHTS[..10]).unwrap();
    assert_eq!(content(&world.resolve(Need::All).unwrap().weights[0]), WEIGHTS);
}

#[test]
fn refusals_are_told_apart() {
    for (status, code, exit, part) in [
        (404, "RepoNotFound", 2, "has no model `Org/Name`"),
        (404, "RevisionNotFound", 2, "has no revision `main`"),
        (401, "RepoNotFound", 2, "HF_TOKEN"),
        (401, "GatedRepo", 2, "is a gated model"),
        (403, "GatedRepo", 2, "HF_TOKEN"),
        (403, "", 2, "was refused"),
        (429, "", 3, "fewer requests"),
        (500, "", 3, "HTTP 500"),
        (304, "", 3, "HTTP 304"),
    ] {
        let mut behaviour = single();
        behaviour.refuse = Some((status, code));
        let error = world(behaviour).refusal(exit);
        assert!(error.contains(part), "{status} {code}: {error}");
    }
}

#[test]
fn token_is_sent_to_the_hub_and_not_to_the_storage_host() {
    let mut behaviour = single();
    behaviour.token = Some("secret");
    behaviour.redirect = true;
    let mut world = world(behaviour);
    let refused = world.refusal(2);
    assert!(
        refused.contains("HTTP 401") && refused.contains("set `HF_TOKEN`"),
        "{refused}"
    );
    world.environment.token = Some("secret".to_owned());
    world.resolve(Need::All).unwrap();
    let stored: Vec<_> = world
        .hub
        .requests()
        .into_iter()
        .filter(|request| request.path.contains("storage"))
        .collect();
    assert_eq!(stored.len(), 1);
    assert_eq!(stored[0].authorization, None);
}

#[test]
fn mirror_without_sizes_in_its_listing() {
    let mut behaviour = single();
    behaviour.names_only = true;
    behaviour.redirect = true;
    let world = world(behaviour);
    assert_eq!(content(&world.resolve(Need::All).unwrap().weights[0]), WEIGHTS);
    assert!(world.blob(&sha256(WEIGHTS)).is_file());
}

#[test]
fn offline_with_nothing_cached_lists_every_file_and_asks_nobody() {
    let world = world(single());
    let error = world.offline(Need::All).unwrap_err();
    assert_eq!(error.exit_code(), 3);
    let text = error.to_string();
    for part in [
        "config.json",
        "tokenizer.json",
        "model.safetensors",
        world.cache.path().to_str().unwrap(),
    ] {
        assert!(text.contains(part), "{part}: {text}");
    }
    assert!(world.hub.requests().is_empty());
}

#[test]
fn offline_lists_the_missing_shards() {
    let world = world(Behaviour::with(&[
        CONFIG,
        INDEX,
        ("a.safetensors", b"a"),
        ("b.safetensors", b"b"),
    ]));
    let files = world.resolve(Need::ConfigAndWeights).unwrap();
    for shard in &files.weights {
        std::fs::remove_file(shard).unwrap();
    }
    let text = world.offline(Need::All).unwrap_err().to_string();
    for part in ["3 files", "`a.safetensors`", "`b.safetensors`", "`tokenizer.json`"] {
        assert!(text.contains(part), "{part}: {text}");
    }
}

#[test]
fn offline_with_everything_cached_works() {
    let world = world(single());
    let online = world.resolve(Need::All).unwrap();
    let asked = world.hub.requests().len();
    assert_eq!(world.offline(Need::All).unwrap(), online);
    let mut environment = world.environment.clone();
    environment.offline = true;
    assert_eq!(
        resolve_with(&environment, "Org/Name", Need::All, &options()).unwrap(),
        online
    );
    assert_eq!(world.hub.requests().len(), asked);
}

#[test]
fn unreachable_hub_is_an_environment_error_unless_the_cache_has_it_all() {
    let world = world(single());
    world.resolve(Need::All).unwrap();
    // Without the markers the optional files count as never asked for.
    std::fs::remove_dir_all(world.cache.path().join("models--Org--Name/.no_exist")).unwrap();
    let mut down = world.environment.clone();
    // Bound and dropped: nobody listens there.
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    down.endpoint = format!("http://{}", listener.local_addr().unwrap());
    drop(listener);
    resolve_with(&down, "Org/Name", Need::All, &options()).unwrap();
    for endpoint in [down.endpoint.clone(), "not an address".to_owned(), String::new()] {
        down.endpoint = endpoint;
        let error = resolve_with(&down, "Org/Other", Need::All, &options()).unwrap_err();
        assert_eq!(error.exit_code(), 3, "{error}");
        assert!(error.to_string().contains("HF_ENDPOINT"), "{error}");
    }
}

#[test]
fn revision_by_suffix_option_and_commit() {
    let world = world(single());
    for (reference, revision) in [
        ("Org/Name@old", None),
        ("Org/Name", Some("old")),
        ("Org/Name", Some(OLD_COMMIT)),
    ] {
        let options = HubOptions {
            revision: revision.map(str::to_owned),
            ..options()
        };
        let files = resolve_with(&world.environment, reference, Need::ConfigOnly, &options).unwrap();
        let SourceRecord::Hub { commit, .. } = files.source else {
            panic!("not from the hub: {:?}", files.source);
        };
        assert_eq!(commit, OLD_COMMIT);
    }
    assert_eq!(world.hub.requests().len(), 2, "the second and third are in the cache");
    let error = resolve_with(&world.environment, "Org/Name@none", Need::All, &options()).unwrap_err();
    assert_eq!(error.exit_code(), 2);
    assert!(error.message().contains("no revision `none`"), "{error}");
}

#[test]
fn sharded_weights() {
    let world = world(Behaviour::with(&[
        CONFIG,
        INDEX,
        ("a.safetensors", b"aa"),
        ("b.safetensors", b"bb"),
    ]));
    let files = world.resolve(Need::ConfigAndWeights).unwrap();
    let contents: Vec<_> = files.weights.iter().map(|path| content(path)).collect();
    assert_eq!(contents, [b"aa", b"bb"]);
    assert_eq!(content(&files.weights_index.unwrap()), INDEX.1);
    // The single file wins, and then neither index nor shards are fetched.
    let both = Behaviour::with(&[
        CONFIG,
        INDEX,
        SINGLE,
        ("a.safetensors", b"aa"),
        ("b.safetensors", b"bb"),
    ]);
    let both = self::world(both);
    let files = both.resolve(Need::ConfigAndWeights).unwrap();
    assert_eq!((files.weights.len(), files.weights_index), (1, None));
    assert_eq!(both.hub.requests().len(), 3);
}

#[test]
fn repository_that_lacks_files_says_which() {
    let shard = world(Behaviour::with(&[CONFIG, TOKENIZER, INDEX, ("a.safetensors", b"a")])).refusal(2);
    assert!(shard.contains("lacks the shard `b.safetensors`"), "{shard}");
    let pickled = world(Behaviour::with(&[CONFIG, TOKENIZER, ("pytorch_model.bin", b"x")])).refusal(2);
    assert!(pickled.contains("safetensors are needed"), "{pickled}");
    let traversal = br#"{"weight_map": {"b": "../../x.safetensors"}}"#;
    let traversal = world(Behaviour::with(&[CONFIG, TOKENIZER, (INDEX.0, traversal)])).refusal(2);
    assert!(traversal.contains("not a plain path"), "{traversal}");
    assert!(world(Behaviour::with(&[])).refusal(2).contains("nothing is there"));
}

#[test]
fn chat_template_prefers_jinja() {
    let jinja: (&str, &[u8]) = ("chat_template.jinja", b"{{ messages }}");
    let json: (&str, &[u8]) = ("chat_template.json", b"{}");
    let both = world(Behaviour::with(&[CONFIG, TOKENIZER, jinja, json]));
    let files = both.resolve(Need::ConfigAndTokenizer).unwrap();
    assert!(files.chat_template.unwrap().ends_with("chat_template.jinja"));
    assert!(both.hub.ranges("chat_template.json").is_empty());
    let old = world(Behaviour::with(&[CONFIG, TOKENIZER, json]));
    let files = old.resolve(Need::ConfigAndTokenizer).unwrap();
    assert!(files.chat_template.unwrap().ends_with("chat_template.json"));
}

#[test]
fn two_downloads_of_the_same_model_at_once() {
    let world = world(single());
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| assert_eq!(content(&world.resolve(Need::All).unwrap().weights[0]), WEIGHTS));
        }
    });
    assert_eq!(world.hub.ranges("model.safetensors").len(), 1);
}

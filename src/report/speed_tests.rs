use super::*;

pub(crate) fn key(kind: &str, tokens: usize, rows: usize) -> SpeedKey {
    SpeedKey {
        kind: kind.into(),
        shape: "qwen2-7b".into(),
        tokens,
        rows,
    }
}

/// A file as scripts/peers.py writes it.
pub(crate) fn peers_file(directory: &Path) -> std::path::PathBuf {
    let row = |kind: &str, tokens: usize, rows: usize, method: &str, times: &[f64]| {
        let median = Summary::of(times).map(|s| s.median);
        json!({"kind": kind, "shape": "qwen2-7b", "tokens": tokens, "rows": rows, "method": method,
            "median_us": median, "repetitions_us": times, "relative_error": null,
            "note": if times.is_empty() { "not installed: flashinfer" } else { "" }})
    };
    let file = json!({
        "format": "tokselect peers", "version": 1, "budget_s": 55.0, "duration_s": 50.0, "seed": 0,
        "device": {"name": "NVIDIA H200", "memory_bytes": 1, "driver": "580.1"},
        "versions": {"torch": "2.11", "cudnn": 91900}, "command": ["peers.py"],
        "rows": [
            row("decode", 131_072, 1, "sdpa-flash", &[85.0, 86.0]),
            row("decode", 131_072, 1, "sdpa-cudnn", &[68.0, 70.0]),
            row("decode", 131_072, 1, "flashinfer", &[]),
            row("chunk", 131_072, 512, "flashinfer", &[3124.0, 3120.0, 3130.0]),
            row("chunk", 131_072, 512, "sdpa-cudnn", &[1606.0]),
        ],
    });
    let path = directory.join("peers.json");
    std::fs::write(&path, file.to_string()).unwrap();
    path
}

#[test]
fn the_best_dense_peer_is_the_fastest_that_ran() {
    let folder = tempfile::tempdir().unwrap();
    let peers = Peers::load(&peers_file(folder.path())).unwrap();
    assert_eq!(peers.label, "torch 2.11, cuDNN 91900");
    assert_eq!(peers.best(&key("decode", 131_072, 1)).unwrap().method, "sdpa-cudnn");
    assert_eq!(peers.best(&key("decode", 8192, 1)), None);
    peers.check_device("NVIDIA H200").unwrap();
    let error = peers.check_device("NVIDIA A100").unwrap_err();
    assert_eq!(error.exit_code(), 2);
    assert!(
        error.message().contains("H200") && error.message().contains("A100"),
        "{error}"
    );
}

#[test]
fn another_file_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x.json");
    std::fs::write(&path, r#"{"torch": "2"}"#).unwrap();
    assert!(Peers::load(&path).unwrap_err().message().contains("scripts/peers.py"));
}

#[test]
fn every_row_has_the_best_peer_beside_it() {
    let folder = tempfile::tempdir().unwrap();
    let peers = Peers::load(&peers_file(folder.path())).unwrap();
    let ours = [
        SpeedRow::of(key("decode", 131_072, 1), "token-select miss", &[46e-6]),
        SpeedRow::missing(key("decode", 8192, 1), "dense", "OOM"),
    ];
    let table = speed_table(&ours, "tokselect 0", Some(&peers)).unwrap();
    let methods: Vec<String> = table.rows.iter().map(|row| row[4].short()).collect();
    assert_eq!(
        methods,
        ["token-select miss", "sdpa-flash", "sdpa-cudnn", "flashinfer", "dense"]
    );
    assert_eq!(table.rows[0][12].short(), "1.500");
    assert_eq!(table.rows[3][6].short(), "not installed: flashinfer");
    assert_eq!(
        (table.rows[4][6].short(), table.rows[4][12].short()),
        ("OOM".into(), "no dense peer has it".into())
    );
    // Only our own rows come back; the peers' file has the others.
    let back = read_table(&table);
    assert_eq!(back.len(), 2);
    assert_eq!(back[0].median_us.map(f64::round), Some(46.0));
    assert_eq!(
        speed_table(&ours, "x", None).unwrap().rows[0][12].short(),
        "no --peers file"
    );
}

#[test]
fn sources_stand_side_by_side_with_the_fastest_first() {
    let folder = tempfile::tempdir().unwrap();
    let peers = Peers::load(&peers_file(folder.path())).unwrap();
    let ours = [SpeedRow::of(key("decode", 131_072, 1), "token-select miss", &[34.5e-6])];
    let table = side_by_side(&[("out/a", &ours), ("peers.json", &peers.rows)])
        .unwrap()
        .unwrap();
    let shown: Vec<[String; 3]> = table.rows[..4]
        .iter()
        .map(|row| [row[4].short(), row[5].short(), row[7].short()])
        .collect();
    assert_eq!(
        shown,
        [
            ["token-select miss", "out/a", "1.000"],
            ["sdpa-cudnn", "peers.json", "2.000"],
            ["sdpa-flash", "peers.json", "2.478"],
            ["flashinfer", "peers.json", "not installed: flashinfer"],
        ]
    );
    assert_eq!(side_by_side(&[("a", &[])]).unwrap(), None);
}

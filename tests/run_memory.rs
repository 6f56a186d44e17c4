//! A long run stays small: alone in its process, because it measures the memory of the process.

use serde_json::{Map, json};
use std::time::{Duration, Instant};
use tokselect::bench::peak_memory::memory_use;
use tokselect::error::Result;
use tokselect::eval::WhitespaceTokens;
use tokselect::eval::passkey::Passkey;
use tokselect::eval::runner::{Answer, Answerer, Cost, Grid, Overhead, Question, Reply, Statistics, Watch, run};
use tokselect::report::{RunDirectory, SampleSink};

const SAMPLES: usize = 5_000;

/// Answers with the key, or with nothing for every third question.
struct Fake(usize);

impl Answerer for Fake {
    fn answer(&mut self, _variant: usize, question: &Question<'_>) -> Result<Reply> {
        self.0 += 1;
        let key = &question.example.answers[0];
        Ok(Reply::Answer(Box::new(Answer {
            text: if self.0.is_multiple_of(3) {
                String::new()
            } else {
                key.clone()
            },
            finish: json!("length"),
            prompt_sha256: "0".repeat(64),
            prompt_tokens: 256,
            generated_tokens: 5,
            cost: Cost::default(),
            cache_hit_rate: None,
        })))
    }
}

struct Unwatched;
impl Watch for Unwatched {}

/// 10,000 samples, then the same directory opened again: neither holds rows in memory, and both end soon.
#[test]
fn ten_thousand_samples_take_little_memory_and_time() {
    let grid = || {
        let tasks: Vec<Box<dyn tokselect::eval::Task>> = vec![Box::new(Passkey)];
        Grid {
            cells: Grid::cells(&tasks, &[Some(256)], &[None], SAMPLES, None),
            tasks,
            variants: vec!["dense".into(), "token-select".into()],
            seed: 0,
            overhead_tokens: Overhead::default(),
        }
    };
    let folder = tempfile::tempdir().expect("a folder");
    let open = || RunDirectory::open_or_resume(folder.path(), "test", &Map::new()).expect("opens");
    let resident = || *memory_use().rss_anonymous_bytes.get().unwrap_or(&0);
    let before = resident();
    let started = Instant::now();

    let mut sink = open();
    let (mut records, _) = run(&grid(), &WhitespaceTokens, &mut Fake(0), &mut sink, &Unwatched).expect("runs");
    assert_eq!(records.len(), 10_000);
    let statistics = Statistics::of(&grid(), &mut records, Some(0)).expect("statistics");
    drop(sink);

    let mut sink = open();
    assert_eq!(sink.resumed_count(), 10_000);
    let mut nobody = Fake(0);
    let (mut again, _) = run(&grid(), &WhitespaceTokens, &mut nobody, &mut sink, &Unwatched).expect("runs");
    assert_eq!(nobody.0, 0);
    let resumed = Statistics::of(&grid(), &mut again, Some(0)).expect("statistics");
    assert_eq!(resumed.tables, statistics.tables);

    let bytes = std::fs::metadata(folder.path().join("samples.jsonl"))
        .expect("samples")
        .len();
    let grown = resident().saturating_sub(before);
    // Two lists of records and one set of keys are about 4 MB; all rows as JSON values would be well above 40 MB.
    assert!(bytes > 4_000_000, "{bytes}");
    assert!(grown < 12_000_000, "{grown} bytes more than before");
    assert!(started.elapsed() < Duration::from_secs(60), "{:?}", started.elapsed());
    let mut rows = 0;
    sink.for_each(&mut |_| {
        rows += 1;
        Ok(())
    })
    .expect("reads");
    assert_eq!(rows, 10_000);
}

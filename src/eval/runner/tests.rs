use super::*;
use crate::error::Error;
use crate::eval::passkey::Passkey;
use crate::eval::task::{Metric, WhitespaceTokens};
use crate::report::{KeySink, MemorySink, Table};

/// Asks for its index; right is the index itself.
struct Count;

impl Task for Count {
    fn name(&self) -> &'static str {
        "count"
    }

    fn suite(&self) -> &'static str {
        "test"
    }

    fn max_new_tokens(&self) -> usize {
        4
    }

    fn metrics(&self) -> &'static [Metric] {
        &[Metric {
            name: "exact",
            source: "test",
        }]
    }

    fn example(&self, request: &Request<'_>) -> Result<Example> {
        Ok(Example {
            id: format!("{:04}", request.index),
            prompt: format!("say {}", request.index),
            answer_prefix: String::new(),
            answers: vec![request.index.to_string()],
            options: Vec::new(),
            depth: request.depth,
        })
    }

    fn score(&self, example: &Example, answer: &str) -> Vec<f64> {
        vec![f64::from(example.answers[0] == answer)]
    }
}

/// Variant 0 is always right; variant 1 is right on even numbers, blank on multiples of 5, and refuses multiples of 7.
struct Fake {
    asked: usize,
    /// Stops after so many answers, in the given way.
    dies_after: Option<usize>,
}

impl Answerer for Fake {
    fn answer(&mut self, variant: usize, question: &Question<'_>) -> Result<Reply> {
        if self.dies_after == Some(self.asked) {
            return Err(Error::bug("killed"));
        }
        self.asked += 1;
        let number: usize = question.example.answers[0].parse().unwrap();
        let text = match (variant, number) {
            (1, n) if n % 7 == 0 => return Ok(Reply::Refused("too long".into())),
            (1, n) if n % 5 == 0 => String::new(),
            (1, n) if n % 2 == 1 => "?".into(),
            _ => number.to_string(),
        };
        Ok(Reply::Answer(Box::new(Answer {
            text,
            finish: json!("length"),
            prompt_sha256: "0".repeat(64),
            prompt_tokens: 2,
            generated_tokens: 1,
            cost: Cost {
                wall_s: Some(self.asked as f64),
                ..Cost::default()
            },
            cache_hit_rate: None,
        })))
    }
}

struct Unwatched;
impl Watch for Unwatched {}

fn grid(tasks: Vec<Box<dyn Task>>, depths: &[Option<f64>], samples: usize, limit: Option<usize>) -> Grid {
    Grid {
        cells: Grid::cells(&tasks, &[Some(64), Some(128)], depths, samples, limit),
        tasks,
        variants: vec!["dense".into(), "other".into()],
        seed: 1,
        overhead_tokens: Overhead::default(),
    }
}

fn count(samples: usize) -> Grid {
    grid(vec![Box::new(Count)], &[None], samples, None)
}

fn fake() -> Fake {
    Fake {
        asked: 0,
        dies_after: None,
    }
}

fn results(grid: &Grid, records: &mut Records) -> String {
    let statistics = Statistics::of(grid, records, Some(0)).unwrap();
    serde_json::to_string(&(statistics.tables, statistics.aggregates)).unwrap()
}

fn column<'t>(table: &'t Table, key: &str) -> Vec<&'t crate::report::Cell> {
    let at = table.columns.iter().position(|column| column.key == key).unwrap();
    table.rows.iter().map(|row| &row[at]).collect()
}

#[test]
fn every_sample_is_asked_of_every_variant_and_counted() {
    let grid = count(35);
    let mut sink = MemorySink::new("c");
    let (mut records, stopped) = run(&grid, &WhitespaceTokens, &mut fake(), &mut sink, &Unwatched).unwrap();
    assert!(!stopped);
    assert_eq!((records.len(), grid.samples()), (140, 140));
    let statistics = Statistics::of(&grid, &mut records, Some(0)).unwrap();
    let accuracy = &statistics.tables[0];
    let texts = |key: &str| column(accuracy, key).iter().map(|c| c.exact()).collect::<Vec<_>>();
    // Of 35 numbers 5 are multiples of 7; of the other 30, 6 are multiples of 5 and 12 are even but not of 5.
    assert_eq!(texts("n"), ["35", "30", "35", "30"]);
    assert_eq!(texts("mean"), ["1.0", "0.4", "1.0", "0.4"]);
    assert_eq!(texts("difference"), ["the reference", "-0.6", "the reference", "-0.6"]);
    assert_eq!(texts("pairs")[1], "30");
    assert_eq!(texts("empty_answers"), ["0", "6", "0", "6"]);
    assert_eq!(texts("not_asked"), ["0", "5", "0", "5"]);
    let rows = sink.samples().unwrap();
    assert_eq!(rows[35].id, "64/0000/other");
    assert_eq!(rows[35].data["scores"], Value::Null);
    assert_eq!(rows[35].data["reason"], "too long");
    assert_eq!(rows[36].data["scores"], json!({"exact": 0.0}));
}

#[test]
fn a_run_that_dies_anywhere_goes_on_to_the_same_tables() {
    let grid = count(6);
    let mut sink = MemorySink::new("c");
    let (mut whole, _) = run(&grid, &WhitespaceTokens, &mut fake(), &mut sink, &Unwatched).unwrap();
    let whole = results(&grid, &mut whole);
    for dies_after in 0..grid.samples() {
        let mut sink = MemorySink::new("c");
        let mut dying = Fake {
            dies_after: Some(dies_after),
            ..fake()
        };
        run(&grid, &WhitespaceTokens, &mut dying, &mut sink, &Unwatched).unwrap_err();
        let mut second = fake();
        let (mut records, _) = run(&grid, &WhitespaceTokens, &mut second, &mut sink, &Unwatched).unwrap();
        assert_eq!(second.asked + dies_after, grid.samples());
        assert_eq!(results(&grid, &mut records), whole, "died after {dies_after}");
    }
}

#[test]
fn the_order_of_records_and_their_times_do_not_matter() {
    let grid = count(20);
    let (mut records, _) = run(
        &grid,
        &WhitespaceTokens,
        &mut fake(),
        &mut KeySink::default(),
        &Unwatched,
    )
    .unwrap();
    let mut shuffled = Records::default();
    for record in records.in_order().iter().rev() {
        shuffled.push(Record {
            cost: Cost::default(),
            ..record.clone()
        });
    }
    assert_eq!(results(&grid, &mut shuffled), results(&grid, &mut records));
}

#[test]
fn depths_become_a_heat_map_and_lengths_lines() {
    let grid = grid(vec![Box::new(Passkey)], &[Some(0.0), Some(0.5), Some(1.0)], 2, None);
    assert_eq!(grid.cells.len(), 6);
    let mut records = Records::default();
    for (at, cell) in (0u32..).zip(&grid.cells) {
        // Variant 1 finds what lies at the end only.
        for (variant, score) in [(0, 1.0), (1, f64::from(cell.depth == Some(1.0)))] {
            for index in 0..2 {
                records.push(Record {
                    cell: at,
                    variant,
                    index,
                    scores: Some(Box::new([score])),
                    empty: false,
                    cost: Cost::default(),
                });
            }
        }
    }
    let statistics = Statistics::of(&grid, &mut records, None).unwrap();
    assert_eq!(statistics.heats.len(), 2);
    let heat = &statistics.heats[1];
    assert_eq!(
        (&heat.lengths[..], &heat.depths[..]),
        (&[64, 128][..], &[0.0, 0.5, 1.0][..])
    );
    assert_eq!(heat.scores, [[Some(0.0); 2], [Some(0.0); 2], [Some(1.0); 2]]);
    assert_eq!(statistics.lines[1].points.len(), 2);
    assert!((statistics.lines[1].points[0].1 - 1.0 / 3.0).abs() < 1e-12);
    let names: Vec<&str> = statistics.tables.iter().map(|table| table.name.as_str()).collect();
    assert_eq!(names, ["accuracy", "summary", "by_depth"]);
}

#[test]
fn a_limit_counts_samples_of_each_task_over_all_lengths() {
    let limited = grid(vec![Box::new(Count), Box::new(Passkey)], &[None], 4, Some(6));
    let samples: Vec<usize> = limited.cells.iter().map(|cell| cell.samples).collect();
    assert_eq!(samples, [4, 2, 4, 2]);
    assert_eq!(limited.samples(), 24);
}

#[test]
fn rows_of_another_plan_are_named() {
    let grid = count(2);
    let mut sink = MemorySink::new("c");
    sink.append(
        "count",
        "x",
        json!({"variant": "dense", "length_tokens": 65, "index": 0}),
    )
    .unwrap();
    let error = Records::resumed(&grid, &sink).unwrap_err();
    assert!(error.message().contains("no such length"), "{error}");
}

use super::super::paper_table::paper;
use super::*;
use crate::manifest::Manifest;
use serde_json::json;

const QWEN: &str = "Qwen/Qwen2-7B-Instruct";

/// A run of token-select with the paper's settings; `rows` are (task, length, metric, mean, half of the interval).
fn run(model: &str, rows: &[(&str, Option<u64>, &str, f64, f64)]) -> Run {
    let keys = [
        "task",
        "length_tokens",
        "variant",
        "metric",
        "n",
        "mean",
        "standard_error",
        "ci95_low",
        "ci95_high",
    ];
    let mut table = Table::new(ACCURACY, keys.map(Column::text).into());
    let mut tasks = Map::new();
    for &(task, length, metric, mean, half) in rows {
        let suite = match task {
            _ if task.starts_with("niah") => "ruler",
            "lcc" => "long_bench",
            _ => "infinite_bench",
        };
        let data = (suite != "ruler").then_some("ab");
        let settings = json!({"prompts": (suite != "ruler").then_some("token-select")});
        tasks.insert(
            task.into(),
            json!({"suite": suite, "settings": settings, "data_sha256": data}),
        );
        table
            .push(vec![
                task.into(),
                length.map_or_else(|| Cell::missing("as loaded"), Cell::from),
                "token-select".into(),
                metric.into(),
                500_u64.into(),
                mean.into(),
                (half / 2.0).into(),
                (mean - half).into(),
                (mean + half).into(),
            ])
            .unwrap();
    }
    let policy = json!({"name": "token-select", "n_init": 128, "n_local": 512, "top_k": 2048, "vote": "soft",
        "cache_threshold": 0.9_f32, "head_map": "grouped"});
    let config = json!({"model": model, "random_weights": null, "tasks": tasks,
        "policies": [{"name": "token-select", "policy": policy, "prefill_chunk": 512}]});
    let Value::Object(config) = config else { unreachable!() };
    let mut report = Report::new("bench", Vec::new(), config, Manifest::begin(1));
    report.tables.push(table);
    Run::new("out/a".into(), report)
}

/// (model, method, column, verdict, reason) of the lines with a score.
fn verdicts(number: u32, run: Run) -> Vec<[String; 5]> {
    let paper = paper("tokenselect").unwrap();
    let printed = paper.select(Some(number)).unwrap()[0];
    let Some(table) = beside_paper(&paper, printed, &[run]).unwrap() else {
        return Vec::new();
    };
    let scored = table.rows.iter().filter(|row| row[10].short() != "not run");
    scored.map(|row| [0, 1, 2, 10, 11].map(|at| row[at].short())).collect()
}

/// The verdict on the paper's R.KV of Qwen2-7B with 2K+512: 86.60.
fn on_kv(run: Run) -> (String, String) {
    let all = verdicts(1, run);
    let [.., verdict, reason] = all.iter().find(|line| line[0].starts_with("Qwen2-7B")).unwrap().clone();
    (verdict, reason)
}

fn kv(mean: f64, half: f64) -> Run {
    run(QWEN, &[("kv_retrieval", None, "token_select", mean, half)])
}

#[test]
fn a_verdict_follows_from_the_interval() {
    for (mean, half, expected) in [
        (0.86, 0.02, "within"),
        (0.80, 0.02, "below"),
        (0.90, 0.02, "above"),
        // The last printed digit is open.
        (0.86, 0.00599, "within"),
    ] {
        assert_eq!(on_kv(kv(mean, half)), (expected.into(), String::new()), "{mean}");
    }
}

#[test]
fn what_is_not_the_papers_question_is_not_compared() {
    let expect = |run: Run, reason: &str| assert_eq!(on_kv(run), ("not comparable".into(), reason.into()));
    let change = |change: &dyn Fn(&mut Run)| {
        let mut run = kv(0.86, 0.02);
        change(&mut run);
        run
    };
    let config = |run: &mut Run, path: &str, value: Value| {
        let mut whole = Value::Object(run.config.clone());
        *whole.pointer_mut(path).unwrap() = value;
        run.config = whole.as_object().unwrap().clone();
    };
    expect(
        change(&|run| config(run, "/tasks/kv_retrieval/data_sha256", Value::Null)),
        "generated examples, not the benchmark's own",
    );
    let prompts = "/tasks/kv_retrieval/settings/prompts";
    expect(
        change(&|run| config(run, prompts, json!("infllm"))),
        "other prompts: infllm",
    );
    expect(
        change(&|run| config(run, "/random_weights", json!(7))),
        "random weights",
    );
    expect(change(&|run| config(run, "/model", json!("a/b"))), "another model: a/b");
    expect(change(&|run| run.interrupted = true), "the run was interrupted");
    expect(
        change(&|run| run.cells[0].length_tokens = Some(4096)),
        "contexts were cut to 4096 tokens",
    );
    expect(
        change(&|run| run.cells[0].metric = "official".into()),
        "another metric: official",
    );
    expect(change(&|run| run.cells[0].ci95 = None), "500 samples give no interval");
    // Another budget is another row of Table 5, and none of Table 1.
    let mut other = kv(0.45, 0.02);
    config(&mut other, "/policies/0/policy/top_k", json!(512));
    assert!(verdicts(1, other.clone()).is_empty());
    let line = &verdicts(5, other)[0];
    assert_eq!([&line[1], &line[2], &line[3]], ["k = 512", "R.KV", "within"]);
}

#[test]
fn cells_without_a_score_say_so_and_untouched_tables_are_left_out() {
    let paper = paper("tokenselect").unwrap();
    let tables: Vec<u32> = paper
        .tables
        .iter()
        .filter(|printed| {
            let runs = [kv(0.86, 0.02)];
            beside_paper(&paper, printed, &runs).unwrap().is_some()
        })
        .map(|printed| printed.number)
        .collect();
    assert_eq!(tables, [1, 3, 4, 5, 6, 7, 9]);
    let printed = paper.select(Some(1)).unwrap()[0];
    let table = beside_paper(&paper, printed, &[kv(0.86, 0.02)]).unwrap().unwrap();
    let reasons: BTreeSet<String> = table.rows.iter().map(|row| row[11].short()).collect();
    assert!(reasons.contains("no run of the task") && reasons.contains("no run with these settings"));
    // Three rows per model have a policy here, each with nine columns.
    assert_eq!(table.rows.len(), 3 * 3 * 9);
}

#[test]
fn ruler_is_the_mean_over_all_of_its_tasks() {
    let names: Vec<String> = (0..13).map(|n| format!("niah_{n}")).collect();
    let rows: Vec<_> = names
        .iter()
        .map(|name| (name.as_str(), Some(4096), "string_match_all", 0.94, 0.02))
        .collect();
    let all = verdicts(2, run(QWEN, &rows));
    let line = all.iter().find(|line| line[0].starts_with("Qwen2-7B")).unwrap();
    assert_eq!([&line[1], &line[2], &line[3]], ["TokenSelect 2K+512", "4K", "within"]);
    let part = verdicts(2, run(QWEN, &rows[..5]));
    assert!(part.iter().any(|line| line[4] == "5 of 13 tasks"));
}

#[test]
fn runs_stand_beside_each_other_with_what_sets_them_apart() {
    let mut other = kv(0.5, 0.1);
    other.name = "out/b".into();
    other.config.insert("seed".into(), json!(3));
    let tables = beside_each_other(&[kv(0.86, 0.02), other]).unwrap();
    let names: Vec<&str> = tables.iter().map(|table| table.name.as_str()).collect();
    assert_eq!(names, ["settings that differ", ACCURACY]);
    let row = |table: &Table| table.rows[0].iter().map(Cell::short).collect::<Vec<_>>();
    assert_eq!(row(&tables[0]), ["seed", "not there", "3"]);
    assert_eq!(
        row(&tables[1]),
        [
            "kv_retrieval",
            "as loaded",
            "token-select",
            "token_select",
            "0.8600",
            "0.5000"
        ]
    );
    assert_eq!(beside_each_other(&[kv(0.1, 0.1)]).unwrap().len(), 1);
}

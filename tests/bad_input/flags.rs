//! Flags and config files with values that make no sense.

use crate::common::program::{infer, refuses, succeeds, tokselect};
use crate::common::tiny_model::TinyModel;

#[test]
fn a_value_out_of_range() {
    let model = TinyModel::llama().build();
    let largest = u64::MAX.to_string();
    let cases: [(&[&str], &str); 34] = [
        (&["--top-k", "0"], "selects nothing"),
        (&["--top-k", "-1"], "'-1'"),
        (&["--top-k", "many"], "'many'"),
        (&["--top-k", &largest], "4294967296"),
        (&["--n-local", "0"], "at least itself"),
        (&["--n-local", &largest], "4294967296"),
        (&["--n-init", &largest], "4294967296"),
        (&["--n-local", "101", "--max-context", "100"], "--max-context 100"),
        (&["--n-init", "101", "--max-context", "100"], "--max-context 100"),
        (&["--max-context", &largest], "4294967296"),
        (&["--max-context", "-1"], "'-1'"),
        (&["--max-new-tokens", &largest], "4294967296"),
        (&["--prefill-chunk", "0"], "processes nothing"),
        (&["--prefill-chunk", &largest], "4294967296"),
        (&["--threads", "0"], "runs nothing"),
        (&["--threads", "1000000"], "4096"),
        (&["--cache-threshold", "2"], "not a cosine"),
        (&["--cache-threshold", "nan"], "not a cosine"),
        (&["--cache-threshold", "high"], "`off`"),
        (&["--chunk-query", "subchunk:0"], "averages nothing"),
        (&["--chunk-query", "subchunk:-1"], "subchunk:S"),
        (&["--chunk-query", "median"], "subchunk:S"),
        (&["--smoothing", "-3"], "'-3'"),
        (&["--temperature", "-1"], "greedy"),
        (&["--temperature", "nan"], "greedy"),
        (&["--top-p", "2"], "at most 1"),
        (&["--top-p", "0"], "above 0"),
        (&["--min-p", "-0.5"], "between 0 and 1"),
        (&["--repetition-penalty", "0"], "positive"),
        (&["--seed", "-1"], "'-1'"),
        (&["--stop", ""], "empty string"),
        (&["--max-memory", "12 parsecs"], "parsecs"),
        (&["--policy", "dens"], "token-select"),
        (&["--dtype", "int8"], "bf16"),
    ];
    for (flags, part) in cases {
        for policy in [&["--policy", "token-select"][..], &[]] {
            if policy.is_empty() || flags[0] != "--policy" {
                refuses(
                    infer(&model).args(["--prompt", "x"]).args(flags).args(policy),
                    2,
                    &[flags[0], part],
                );
            }
        }
    }
}

#[test]
fn a_knob_of_another_policy_out_of_range() {
    let model = TinyModel::llama().build();
    let cases: [(&[&str], &[&str]); 14] = [
        (&["--rope-factor", "0.5"], &["--rope-factor", "from 1"]),
        (&["--rope-factor", "nan"], &["--rope-factor", "from 1"]),
        (&["--rope-factor", "wide"], &["--rope-factor", "`auto`"]),
        (
            &["--self-extend-group", "0"],
            &["--self-extend-group", "1..=4294967296"],
        ),
        (
            &["--self-extend-window", "0"],
            &["--self-extend-window", "1..=4294967296"],
        ),
        (&["--quest-page-size", "0"], &["--quest-page-size", "1..=4294967296"]),
        (&["--snap-kv-kernel", "1025"], &["--snap-kv-kernel", "1..=1023"]),
        (
            &["--policy", "snap-kv", "--snap-kv-kernel", "4"],
            &["--snap-kv-kernel 4", "odd"],
        ),
        (&["--policy", "quest", "--top-k", "15"], &["--top-k 15", "--top-k 16"]),
        (
            &["--policy", "inf-llm", "--top-k", "127"],
            &["--top-k 127", "--top-k 128"],
        ),
        (
            &["--policy", "inf-llm", "--inf-llm-representatives", "129"],
            &["--inf-llm-representatives 129", "from 1 to 128"],
        ),
        (&["--policy", "h2o", "--top-k", "0"], &["--top-k 0"]),
        (&["--policy", "snap-kv", "--n-local", "0"], &["--n-local 0"]),
        (&["--h2o-prefill", "sparse"], &["--h2o-prefill", "evict"]),
    ];
    for (flags, parts) in cases {
        refuses(infer(&model).args(["--prompt", "x"]).args(flags), 2, parts);
    }
    // A model that stretches its rotary embedding is not stretched a second time.
    model.edit_config(|config| {
        config["rope_scaling"] = serde_json::json!({"rope_type": "linear", "factor": 2.0});
    });
    for policy in ["ntk", "yarn"] {
        let flags = ["--prompt", "x", "--policy", policy];
        refuses(infer(&model).args(flags), 2, &[policy, "linear", "--policy dense"]);
    }
}

#[test]
fn a_knob_that_the_policy_does_not_read_is_pointed_out() {
    let model = TinyModel::llama().build();
    let run = succeeds(infer(&model).args(["--prompt", "x", "-n", "1", "--top-k", "8", "--vote", "head"]));
    assert!(
        run.stderr.starts_with("warning: ") && run.stderr.contains("--top-k, --vote"),
        "{run:?}"
    );
    let run = succeeds(infer(&model).args(["-q", "--prompt", "x", "-n", "1", "--top-k", "8"]));
    assert!(run.stderr.is_empty(), "{run:?}");
}

#[test]
fn a_flag_or_command_that_does_not_exist() {
    refuses(
        tokselect().args(["infer", "--topk", "3"]),
        2,
        &["'--topk'", "'--top-k'"],
    );
    refuses(tokselect().args(["infer", "stray"]), 2, &["'stray'"]);
    refuses(tokselect().args(["infr"]), 2, &["'infr'", "infer"]);
    refuses(tokselect().args(["infer", "--prompt"]), 2, &["--prompt"]);
    refuses(tokselect().args(["tokenize", "-m", "x"]), 2, &["--text"]);
}

#[test]
#[allow(clippy::print_stderr, reason = "a skipped check says why")]
fn a_gpu_that_is_not_there() {
    if tokselect::kernels::cuda::driver::device_count().is_ok_and(|count| count > 0) {
        eprintln!("skipped: this machine has a GPU");
        return;
    }
    let model = TinyModel::llama().build();
    for device in ["cuda", "cuda:1"] {
        refuses(
            infer(&model).args(["--prompt", "x", "--device", device]),
            3,
            &["CUDA", "--device cpu"],
        );
        refuses(
            tokselect().args(["rcmha-train", "--device", device]),
            3,
            &["CUDA", "--device cpu"],
        );
    }
    // The type that was asked for is refused, and not replaced.
    refuses(
        tokselect().args(["rcmha-train", "--dtype", "bf16"]),
        3,
        &["--dtype bf16", "--dtype f32"],
    );
}

#[test]
fn a_device_or_type_that_cannot_be() {
    let model = TinyModel::llama().build();
    for device in ["tpu", "cuda:x", "CPU "] {
        refuses(
            infer(&model).args(["--prompt", "x", "--device", device]),
            2,
            &[&format!("--device {device}"), "cuda:N"],
        );
    }
    for dtype in ["f16", "bf16"] {
        refuses(
            infer(&model).args(["--prompt", "x", "--device", "cpu", "--dtype", dtype]),
            2,
            &[&format!("--dtype {dtype}"), "--dtype f32"],
        );
        refuses(
            tokselect().args(["rcmha-train", "--device", "cpu", "--dtype", dtype]),
            2,
            &[&format!("--dtype {dtype}"), "--dtype f32"],
        );
    }
    refuses(
        tokselect().args(["rcmha-train", "--device", "tpu"]),
        2,
        &["--device tpu", "cuda:N"],
    );
}

#[test]
fn more_memory_than_allowed() {
    let model = TinyModel::llama().build();
    let flags = ["--prompt", "x", "-n", "100000", "--prefill-chunk", "8"];
    let stderr = refuses(
        infer(&model).args(flags).args(["--max-memory", "1MiB"]),
        3,
        &[
            "100002 tokens",
            "1.0 MiB",
            "weights",
            "kv cache",
            "the largest context that fits is",
        ],
    );
    let context = stderr
        .rsplit("--max-context ")
        .next()
        .expect("a remedy")
        .trim_end()
        .trim_end_matches('`');
    let count: usize = context.parse().expect("a number");
    let fits = |context: usize| {
        let mut command = infer(&model);
        command.args(flags).args([
            "--max-memory",
            "1MiB",
            "--dry-run",
            "--max-context",
            &context.to_string(),
        ]);
        command
    };
    succeeds(&mut fits(count));
    refuses(&mut fits(count + 256), 3, &["the largest context that fits"]);
    refuses(
        infer(&model).args(flags).args(["--max-memory", "1KiB"]),
        3,
        &["1.0 KiB", "no context fits", "smaller model"],
    );
    refuses(
        infer(&model).args(["--prompt", "x", "--max-context", "4294967296"]),
        3,
        &["4294967296 tokens"],
    );
}

#[test]
fn a_config_file_that_cannot_be_used() {
    let model = TinyModel::llama().build();
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("run.toml");
    let name = file.to_str().expect("UTF-8");
    let command = || {
        let mut command = infer(&model);
        command.args(["--prompt", "x", "--config"]).arg(&file);
        command
    };
    refuses(&mut command(), 2, &[name, "No such file"]);
    for (text, part) in [
        ("top-k = = 3", "line 1"),
        ("\ntopk = 3", "did you mean `top-k`"),
        ("nonsense = 3", "no option `nonsense`"),
        ("[infre]\ntop-k = 3", "did you mean `[infer]`"),
        ("dry-run = 3", "true or false"),
        ("top-k = [1, 2]", "one value"),
        ("seed = 1\nseed = 2", "line 2"),
        ("top-k = {a = 1}", "[top-k]"),
        ("[infer]\ntop-k = [[1]]", "array"),
    ] {
        std::fs::write(&file, text).expect("writable");
        refuses(&mut command(), 2, &[name, part]);
    }
    std::fs::write(&file, "top-k = 'many'").expect("writable");
    refuses(&mut command(), 2, &["--top-k", "'many'"]);
    std::fs::write(&file, b"# \xff").expect("writable");
    refuses(&mut command(), 2, &[name, "not UTF-8"]);
    refuses(
        infer(&model).args(["--prompt", "x", "--set", "top-k"]),
        2,
        &["--set top-k", "key=value"],
    );
    refuses(
        infer(&model).args(["--prompt", "x", "--set", "topk=3"]),
        2,
        &["--set topk=3", "`top-k`"],
    );
    refuses(
        infer(&model).args(["--prompt", "x", "--set", "top-k=0"]),
        2,
        &["--top-k 0"],
    );
}

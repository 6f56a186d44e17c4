//! The decode-step kernel, run on the CPU: its own text, compiled as C++ with an emulator of what a GPU has, against a
//! reference in f64. Needs a C++20 compiler on x86-64 Linux (`CXX`, else `c++` or `g++`), no GPU.
//!
//! Without them the tests say so and pass; with `TOKSELECT_REQUIRE_CXX=1` they fail.
#![allow(clippy::print_stderr, reason = "a skipped test says why")]

use std::ffi::OsString;
use std::path::Path;
use std::process::{Command, Output};
use tokselect::kernels::AttentionShape;
use tokselect::kernels::cuda::compile::Source;
use tokselect::kernels::cuda::{Element, defines};

/// Lines of the kernel that the emulator has its own of.
const INSTRUCTIONS: &str = "// ---- instructions";
const AFTER_INSTRUCTIONS: &str = "// ---- scratch -";
const SHARED_MEMORY: &str = "extern __shared__ __align__(128) u8 shared[];";

/// A C++ compiler that starts.
fn compiler() -> Option<OsString> {
    let reason = if cfg!(all(target_arch = "x86_64", target_os = "linux")) {
        let candidates = match std::env::var_os("CXX") {
            Some(named) => vec![named],
            None => vec!["c++".into(), "g++".into()],
        };
        let found = candidates.iter().find(|name| {
            let version = Command::new(name).arg("--version").output();
            version.is_ok_and(|output| output.status.success())
        });
        if found.is_some() {
            return found.cloned();
        }
        format!("none of {candidates:?} is a C++ compiler that starts; install g++ or set CXX")
    } else {
        "the emulator switches between threads with x86-64 assembly, on Linux".to_owned()
    };
    assert!(
        std::env::var_os("TOKSELECT_REQUIRE_CXX").is_none_or(|v| v != "1"),
        "the emulation of the kernel is required but {reason}"
    );
    eprintln!("skipped: {reason}");
    None
}

/// Where `pattern` is, which must be exactly once.
fn position(text: &str, pattern: &str) -> usize {
    let found: Vec<_> = text.match_indices(pattern).map(|(at, _)| at).collect();
    assert_eq!(
        found.len(),
        1,
        "the kernel should have `{pattern}` once; emulate what changed"
    );
    found[0]
}

/// The kernel without what the emulator stands in for. Lines keep their numbers, for the errors of the compiler.
fn kernel() -> String {
    let full = Source::TokenSelectStep.full_text();
    // What comes before the first file of its own is common to all kernels.
    let text = &full[full.find("#line 1 ").expect("a kernel names its files")..];
    let (from, to) = (position(text, INSTRUCTIONS), position(text, AFTER_INSTRUCTIONS));
    let lines = "\n".repeat(text[from..to].matches('\n').count());
    let text = format!("{}{lines}{}", &text[..from], &text[to..]);
    position(&text, SHARED_MEMORY);
    text.replace(SHARED_MEMORY, "u8* shared = EMULATED_SHARED;")
}

fn said(output: &Output) -> String {
    let [out, err] = [&output.stdout, &output.stderr].map(|bytes| String::from_utf8_lossy(bytes));
    // Of a compiler, the first lines tell.
    err.lines().take(20).chain(out.lines()).collect::<Vec<_>>().join("\n")
}

/// Compiles for `architecture` (as in `__CUDA_ARCH__`) and one shape, runs every case with the threads in `order`, and
/// expects that so many `cases` and `steps` ran and that all were right.
fn emulate(
    element: Element,
    [group, kv_heads, head_dim]: [usize; 3],
    architecture: u32,
    more: &[&str],
    order: u32,
    (cases, steps): (u32, u32),
) {
    let Some(compiler) = compiler() else { return };
    let sources = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/cuda_emulation");
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("kernel.cuh"), kernel()).unwrap();
    let program = folder.path().join("program");
    let shape = AttentionShape {
        query_heads: group * kv_heads,
        kv_heads,
        head_dim,
    };
    let shape = defines(element, &shape)
        .into_iter()
        .map(|(name, value)| format!("-D{name}={value}"));
    // Device code casts between types of one size and has warnings of its own compiler.
    let compiled = Command::new(compiler)
        .args(["-std=c++20", "-O2", "-w", "-fno-strict-aliasing", "-I"])
        .args([folder.path(), Path::new("-o"), &program])
        .args(shape)
        .arg(format!("-D__CUDA_ARCH__={architecture}"))
        .args(more.iter().map(|define| format!("-D{define}")))
        .arg(sources.join("token_select_step.cc"))
        .output()
        .unwrap();
    assert!(
        compiled.status.success(),
        "the emulation does not compile:\n{}",
        said(&compiled)
    );
    let ran = Command::new(&program).arg(order.to_string()).output().unwrap();
    assert!(ran.status.success(), "{}:\n{}", ran.status, said(&ran));
    let said = said(&ran);
    assert_eq!(
        said.lines().last(),
        Some(&*format!("{cases} cases, {steps} steps, 0 wrong")),
        "{said}"
    );
}

/// Cases and steps of shapes whose votes are bounded before they are exact, and of others.
const FAST: (u32, u32) = (29, 70);
const NOT_FAST: (u32, u32) = (20, 48);

#[test]
fn qwen2_7b_with_keys_through_the_ring() {
    emulate(Element::Bf16, [7, 4, 128], 900, &[], 4, FAST);
}

#[test]
fn qwen2_7b_with_8_bit_keys_and_long_threshold_classes() {
    emulate(Element::Bf16, [7, 4, 128], 900, &["KEYS8", "LIST_CAP=40"], 2, FAST);
}

#[test]
fn groups_of_16_with_8_bit_keys_and_no_copy_engine() {
    emulate(Element::Bf16, [16, 1, 64], 800, &["KEYS8"], 1, FAST);
}

#[test]
fn keys_in_f16_and_no_copy_engine() {
    emulate(Element::F16, [7, 2, 64], 800, &["LIST_CAP=16"], 2, FAST);
}

#[test]
fn heads_without_fast_paths() {
    emulate(Element::F16, [5, 1, 80], 900, &[], 3, NOT_FAST);
}

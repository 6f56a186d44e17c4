//! Every kernel file compiles, for every chip family, type and shape that it is launched with. Needs NVRTC, no GPU.
//!
//! Without NVRTC the test says so and passes; with `TOKSELECT_REQUIRE_NVRTC=1` it fails.
#![allow(clippy::print_stderr, reason = "a skipped test says why")]

use tokselect::kernels::AttentionShape;
use tokselect::kernels::cuda::compile::{Source, compile};
use tokselect::kernels::cuda::training::{Compiled, Precision, attention, rows};
use tokselect::kernels::cuda::{Element, defines};

/// Whether the compiler library can be opened.
fn nvrtc() -> bool {
    let there = tokselect::kernels::cuda::compile::is_available();
    if !there {
        assert!(
            std::env::var_os("TOKSELECT_REQUIRE_NVRTC").is_none(),
            "NVRTC is required but libnvrtc was not found on LD_LIBRARY_PATH"
        );
        eprintln!("skipped: libnvrtc was not found; `pip install nvidia-cuda-nvrtc` has it");
    }
    there
}

fn shape(query_heads: usize, kv_heads: usize, head_dim: usize) -> AttentionShape {
    AttentionShape {
        query_heads,
        kv_heads,
        head_dim,
    }
}

#[test]
fn every_kernel_compiles_without_a_gpu() {
    if !nvrtc() {
        return;
    }
    // Qwen2-7B, Llama-3-8B, the demo model, and a small model whose heads have no fast path.
    let shapes = [shape(28, 4, 128), shape(32, 8, 128), shape(4, 2, 64), shape(8, 4, 8)];
    let full = [("sm_80", Element::Bf16), ("sm_90a", Element::Bf16)];
    let mut compiled = 0;
    for &source in Source::ALL.iter().filter(|source| !source.is_of_training()) {
        for (at, shape) in shapes.iter().enumerate() {
            for (architecture, element) in full {
                let code = compile(source, &defines(element, shape), architecture);
                let code = code.unwrap_or_else(|e| panic!("{} {shape:?} {architecture}: {e}", source.file()));
                assert!(code.starts_with(b"\x7fELF"), "{}: no machine code", source.file());
                compiled += 1;
            }
            if !source.depends_on_shape() {
                break;
            }
            if at == 0 {
                for (architecture, element) in [
                    ("sm_86", Element::F16),
                    ("sm_89", Element::F16),
                    ("sm_100", Element::F16),
                ] {
                    let code = compile(source, &defines(element, shape), architecture);
                    code.unwrap_or_else(|e| panic!("{} {shape:?} {architecture}: {e}", source.file()));
                    compiled += 1;
                }
            }
        }
    }
    eprintln!("{compiled} compilations");
}

#[test]
fn every_form_of_the_step_compiles() {
    if !nvrtc() {
        return;
    }
    // Groups of more than 8 heads, heads without a fast path, and what chips with little shared memory take.
    let forms = [
        (shape(28, 4, 128), "sm_90a", &["KEYS8"][..]),
        (shape(28, 4, 128), "sm_90a", &["NO_RING"]),
        (shape(28, 4, 128), "sm_86", &["KEYS8", "SMALL"]),
        (shape(32, 2, 128), "sm_90a", &[]),
        (shape(32, 2, 128), "sm_90a", &["KEYS8"]),
        (shape(8, 4, 256), "sm_90a", &["KEYS8"]),
        (shape(71, 1, 64), "sm_90a", &[]),
        (shape(20, 20, 96), "sm_89", &["KEYS8"]),
    ];
    for (shape, architecture, names) in forms {
        let mut defines = defines(Element::Bf16, &shape);
        defines.extend(names.iter().map(|&name| match name {
            "SMALL" => ("ATTEND_ROWS", "64".to_owned()),
            name => (name, "1".to_owned()),
        }));
        let code = compile(Source::TokenSelectStep, &defines, architecture);
        code.unwrap_or_else(|e| panic!("{shape:?} {architecture} {names:?}: {e}"));
    }
}

#[test]
fn prefill_selection_compiles_for_every_kind_of_group() {
    if !nvrtc() {
        return;
    }
    // Groups at the limit of Hopper's form, beyond it, of one head, and heads that are no power of two.
    let shapes = [shape(64, 8, 128), shape(16, 1, 256), shape(6, 6, 64), shape(8, 8, 80)];
    for source in [Source::PrefillSelect, Source::PrefillScore, Source::PrefillScoreWgmma] {
        for shape in shapes {
            for architecture in ["sm_86", "sm_90a"] {
                compile(source, &defines(Element::Bf16, &shape), architecture)
                    .unwrap_or_else(|e| panic!("{} {shape:?} {architecture}: {e}", source.file()));
            }
        }
    }
}

#[test]
fn the_kernels_of_training_compile_without_a_gpu() {
    if !nvrtc() {
        return;
    }
    let mut compiled = 0;
    let mut check = |source, defines: &[(&str, String)], architecture| {
        let code = compile(source, defines, architecture);
        let code = code.unwrap_or_else(|e| panic!("{} {defines:?} {architecture}: {e}", source.file()));
        assert!(code.starts_with(b"\x7fELF"), "{}: no machine code", source.file());
        compiled += 1;
    };
    for precision in [Precision::F32, Precision::Bf16] {
        for (head_dim, relative, kernel, warps) in
            [(64, true, 3, 4), (16, false, 5, 4), (7, true, 1, 2), (128, true, 3, 1)]
        {
            let shape = Compiled {
                precision,
                head_dim,
                relative,
                kernel,
            };
            check(Source::TrainAttention, &attention::defines(&shape, warps), "sm_90a");
            check(Source::TrainRows, &rows::defines(&shape), "sm_80");
        }
    }
    eprintln!("{compiled} compilations");
}

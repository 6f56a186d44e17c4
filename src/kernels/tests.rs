//! One test body per primitive, run on the fast backend against the reference on fresh random inputs.

use super::cpu::Cpu;
use super::reference::Reference;
use super::*;
use proptest::prelude::*;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

fn random(rng: &mut ChaCha8Rng, len: usize) -> Vec<f32> {
    (0..len).map(|_| rng.random_range(-1.0f32..1.0)).collect()
}

/// Sums of `terms` products of numbers below 1 in another order: a few units in the last place of the largest partial
/// sum.
fn close(got: &[f32], want: &[f32], terms: usize) {
    assert_eq!(got.len(), want.len());
    let tolerance = 4e-7 * (terms as f32).sqrt().max(1.0) * 8.0;
    for (i, (g, w)) in got.iter().zip(want).enumerate() {
        assert!(
            (g - w).abs() <= tolerance * w.abs().max(1.0),
            "element {i}: {g} against {w}"
        );
    }
}

/// A cache of `n` random tokens on shuffled pages, the same for both backends (both use `Vec<f32>` pages).
struct Cache {
    keys: Vec<Vec<f32>>,
    values: Vec<Vec<f32>>,
    table: PageTable,
}

fn cache(rng: &mut ChaCha8Rng, n: usize, shape: &AttentionShape) -> Cache {
    let count = n.div_ceil(PAGE_TOKENS);
    let mut pages: Vec<u32> = (0..count as u32).collect();
    for i in (1..pages.len()).rev() {
        pages.swap(i, rng.random_range(0..=i));
    }
    let page = |rng: &mut ChaCha8Rng| random(rng, PAGE_TOKENS * shape.kv_width());
    Cache {
        keys: (0..count).map(|_| page(rng)).collect(),
        values: (0..count).map(|_| page(rng)).collect(),
        table: PageTable { pages },
    }
}

impl Cache {
    fn keys<B: Backend<Buffer = Vec<f32>>>(&self) -> Pages<'_, B> {
        Pages {
            pages: &self.keys,
            table: &self.table,
        }
    }

    fn values<B: Backend<Buffer = Vec<f32>>>(&self) -> Pages<'_, B> {
        Pages {
            pages: &self.values,
            table: &self.table,
        }
    }
}

fn rope(positions: usize, d: usize) -> RopeTable {
    let angle = |p: usize, i: usize| p as f32 / 10000f32.powf(2.0 * i as f32 / d as f32);
    let table = |f: fn(f32) -> f32| {
        (0..positions)
            .flat_map(|p| (0..d / 2).map(move |i| f(angle(p, i))))
            .collect()
    };
    RopeTable {
        cos: table(f32::cos),
        sin: table(f32::sin),
        half: d / 2,
    }
}

fn attend_on<B: Backend<Buffer = Vec<f32>>>(
    backend: &B,
    c: &Cache,
    shape: AttentionShape,
    queries: &Vec<f32>,
    rows: usize,
    tokens: TokenList<'_>,
    positions: Positions,
    window: Option<usize>,
    rope: &RopeTable,
) -> (Vec<f32>, Vec<f32>) {
    let first_query_position = match positions {
        Positions::Packed => tokens.len() - rows,
        Positions::Original | Positions::Grouped { .. } => tokens.token(0, tokens.len() - rows),
    };
    // Another rotation of the same queries; any numbers will do.
    let far: Vec<f32> = queries.iter().map(|q| 0.7 - q).collect();
    let mut out = vec![f32::NAN; queries.len()];
    let mut mass = Vec::new();
    let args = Attend {
        shape,
        queries,
        far_queries: Some(&far),
        rows,
        keys: c.keys(),
        values: c.values(),
        tokens,
        positions,
        first_query_position,
        window,
        rope,
    };
    backend.attend(&args, &mut out);
    backend.attention_mass(&args, &mut mass);
    (out, mass)
}

fn shapes() -> impl Strategy<Value = AttentionShape> {
    (
        1usize..4,
        prop::sample::select(vec![1usize, 2, 3, 7, 17]),
        prop::sample::select(vec![8usize, 16, 32, 64, 80]),
    )
        .prop_map(|(kv, group, d)| AttentionShape {
            query_heads: kv * group,
            kv_heads: kv,
            head_dim: d,
        })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, ..ProptestConfig::default() })]

    #[test]
    fn linear_equals_reference(seed: u64, rows in 1usize..70, cols in 1usize..300, outputs in 1usize..200, bias: bool, accumulate: bool) {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        // 1024 inputs make rows a multiple of 4 KiB apart: the padded copy.
        let cols = if cols > 280 { 1024 } else { cols };
        let (x, w, b) = (random(&mut rng, rows * cols), random(&mut rng, outputs * cols), random(&mut rng, outputs));
        let start = random(&mut rng, rows * outputs);
        let source = |r: usize, row: &mut [f32]| row.copy_from_slice(&w[r * cols..][..cols]);
        let bias = bias.then_some(&b);
        let (mut got, mut want) = (start.clone(), start);
        Cpu.linear(&x, rows, &Cpu.matrix(outputs, cols, &source), bias, accumulate, &mut got);
        Reference.linear(&x, rows, &Reference.matrix(outputs, cols, &source), bias, accumulate, &mut want);
        close(&got, &want, cols);

        // Buffers are made for the largest chunk: rows beyond the ids stay as they are.
        let ids: Vec<u32> = (0..rows).map(|_| rng.random_range(0..outputs as u32)).collect();
        let (mut got, mut want) = (vec![7.0; (rows + 3) * cols], vec![7.0; (rows + 3) * cols]);
        Cpu.embed(&Cpu.matrix(outputs, cols, &source), &ids, ids.len(), &mut got);
        Reference.embed(&Reference.matrix(outputs, cols, &source), &ids, ids.len(), &mut want);
        prop_assert_eq!(got, want);
    }

    #[test]
    fn rows_and_heads_equal_reference(seed: u64, rows in 1usize..60, shape in shapes(), first in 0usize..500) {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let qkv = random(&mut rng, rows * shape.qkv_width());
        let rope = rope(first + rows, shape.head_dim);
        let mut both = [vec![0.0; rows * shape.query_width()], vec![0.0; rows * shape.query_width()]];
        Cpu.rotate_queries(&qkv, 0..rows, &shape, &rope, first, &mut both[0]);
        Reference.rotate_queries(&qkv, 0..rows, &shape, &rope, first, &mut both[1]);
        close(&both[0], &both[1], 2);
        let positions: Vec<u32> = (0..rows).map(|_| rng.random_range(0..(first + rows) as u32)).collect();
        Cpu.rotate_queries_at(&qkv, rows / 2..rows, &shape, &rope, &positions, &mut both[0]);
        Reference.rotate_queries_at(&qkv, rows / 2..rows, &shape, &rope, &positions, &mut both[1]);
        close(&both[0], &both[1], 2);

        let groups = rows.div_ceil(7) * shape.query_width();
        let mut means = [vec![0.0; groups], vec![0.0; groups]];
        Cpu.group_means(&both[1], rows, shape.query_width(), 7, &mut means[0]);
        Reference.group_means(&both[1], rows, shape.query_width(), 7, &mut means[1]);
        close(&means[0], &means[1], 7);

        let weight = random(&mut rng, shape.head_dim);
        for part in [QkvPart::Queries, QkvPart::Keys] {
            let mut both = [qkv.clone(), qkv.clone()];
            Cpu.norm_heads(&mut both[0], rows, &shape, part, &weight, 1e-6);
            Reference.norm_heads(&mut both[1], rows, &shape, part, &weight, 1e-6);
            close(&both[0], &both[1], shape.head_dim);
        }
        let weight = random(&mut rng, shape.qkv_width());
        let mut both = [qkv.clone(), qkv.clone()];
        Cpu.rms_norm(&qkv, &weight, 1e-6, 0..rows, &mut both[0]);
        Reference.rms_norm(&qkv, &weight, 1e-6, 0..rows, &mut both[1]);
        close(&both[0], &both[1], shape.qkv_width());

        let gate_up = random(&mut rng, rows * 2 * shape.head_dim).iter().map(|x| x * 20.0).collect();
        let mut both = [vec![0.0; rows * shape.head_dim], vec![0.0; rows * shape.head_dim]];
        Cpu.silu_mul(&gate_up, rows, shape.head_dim, &mut both[0]);
        Reference.silu_mul(&gate_up, rows, shape.head_dim, &mut both[1]);
        close(&both[0], &both[1], 4);
    }

    #[test]
    fn attention_equals_reference(
        seed: u64,
        shape in shapes(),
        n in 1usize..1400,
        rows in 1usize..40,
        listing in 0usize..3,
        placing in 0usize..4,
        window in prop::option::of(1usize..600),
        near in 1usize..500,
        group in 2usize..20,
    ) {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let rows = rows.min(n);
        let c = cache(&mut rng, n, &shape);
        let queries = random(&mut rng, rows * shape.query_width());
        let rope = rope(n, shape.head_dim);
        // The chunk itself is always listed; of the rest, a random subset, of one size for all heads.
        let mut subset = || {
            let mut list: Vec<u32> = (0..(n - rows) as u32).collect();
            for i in (1..list.len()).rev() {
                list.swap(i, rng.random_range(0..=i));
            }
            list.truncate((n - rows) * 2 / 5);
            list.sort_unstable();
            list.extend((n - rows) as u32..n as u32);
            list
        };
        let listed = subset();
        let lists: Vec<u32> = (0..shape.kv_heads).flat_map(|_| subset()).collect();
        let tokens = match listing {
            0 => TokenList::All(n),
            1 => TokenList::Listed(&listed),
            _ => TokenList::PerHead { lists: &lists, kv_heads: shape.kv_heads },
        };
        let positions = match placing {
            0 => Positions::Packed,
            1 => Positions::Original,
            2 => Positions::Grouped { window: near, group },
            _ => Positions::Grouped { window: near, group: usize::MAX },
        };
        let (got, got_mass) = attend_on(&Cpu, &c, shape, &queries, rows, tokens, positions, window, &rope);
        let (want, want_mass) = attend_on(&Reference, &c, shape, &queries, rows, tokens, positions, window, &rope);
        close(&got, &want, n);
        close(&got_mass, &want_mass, n);
        if !matches!(positions, Positions::Grouped { .. }) {
            for mass in got_mass.chunks_exact(tokens.len()) {
                let total: f32 = mass.iter().sum();
                prop_assert!((total - rows as f32).abs() < 1e-3 * rows as f32, "{} for {} rows", total, rows);
            }
        }
    }

    #[test]
    fn rows_with_lists_of_their_own_equal_reference(
        seed: u64, shape in shapes(), n in 2usize..900, rows in 1usize..40, window in prop::option::of(1usize..300),
    ) {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let c = cache(&mut rng, n, &shape);
        let rope = rope(n, shape.head_dim);
        let qkv = random(&mut rng, rows * shape.qkv_width());
        // A shared prefix of any length, then tokens of the row's own.
        let prefix = rng.random_range(0..n);
        let mut list = || {
            let mut list: Vec<u32> = (0..prefix as u32).collect();
            list.extend((prefix as u32..n as u32).filter(|_| rng.random_bool(0.3)));
            if list.is_empty() {
                list.push(0);
            }
            list
        };
        let lists: Vec<Vec<u32>> = (0..rows).map(|_| list()).collect();
        let args = AttendRows { shape, qkv: &qkv, lists: &lists, keys: c.keys(), values: c.values(), window, rope: &rope };
        let mut got = vec![f32::NAN; (rows + 2) * shape.query_width()];
        Cpu.attend_rows(&args, &mut got);
        let args = AttendRows { shape, qkv: &qkv, lists: &lists, keys: c.keys(), values: c.values(), window, rope: &rope };
        let mut want = vec![f32::NAN; (rows + 2) * shape.query_width()];
        Reference.attend_rows(&args, &mut want);
        let used = rows * shape.query_width();
        close(&got[..used], &want[..used], n);
        prop_assert!(got[used..].iter().chain(&want[used..]).all(|x| x.is_nan()));
    }

    #[test]
    fn rows_of_several_keys_equal_reference(seed: u64, shape in shapes(), n in 1usize..1500, group in 1usize..40) {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let c = cache(&mut rng, n, &shape);
        let rope = rope(n, shape.head_dim);
        let end = n / group * group;
        let start = end / group / 3 * group;
        let store = |width: usize| vec![vec![7.0; PAGE_TOKENS * width]; n.div_ceil(PAGE_TOKENS)];
        let mut both = [store(2 * shape.kv_width()), store(2 * shape.kv_width())];
        Cpu.key_bounds(c.keys(), &shape, &rope, start..end, group, &mut both[0]);
        Reference.key_bounds(c.keys(), &shape, &rope, start..end, group, &mut both[1]);
        close(&both[0].concat(), &both[1].concat(), 2);

        let members: Vec<u32> = (0..shape.query_heads * 3).map(|_| rng.random_range(0..n as u32)).collect();
        let mut both = [store(shape.query_width()), store(shape.query_width())];
        Cpu.mean_keys(c.keys(), &shape, &members, 3, n / 2, &mut both[0]);
        Reference.mean_keys(c.keys(), &shape, &members, 3, n / 2, &mut both[1]);
        close(&both[0].concat(), &both[1].concat(), 3);
    }

    #[test]
    fn scores_and_votes_equal_reference(seed: u64, shape in shapes(), n in 1usize..1700, start in 0usize..300, queries in 1usize..4, modulo: bool) {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let c = cache(&mut rng, start + n, &shape);
        let q = random(&mut rng, queries * shape.query_width());
        let head_map = if modulo { HeadMap::Modulo } else { HeadMap::Grouped };
        let candidates = start..start + n;
        let (mut got, mut want) = (Scores::default(), Scores::default());
        Cpu.score(&ScoreArgs { shape, queries: &q, query_count: queries, keys: c.keys(), candidates: candidates.clone(), head_map, scale: 0.5, dtype: ScoreDtype::F32 }, &mut got);
        Reference.score(&ScoreArgs { shape, queries: &q, query_count: queries, keys: c.keys(), candidates, head_map, scale: 0.5, dtype: ScoreDtype::F32 }, &mut want);
        let flat = |s: &Scores| (0..s.rows).flat_map(|r| (0..s.len).map(move |t| (r, t))).map(|(r, t)| s.get(r, t)).collect::<Vec<_>>();
        close(&flat(&got), &flat(&want), shape.head_dim);
        // The votes are compared on identical scores: a tie broken by rounding is not what is tested here.
        got = want.clone();
        let (mut a, mut b) = (Vec::new(), Vec::new());
        Cpu.logit_vote(&got, ScoreDtype::F32, &mut a);
        Reference.logit_vote(&want, ScoreDtype::F32, &mut b);
        close(&a, &b, got.rows);
        Cpu.head_vote(&got, 1 + n / 3, &mut a);
        Reference.head_vote(&want, 1 + n / 3, &mut b);
        prop_assert_eq!(&a, &b);
        Cpu.soft_vote(&mut got, ScoreDtype::F32, &mut a);
        Reference.soft_vote(&mut want, ScoreDtype::F32, &mut b);
        close(&a, &b, n);
    }

    #[test]
    fn top_k_equals_sort(seed: u64, n in 0usize..3000, k in 0usize..3000, levels in 1u32..50) {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        // Few levels: ties everywhere, signs and NaN among them.
        let votes: Vec<f32> = (0..n).map(|_| match rng.random_range(0..=levels) { 0 => f32::NAN, 1 => -0.0, v => v as f32 / 7.0 - 2.0 }).collect();
        let (mut got, mut want) = (Vec::new(), Vec::new());
        Cpu.top_k(&votes, k, &mut got);
        Reference.top_k(&votes, k, &mut want);
        prop_assert_eq!(got, want);
    }

    #[test]
    fn smoothing_equals_its_definition(seed: u64, n in 1usize..80, kernel in 0usize..40) {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let votes = random(&mut rng, n);
        let mut got = votes.clone();
        smooth(&mut got, kernel);
        if kernel <= 1 {
            prop_assert_eq!(got, votes);
        } else {
            let padding = ((kernel - 1) / 2) as isize;
            let len = (n as isize + 2 * padding + 1 - kernel as isize).max(0);
            let want: Vec<f32> = (0..len).map(|i| {
                (i - padding..i - padding + kernel as isize)
                    .filter(|&j| j >= 0 && j < n as isize)
                    .map(|j| votes[j as usize])
                    .fold(f32::NEG_INFINITY, f32::max)
            }).collect();
            prop_assert_eq!(got, want);
        }
    }
}

#[test]
fn a_full_list_gives_the_bits_of_dense() {
    let mut rng = ChaCha8Rng::seed_from_u64(3);
    let shape = AttentionShape {
        query_heads: 6,
        kv_heads: 2,
        head_dim: 32,
    };
    let n = 2500;
    let c = cache(&mut rng, n, &shape);
    let rope = rope(n, shape.head_dim);
    let every: Vec<u32> = (0..n as u32).collect();
    for rows in [1, 300] {
        let queries = random(&mut rng, rows * shape.query_width());
        let dense = attend_on(
            &Cpu,
            &c,
            shape,
            &queries,
            rows,
            TokenList::All(n),
            Positions::Original,
            None,
            &rope,
        );
        let listed = attend_on(
            &Cpu,
            &c,
            shape,
            &queries,
            rows,
            TokenList::Listed(&every),
            Positions::Packed,
            None,
            &rope,
        );
        assert_eq!(dense, listed);
    }
}

#[test]
#[expect(clippy::float_cmp, reason = "rounding must agree to the last bit")]
fn bf16_rounding_is_to_nearest_even() {
    for x in [
        0.0f32,
        1.0,
        -1.0,
        1.0 + 1.0 / 256.0,
        1.0 + 3.0 / 256.0,
        3.4e38,
        1e-40,
        -0.1,
    ] {
        assert_eq!(round_bf16(x), half::bf16::from_f32(x).to_f32(), "{x}");
    }
    assert!(round_bf16(f32::NAN).is_nan());
}

#[test]
fn equal_keys_get_equal_votes_wherever_they_lie() {
    let mut rng = ChaCha8Rng::seed_from_u64(11);
    let shape = AttentionShape {
        query_heads: 6,
        kv_heads: 2,
        head_dim: 16,
    };
    let n = 1500;
    let mut c = cache(&mut rng, n, &shape);
    // Tokens 3, 700 and 1499 (three score blocks, three pages) are the same token.
    for page in [&mut c.keys] {
        for kv in 0..shape.kv_heads {
            let at = |slot: usize| {
                (
                    slot / PAGE_TOKENS,
                    (kv * PAGE_TOKENS + slot % PAGE_TOKENS) * shape.head_dim,
                )
            };
            let (from, start) = at(c.table.slot(3));
            let key = page[from][start..start + shape.head_dim].to_vec();
            for token in [700, 1499] {
                let (to, start) = at(c.table.slot(token));
                page[to][start..start + shape.head_dim].copy_from_slice(&key);
            }
        }
    }
    let queries = random(&mut rng, shape.query_width());
    for dtype in [ScoreDtype::F32, ScoreDtype::Bf16] {
        let mut scores = Scores::default();
        let args = ScoreArgs {
            shape,
            queries: &queries,
            query_count: 1,
            keys: c.keys(),
            candidates: 0..n,
            head_map: HeadMap::Grouped,
            scale: 1.0,
            dtype,
        };
        Cpu.score(&args, &mut scores);
        let mut votes = Vec::new();
        Cpu.soft_vote(&mut scores, dtype, &mut votes);
        assert_eq!(votes[3].to_bits(), votes[700].to_bits());
        assert_eq!(votes[3].to_bits(), votes[1499].to_bits());
    }
}

//! Attention mass: how much softmax weight each listed token gets, summed over rows, without values.
//!
//! Two passes over the keys: the first finds maximum and sum of every query row, the second forms the weights again and
//! adds them up by key. Keeping the scores of the first pass instead would take rows times keys of memory.

use super::attend::{NARROW_ROWS, SPLIT, Task, task_chunk_rows};
use super::softmax::State;
use super::{Cpu, math};
use crate::kernels::{Attend, Part};
use pulp::{Arch, Simd, WithSimd};
use rayon::prelude::*;

/// Keys per task with many query rows: long enough that rotating the queries' layout costs nothing beside it.
const WIDE_SPLIT: usize = 4096;

/// First pass: maxima and sums.
struct Normaliser<'a>(Task<'a>);

impl WithSimd for Normaliser<'_> {
    type Output = State;

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) -> State {
        let task = self.0;
        let mut state = State::new(task.rows(), 0);
        let mut scratch = task.scratch(0);
        for &part in task.args.parts() {
            let Some(pass) = task.pass(simd, part) else {
                continue;
            };
            for start in pass.keys.clone().step_by(task.tile_len()) {
                let tile = start..pass.keys.end.min(start + task.tile_len());
                task.tile_scores(simd, &pass, tile.clone(), &mut scratch);
                task.update(
                    simd,
                    &tile,
                    &pass.visible,
                    task.stride(),
                    &mut scratch.weights,
                    &mut state,
                );
            }
        }
        state
    }
}

/// Second pass: weights of the near part, summed over chunk rows; `[group, keys of the task]`.
struct Columns<'a> {
    task: Task<'a>,
    state: &'a State,
}

impl WithSimd for Columns<'_> {
    type Output = Vec<f32>;

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) -> Vec<f32> {
        let Self { task, state } = self;
        let (group, len, stride) = (task.args.shape.group(), task.keys.len(), task.stride());
        let mut mass = vec![0.0; group * len];
        let Some(pass) = task.pass(simd, Part::Near) else {
            return mass;
        };
        let mut scratch = task.scratch(0);
        for start in pass.keys.clone().step_by(task.tile_len()) {
            let tile = start..pass.keys.end.min(start + task.tile_len());
            task.tile_scores(simd, &pass, tile.clone(), &mut scratch);
            for (r, line) in scratch.weights.chunks_exact_mut(stride).take(task.rows()).enumerate() {
                let seen = &pass.visible[r / group];
                let low = seen.start.clamp(tile.start, tile.end);
                let high = seen.end.clamp(tile.start, tile.end);
                if low >= high {
                    continue;
                }
                let line = &mut line[low - tile.start..high - tile.start];
                math::exp_sum_simd(simd, line, state.max[r]);
                let factor = 1.0 / state.sum[r];
                let target = &mut mass[r % group * len + low - task.keys.start..][..high - low];
                for (total, weight) in target.iter_mut().zip(line) {
                    *total += *weight * factor;
                }
            }
        }
        mass
    }
}

pub(super) fn attention_mass(args: &Attend<'_, Cpu>, mass: &mut Vec<f32>) {
    let arch = Arch::new();
    let shape = &args.shape;
    let (group, keys) = (shape.group(), args.tokens.len());
    let narrow = args.rows * group <= NARROW_ROWS;
    let (task_rows, split) = if narrow {
        (args.rows, SPLIT)
    } else {
        (task_chunk_rows(shape), WIDE_SPLIT)
    };
    let (blocks, splits) = (args.rows.div_ceil(task_rows), keys.div_ceil(split));
    // Task number: (KV head, block of rows, split of keys).
    let task = |number: usize| {
        let first = number / splits % blocks * task_rows;
        let start = number % splits * split;
        Task {
            args,
            kv: number / splits / blocks,
            first,
            count: task_rows.min(args.rows - first),
            keys: start..(start + split).min(keys),
            narrow,
        }
    };
    let tasks = shape.kv_heads * blocks * splits;
    let states: Vec<State> = (0..tasks)
        .into_par_iter()
        .map(|number| arch.dispatch(Normaliser(task(number))))
        .collect();
    let states: Vec<State> = states.chunks(splits).map(|states| State::merge(states, 0)).collect();
    let columns: Vec<Vec<f32>> = (0..tasks)
        .into_par_iter()
        .map(|number| {
            arch.dispatch(Columns {
                task: task(number),
                state: &states[number / splits],
            })
        })
        .collect();
    mass.clear();
    mass.resize(shape.query_heads * keys, 0.0);
    // In the order of tasks, so that sums do not depend on the number of threads.
    for (number, columns) in columns.iter().enumerate() {
        let task = task(number);
        for (g, line) in columns.chunks_exact(task.keys.len()).enumerate() {
            let target = &mut mass[(task.kv * group + g) * keys + task.keys.start..][..line.len()];
            target.iter_mut().zip(line).for_each(|(total, column)| *total += column);
        }
    }
}

//! Seconds of work on a GPU: recorded as one graph over several buffer sets, replayed between two events.

use super::Watch;
use crate::bench::timing::Rounds;
use crate::error::{Error, Result};
use crate::kernels::cuda::Gpu;
use crate::kernels::cuda::driver::Event;

/// Bytes that the buffer sets of one measurement span at least: several times any L2 cache, so that no call finds its data
/// there.
pub const ROTATED_BYTES: usize = 450_000_000;

/// Most buffer sets of one measurement.
const MOST_SETS: usize = 64;

/// Seconds of replays after which no further one is started.
const ENOUGH_S: f64 = 0.4;
/// Repetitions that are kept whatever they take.
const FEWEST: usize = 3;

/// Sets of `bytes` each to rotate over; at least two where they fit into `available`, `None` where not one does.
pub fn buffer_sets(bytes: usize, available: usize) -> Option<usize> {
    let fit = available / bytes.max(1);
    let wanted = ROTATED_BYTES.div_ceil(bytes.max(1)).clamp(2, MOST_SETS);
    (fit > 0).then(|| wanted.min(fit))
}

/// Queues `call(0)` to `call(sets - 1)` as one graph and times its replays; seconds per call, one value a replay. `None`
/// if stopped.
pub fn replays(
    gpu: &Gpu,
    rounds: Rounds,
    sets: usize,
    watch: &Watch<'_>,
    mut call: impl FnMut(usize) -> Result<()>,
) -> Result<Option<Vec<f64>>> {
    // Not recorded: what a first call compiles, loads or plans must not end up in the graph.
    call(0)?;
    gpu.synchronize()?;
    let mut outcome = Ok(());
    let graph = gpu.record(|| outcome = (0..sets).try_for_each(&mut call));
    outcome?;
    gpu.status()?;
    let graph = graph.ok_or_else(|| Error::bug("no graph and no failure"))?;
    repeat(gpu, rounds, sets, watch, &mut || {
        graph.launch();
        Ok(())
    })
}

/// Times `run`, which queues `calls` calls each time, without recording it; seconds per call.
pub fn repeat(
    gpu: &Gpu,
    rounds: Rounds,
    calls: usize,
    watch: &Watch<'_>,
    run: &mut dyn FnMut() -> Result<()>,
) -> Result<Option<Vec<f64>>> {
    for _ in 0..rounds.warmup.max(1) {
        run()?;
    }
    gpu.synchronize()?;
    let (mut times, mut spent) = (Vec::with_capacity(rounds.repetitions), 0.0);
    while times.len() < rounds.repetitions && (times.len() < FEWEST || spent < ENOUGH_S) {
        if (watch.stopped)() {
            return Ok(None);
        }
        let seconds = span(gpu, run)?;
        spent += seconds;
        times.push(seconds / calls as f64);
    }
    Ok(Some(times))
}

/// Seconds that what `run` queues takes; waits for it.
pub fn span(gpu: &Gpu, run: &mut dyn FnMut() -> Result<()>) -> Result<f64> {
    let start = event(gpu)?;
    run()?;
    event(gpu)?.seconds_since(&start)
}

fn event(gpu: &Gpu) -> Result<Event> {
    let event = gpu.event();
    gpu.status()?;
    event.ok_or_else(|| Error::bug("no event and no failure"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sets_span_more_than_a_cache_where_they_fit() {
        let plenty = usize::MAX;
        assert_eq!(buffer_sets(16 << 20, plenty), Some(27));
        assert_eq!(buffer_sets(2 << 30, plenty), Some(2));
        assert_eq!(buffer_sets(1 << 10, plenty), Some(MOST_SETS));
        assert_eq!(buffer_sets(2 << 30, 3 << 30), Some(1));
        assert_eq!(buffer_sets(2 << 30, 1 << 30), None);
    }
}

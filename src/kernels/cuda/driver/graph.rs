//! Recorded work, and points in the stream to time it by.

use super::Gpu;
use crate::error::Result;
use cudarc::driver::{result, sys};

/// A recorded sequence of kernels.
pub struct Graph {
    pub(super) gpu: Gpu,
    pub(super) executable: sys::CUgraphExec,
}

// SAFETY: used from one thread at a time through `&self` of a device that binds its context first.
unsafe impl Send for Graph {}

impl Graph {
    /// Queues the sequence once more.
    pub fn launch(&self) {
        // SAFETY: graph and stream are alive.
        self.gpu.call("launching a graph", || unsafe {
            result::graph::launch(self.executable, self.gpu.0.stream)
        });
    }
}

impl Drop for Graph {
    fn drop(&mut self) {
        if self.gpu.0.context.bind_to_thread().is_ok() {
            // SAFETY: instantiated once, destroyed once.
            let _ = unsafe { result::graph::exec_destroy(self.executable) };
        }
    }
}

/// A point in the stream, for timing.
pub struct Event {
    pub(super) gpu: Gpu,
    pub(super) event: sys::CUevent,
}

impl Event {
    /// Seconds from `earlier` to this event; waits for it.
    pub fn seconds_since(&self, earlier: &Self) -> Result<f64> {
        let answer = self.gpu.call("reading an event", || {
            // SAFETY: both events are alive and were recorded.
            unsafe {
                result::event::synchronize(self.event)?;
                result::event::elapsed(earlier.event, self.event)
            }
        });
        self.gpu.status()?;
        Ok(f64::from(answer.unwrap_or(f32::NAN)) * 1e-3)
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        if self.gpu.0.context.bind_to_thread().is_ok() {
            // SAFETY: created once, destroyed once.
            let _ = unsafe { result::event::destroy(self.event) };
        }
    }
}

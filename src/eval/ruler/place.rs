//! Which example of which task is being made: the source of its random streams.

use rand_chacha::ChaCha8Rng;

use super::fit::Frame;
use crate::error::{Error, Result};
use crate::eval::Request;
use crate::random::stream_rng;

/// One example's name: task, length, index and seed.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Place<'a> {
    suite: &'a str,
    task: &'a str,
    length: usize,
    index: usize,
    seed: u64,
}

impl<'a> Place<'a> {
    /// An error without a length: a generated task has none of its own.
    pub fn new(suite: &'a str, task: &'a str, request: &Request<'_>) -> Result<Self> {
        let length = request.length.ok_or_else(|| {
            Error::user(format!("`{task}` is generated and has no length of its own")).help("give a length in tokens")
        })?;
        Ok(Self {
            suite,
            task,
            length,
            index: request.index,
            seed: request.seed,
        })
    }

    /// The stream of one purpose. The depth is not part of its name: moving a needle changes nothing else.
    pub fn rng(&self, purpose: &str) -> ChaCha8Rng {
        let Self {
            suite,
            task,
            length,
            index,
            ..
        } = self;
        stream_rng(self.seed, &format!("{suite}/{task}/{length}/{index}/{purpose}"))
    }

    /// The example's name within task and length.
    pub fn id(&self) -> String {
        format!("{:04}", self.index)
    }

    pub fn length(&self) -> usize {
        self.length
    }

    pub fn index(&self) -> usize {
        self.index
    }

    /// What the example must fit into.
    pub fn frame<'b>(&'b self, request: &Request<'b>, max_new_tokens: usize) -> Frame<'b> {
        Frame {
            task: self.task,
            length: self.length,
            max_new_tokens,
            tokens: request.tokens,
        }
    }
}

//! Rows that stand for several keys (bounds, means), kept as pages of a KV cache so that the score kernel reads them.

use crate::kernels::{Backend, PAGE_TOKENS, PageTable, Pages};

/// A growing list of rows, each of the same number of elements over all heads.
pub(super) struct RowStore<B: Backend> {
    pages: Vec<B::Buffer>,
    table: PageTable,
    elements: usize,
}

impl<B: Backend> RowStore<B> {
    /// For rows of `elements` elements, all heads together.
    pub fn new(elements: usize) -> Self {
        Self {
            pages: Vec::new(),
            table: PageTable::default(),
            elements,
        }
    }

    /// Makes room for `rows` rows in all and returns the pages `[heads, PAGE_TOKENS, width]`.
    pub fn reserve(&mut self, backend: &B, rows: usize) -> &mut [B::Buffer] {
        while self.pages.len() * PAGE_TOKENS < rows {
            self.table.pages.push(self.pages.len() as u32);
            self.pages.push(backend.zeros(PAGE_TOKENS * self.elements));
        }
        &mut self.pages
    }

    /// Row `i` as the key of token `i`.
    pub fn keys(&self) -> Pages<'_, B> {
        Pages {
            pages: &self.pages,
            table: &self.table,
        }
    }

    /// Bytes of `rows` rows of `elements` elements.
    pub fn bytes(rows: usize, elements: usize) -> usize {
        rows.next_multiple_of(PAGE_TOKENS) * elements * size_of::<f32>()
    }
}

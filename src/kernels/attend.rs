//! Operands of attention: which tokens, placed where.

use super::{AttentionShape, Device, Pages, RopeTable};
use std::ops::Range;

/// The tokens a chunk attends to, in ascending order; the chunk itself is the last C of them.
#[derive(Debug, Clone, Copy)]
pub enum TokenList<'a> {
    /// Every stored token, `0..n`.
    All(usize),
    /// The listed logical tokens, the same for all heads.
    Listed(&'a [u32]),
    /// One list for each KV head, `[Hkv, n]`.
    PerHead {
        /// The lists, one after the other.
        lists: &'a [u32],
        /// Hkv.
        kv_heads: usize,
    },
}

impl TokenList<'_> {
    /// How many tokens a head attends to.
    pub fn len(&self) -> usize {
        match self {
            Self::All(n) => *n,
            Self::Listed(list) => list.len(),
            Self::PerHead { lists, kv_heads } => lists.len() / kv_heads,
        }
    }

    /// True for no token at all.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The `j`-th token of KV head `kv`.
    #[inline(always)]
    pub fn token(&self, kv: usize, j: usize) -> usize {
        match self {
            Self::All(_) => j,
            Self::Listed(list) => list[j] as usize,
            Self::PerHead { lists, kv_heads } => lists[kv * (lists.len() / kv_heads) + j] as usize,
        }
    }
}

/// At which position a key of the token list is rotated.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Positions {
    /// Key `j` of the list at position `j`: always inside the trained window.
    Packed,
    /// Each key at its place in the text.
    Original,
    /// Keys less than `window` behind the query keep their distance. The distance of a key further away is counted in
    /// steps of `group`: with p the query's place and t the key's, p/group - t/group + window - window/group, all divisions
    /// rounded down (`SelfExtend`, arXiv 2401.01325, Eq. 3 and 4). With `group` larger than every place that is `window` for
    /// all of them (`InfLLM`, arXiv 2402.04617).
    Grouped {
        /// Distances below this are exact.
        window: usize,
        /// Places that share one position.
        group: usize,
    },
}

/// The two rotations of [`Positions::Grouped`]; everything else has the near one only.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// Exact distances.
    Near,
    /// Grouped distances.
    Far,
}

/// Operands of [`super::Backend::attend`].
pub struct Attend<'a, B: Device> {
    /// H, Hkv, D.
    pub shape: AttentionShape,
    /// `[C, H, D]`, already rotated at `first_query_position + i`.
    pub queries: &'a B::Buffer,
    /// The same rotated at [`Attend::query_position`] of [`Part::Far`]; must be present where a row sees a far key.
    pub far_queries: Option<&'a B::Buffer>,
    /// C.
    pub rows: usize,
    /// Un-rotated keys.
    pub keys: Pages<'a, B>,
    /// Values.
    pub values: Pages<'a, B>,
    /// What to attend to.
    pub tokens: TokenList<'a>,
    /// How keys are placed.
    pub positions: Positions,
    /// Position of the chunk's first row.
    pub first_query_position: usize,
    /// A key is visible only if its position is less than this far behind the query's (Mistral).
    pub window: Option<usize>,
    /// Rotation angles.
    pub rope: &'a RopeTable,
}

/// Operands of [`super::Backend::attend_rows`]: rows of several texts, each with tokens of its own in one store.
pub struct AttendRows<'a, B: Device> {
    /// H, Hkv, D.
    pub shape: AttentionShape,
    /// Fused rows `[rows, (H + 2 Hkv) D]`; their queries are not rotated yet.
    pub qkv: &'a B::Buffer,
    /// For each row the stored tokens of its text in order, the row's own token last. Key `j` is at position `j`, the
    /// query at that of the last.
    pub lists: &'a [Vec<u32>],
    /// Un-rotated keys.
    pub keys: Pages<'a, B>,
    /// Values.
    pub values: Pages<'a, B>,
    /// A key is visible only if its position is less than this far behind the query's (Mistral).
    pub window: Option<usize>,
    /// Rotation angles.
    pub rope: &'a RopeTable,
}

impl<'a, B: Device> AttendRows<'a, B> {
    /// Row `row` alone, its query given as `[1, H, D]`, rotated.
    pub fn one(&self, row: usize, queries: &'a B::Buffer) -> Attend<'a, B> {
        let list = &self.lists[row];
        Attend {
            shape: self.shape,
            queries,
            far_queries: None,
            rows: 1,
            keys: self.keys,
            values: self.values,
            tokens: TokenList::Listed(list),
            positions: Positions::Packed,
            first_query_position: list.len() - 1,
            window: self.window,
            rope: self.rope,
        }
    }

    /// The position of each row's query.
    pub fn query_positions(&self) -> Vec<u32> {
        self.lists.iter().map(|list| list.len() as u32 - 1).collect()
    }
}

impl Positions {
    /// Position of a query whose place in the text is `place`, in `part`.
    #[inline(always)]
    pub fn of_query(self, part: Part, place: usize) -> usize {
        match (self, part) {
            (Self::Grouped { window, group }, Part::Far) => place / group + window - window / group,
            _ => place,
        }
    }
}

impl<B: Device> Attend<'_, B> {
    /// The rotations that have keys.
    pub fn parts(&self) -> &'static [Part] {
        match self.positions {
            Positions::Packed | Positions::Original => &[Part::Near],
            Positions::Grouped { .. } => &[Part::Far, Part::Near],
        }
    }

    /// Queries `[C, H, D]` as `part` rotates them.
    #[inline(always)]
    pub fn queries(&self, part: Part) -> &B::Buffer {
        match part {
            Part::Near => self.queries,
            Part::Far => self.far_queries.unwrap_or(self.queries),
        }
    }

    /// Position at which `part` rotates key `j` of the list of KV head `kv`.
    #[inline(always)]
    pub fn key_position(&self, part: Part, kv: usize, j: usize) -> usize {
        match (self.positions, part) {
            (Positions::Packed, _) => j,
            (Positions::Grouped { group, .. }, Part::Far) => self.tokens.token(kv, j) / group,
            _ => self.tokens.token(kv, j),
        }
    }

    /// Position at which `part` rotates row `i` of the chunk.
    #[inline(always)]
    pub fn query_position(&self, part: Part, i: usize) -> usize {
        self.positions.of_query(part, self.first_query_position + i)
    }

    /// The keys of KV head `kv` that row `i` of the chunk sees in `part`, as a range of the list: causal inside the chunk,
    /// cut by the model's window; far and near keys are those before and after one point.
    pub fn visible(&self, part: Part, kv: usize, i: usize) -> Range<usize> {
        let causal = 0..self.tokens.len() - self.rows + i + 1;
        let part_range = match self.positions {
            Positions::Packed | Positions::Original => causal,
            Positions::Grouped { window, .. } => {
                let place = self.first_query_position + i;
                let near = first_where(&causal, |j| self.tokens.token(kv, j) + window > place);
                match part {
                    Part::Far => 0..near,
                    Part::Near => near..causal.end,
                }
            }
        };
        let Some(window) = self.window else {
            return part_range;
        };
        let query = self.query_position(part, i);
        let start = first_where(&part_range, |j| self.key_position(part, kv, j) + window > query);
        start..part_range.end
    }
}

/// The first of `range` that is inside, `range.end` for none; positions ascend with j, so those inside are a suffix.
#[inline(always)]
fn first_where(range: &Range<usize>, inside: impl Fn(usize) -> bool) -> usize {
    let (mut low, mut high) = (range.start, range.end);
    while low < high {
        let middle = usize::midpoint(low, high);
        if inside(middle) {
            high = middle;
        } else {
            low = middle + 1;
        }
    }
    low
}

//! Stop strings over text that arrives in pieces.

use crate::error::{Error, Result};

/// Watches emitted text for stop strings and holds back what could be the start of one.
///
/// The first stop string to be *complete* wins, and of those that complete at the same character the longest. Where
/// the pieces are cut makes no difference: neither to what is emitted in total, nor to which string stops it.
#[derive(Debug, Clone, Default)]
pub struct StopStrings {
    stops: Vec<String>,
    /// The longest end of the text so far that begins some stop string: shorter than the longest of them.
    held: String,
    stopped: Option<String>,
}

/// What a piece of text led to.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct StopOutcome {
    /// Text that is safe to show now. The stop string itself is never part of it.
    pub emit: String,
    /// The stop string that was met, here or earlier.
    pub stopped: Option<String>,
}

impl StopStrings {
    /// Watches for `stops`; with none, all text passes through.
    pub fn new(stops: impl IntoIterator<Item = impl Into<String>>) -> Result<Self> {
        let stops: Vec<String> = stops.into_iter().map(Into::into).collect();
        if stops.iter().any(String::is_empty) {
            return Err(Error::user("`--stop` is an empty string").help("leave `--stop` out to use no stop string"));
        }
        Ok(Self {
            stops,
            ..Self::default()
        })
    }

    /// Takes the next piece of text. After a stop everything further is dropped.
    pub fn push(&mut self, text: &str) -> StopOutcome {
        if self.stopped.is_some() {
            return StopOutcome {
                emit: String::new(),
                stopped: self.stopped.clone(),
            };
        }
        let mut emit = std::mem::take(&mut self.held);
        emit.push_str(text);
        if let Some((start, stop)) = self.first_match(&emit) {
            emit.truncate(start);
            self.stopped = Some(stop.to_owned());
        } else {
            self.held = emit.split_off(self.hold_from(&emit));
        }
        StopOutcome {
            emit,
            stopped: self.stopped.clone(),
        }
    }

    /// The end of the text: what was held back began no stop string after all.
    pub fn finish(&mut self) -> String {
        std::mem::take(&mut self.held)
    }

    /// The stop string that was met.
    pub fn stopped(&self) -> Option<&str> {
        self.stopped.as_deref()
    }

    /// Start and text of the stop string that is complete first.
    fn first_match(&self, text: &str) -> Option<(usize, &str)> {
        self.stops
            .iter()
            .filter_map(|stop| text.find(stop.as_str()).map(|start| (start, stop.as_str())))
            .min_by_key(|(start, stop)| (start + stop.len(), *start))
    }

    /// Where the longest end of `text` begins that is the beginning of a stop string.
    fn hold_from(&self, text: &str) -> usize {
        let longest = self.stops.iter().map(String::len).max().unwrap_or(0);
        // No stop string is in `text`, so an end as long as the longest of them cannot begin one.
        let earliest = (text.len() + 1).saturating_sub(longest);
        (earliest..text.len())
            .filter(|&at| text.is_char_boundary(at))
            .find(|&at| self.stops.iter().any(|stop| stop.starts_with(&text[at..])))
            .unwrap_or(text.len())
    }
}

#[cfg(test)]
mod tests {
    use super::StopStrings;
    use proptest::prelude::*;

    fn run(stops: &[&str], pieces: &[&str]) -> (String, Option<String>) {
        let mut watcher = StopStrings::new(stops.iter().copied()).unwrap();
        let mut all = String::new();
        for piece in pieces {
            all.push_str(&watcher.push(piece).emit);
        }
        all.push_str(&watcher.finish());
        (all, watcher.stopped().map(str::to_owned))
    }

    #[test]
    fn holds_back_only_what_may_become_a_stop() {
        let mut watcher = StopStrings::new(["</s>"]).unwrap();
        assert_eq!(watcher.push("a < b <").emit, "a < b ");
        assert_eq!(watcher.push("/").emit, "");
        assert_eq!(watcher.push("x").emit, "</x");
        assert_eq!(watcher.push("</s").emit, "");
        assert_eq!(watcher.finish(), "</s");
    }

    #[test]
    fn nothing_passes_after_a_stop() {
        let mut watcher = StopStrings::new(["STOP"]).unwrap();
        let outcome = watcher.push("one STOP two");
        assert_eq!(
            (outcome.emit.as_str(), outcome.stopped.as_deref()),
            ("one ", Some("STOP"))
        );
        let outcome = watcher.push("three");
        assert_eq!((outcome.emit.as_str(), outcome.stopped.as_deref()), ("", Some("STOP")));
        assert_eq!(watcher.finish(), "");
    }

    #[test]
    fn overlaps_and_self_overlaps() {
        assert_eq!(
            run(&["aab"], &["a", "a", "a", "b", "c"]),
            ("a".into(), Some("aab".into()))
        );
        assert_eq!(run(&["abc", "b"], &["a", "b", "c"]), ("a".into(), Some("b".into())));
        assert_eq!(run(&["b", "ab"], &["xab"]), ("x".into(), Some("ab".into())));
        assert_eq!(
            run(&["\n\n"], &["x\n", "y\n", "\nz"]),
            ("x\ny".into(), Some("\n\n".into()))
        );
    }

    #[test]
    fn multi_byte_text_is_cut_between_characters() {
        assert_eq!(
            run(&["終わり"], &["これで終", "わ", "る"]),
            ("これで終わる".into(), None)
        );
        assert_eq!(
            run(&["終わり"], &["これで終", "わ", "り。"]),
            ("これで".into(), Some("終わり".into()))
        );
        // Same first bytes, different character.
        assert_eq!(run(&["é"], &["è", "ê"]), ("èê".into(), None));
    }

    #[test]
    fn an_empty_stop_string_is_refused() {
        assert!(StopStrings::new([""]).unwrap_err().to_string().contains("--stop"));
        assert_eq!(run(&[], &["a", "b"]), ("ab".into(), None));
    }

    /// Character by character with no memory limit: the definition the matcher must agree with.
    fn oracle(stops: &[String], text: &str) -> (String, Option<String>) {
        let ends = text.char_indices().map(|(at, c)| at + c.len_utf8());
        for end in ends {
            let longest = stops
                .iter()
                .filter(|s| text[..end].ends_with(s.as_str()))
                .max_by_key(|s| s.len());
            if let Some(stop) = longest {
                return (text[..end - stop.len()].to_owned(), Some(stop.clone()));
            }
        }
        (text.to_owned(), None)
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn agrees_with_the_definition_however_it_is_cut(
            stops in prop::collection::vec("[abé界]{1,4}", 0..4),
            pieces in prop::collection::vec("[abé界]{0,5}", 0..12),
        ) {
            let refs: Vec<&str> = pieces.iter().map(String::as_str).collect();
            let stop_refs: Vec<&str> = stops.iter().map(String::as_str).collect();
            prop_assert_eq!(run(&stop_refs, &refs), oracle(&stops, &pieces.concat()));
        }
    }
}

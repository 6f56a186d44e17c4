//! An external program as judge: one JSON object per line each way.
//!
//! It reads `{"instruction": .., "answer": ..}` and writes `{"correct": true}` or `{"correct": false}`; it is started once
//! and asked again and again. Whatever it writes to stderr shows in the error if it fails.

use super::{Judge, Verdict};
use crate::error::{Error, Result};
use crate::probe::lists::Question;
use serde::Deserialize;
use serde_json::json;
use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread::JoinHandle;
use std::time::Duration;

/// Bytes of stderr that an error shows.
const SHOWN: usize = 600;
/// A line longer than this is no verdict.
const LONGEST: u64 = 1 << 20;

#[derive(Deserialize)]
struct Reply {
    correct: bool,
}

/// A running judge.
pub struct CommandJudge {
    line: String,
    timeout: Duration,
    child: Child,
    stdin: Option<ChildStdin>,
    lines: Receiver<std::io::Result<String>>,
    stderr: Option<JoinHandle<String>>,
}

impl CommandJudge {
    /// Starts `line` in a shell; every verdict may take `timeout`.
    pub fn start(line: &str, timeout: Duration) -> Result<Self> {
        let (shell, flag) = if cfg!(windows) { ("cmd", "/C") } else { ("sh", "-c") };
        let spawned = Command::new(shell)
            .args([flag, line])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn();
        let mut child = spawned.map_err(|e| {
            Error::environment(format!("the judge `{line}` cannot be started: {e}")).help("check `--judge-command`")
        })?;
        let (sender, lines) = channel();
        if let Some(stdout) = child.stdout.take() {
            std::thread::spawn(move || {
                let mut reader = BufReader::new(stdout);
                loop {
                    let mut text = String::new();
                    let read = (&mut reader).take(LONGEST).read_line(&mut text);
                    if matches!(read, Ok(0)) {
                        return;
                    }
                    let failed = read.is_err();
                    if sender.send(read.map(|_| text)).is_err() || failed {
                        return;
                    }
                }
            });
        }
        let stderr = child.stderr.take().map(|mut stream| {
            std::thread::spawn(move || {
                let mut bytes = Vec::new();
                let mut part = [0; 4096];
                // Read to the end, so that it never blocks; kept only as far as it is shown.
                while let Ok(n @ 1..) = stream.read(&mut part) {
                    bytes.extend_from_slice(&part[..n]);
                    let surplus = bytes.len().saturating_sub(SHOWN);
                    bytes.drain(..surplus);
                }
                String::from_utf8_lossy(&bytes).trim().to_owned()
            })
        });
        Ok(Self {
            line: line.to_owned(),
            timeout,
            stdin: child.stdin.take(),
            child,
            lines,
            stderr,
        })
    }

    /// The error of a judge that does not go on: what it was asked, how it ended, what it wrote to stderr.
    fn failed(&mut self, what: &str, asked: &str) -> Error {
        self.stdin = None;
        // Gone already, or to be gone: either way nothing more can be done about it.
        let _ = self.child.kill();
        let ended = self.child.wait().map(|status| status.to_string());
        let said = self.stderr.take().filter(JoinHandle::is_finished);
        let said = said.and_then(|thread| thread.join().ok()).unwrap_or_default();
        let mut error = Error::environment(format!("the judge `{}` {what}", self.line)).note(format!("asked: {asked}"));
        if let Ok(ended) = ended {
            error = error.note(ended);
        }
        if !said.is_empty() {
            error = error.note(format!("it wrote: {said}"));
        }
        error.help("verdicts so far are kept with `--output`; mend the judge and run the same command again")
    }
}

impl Judge for CommandJudge {
    fn verdict(&mut self, question: &Question, answer: &str) -> Result<Verdict> {
        let asked = json!({"instruction": question.instruction, "answer": answer}).to_string();
        let sent = self.stdin.as_mut().map(|stdin| {
            stdin
                .write_all(format!("{asked}\n").as_bytes())
                .and_then(|()| stdin.flush())
        });
        if !matches!(sent, Some(Ok(()))) {
            // It may have said why on its way out.
            std::thread::sleep(Duration::from_millis(50));
            return Err(self.failed("does not read questions any more", &asked));
        }
        match self.lines.recv_timeout(self.timeout) {
            Ok(Ok(text)) => {
                let reply: Reply = serde_json::from_str(text.trim()).map_err(|_| {
                    let shown: String = text.trim().chars().take(200).collect();
                    let what = format!("answered `{shown}`, not {{\"correct\": true}} or {{\"correct\": false}}");
                    self.failed(&what, &asked)
                })?;
                Ok(Verdict {
                    correct: reply.correct,
                    member: question.find(answer).map(|at| question.answers[at].clone()),
                })
            }
            Ok(Err(error)) => Err(self.failed(&format!("cannot be read: {error}"), &asked)),
            Err(RecvTimeoutError::Timeout) => {
                let what = format!("has not answered within {} s", self.timeout.as_secs_f64());
                Err(self.failed(&what, &asked))
            }
            Err(RecvTimeoutError::Disconnected) => {
                std::thread::sleep(Duration::from_millis(50));
                Err(self.failed("ended without an answer", &asked))
            }
        }
    }
}

impl Drop for CommandJudge {
    fn drop(&mut self) {
        // With its stdin closed a judge ends by itself; one that does not is ended.
        self.stdin = None;
        for _ in 0..20 {
            if !matches!(self.child.try_wait(), Ok(None)) {
                return;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[cfg(all(test, unix))]
mod tests {
    use super::*;
    use std::collections::BTreeMap;
    use std::time::Instant;

    fn question() -> Question {
        Question::new("a", "Name a sea.", vec!["Red Sea".into()], &BTreeMap::new(), true).expect("well formed")
    }

    fn ask(line: &str, answers: &[&str]) -> Result<Vec<bool>> {
        let mut judge = CommandJudge::start(line, Duration::from_millis(500))?;
        let verdicts = answers
            .iter()
            .map(|answer| judge.verdict(&question(), answer).map(|v| v.correct));
        verdicts.collect()
    }

    #[test]
    fn one_process_answers_many_questions() {
        let judge = r#"while read -r line; do case "$line" in *Red*) echo '{"correct": true}';; *) echo '{"correct": false}';; esac; done"#;
        assert_eq!(
            ask(judge, &["Red Sea", "Lake", "Red"]).expect("answers"),
            [true, false, true]
        );
    }

    #[test]
    fn failures_are_named() {
        for (line, wanted) in [
            ("exit 3", "the judge `exit 3`"),
            ("echo nonsense; cat >/dev/null", "answered `nonsense`"),
            (
                "echo '{\"correct\": \"maybe\"}'; cat >/dev/null",
                "not {\"correct\": true}",
            ),
            ("cat >/dev/null; sleep 9", "has not answered within 0.5 s"),
            ("read -r line; echo broken >&2; exit 4", "broken"),
            ("no-such-program-at-all", "not found"),
        ] {
            let started = Instant::now();
            let error = ask(line, &["Red Sea"]).expect_err(line);
            assert_eq!(error.exit_code(), 3, "{error}");
            assert!(error.to_string().contains(wanted), "{line}: {error}");
            assert!(error.to_string().contains("asked: "), "{line}: {error}");
            assert!(
                started.elapsed() < Duration::from_secs(5),
                "{line} took {:?}",
                started.elapsed()
            );
        }
    }
}

//! An external program as judge: one JSON object per line each way.
//!
//! It reads `{"instruction": .., "answer": ..}` and writes `{"correct": true}` or `{"correct": false}`; it is started once
//! and asked again and again. Whatever it writes to stderr shows in the error if it fails. It says one line for each
//! question: a line that was not asked for would be taken for the next answer, and every verdict after it be another's.

use super::{Judge, Verdict};
use crate::error::{Error, Result};
use crate::probe::lists::Question;
use serde::Deserialize;
use serde_json::json;
use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Child, ChildStderr, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::thread::{JoinHandle, sleep};
use std::time::{Duration, Instant};

/// Bytes of stderr that an error shows.
const SHOWN: usize = 600;
/// A line longer than this is no verdict.
const LONGEST: u64 = 1 << 20;
/// Lines that are read before they are asked for.
const AHEAD: usize = 64;
/// Help where the verdicts so far are those of the questions that were asked.
const SOUND: &str = "verdicts so far are kept with `--output`; mend the judge and run the same command again";
/// Help where they may not be: surplus lines can have been taken for answers before they were noticed.
const DOUBTFUL: &str = "some of its verdicts so far may be of other questions: mend the judge and judge again into a fresh \
                        `--output`, since a run that goes on in the same one keeps them";
/// How often an interruption is looked for while a verdict is awaited.
const TICK: Duration = Duration::from_millis(50);

#[derive(Deserialize)]
struct Reply {
    correct: bool,
}

/// A running judge.
pub struct CommandJudge<'s> {
    line: String,
    timeout: Duration,
    child: Child,
    /// `None`: its stdin is closed.
    questions: Option<SyncSender<String>>,
    lines: Receiver<std::io::Result<String>>,
    stderr: Option<JoinHandle<String>>,
    stopped: &'s dyn Fn() -> bool,
}

/// Writes questions in a thread, so that a judge that does not read blocks nobody but that.
fn writing(mut stdin: ChildStdin) -> SyncSender<String> {
    let (sender, questions) = sync_channel::<String>(1);
    std::thread::spawn(move || {
        for question in questions {
            if stdin
                .write_all(question.as_bytes())
                .and_then(|()| stdin.flush())
                .is_err()
            {
                return;
            }
        }
    });
    sender
}

/// Reads lines in a thread, some ahead, so that surplus ones are seen as soon as they come; a judge that writes without end
/// waits, rather than fill the memory.
fn reading(stdout: ChildStdout) -> Receiver<std::io::Result<String>> {
    let (sender, lines) = sync_channel(AHEAD);
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
    lines
}

/// Collects the end of stderr in a thread.
fn overhearing(mut stderr: ChildStderr) -> JoinHandle<String> {
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        let mut part = [0; 4096];
        // Read to the end, so that it never blocks; kept only as far as it is shown.
        while let Ok(n @ 1..) = stderr.read(&mut part) {
            bytes.extend_from_slice(&part[..n]);
            let surplus = bytes.len().saturating_sub(SHOWN);
            bytes.drain(..surplus);
        }
        String::from_utf8_lossy(&bytes).trim().to_owned()
    })
}

fn shown(text: &str) -> String {
    text.trim().chars().take(200).collect()
}

impl<'s> CommandJudge<'s> {
    /// Starts `line` in a shell; every verdict may take `timeout`, and `stopped` ends the wait for one.
    pub fn start(line: &str, timeout: Duration, stopped: &'s dyn Fn() -> bool) -> Result<Self> {
        let (shell, flag) = if cfg!(windows) { ("cmd", "/C") } else { ("sh", "-c") };
        let mut command = Command::new(shell);
        command
            .args([flag, line])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        // A group of its own: Ctrl-C in a terminal is for this program, which then ends the judge, and all that the shell has
        // started can be ended together.
        #[cfg(unix)]
        std::os::unix::process::CommandExt::process_group(&mut command, 0);
        let failed = |what: &str| {
            Error::environment(format!("the judge `{line}` cannot be started: {what}")).help("check `--judge-command`")
        };
        let mut child = command.spawn().map_err(|e| failed(&e.to_string()))?;
        let (Some(stdin), Some(stdout), Some(stderr)) = (child.stdin.take(), child.stdout.take(), child.stderr.take())
        else {
            return Err(failed("it has no pipes"));
        };
        Ok(Self {
            line: line.to_owned(),
            timeout,
            questions: Some(writing(stdin)),
            lines: reading(stdout),
            stderr: Some(overhearing(stderr)),
            child,
            stopped,
        })
    }

    /// Ends the judge and all that it has started.
    fn end(&mut self) {
        self.questions = None;
        // Gone already, or to be gone: either way nothing more can be done about it. The group outlives the shell where that
        // has left others behind; its number is not given to another as long as the shell was not waited for.
        #[cfg(unix)]
        let _ = Command::new("kill")
            .args(["-KILL", "--", &format!("-{}", self.child.id())])
            .stderr(Stdio::null())
            .status();
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// The error of a judge that does not go on: what it was asked, how it ended, what it wrote to stderr, `help`. An
    /// interruption where that was asked for, whatever has become of the judge.
    fn failed(&mut self, what: &str, asked: &str, help: &str) -> Error {
        // It may be about to end, and to say why on its way out; and a signal may have reached the judge first.
        sleep(TICK);
        if (self.stopped)() {
            return Error::interrupted("interrupted");
        }
        let ended = self.child.try_wait().ok().flatten();
        self.end();
        for _ in 0..10 {
            if self.stderr.as_ref().is_none_or(JoinHandle::is_finished) {
                break;
            }
            sleep(TICK / 5);
        }
        let said = self.stderr.take().filter(JoinHandle::is_finished);
        let said = said.and_then(|thread| thread.join().ok()).unwrap_or_default();
        let mut error = Error::environment(format!("the judge `{}` {what}", self.line)).note(format!("asked: {asked}"));
        if let Some(ended) = ended {
            error = error.note(format!("it ended with {ended}"));
        }
        if !said.is_empty() {
            error = error.note(format!("it wrote: {said}"));
        }
        error.help(help)
    }

    /// The next line, waited for as long as a verdict may take; `None` for an interruption.
    fn reply(&self) -> Option<std::result::Result<std::io::Result<String>, RecvTimeoutError>> {
        let asked = Instant::now();
        loop {
            if (self.stopped)() {
                return None;
            }
            let left = self.timeout.saturating_sub(asked.elapsed());
            match self.lines.recv_timeout(left.min(TICK)) {
                Err(RecvTimeoutError::Timeout) if asked.elapsed() < self.timeout => {}
                reply => return Some(reply),
            }
        }
    }
}

impl Judge for CommandJudge<'_> {
    fn verdict(&mut self, question: &Question, answer: &str) -> Result<Verdict> {
        let asked = json!({"instruction": question.instruction, "answer": answer}).to_string();
        if let Ok(Ok(text)) = self.lines.try_recv() {
            let what = format!(
                "wrote `{}` before it was asked: one line answers one question",
                shown(&text)
            );
            return Err(self.failed(&what, &asked, DOUBTFUL));
        }
        let sent = self.questions.as_ref().map(|to| to.try_send(format!("{asked}\n")));
        if let Some(Err(TrySendError::Full(_))) = sent {
            return Err(self.failed("does not read questions any more", &asked, DOUBTFUL));
        }
        let Some(reply) = self.reply() else {
            return Err(Error::interrupted("interrupted"));
        };
        match reply {
            Ok(Ok(text)) => {
                let reply: Reply = serde_json::from_str(text.trim()).map_err(|_| {
                    let shown = shown(&text);
                    let what = format!("answered `{shown}`, not {{\"correct\": true}} or {{\"correct\": false}}");
                    self.failed(&what, &asked, SOUND)
                })?;
                Ok(Verdict {
                    correct: reply.correct,
                    member: question.find(answer).map(|at| question.answers[at].clone()),
                })
            }
            Ok(Err(error)) => Err(self.failed(&format!("cannot be read: {error}"), &asked, SOUND)),
            Err(RecvTimeoutError::Timeout) => {
                let what = format!("has not answered within {} s", self.timeout.as_secs_f64());
                Err(self.failed(&what, &asked, SOUND))
            }
            Err(RecvTimeoutError::Disconnected) => Err(self.failed("ended without an answer", &asked, SOUND)),
        }
    }
}

impl Drop for CommandJudge<'_> {
    fn drop(&mut self) {
        // With its stdin closed a judge ends by itself; one that does not is ended.
        self.questions = None;
        for _ in 0..20 {
            if !matches!(self.child.try_wait(), Ok(None)) {
                return;
            }
            sleep(TICK / 5);
        }
        self.end();
    }
}

#[cfg(all(test, unix))]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    fn question() -> Question {
        Question::new("a", "Name a sea.", vec!["Red Sea".into()], &BTreeMap::new(), true).expect("well formed")
    }

    fn ask(line: &str, answers: &[&str]) -> Result<Vec<bool>> {
        let mut judge = CommandJudge::start(line, Duration::from_millis(500), &|| false)?;
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
            assert!(error.to_string().contains("same command again"), "{line}: {error}");
            assert!(
                started.elapsed() < Duration::from_secs(5),
                "{line} took {:?}",
                started.elapsed()
            );
        }
    }

    #[test]
    fn a_judge_that_says_more_than_it_is_asked_is_refused() {
        // Two lines a question would shift every verdict by one; a judge that writes without end never asks for memory.
        let twice = r#"while read -r line; do echo '{"correct": true}'; echo '{"correct": false}'; done"#;
        for line in [twice, r#"yes '{"correct": true}'"#] {
            let answers: Vec<String> = (0..50).map(|answer| answer.to_string()).collect();
            let answers: Vec<&str> = answers.iter().map(String::as_str).collect();
            let error = ask(line, &answers).expect_err(line).to_string();
            assert!(
                // On a busy machine its lines may come late, and its questions be written late.
                error.contains("before it was asked") || error.contains("does not read"),
                "{error}"
            );
            // Going on would keep verdicts that belong to other questions.
            assert!(error.contains("a fresh `--output`"), "{error}");
            assert!(!error.contains("same command again"), "{error}");
        }
    }

    #[test]
    fn a_judge_that_answers_without_reading_ends_in_an_error() {
        // Longer than what a pipe holds: the question is never read to its end.
        let long = "x".repeat(1 << 20);
        let line = r#"while sleep 0.05; do echo '{"correct": true}'; done"#;
        let started = Instant::now();
        let error = ask(line, &[long.as_str(); 20]).expect_err("nobody reads").to_string();
        assert!(
            error.contains("does not read") || error.contains("before it was asked"),
            "{}",
            shown(&error)
        );
        assert!(started.elapsed() < Duration::from_secs(10));
    }

    #[test]
    fn an_interruption_ends_the_wait_and_is_no_fault_of_the_judge() {
        for line in ["sleep 60", "exit 130"] {
            let started = Instant::now();
            let stopped = || started.elapsed() > Duration::from_millis(40);
            let mut judge = CommandJudge::start(line, Duration::from_secs(60), &stopped).expect("starts");
            let error = judge.verdict(&question(), "Red Sea").expect_err(line);
            assert_eq!(error.exit_code(), 130, "{line}: {error}");
            drop(judge);
            assert!(started.elapsed() < Duration::from_secs(5), "{line}");
        }
    }

    #[test]
    fn what_the_shell_of_a_judge_has_started_ends_with_it() {
        let folder = tempfile::tempdir().expect("a folder");
        let mark = folder.path().join("mark");
        // The shell waits for a program that goes on unless it is ended, too.
        let line = format!("(sleep 1.5; touch {0}); echo", mark.display());
        ask(&line, &["Red Sea"]).expect_err("no answer in time");
        sleep(Duration::from_millis(1600));
        assert!(!mark.exists());
    }
}

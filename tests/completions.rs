//! Every shell's completion script knows every command.

use assert_cmd::Command;
use clap::{CommandFactory, ValueEnum};
use clap_complete::Shell;
use tokselect::cli::Cli;

#[test]
fn every_script_mentions_every_command() {
    let commands: Vec<String> = Cli::command()
        .get_subcommands()
        .map(|command| command.get_name().to_owned())
        .collect();
    assert!(commands.len() >= 5, "{commands:?}");
    for shell in Shell::value_variants() {
        let output = Command::new(env!("CARGO_BIN_EXE_tokselect"))
            .args(["completions", &shell.to_string()])
            .output()
            .expect("runs");
        assert_eq!(output.status.code(), Some(0), "{shell}");
        assert!(output.stderr.is_empty(), "{shell}");
        let script = String::from_utf8(output.stdout).expect("UTF-8");
        for command in &commands {
            let whole_word = script
                .split(|letter: char| !letter.is_alphanumeric() && letter != '-')
                .any(|word| word == command);
            assert!(whole_word, "{shell} does not know `{command}`");
        }
        assert!(
            script.contains("cache-threshold"),
            "{shell} does not know the flags of infer"
        );
    }
}

#[test]
fn an_unknown_shell_is_refused() {
    Command::new(env!("CARGO_BIN_EXE_tokselect"))
        .args(["completions", "tcsh"])
        .assert()
        .code(2);
}

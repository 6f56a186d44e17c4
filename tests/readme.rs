//! README.md cannot drift from the program: every command line in it parses, and every flag it names exists.

use clap::error::ErrorKind;
use clap::{CommandFactory, Parser};
use std::collections::BTreeSet;
use std::ffi::OsString;
use std::path::Path;
use tokselect::cli::Cli;
use tokselect::config::expand_arguments;

const README: &str = include_str!("../README.md");

/// The contents of the fenced blocks of one language.
fn blocks(language: &str) -> Vec<String> {
    let mut blocks = Vec::new();
    let mut open: Option<String> = None;
    for line in README.lines() {
        match (&mut open, line.strip_prefix("```")) {
            (None, Some(name)) => open = Some(format!("{name}\n")),
            (Some(_), Some(_)) => blocks.extend(open.take()),
            (Some(block), None) => {
                block.push_str(line);
                block.push('\n');
            }
            (None, None) => {}
        }
    }
    assert!(open.is_none(), "a block is not closed");
    let start = format!("{language}\n");
    blocks
        .iter()
        .filter_map(|block| block.strip_prefix(&start))
        .map(str::to_owned)
        .collect()
}

/// Words of a shell line up to a comment, a pipe, a redirection or the next command.
fn words(line: &str) -> Vec<String> {
    let mut words: Vec<String> = Vec::new();
    let mut word: Option<String> = None;
    let mut quote = None;
    for letter in line.chars() {
        match (quote, letter) {
            (Some(open), _) if letter == open => quote = None,
            (None, '"' | '\'') => {
                quote = Some(letter);
                word.get_or_insert_default();
            }
            (None, '|' | '>' | '<' | '&' | ';') => break,
            (None, '#') if word.is_none() => break,
            (None, ' ') => words.extend(word.take()),
            _ => word.get_or_insert_default().push(letter),
        }
    }
    assert!(quote.is_none(), "a quote is not closed: {line}");
    words.extend(word);
    words
}

/// Command lines of the shell blocks, as words; a line that ends in a backslash goes on.
fn command_lines() -> Vec<Vec<String>> {
    let joined = blocks("sh").concat().replace("\\\n", " ");
    joined.lines().map(words).filter(|words| !words.is_empty()).collect()
}

/// The arguments of the program in a command line, its name first.
fn program_arguments(words: &[String]) -> Option<Vec<String>> {
    let rest = match words.first().map(String::as_str)? {
        "tokselect" | "target/release/tokselect" => &words[1..],
        "cargo" if words.get(1).is_some_and(|word| word == "run") => {
            let dashes = words.iter().position(|word| word == "--")?;
            &words[dashes + 1..]
        }
        _ => return None,
    };
    Some(
        std::iter::once("tokselect".to_owned())
            .chain(rest.iter().cloned())
            .collect(),
    )
}

fn parse(arguments: Vec<String>) -> Result<(), String> {
    let arguments: Vec<OsString> = arguments.into_iter().map(OsString::from).collect();
    let expanded = expand_arguments(arguments, &Cli::command()).map_err(|error| error.to_string())?;
    match Cli::try_parse_from(expanded) {
        Ok(_) => Ok(()),
        Err(error) if matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion) => Ok(()),
        Err(error) => Err(error.to_string()),
    }
}

#[test]
fn every_command_line_parses() {
    let folder = tempfile::tempdir().unwrap();
    let config = folder.path().join("run.toml");
    std::fs::write(&config, blocks("toml").concat()).unwrap();
    let mut seen = 0;
    for line in command_lines() {
        let Some(arguments) = program_arguments(&line) else {
            continue;
        };
        let arguments = arguments.into_iter().map(|word| match word.as_str() {
            "run.toml" => config.display().to_string(),
            _ => word,
        });
        seen += 1;
        if let Err(error) = parse(arguments.collect()) {
            panic!("`{}`: {error}", line.join(" "));
        }
    }
    // Inline code counts, too.
    for code in inline_code().filter(|code| code.starts_with("tokselect ")) {
        seen += 1;
        if let Err(error) = parse(words(code)) {
            panic!("`{code}`: {error}");
        }
    }
    assert!(seen >= 8, "only {seen} command lines were found");
}

#[test]
fn the_other_command_lines_name_files_that_exist() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    for line in command_lines().iter().filter(|line| program_arguments(line).is_none()) {
        let file = match line[0].as_str() {
            "cargo" => continue,
            "python3" => &line[1],
            other => other,
        };
        assert!(root.join(file).is_file(), "`{}`: no {file}", line.join(" "));
    }
}

/// What stands between backticks outside of blocks.
fn inline_code() -> impl Iterator<Item = &'static str> {
    let mut in_block = false;
    README
        .lines()
        .filter(move |line| {
            let fence = line.starts_with("```");
            in_block ^= fence;
            !in_block && !fence
        })
        .flat_map(|line| line.split('`').skip(1).step_by(2))
}

fn flags() -> BTreeSet<String> {
    fn collect(command: &clap::Command, flags: &mut BTreeSet<String>) {
        let longs = command.get_arguments().filter_map(clap::Arg::get_long);
        flags.extend(longs.map(|long| format!("--{long}")));
        command.get_subcommands().for_each(|inner| collect(inner, flags));
    }
    let mut program = Cli::command();
    program.build();
    let mut flags = BTreeSet::new();
    collect(&program, &mut flags);
    flags
}

#[test]
fn every_flag_and_command_it_names_exists() {
    let flags = flags();
    let mut seen = 0;
    for code in inline_code().filter(|code| code.starts_with("--")) {
        let flag = code.split([' ', '=']).next().unwrap_or(code);
        assert!(flags.contains(flag), "`{code}`: there is no {flag}");
        seen += 1;
    }
    assert!(seen >= 20, "only {seen} flags were found");
    for command in Cli::command().get_subcommands() {
        let row = format!("| `{}` |", command.get_name());
        assert!(README.contains(&row), "the table of commands lacks {row}");
    }
}

#[test]
fn every_policy_and_every_knob_has_a_row_with_its_default() {
    let program = Cli::command();
    let infer = program.find_subcommand("infer").expect("infer");
    for knob in infer
        .get_arguments()
        .filter(|argument| argument.get_help_heading() == Some("Selection policy"))
    {
        let long = knob.get_long().expect("knobs are long flags");
        if long == "policy" {
            for policy in knob.get_possible_values() {
                let row = format!("\n| `{}`", policy.get_name());
                assert!(README.contains(&row), "no row for the policy {}", policy.get_name());
            }
            continue;
        }
        if long == "paper" {
            continue;
        }
        let start = format!("| `--{long}` | ");
        let row = README.lines().find_map(|line| line.strip_prefix(&start));
        let row = row.unwrap_or_else(|| panic!("no row for --{long}"));
        let shown = row.split(" | ").next().unwrap_or_default().trim_matches('`');
        let help = knob.get_help().map(ToString::to_string).unwrap_or_default();
        let stated = help.split("[default: ").nth(1).and_then(|rest| rest.strip_suffix(']'));
        let default = knob.get_default_values().first().and_then(|value| value.to_str());
        assert_eq!(Some(shown), stated.or(default), "default of --{long}");
    }
}

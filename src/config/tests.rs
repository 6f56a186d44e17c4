use super::*;
use clap::value_parser;
use proptest::prelude::*;

fn program() -> Command {
    let options = |name: &'static str| {
        Command::new(name)
            .arg(Arg::new("model").short('m').long("model").alias("checkpoint"))
            .arg(
                Arg::new("top_k")
                    .long("top-k")
                    .value_parser(value_parser!(usize))
                    .default_value("1"),
            )
            .arg(Arg::new("threshold").long("threshold").value_parser(value_parser!(f64)))
            .arg(Arg::new("policy").long("policy").action(ArgAction::Append))
            .arg(Arg::new("lengths").long("lengths").value_delimiter(','))
            .arg(Arg::new("dry_run").long("dry-run").action(ArgAction::SetTrue))
    };
    Command::new("tokselect")
        .subcommand_required(true)
        .arg(
            Arg::new("quiet")
                .short('q')
                .long("quiet")
                .action(ArgAction::SetTrue)
                .global(true),
        )
        .arg(
            Arg::new("verbose")
                .short('v')
                .long("verbose")
                .action(ArgAction::Count)
                .global(true),
        )
        .arg(Arg::new("config").long("config").global(true))
        .arg(Arg::new("set").long("set").action(ArgAction::Append).global(true))
        .subcommand(
            options("infer")
                .alias("select-infer")
                .arg(Arg::new("prompt").num_args(0..)),
        )
        .subcommand(
            Command::new("bench")
                .subcommand_required(true)
                .subcommand(options("attention").arg(Arg::new("repeat").long("repeat"))),
        )
        .subcommand(Command::new("report").arg(Arg::new("style").long("style")))
}

fn expand(arguments: &[&str]) -> Result<Vec<String>> {
    let arguments = std::iter::once("tokselect").chain(arguments.iter().copied());
    let expanded = expand_arguments(arguments.map(OsString::from).collect(), &program())?;
    let matched = program().try_get_matches_from(&expanded);
    assert!(matched.is_ok(), "clap refuses {expanded:?}: {matched:?}");
    Ok(expanded
        .into_iter()
        .skip(1)
        .map(|argument| argument.into_string().unwrap())
        .collect())
}

/// Expands `arguments` with `FILE` standing for a config file of that text.
fn with_file(text: &str, arguments: &[&str]) -> Result<Vec<String>, String> {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("run.toml").to_str().unwrap().to_owned();
    std::fs::write(&path, text).unwrap();
    let arguments: Vec<_> = arguments
        .iter()
        .map(|argument| argument.replace("FILE", &path))
        .collect();
    let arguments: Vec<_> = arguments.iter().map(String::as_str).collect();
    expand(&arguments).map_err(|error| error.to_string().replace(&path, "run.toml"))
}

fn refused(text: &str) -> String {
    with_file(text, &["infer", "--config", "FILE"]).unwrap_err()
}

#[test]
fn every_kind_of_value_becomes_the_flag_that_would_have_been_typed() {
    let text = r#"
        model = "-odd name"
        top_k = 2_048
        threshold = 1e-3
        policy = ["a", "b"]
        lengths = [0x10, 32]
        dry-run = true
        quiet = false
        verbose = 2
    "#;
    assert_eq!(
        with_file(text, &["infer", "--config", "FILE", "hello"]).unwrap(),
        [
            "infer",
            "--dry-run",
            "--lengths=16,32",
            "--model=-odd name",
            "--policy=a",
            "--policy=b",
            "--threshold=1e-3",
            "--top-k=2048",
            "--verbose",
            "--verbose",
            "hello"
        ]
    );
}

#[test]
fn flags_count_more_than_set_and_set_more_than_the_file() {
    let file = "top-k = 1\nmodel = 'file'\npolicy = ['file']\n[infer]\ntop-k = 2\n";
    let expanded = |arguments: &[&str]| with_file(file, arguments).unwrap();
    assert_eq!(
        expanded(&["infer", "--config=FILE"]),
        ["infer", "--model=file", "--policy=file", "--top-k=2"]
    );
    assert_eq!(
        expanded(&[
            "--config",
            "FILE",
            "select-infer",
            "--set",
            "top_k=3",
            "--set",
            "policy=x",
            "--set",
            "policy=y"
        ]),
        ["select-infer", "--model=file", "--policy=x", "--policy=y", "--top-k=3"]
    );
    for explicit in [
        &["-m", "typed"][..],
        &["-qmtyped"],
        &["--model=typed"],
        &["--checkpoint", "typed"],
    ] {
        let mut arguments = vec!["infer", "--config=FILE", "--set=top-k=3", "--set=checkpoint=set"];
        arguments.extend(explicit);
        let mut expected = vec!["infer", "--policy=file", "--top-k=3"];
        expected.extend(explicit);
        assert_eq!(expanded(&arguments), expected);
    }
}

#[test]
fn a_later_false_takes_a_flag_back() {
    assert_eq!(
        with_file(
            "dry_run = true",
            &["infer", "--config", "FILE", "--set", "dry-run=false"]
        )
        .unwrap(),
        ["infer"]
    );
}

#[test]
fn tables_of_nested_and_other_commands() {
    let file = "top-k = 1\n[bench.attention]\nrepeat = 5\n[report]\nstyle = 'wide'\n";
    assert_eq!(
        with_file(file, &["bench", "attention", "--config", "FILE"]).unwrap(),
        ["bench", "attention", "--repeat=5", "--top-k=1"]
    );
}

#[test]
fn what_is_wrong_is_named_with_its_line_and_the_nearest_key() {
    insta::assert_snapshot!(refused("model = 'x'\ntopk = 3\n"), @r"
    `run.toml` line 2: `infer` has no option `topk`
    help: did you mean `top-k`?
    ");
    insta::assert_snapshot!(refused("style = 3\n"), @r"
    `run.toml` line 1: `infer` has no option `style`
    help: `report` has it: put it below `[report]` in a config file
    ");
    insta::assert_snapshot!(refused("something-else = 3\n"), @r"
    `run.toml` line 1: `infer` has no option `something-else`
    help: `tokselect infer --help` lists the options
    ");
    insta::assert_snapshot!(refused("[infre]\ntop-k = 3\n"), @r"
    `run.toml` line 1: `[infre]` is not named after a command
    help: did you mean `[infer]`?
    ");
    insta::assert_snapshot!(refused("top-k = 3\n\ntop_k = 4\n"), @r"
    `run.toml` line 3: `top_k` and `top-k` are the same option
    help: keep one of the two
    ");
    insta::assert_snapshot!(refused("\n\ndry-run = 3\n"), @r"
    `run.toml` line 3: `--dry-run` takes true or false, not `3`
    help: give it true or false
    ");
    insta::assert_snapshot!(refused("top-k = [1, 2]\n"), @r"
    `run.toml` line 1: `--top-k` takes one value, not `1, 2`
    help: give it one value
    ");
    insta::assert_snapshot!(refused("policy = [[1]]\n"), @r"
    `run.toml` line 1: `policy` holds an array within an array
    help: use a value or an array of values
    ");
    insta::assert_snapshot!(refused("top-k = 3\nmodel = \n"), @r"
    `run.toml` line 2: string values must be quoted, expected literal string
    help: write `key = value`, with texts in quotes (https://toml.io)
    ");
    insta::assert_snapshot!(expand(&["infer", "--set", "topk=3"]).unwrap_err(), @r"
    `--set topk=3`: `infer` has no option `topk`
    help: did you mean `top-k`?
    ");
    insta::assert_snapshot!(expand(&["infer", "--set", "top-k"]).unwrap_err(), @r"
    `--set top-k` has no value
    help: write `--set key=value`
    ");
    insta::assert_snapshot!(expand(&["infer", "--config", "absent.toml"]).unwrap_err(), @r"
    cannot read config file `absent.toml`: No such file or directory (os error 2)
    help: check the spelling of the path; the folder of a file must exist
    ");
    for key in NOT_OPTIONS {
        assert!(refused(&format!("{key} = 'x'\n")).contains("has no option"));
    }
}

#[test]
fn arguments_without_config_are_left_alone() {
    for arguments in [
        &["infer", "--", "--config", "x"][..],
        &["infer", "--model", "infer", "-vq"],
    ] {
        assert_eq!(expand(arguments).unwrap(), arguments);
    }
}

#[test]
fn help_comes_up_whatever_the_file_holds() {
    for arguments in [
        &["infer", "--help", "--config", "absent.toml"][..],
        &["--config", "absent.toml", "help", "infer"],
    ] {
        let arguments = std::iter::once("tokselect").chain(arguments.iter().copied());
        assert!(expand_arguments(arguments.map(OsString::from).collect(), &program()).is_ok());
    }
}

proptest! {
    #[test]
    fn each_option_comes_from_the_highest_layer_that_has_it(
        layers in prop::collection::vec(prop::array::uniform3(any::<bool>()), 3),
        value in "[ -~]{0,12}",
    ) {
        let keys = ["model", "threshold", "lengths"];
        let text = |layer: usize, key: usize| match key {
            1 => format!("{layer}.5"),
            _ => format!("{layer}{value}"),
        };
        let given = |layer: usize, key: usize| layers[layer][key];
        let mut file = String::new();
        let mut arguments: Vec<String> = vec!["infer".into(), "--config".into(), "FILE".into()];
        for (key, name) in keys.iter().enumerate() {
            if given(0, key) {
                file.extend([*name, " = ", &toml::Value::from(text(0, key)).to_string(), "\n"]);
            }
            if given(1, key) {
                arguments.extend(["--set".into(), format!("{name}={}", text(1, key))]);
            }
            if given(2, key) {
                arguments.extend([format!("--{name}"), text(2, key)]);
            }
        }
        prop_assume!(!value.contains("FILE"));
        let arguments: Vec<_> = arguments.iter().map(String::as_str).collect();
        let mut expanded = with_file(&file, &arguments).unwrap();
        expanded.insert(0, "tokselect".into());
        let matches = program().try_get_matches_from(expanded).unwrap();
        let matches = matches.subcommand_matches("infer").unwrap();
        for (key, name) in keys.iter().enumerate() {
            let highest = (0..3).rev().find(|layer| given(*layer, key));
            let found = matches.get_raw(name).map(|mut raw| raw.next().unwrap().to_str().unwrap().to_owned());
            let expected = highest.map(|layer| text(layer, key));
            let expected = expected.map(|text| if *name == "lengths" { text.split(',').next().unwrap().into() } else { text });
            prop_assert_eq!(found, expected);
        }
    }

    #[test]
    fn no_file_makes_it_panic(text in "[a-z\\[\\]=\"'0-9.\n _{}-]{0,60}") {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("run.toml");
        std::fs::write(&path, text).unwrap();
        let arguments = ["tokselect".into(), "infer".into(), "--config".into(), path.into_os_string()];
        let _ = expand_arguments(arguments.to_vec(), &program());
    }
}

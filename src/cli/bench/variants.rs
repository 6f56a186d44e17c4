//! `--policies SPEC`: several policies of one run, each `NAME[:KEY=VALUE,...]` with the long flags as keys.
//!
//! A spec is parsed by the very flags of `infer`, so a new policy or knob needs no line here.

use crate::cli::arguments::PolicyArgs;
use crate::error::{Error, Result};
use crate::eval::runner::Variant;
use crate::printer::Printer;
use clap::parser::ValueSource;
use clap::{Arg, ArgAction, ArgMatches, Args, Command, FromArgMatches};
use std::collections::BTreeSet;

const HEADING: &str = "Selection policies";

/// The policies of a run, and the knobs that all of them start from.
#[derive(Debug, Clone)]
pub struct VariantArgs {
    specs: Vec<String>,
    reference: Option<String>,
    /// Knobs given as flags of their own: flag name, and the argument as it was typed.
    shared: Vec<(String, String)>,
}

/// The flags that a spec may set.
fn policy_command() -> Command {
    PolicyArgs::augment_args(Command::new("spec").no_binary_name(true))
}

fn knobs() -> Vec<Arg> {
    let command = policy_command();
    let knobs = command.get_arguments().filter(|arg| arg.get_long() != Some("policy"));
    knobs.cloned().collect()
}

fn is_switch(arg: &Arg) -> bool {
    matches!(arg.get_action(), ArgAction::SetTrue)
}

impl Args for VariantArgs {
    fn augment_args(command: Command) -> Command {
        let specs = Arg::new("policies")
            .long("policies")
            .value_name("SPEC")
            .action(ArgAction::Append)
            .help_heading(HEADING)
            .help("A policy to run, may be repeated: NAME or NAME:KEY=VALUE,..., with the flags below as keys [default: dense and token-select]");
        let reference = Arg::new("reference")
            .long("reference")
            .value_name("SPEC")
            .help_heading(HEADING)
            .help("Policy that the others are compared with [default: dense, if it is there]");
        let command = command.arg(specs).arg(reference);
        knobs()
            .into_iter()
            .fold(command, |command, knob| command.arg(knob.help_heading(HEADING)))
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

impl FromArgMatches for VariantArgs {
    fn from_arg_matches(matches: &ArgMatches) -> std::result::Result<Self, clap::Error> {
        let mut shared = Vec::new();
        for knob in knobs() {
            let (id, Some(long)) = (knob.get_id().as_str(), knob.get_long()) else {
                continue;
            };
            if matches.value_source(id) == Some(ValueSource::DefaultValue) {
                continue;
            }
            if is_switch(&knob) {
                shared.push((long.to_owned(), format!("--{long}")));
                continue;
            }
            let values = matches.get_raw(id).into_iter().flatten();
            shared.extend(values.map(|value| (long.to_owned(), format!("--{long}={}", value.to_string_lossy()))));
        }
        let specs = matches.get_many::<String>("policies");
        Ok(Self {
            specs: match specs {
                Some(specs) => specs.cloned().collect(),
                None => vec!["dense".into(), "token-select".into()],
            },
            reference: matches.get_one::<String>("reference").cloned(),
            shared,
        })
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> std::result::Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

/// The variants of a run, and which of them the others are compared with.
#[derive(Debug)]
pub struct Variants {
    pub all: Vec<Variant>,
    pub reference: Option<usize>,
    /// Flags that no policy reads.
    pub unread: Vec<&'static str>,
}

impl Variants {
    /// Tells which flags no policy reads.
    pub fn warn_of_unread(&self, printer: &Printer) {
        if !self.unread.is_empty() {
            printer.warning(&format!("no policy of this run reads {}", self.unread.join(", ")));
        }
    }
}

impl VariantArgs {
    /// Parses all specs. `max_context` is the one that the user stated, for windows that can never fit it.
    /// `trained` is the model's trained window, where it is known by now.
    pub fn variants(&self, max_context: Option<usize>, trained: Option<usize>) -> Result<Variants> {
        let mut all: Vec<Variant> = Vec::new();
        let mut unread: Option<BTreeSet<&'static str>> = None;
        for spec in &self.specs {
            let parsed = self.parse(spec)?;
            if let Some(stated) = max_context {
                parsed.check_context(stated)?;
            }
            let not_read: BTreeSet<_> = parsed.unread().into_iter().collect();
            unread = Some(match unread {
                Some(before) => before.intersection(&not_read).copied().collect(),
                None => not_read,
            });
            let variant = Variant {
                name: spec.clone(),
                policy: parsed.policy(trained)?,
                prefill_chunk: parsed.prefill_chunk(trained),
            };
            let same = |v: &&Variant| v.policy == variant.policy && v.prefill_chunk == variant.prefill_chunk;
            if let Some(twin) = all.iter().find(same) {
                return Err(Error::user(format!(
                    "`--policies {spec}` is the same policy as `--policies {}`",
                    twin.name
                ))
                .help("leave one of them out, or change one of its knobs"));
            }
            all.push(variant);
        }
        Ok(Variants {
            reference: self.reference(&all)?,
            all,
            unread: unread.unwrap_or_default().into_iter().collect(),
        })
    }

    fn reference(&self, all: &[Variant]) -> Result<Option<usize>> {
        let position = |name: &str| all.iter().position(|variant| variant.name == name);
        let Some(name) = &self.reference else {
            return Ok(position("dense"));
        };
        position(name).map(Some).ok_or_else(|| {
            let names: Vec<&str> = all.iter().map(|variant| variant.name.as_str()).collect();
            Error::user(format!("`--reference {name}` is none of the policies of this run"))
                .help(format!("pass one of: {}", names.join("; ")))
        })
    }

    fn parse(&self, spec: &str) -> Result<PolicyArgs> {
        let (name, settings) = spec.split_once(':').unwrap_or((spec, ""));
        let knobs = knobs();
        let mut own = Vec::new();
        let mut keys = BTreeSet::new();
        for setting in settings.split(',').map(str::trim).filter(|s| !s.is_empty()) {
            let (key, value) = match setting.split_once('=') {
                Some((key, value)) => (key, Some(value)),
                None => (setting, None),
            };
            let key = key.trim().replace('_', "-");
            let Some(knob) = knobs.iter().find(|arg| arg.get_long() == Some(&key)) else {
                let names: Vec<&str> = knobs.iter().filter_map(Arg::get_long).collect();
                return Err(
                    Error::user(format!("`--policies {spec}`: `{key}` is no knob of a policy"))
                        .help(format!("the knobs are {}", names.join(", "))),
                );
            };
            if !keys.insert(key.clone()) {
                return Err(
                    Error::user(format!("`--policies {spec}` sets `{key}` twice")).help("leave one of them out")
                );
            }
            match (is_switch(knob), value) {
                (true, None | Some("true")) => own.push(format!("--{key}")),
                (false, Some(value)) => own.push(format!("--{key}={value}")),
                (true, Some(_)) => {
                    return Err(Error::user(format!("`--policies {spec}`: `{key}` takes no value"))
                        .help(format!("write `{key}` alone, or leave it out")));
                }
                (false, None) => {
                    return Err(Error::user(format!("`--policies {spec}`: `{key}` has no value"))
                        .help(format!("write `{key}=VALUE`")));
                }
            }
        }
        let policy = format!("--policy={name}");
        let alone = parse_flags(spec, std::iter::once(policy.clone()).chain(own.iter().cloned()))?;
        if let Some(flag) = alone.unread().first() {
            let key = flag.trim_start_matches('-');
            return Err(
                Error::user(format!("`--policies {spec}`: `{name}` does not read `{key}`"))
                    .help(format!("leave `{key}` out of this policy")),
            );
        }
        // Flags of the command count for every policy, what a spec says counts more.
        let shared = self.shared.iter().filter(|(key, _)| !keys.contains(key));
        let shared = shared.map(|(_, argument)| argument.clone());
        parse_flags(spec, std::iter::once(policy).chain(shared).chain(own))
    }
}

fn parse_flags(spec: &str, flags: impl Iterator<Item = String>) -> Result<PolicyArgs> {
    let matches = policy_command().try_get_matches_from(flags);
    matches
        .and_then(|matches| PolicyArgs::from_arg_matches(&matches))
        .map_err(|error| {
            let text = error.render().to_string();
            let mut lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
            let first = lines.next().unwrap_or_default();
            let first = first.strip_prefix("error: ").unwrap_or(first);
            let values = lines.find_map(|line| line.strip_prefix("[possible values: ")?.strip_suffix(']'));
            let help = match values {
                Some(values) => format!("it takes one of: {values}; repeat `--policies` for several"),
                None => "write it as NAME:KEY=VALUE,KEY=VALUE with the flags of `tokselect infer` as keys".to_owned(),
            };
            Error::user(format!("`--policies {spec}`: {first}")).help(help)
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn variants(arguments: &[&str]) -> Result<Variants> {
        let command = VariantArgs::augment_args(Command::new("t").no_binary_name(true));
        let matches = command.try_get_matches_from(arguments).expect("parses");
        VariantArgs::from_arg_matches(&matches)
            .expect("reads")
            .variants(None, None)
    }

    fn refused(arguments: &[&str]) -> String {
        variants(arguments).unwrap_err().to_string()
    }

    #[test]
    fn what_a_spec_says_counts_more_than_the_flags_that_all_share() {
        let found = variants(&[
            "--top-k",
            "64",
            "--prefill-chunk=32",
            "--policies",
            "dense",
            "--policies",
            "token-select:vote=head,top_k=8,chunk-query=subchunk:4",
            "--policies=token-select:paper",
        ])
        .unwrap();
        assert_eq!(found.reference, Some(0));
        assert!(found.unread.is_empty(), "{:?}", found.unread);
        let json = |at: usize| serde_json::to_value(&found.all[at]).unwrap();
        assert_eq!(json(0)["policy"]["name"], "dense");
        assert_eq!(json(1)["policy"]["top_k"], 8);
        assert_eq!(json(1)["policy"]["vote"], "head");
        assert_eq!(
            (&json(2)["policy"]["top_k"], &json(2)["policy"]["head_map"]),
            (&64.into(), &"modulo".into())
        );
        assert!(found.all.iter().all(|variant| variant.prefill_chunk == 32));
        assert_eq!(found.all[2].name, "token-select:paper");
    }

    #[test]
    fn the_default_is_dense_against_token_select_and_a_reference_can_be_chosen() {
        let found = variants(&["--reference", "token-select"]).unwrap();
        assert_eq!((found.all.len(), found.reference), (2, Some(1)));
        let alone = variants(&["--policies", "streaming-llm"]).unwrap();
        assert_eq!(alone.reference, None);
        assert_eq!(
            variants(&["--policies", "dense", "--top-k", "3"]).unwrap().unread,
            ["--top-k"]
        );
    }

    #[test]
    fn a_wrong_spec_is_named_with_what_is_wrong_in_it() {
        for (spec, parts) in [
            ("sparse", &["invalid value 'sparse'", "dense, token-select"][..]),
            ("token-select:topk=8", &["`topk` is no knob", "top-k"]),
            ("token-select:top-k=many", &["invalid value 'many'"]),
            ("token-select:top-k", &["`top-k` has no value"]),
            ("token-select:paper=no", &["`paper` takes no value"]),
            ("token-select:top-k=1,top-k=2", &["sets `top-k` twice"]),
            ("dense:top-k=8", &["`dense` does not read `top-k`"]),
            ("token-select:n-local=0", &["--n-local 0"]),
            ("dense,token-select", &["invalid value", "repeat `--policies`"]),
        ] {
            let error = refused(&["--policies", spec]);
            for part in parts {
                assert!(error.contains(part), "{spec}: {error}");
            }
            assert!(error.contains("help: "), "{error}");
        }
        let twice = refused(&["--policies", "token-select", "--policies", "token-select:top-k=2048"]);
        assert!(
            twice.contains("is the same policy as `--policies token-select`"),
            "{twice}"
        );
        let reference = refused(&["--reference", "infllm"]);
        assert!(reference.contains("none of the policies") && reference.contains("dense; token-select"));
    }
}

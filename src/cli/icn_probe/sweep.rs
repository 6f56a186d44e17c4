//! Several sizes in one run: pairs of rounds and answers of a round, and numbers of clusters.
//!
//! A pair is run with every method. The number of clusters bears on one method alone, so that each number makes an arm of
//! that method, and the others are asked once.

use crate::error::{Error, Result};
use crate::probe::navigation::{Method, Settings};
use crate::report::{Column, Table};

/// A method, and the number of clusters where it uses some and several were named.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Arm {
    pub method: Method,
    /// `None`: what `--k` says, or its default.
    pub clusters: Option<usize>,
    /// As tables and samples have it.
    pub name: String,
}

/// The methods, the one that uses clusters once for each of `counts`.
pub(super) fn arms(methods: &[Method], counts: &[usize]) -> Result<Vec<Arm>> {
    if counts.len() > 1 && !methods.contains(&Method::ClusterPenalty) {
        return Err(
            Error::user("several numbers for `--k` are given, and no method of this run uses clusters")
                .help("add cluster-penalty to `--methods`, or leave out `--k`"),
        );
    }
    let mut arms: Vec<Arm> = Vec::new();
    for &method in methods {
        let mut add = |clusters: Option<usize>, name: String| {
            if arms.iter().all(|arm| arm.name != name) {
                arms.push(Arm { method, clusters, name });
            }
        };
        match counts {
            [_, _, ..] if method == Method::ClusterPenalty => {
                for &count in counts {
                    add(Some(count), format!("{} k={count}", method.name()));
                }
            }
            _ => add(counts.first().copied(), method.name().to_owned()),
        }
    }
    Ok(arms)
}

/// What precedes the name of a sample; nothing in a run of one size, whose samples have always been called so.
pub(super) fn prefix(all: &[Settings], one: &Settings) -> String {
    match all {
        [_] => String::new(),
        _ => format!("rounds={},step={}/", one.rounds, one.step),
    }
}

/// The same table of every size as one, with the sizes in front.
pub(super) fn table(name: &str, parts: Vec<(Settings, Table)>) -> Result<Table> {
    let mut columns = ["rounds", "step", "answers"].map(Column::text).to_vec();
    if let Some((_, first)) = parts.first() {
        columns.extend(first.columns.iter().cloned());
    }
    let mut all = Table::new(name, columns);
    for (settings, part) in parts {
        for row in part.rows {
            let sizes = [settings.rounds, settings.step, settings.answers()];
            all.push(sizes.into_iter().map(Into::into).chain(row).collect())?;
        }
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_of_clusters_make_arms_of_the_method_that_uses_them() {
        let names = |methods: &[Method], counts: &[usize]| -> Vec<String> {
            let arms = arms(methods, counts).expect("arms");
            arms.into_iter().map(|arm| arm.name).collect()
        };
        let both = [Method::Icn, Method::ClusterPenalty];
        assert_eq!(names(&both, &[]), ["icn", "cluster-penalty"]);
        assert_eq!(names(&both, &[64]), ["icn", "cluster-penalty"]);
        assert_eq!(
            names(&both, &[64, 128, 64]),
            ["icn", "cluster-penalty k=64", "cluster-penalty k=128"]
        );
        assert_eq!(arms(&both, &[64]).expect("arms")[1].clusters, Some(64));
        let error = arms(&[Method::Icn], &[64, 128]).expect_err("nothing to sweep");
        assert!(error.to_string().contains("`--k`"), "{error}");
    }
}

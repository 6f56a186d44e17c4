//! Reports as Markdown (GitHub's tables): for reading, so with four significant digits.

use super::{Cell, Report, Table, aggregate_table};
use std::fmt::Write;

/// The whole report: a heading, the tables, the aggregates.
pub fn report(report: &Report) -> String {
    let mut text = format!("# tokselect {}\n\n", escape(&report.command));
    if report.interrupted {
        text.push_str("Interrupted before its end: these results are partial.\n\n");
    }
    let aggregates = (!report.aggregates.is_empty()).then(|| aggregate_table(&report.aggregates));
    for table in report.tables.iter().chain(aggregates.as_ref()) {
        text.push_str(&section(table));
        text.push('\n');
    }
    // Writing to a String cannot fail.
    let _ = writeln!(
        text,
        "{} samples, configuration `{}`, {}",
        report.samples.count,
        report.config_hash,
        escape(&report.manifest.build.to_string())
    );
    text
}

/// One table under its name.
pub fn section(table: &Table) -> String {
    format!("## {}\n\n{}", escape(&table.name), self::table(table))
}

/// One table.
pub fn table(table: &Table) -> String {
    let mut text = String::new();
    let mut line = |cells: &mut dyn Iterator<Item = String>| {
        for cell in cells {
            text.push_str("| ");
            text.push_str(&cell);
            text.push(' ');
        }
        text.push_str("|\n");
    };
    line(&mut table.columns.iter().map(|column| escape(&column.heading())));
    line(&mut (0..table.columns.len()).map(|index| {
        let numeric = table
            .rows
            .iter()
            .any(|row| row.get(index).is_some_and(Cell::is_numeric));
        if numeric { "---:" } else { "---" }.to_owned()
    }));
    for row in &table.rows {
        line(&mut Table::short_row(row).iter().map(|cell| escape(cell)));
    }
    text
}

/// Text that Markdown shows as it is and that stays within its cell.
fn escape(text: &str) -> String {
    let letters: Vec<char> = text.chars().collect();
    let mut escaped = String::with_capacity(text.len());
    for (index, letter) in letters.iter().copied().enumerate() {
        let neighbour_is_word = |offset: usize| {
            (index + offset)
                .checked_sub(1)
                .and_then(|at| letters.get(at))
                .is_some_and(|letter| letter.is_alphanumeric() || *letter == '_')
        };
        match letter {
            '\n' => escaped.push_str("<br>"),
            '\r' => {}
            '<' => escaped.push_str("&lt;"),
            '&' => escaped.push_str("&amp;"),
            // Within a word it means nothing, and `ttft_s` shall stay readable in the source.
            '_' if neighbour_is_word(0) && neighbour_is_word(2) => escaped.push('_'),
            '\\' | '|' | '`' | '*' | '_' | '[' | ']' | '~' | '$' => {
                escaped.push('\\');
                escaped.push(letter);
            }
            letter if letter.is_control() => escaped.extend(letter.escape_default()),
            letter => escaped.push(letter),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::super::{Column, tests::example};
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn tables_and_aggregates() {
        let text = report(&example());
        let body = text.rsplit_once("\n\n").map_or("", |(body, _)| body);
        insta::assert_snapshot!(body, @r"
        # tokselect infer

        ## speed

        | policy | ttft_s |
        | --- | ---: |
        | tokselect | 0.1235 |
        | full\|dense | OOM |

        ## aggregates

        | name | unit | n | mean | standard_error | ci95_low | ci95_high | min | median | max |
        | --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |
        | ttft_s | s | 3 | 2.000 | 0.5774 | -0.4843 | 4.484 | 1.000 | 2.000 | 3.000 |
        | tpot_s | s | 0 | not run: --max-new-tokens 1 | - | - | - | - | - | - |
        ");
    }

    fn cells(line: &str) -> Vec<String> {
        let mut cells = vec![String::new()];
        let mut letters = line.chars();
        while let Some(letter) = letters.next() {
            match (letter, cells.last_mut()) {
                ('|', _) => cells.push(String::new()),
                ('\\', Some(cell)) => cell.extend(letters.next()),
                (_, Some(cell)) => cell.push(letter),
                _ => {}
            }
        }
        cells
    }

    proptest! {
        #[test]
        fn any_text_stays_within_its_cell(left in any::<String>(), right in "[a-z_|*\\\\<\n]{0,12}") {
            let mut built = Table::new("t", vec![Column::text("a"), Column::text("b")]);
            built.push(vec![left.as_str().into(), right.as_str().into()]).unwrap();
            let text = table(&built);
            prop_assert_eq!(text.lines().count(), 3);
            let row = cells(text.lines().last().unwrap());
            prop_assert_eq!(row.len(), 4, "{}", text);
            let back = row[2].replace("<br>", "\n").replace("&lt;", "<").replace("&amp;", "&");
            prop_assert_eq!(back, format!(" {right} "));
        }
    }
}

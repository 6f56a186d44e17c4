//! Reports for the terminal: aligned columns; lines and bold headings only where someone is looking.

use super::{Cell, Report, Table, aggregate_table};
use comfy_table::{Attribute, CellAlignment, ContentArrangement, presets};

/// What the place where text goes can show.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Style {
    /// Colour and bold may be used.
    pub colour: bool,
    /// It is a terminal: draw lines and fit the width.
    pub terminal: bool,
    /// Columns to fit; the terminal's own when none are given.
    pub width: Option<u16>,
}

/// The tables and aggregates with their names.
pub fn report(report: &Report, style: &Style) -> String {
    let aggregates = (!report.aggregates.is_empty()).then(|| aggregate_table(&report.aggregates));
    let mut blocks: Vec<String> = report
        .tables
        .iter()
        .chain(aggregates.as_ref())
        .map(|table| section(table, style))
        .collect();
    if report.interrupted {
        blocks.push("interrupted before its end: these results are partial\n".into());
    }
    blocks.join("\n")
}

/// One table under its name.
pub fn section(table: &Table, style: &Style) -> String {
    format!("{}\n{}", visible(&table.name), self::table(table, style))
}

/// One table; ends in a newline.
pub fn table(table: &Table, style: &Style) -> String {
    let mut drawn = comfy_table::Table::new();
    if style.terminal {
        drawn.load_preset(presets::UTF8_HORIZONTAL_ONLY);
        drawn.set_content_arrangement(ContentArrangement::Dynamic);
        if let Some(width) = style.width {
            drawn.set_width(width);
        }
    } else {
        // A pipe gets each row on one line, whatever its length.
        drawn.load_preset(presets::NOTHING);
        drawn.set_content_arrangement(ContentArrangement::Disabled);
        drawn.force_no_tty();
    }
    if style.colour {
        drawn.enforce_styling();
    }
    drawn.set_header(table.columns.iter().map(|column| {
        let cell = comfy_table::Cell::new(visible(&column.heading()));
        if style.colour {
            cell.add_attribute(Attribute::Bold)
        } else {
            cell
        }
    }));
    for row in &table.rows {
        drawn.add_row(
            Table::short_row(row)
                .iter()
                .map(|cell| comfy_table::Cell::new(visible(cell))),
        );
    }
    for (index, column) in drawn.column_iter_mut().enumerate() {
        if table
            .rows
            .iter()
            .any(|row| row.get(index).is_some_and(Cell::is_numeric))
        {
            column.set_cell_alignment(CellAlignment::Right);
        }
        if !style.terminal {
            column.set_padding((0, 2));
        }
    }
    let mut text = String::new();
    for line in drawn.lines() {
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

/// Text whose control characters are shown instead of obeyed: a model or a file name must not drive the terminal.
pub fn visible(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    for letter in text.chars() {
        if letter.is_control() {
            shown.extend(letter.escape_default());
        } else {
            shown.push(letter);
        }
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::super::{Column, tests::example};
    use super::*;

    #[test]
    fn a_pipe_gets_plain_aligned_lines() {
        insta::assert_snapshot!(report(&example(), &Style::default()), @r"
        speed
        policy      ttft_s
        tokselect   0.1235
        full|dense     OOM

        aggregates
        name    unit  n                         mean  standard_error  ci95_low  ci95_high    min  median    max
        ttft_s  s     3                        2.000          0.5774   -0.4843      4.484  1.000   2.000  3.000
        tpot_s  s     0  not run: --max-new-tokens 1               -         -          -      -       -      -
        ");
    }

    #[test]
    fn a_terminal_gets_lines_within_its_width() {
        let style = Style {
            colour: false,
            terminal: true,
            width: Some(40),
        };
        let mut table = Table::new("t", vec![Column::text("word"), Column::new("n_tokens", "tokens")]);
        table.push(vec!["long ".repeat(30).into(), 3_usize.into()]).unwrap();
        let text = super::table(&table, &style);
        assert!(text.lines().all(|line| line.chars().count() <= 40), "{text}");
        assert!(!text.contains('\x1b'));
    }

    #[test]
    fn only_a_colourful_style_has_escape_codes_and_data_never_has() {
        let mut table = Table::new("t", vec![Column::text("a")]);
        table.push(vec!["\x1b[31mred\nline".into()]).unwrap();
        let plain = super::table(&table, &Style::default());
        assert!(plain.contains(r"\u{1b}[31mred\nline") && !plain.contains('\x1b'));
        let style = Style {
            colour: true,
            ..Style::default()
        };
        assert!(super::table(&table, &style).contains('\x1b'));
    }
}

//! Numbers and tables for a terminal.

use std::os::fd::AsFd;
use std::sync::OnceLock;

use anstyle::{AnsiColor, Style};
use nearcast_fleet::failure::{Failure, FailureKind};
use nearcast_fleet::units::Bytes;
use textwrap::{WordSeparator, WordSplitter, WrapAlgorithm};

/// The columns of a terminal that says nothing of them, or of none at all: a line is never broken.
const WIDTH_UNLIMITED: usize = usize::MAX;

/// The first failure to print.
static UNPRINTED: OnceLock<String> = OnceLock::new();

/// Notes how printing went. Who closes the pipe has read what there is for them.
pub(crate) fn note_printed(printed: std::io::Result<()>) {
    if let Err(error) = printed
        && error.kind() != std::io::ErrorKind::BrokenPipe
    {
        let _ = UNPRINTED.set(error.to_string());
    }
}

/// # Errors
/// Something could not be printed.
pub(crate) fn all_printed() -> Result<(), Failure> {
    use std::io::Write as _;
    note_printed(std::io::stdout().flush());
    UNPRINTED.get().map_or(Ok(()), |error| {
        let message = format!("cannot write to standard output: {error}");
        Err(Failure::new(FailureKind::Io, message))
    })
}

/// Columns of the terminal that standard output goes to. Where that is no terminal, `COLUMNS` says
/// how many there are, as `watch` sets it.
pub(crate) fn terminal_width() -> usize {
    terminal_width_of(std::io::stdout())
}

/// The same of another stream.
pub(crate) fn terminal_width_of(stream: impl AsFd) -> usize {
    let stated = || std::env::var("COLUMNS").ok()?.parse().ok();
    terminal_size::terminal_size_of(stream)
        .map(|(width, _)| usize::from(width.0))
        .or_else(stated)
        .filter(|width| *width > 0)
        .unwrap_or(WIDTH_UNLIMITED)
}

/// `1.5 GiB`, `340 KiB`, `12 B`.
pub(crate) fn bytes(count: f64) -> String {
    Bytes(count.max(0.0) as u64).rounded()
}

/// `24.3 Mbit/s`.
pub(crate) fn bits_per_second(rate: f64) -> String {
    scaled(rate, &["bit/s", "kbit/s", "Mbit/s", "Gbit/s", "Tbit/s"])
}

/// `1.2 k`, for counts.
pub(crate) fn count(count: f64) -> String {
    // Subtractions give tiny negative numbers, which would print as "-0".
    let count = if count.abs() < 0.5 { 0.0 } else { count };
    if count < 10_000.0 {
        format!("{count:.0}")
    } else {
        scaled(count, &["", "k", "M", "G"])
    }
}

/// `93.8 %`, or a dash while nothing was counted.
pub(crate) fn percent(ratio: Option<f64>) -> String {
    ratio.map_or_else(|| "-".to_owned(), |r| format!("{:.1} %", r * 100.0))
}

/// `1 node`, `2 nodes`.
pub(crate) fn plural(count: usize, one: &str) -> String {
    if count == 1 {
        format!("1 {one}")
    } else {
        format!("{count} {one}s")
    }
}

/// `850 ms`, `12 s`, `4 min`, `3 h`.
pub(crate) fn span_ms(ms: u64) -> String {
    match ms {
        0..1000 => format!("{ms} ms"),
        1000..120_000 => format!("{} s", ms / 1000),
        120_000..7_200_000 => format!("{} min", ms / 60_000),
        _ => format!("{} h", ms / 3_600_000),
    }
}

fn scaled(mut value: f64, units: &[&str]) -> String {
    let mut unit = 0;
    while value.abs() >= 999.5 && unit + 1 < units.len() {
        value /= 1000.0;
        unit += 1;
    }
    let digits = if unit == 0 || value.abs() >= 99.95 {
        0
    } else {
        1
    };
    format!("{value:.digits$} {}", units[unit])
        .trim_end()
        .to_owned()
}

/// Breaks lines that are wider than `width` columns, between words and never within one. Lines that
/// are indented, such as commands to copy, stay as they are.
pub(crate) fn wrapped(text: &str, width: usize) -> String {
    let options = textwrap::Options::new(width)
        .break_words(false)
        .word_separator(WordSeparator::AsciiSpace)
        .word_splitter(WordSplitter::NoHyphenation)
        .wrap_algorithm(WrapAlgorithm::FirstFit);
    let mut lines = String::new();
    for line in text.lines() {
        if line.starts_with(' ') {
            lines.push_str(line);
        } else {
            lines.push_str(&textwrap::fill(line, &options));
        }
        lines.push('\n');
    }
    lines
}

/// Rows in aligned columns under their headings.
///
/// A heading that begins with `>` aligns its column to the right. A column in which every row is
/// empty is left out. What is wider than the terminal becomes narrower in steps, and no word of it
/// is broken: headings take several lines, then the column `remark` goes to a line of its own under
/// its row, then the columns of `optional` are left out, the first one first; a last line names
/// them.
#[derive(Debug, Default)]
pub(crate) struct Table<'a> {
    pub(crate) heading: &'a [&'a str],
    pub(crate) rows: &'a [Vec<String>],
    pub(crate) remark: Option<&'a str>,
    pub(crate) optional: &'a [&'a str],
}

/// Columns between two cells.
const GAP: usize = 2;

impl Table<'_> {
    /// The table for a terminal of so many columns.
    pub(crate) fn fit(&self, width: usize) -> String {
        let mut columns: Vec<usize> = (0..self.heading.len())
            .filter(|i| {
                self.rows.is_empty() || self.rows.iter().any(|row| !cell(row, *i).is_empty())
            })
            .collect();
        let remark = self.remark.and_then(|name| self.column(name));
        let mut remark = remark.filter(|column| columns.contains(column));
        let mut heads = Heads::Line;
        let mut hidden = Vec::new();
        let mut optional = self.optional.iter();
        while self.width(&columns, heads) > width {
            if matches!(heads, Heads::Line) {
                heads = Heads::Words;
            } else if let Some(column) = remark.filter(|column| columns.contains(column)) {
                columns.retain(|c| *c != column);
            } else {
                let Some(name) = optional.next() else { break };
                let column = self.column(name);
                if columns.iter().any(|c| Some(*c) == column) {
                    columns.retain(|c| Some(*c) != column);
                    hidden.push(*name);
                }
            }
        }
        remark = remark.filter(|column| !columns.contains(column));

        let mut text = self.heading_lines(&columns, heads);
        for row in self.rows {
            let cells = columns.iter().map(|i| cell(row, *i)).collect::<Vec<_>>();
            text.push_str(&self.line(&cells, &columns, heads));
            let remark = remark.map_or("", |i| cell(row, i));
            if !remark.is_empty() {
                for line in wrapped(remark, width.saturating_sub(GAP)).lines() {
                    text.push_str(&format!("{:GAP$}{line}\n", ""));
                }
            }
        }
        if !hidden.is_empty() {
            let words = format!(
                "not shown, as the terminal has {width} columns: {}",
                hidden.join(", ")
            );
            text.push_str(&wrapped(&words, width));
        }
        text
    }

    fn column(&self, name: &str) -> Option<usize> {
        self.heading
            .iter()
            .position(|heading| heading.trim_start_matches('>') == name)
    }

    fn name(&self, column: usize) -> &str {
        self.heading[column].trim_start_matches('>')
    }

    /// Columns that the widest cell of one column takes.
    fn cell_width(&self, column: usize, heads: Heads) -> usize {
        let heading = match heads {
            Heads::Line => columns_of(self.name(column)),
            Heads::Words => self
                .name(column)
                .split(' ')
                .map(columns_of)
                .max()
                .unwrap_or(0),
        };
        let cells = self.rows.iter().map(|row| columns_of(cell(row, column)));
        cells.chain([heading]).max().unwrap_or(0)
    }

    fn width(&self, columns: &[usize], heads: Heads) -> usize {
        let cells: usize = columns.iter().map(|c| self.cell_width(*c, heads)).sum();
        cells + GAP * columns.len().saturating_sub(1)
    }

    fn heading_lines(&self, columns: &[usize], heads: Heads) -> String {
        let words = |column: &usize| -> Vec<String> {
            match heads {
                Heads::Line => vec![self.name(*column).to_owned()],
                Heads::Words => wrapped(self.name(*column), self.cell_width(*column, heads))
                    .lines()
                    .map(str::to_owned)
                    .collect(),
            }
        };
        let heads_of: Vec<Vec<String>> = columns.iter().map(words).collect();
        let lines = heads_of.iter().map(Vec::len).max().unwrap_or(0);
        let mut text = String::new();
        for line in 0..lines {
            let cells: Vec<&str> = heads_of
                .iter()
                // A heading of one line stands directly above its column.
                .map(|words| {
                    (line + words.len())
                        .checked_sub(lines)
                        .map_or("", |at| &words[at])
                })
                .collect();
            text.push_str(&self.line(&cells, columns, heads));
        }
        text
    }

    /// One line, without blanks at its end.
    fn line(&self, cells: &[&str], columns: &[usize], heads: Heads) -> String {
        let mut line = String::new();
        for (at, (cell, column)) in cells.iter().zip(columns).enumerate() {
            let width = self.cell_width(*column, heads);
            let pad = " ".repeat(width - columns_of(cell).min(width));
            let gap = " ".repeat(if at == 0 { 0 } else { GAP });
            let shown = match self.name(*column) {
                "state" | "health" => coloured(cell),
                _ => (*cell).to_owned(),
            };
            line.push_str(&match self.heading[*column].starts_with('>') {
                true => format!("{gap}{pad}{shown}"),
                false => format!("{gap}{shown}{pad}"),
            });
        }
        line.trim_end().to_owned() + "\n"
    }
}

/// How headings of several words are written.
#[derive(Debug, Clone, Copy)]
enum Heads {
    Line,
    Words,
}

fn cell(row: &[String], column: usize) -> &str {
    row.get(column).map_or("", String::as_str)
}

/// Columns that a text takes on a terminal.
fn columns_of(text: &str) -> usize {
    textwrap::core::display_width(text)
}

/// A state with its colour; the word says the same to who sees none.
fn coloured(state: &str) -> String {
    let words: Vec<&str> = state.split(' ').collect();
    let colour = match words[..] {
        [up, "of", all, "up"] if up == all => AnsiColor::Green,
        ["0", "of", ..] | ["down" | "silent" | "all-down" | "expired"] => AnsiColor::Red,
        ["up"] => AnsiColor::Green,
        [_, "of", ..] | ["degraded" | "drained" | "draining" | "waiting"] => AnsiColor::Yellow,
        ["running"] => AnsiColor::Cyan,
        _ => return state.to_owned(),
    };
    let style = Style::new().fg_color(Some(colour.into()));
    format!("{style}{state}{style:#}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_read_well() {
        let table: [(String, &str); 11] = [
            (bytes(12.0), "12 B"),
            (bytes(-1.0), "0 B"),
            (bytes(1_572_864.0), "1.5 MiB"),
            (bits_per_second(24_300_000.0), "24.3 Mbit/s"),
            (bits_per_second(0.0), "0 bit/s"),
            (count(9_999.0), "9999"),
            (count(12_340.0), "12.3 k"),
            (percent(Some(0.9375)), "93.8 %"),
            (percent(None), "-"),
            (plural(1, "node"), "1 node"),
            (plural(0, "node"), "0 nodes"),
        ];
        for (found, expected) in table {
            assert_eq!(found, expected);
        }
        assert_eq!(
            [850, 12_000, 240_000, 10_800_000].map(span_ms),
            ["850 ms", "12 s", "4 min", "3 h"]
        );
    }

    fn plain(text: &str) -> String {
        anstream::adapter::strip_str(text).to_string()
    }

    fn fleet() -> Vec<Vec<String>> {
        [
            ["ams-1", "up", "1200", "64.0 MiB", ""],
            [
                "nyc-10",
                "down",
                "7",
                "",
                "no report for 4 s; is it running?",
            ],
        ]
        .map(|row| row.map(str::to_owned).to_vec())
        .to_vec()
    }

    #[test]
    fn a_table_takes_the_columns_that_there_are() {
        let rows = fleet();
        let table = Table {
            heading: &["node", "state", ">requests a second", ">memory", "why"],
            rows: &rows,
            remark: Some("why"),
            optional: &["memory"],
        };
        let expected = [
            (
                usize::MAX,
                "\
node    state  requests a second    memory  why
ams-1   up                  1200  64.0 MiB
nyc-10  down                   7            no report for 4 s; is it running?
",
            ),
            (
                68,
                "               requests
node    state  a second    memory  why
ams-1   up         1200  64.0 MiB
nyc-10  down          7            no report for 4 s; is it running?
",
            ),
            (
                33,
                "               requests
node    state  a second    memory
ams-1   up         1200  64.0 MiB
nyc-10  down          7
  no report for 4 s; is it
  running?
",
            ),
            (
                24,
                "               requests
node    state  a second
ams-1   up         1200
nyc-10  down          7
  no report for 4 s; is
  it running?
not shown, as the
terminal has 24 columns:
memory
",
            ),
        ];
        for (width, expected) in expected {
            assert_eq!(plain(&table.fit(width)), expected, "{width}");
        }
        for width in 24..100 {
            let text = plain(&table.fit(width));
            assert!(
                text.lines().all(|line| line.chars().count() <= width),
                "{width}: {text}"
            );
        }
    }

    #[test]
    fn a_column_without_a_cell_is_left_out() {
        let rows: Vec<Vec<String>> = vec![vec!["ams".into(), String::new(), "7".into()]];
        let table = Table {
            heading: &["name", "why", ">n"],
            rows: &rows,
            ..Table::default()
        };
        assert_eq!(table.fit(80), "name  n\nams   7\n");
    }

    #[test]
    fn a_state_has_a_colour_and_stays_a_word() {
        for (state, colour) in [
            ("up", "32"),
            ("2 of 2 up", "32"),
            ("down", "31"),
            ("0 of 2 up", "31"),
            ("1 of 2 up", "33"),
            ("drained", "33"),
            ("running", "36"),
        ] {
            let shown = coloured(state);
            assert_eq!(shown, format!("\u{1b}[{colour}m{state}\u{1b}[0m"));
            assert_eq!(plain(&shown), state);
        }
        assert_eq!(coloured("ended"), "ended");
    }

    #[test]
    fn lines_break_between_words_and_commands_not_at_all() {
        let text = "a revision of the fleet\n    curl -sD - http://127.0.0.1:7700/v1/status\n\nhttp://www.demo.test/a-long-path x\n";
        assert_eq!(
            wrapped(text, 12),
            "a revision\nof the fleet\n    curl -sD - http://127.0.0.1:7700/v1/status\n\nhttp://www.demo.test/a-long-path\nx\n"
        );
        assert_eq!(wrapped(text, usize::MAX), text);
    }
}

//! Numbers and tables for a terminal.

use nearcast_fleet::units::Bytes;

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

/// Rows under a heading, in aligned columns; a heading that begins with `>` aligns its column to
/// the right. Trailing blanks are removed.
pub(crate) fn table(heading: &[&str], rows: &[Vec<String>]) -> String {
    let widths: Vec<usize> = heading
        .iter()
        .enumerate()
        .map(|(i, h)| {
            let cells = rows
                .iter()
                .filter_map(|r| r.get(i))
                .map(|c| c.chars().count());
            cells
                .chain([h.trim_start_matches('>').chars().count()])
                .max()
                .unwrap_or(0)
        })
        .collect();
    let line = |cells: &mut dyn Iterator<Item = &str>| {
        let mut line = String::new();
        for (i, (cell, width)) in cells.zip(&widths).enumerate() {
            let gap = if i == 0 { "" } else { "  " };
            let pad = " ".repeat(width - cell.chars().count().min(*width));
            let right = heading[i].starts_with('>');
            line.push_str(&if right {
                format!("{gap}{pad}{cell}")
            } else {
                format!("{gap}{cell}{pad}")
            });
        }
        line.trim_end().to_owned() + "\n"
    };
    let mut text = line(&mut heading.iter().map(|h| h.trim_start_matches('>')));
    for row in rows {
        text.push_str(&line(&mut row.iter().map(String::as_str)));
    }
    text
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

    #[test]
    fn columns_are_aligned() {
        let rows = vec![
            vec!["ams".to_owned(), "7".to_owned(), "up".to_owned()],
            vec!["n".to_owned(), "12".to_owned(), String::new()],
        ];
        assert_eq!(
            table(&["name", ">n", "state"], &rows),
            "name   n  state\nams    7  up\nn     12\n"
        );
    }
}

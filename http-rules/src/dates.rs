//! HTTP dates as seconds after the Unix epoch.
//!
//! Follows RFC 9110 section 5.6.7.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use http::header::AsHeaderName;
use http::{HeaderMap, HeaderValue};

/// Parses an HTTP date of any of the three forms, in any letter case, into seconds after the Unix
/// epoch. The name of the day is redundant, so a wrong one is tolerated.
pub fn parse_date(value: &[u8]) -> Option<u64> {
    let text = std::str::from_utf8(value.trim_ascii()).ok()?;
    if text.len() > DATE_BYTES_MAX {
        return None;
    }
    let when = httpdate::parse_http_date(text).ok().or_else(|| {
        let cased = cased(text);
        httpdate::parse_http_date(&cased)
            .ok()
            .or_else(|| with_right_day(&cased))
    })?;
    Some(when.duration_since(UNIX_EPOCH).ok()?.as_secs())
}

/// Longer than the longest date, `Wednesday, 09-Nov-94 08:49:37 GMT`.
const DATE_BYTES_MAX: usize = 40;

const DAYS: [&str; 7] = [
    "Monday",
    "Tuesday",
    "Wednesday",
    "Thursday",
    "Friday",
    "Saturday",
    "Sunday",
];

/// The date with its name of the day replaced by the right one of the same form.
fn with_right_day(text: &str) -> Option<SystemTime> {
    let (day, rest) = text.split_at(text.find(|c: char| !c.is_ascii_alphabetic())?);
    let forms = [DAYS.map(|name| &name[..3]), DAYS];
    let form = forms.iter().find(|form| form.contains(&day))?;
    form.iter()
        .find_map(|name| httpdate::parse_http_date(&format!("{name}{rest}")).ok())
}

/// The text with the letter case of HTTP dates: each word capitalised, and `GMT`.
fn cased(text: &str) -> String {
    let mut is_start = true;
    let mut cased: String = text
        .chars()
        .map(|c| {
            let c = if is_start {
                c.to_ascii_uppercase()
            } else {
                c.to_ascii_lowercase()
            };
            is_start = !c.is_ascii_alphabetic();
            c
        })
        .collect();
    if cased.ends_with(" Gmt") {
        cased.replace_range(cased.len() - 3.., "GMT");
    }
    cased
}

/// The date in a field; `None` when the field is missing or invalid, or has several different
/// values.
pub fn date(fields: &HeaderMap, name: impl AsHeaderName) -> Option<u64> {
    let mut values = fields.get_all(name).into_iter();
    let first = values.next()?;
    if values.any(|other| other != first) {
        return None;
    }
    parse_date(first.as_bytes())
}

/// The last second that IMF-fixdate can state: it has four digits for the year.
const SECONDS_MAX: u64 = 253_402_300_799;

/// Formats a date as IMF-fixdate.
pub fn format_date(unix_seconds: u64) -> HeaderValue {
    let when = UNIX_EPOCH + Duration::from_secs(unix_seconds.min(SECONDS_MAX));
    HeaderValue::try_from(httpdate::fmt_http_date(when))
        .unwrap_or(HeaderValue::from_static("Thu, 01 Jan 1970 00:00:00 GMT"))
}

/// Appends a date as IMF-fixdate, without allocating.
pub fn write_date(unix_seconds: u64, output: &mut Vec<u8>) {
    let seconds = unix_seconds.min(SECONDS_MAX);
    let (days, of_day) = ((seconds / 86_400) as u32, (seconds % 86_400) as u32);
    // Years begin with March here, and eras of 400 of them in the year 0: so the leap day is the last
    // one (Hinnant, chrono-Compatible Low-Level Date Algorithms, civil_from_days).
    let shifted = days + 719_468;
    let (era, of_era) = (shifted / 146_097, shifted % 146_097);
    let years = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * years + years / 4 - years / 100);
    let months = (5 * of_year + 2) / 153;
    let day = of_year - (153 * months + 2) / 5 + 1;
    let is_next_year = months >= 10;
    let month = if is_next_year {
        months - 10
    } else {
        months + 2
    };
    let year = era * 400 + years + u32::from(is_next_year);

    let mut text = *b"Day, 00 Mon 0000 00:00:00 GMT";
    // The first day was a Thursday.
    text[..3].copy_from_slice(WEEKDAYS[(days as usize + 4) % 7]);
    text[8..11].copy_from_slice(MONTHS[month as usize]);
    for (at, number) in [
        (5, day),
        (12, year / 100),
        (14, year % 100),
        (17, of_day / 3600),
        (20, of_day / 60 % 60),
        (23, of_day % 60),
    ] {
        text[at] = b'0' + (number / 10) as u8;
        text[at + 1] = b'0' + (number % 10) as u8;
    }
    output.extend_from_slice(&text);
}

const WEEKDAYS: [&[u8; 3]; 7] = [b"Sun", b"Mon", b"Tue", b"Wed", b"Thu", b"Fri", b"Sat"];
const MONTHS: [&[u8; 3]; 12] = [
    b"Jan", b"Feb", b"Mar", b"Apr", b"May", b"Jun", b"Jul", b"Aug", b"Sep", b"Oct", b"Nov", b"Dec",
];

#[cfg(test)]
mod tests {
    use http::header::{DATE, EXPIRES};
    use proptest::prelude::*;

    use super::*;
    use crate::testing::{self, map};

    proptest! {
        #[test]
        fn a_date_is_written_as_the_library_writes_it(seconds in 0..=SECONDS_MAX) {
            let mut written = Vec::new();
            write_date(seconds, &mut written);
            let when = std::time::UNIX_EPOCH + std::time::Duration::from_secs(seconds);
            let expected = httpdate::fmt_http_date(when);
            prop_assert_eq!(String::from_utf8_lossy(&written), expected);
        }
    }

    #[test]
    fn the_ends_of_months_and_years_are_written() {
        for (seconds, expected) in [
            (0, "Thu, 01 Jan 1970 00:00:00 GMT"),
            (951_782_399, "Mon, 28 Feb 2000 23:59:59 GMT"),
            (951_782_400, "Tue, 29 Feb 2000 00:00:00 GMT"),
            (951_868_800, "Wed, 01 Mar 2000 00:00:00 GMT"),
            (4_107_542_399, "Sun, 28 Feb 2100 23:59:59 GMT"),
            (4_107_542_400, "Mon, 01 Mar 2100 00:00:00 GMT"),
            (1_798_761_599, "Thu, 31 Dec 2026 23:59:59 GMT"),
        ] {
            let mut written = Vec::new();
            write_date(seconds, &mut written);
            assert_eq!(String::from_utf8_lossy(&written), expected);
        }
    }

    #[test]
    fn dates_in_three_forms_and_any_case() {
        let valid = [
            "Sun, 06 Nov 1994 08:49:37 GMT",
            "Sunday, 06-Nov-94 08:49:37 GMT",
            "Sun Nov  6 08:49:37 1994",
            "SUN, 06 nov 1994 08:49:37 gMT",
            " Sun, 06 Nov 1994 08:49:37 GMT ",
            "Mon, 06 Nov 1994 08:49:37 GMT",
            "saturday, 06-Nov-94 08:49:37 GMT",
            "Wed Nov  6 08:49:37 1994",
        ];
        for value in valid {
            assert_eq!(parse_date(value.as_bytes()), Some(784_111_777), "{value}");
        }
        let invalid = [
            "",
            "0",
            "-1",
            "foo",
            "Thu, 18 Aug 2050 02:01:18 UTC",
            "Thu, 18 Aug 2050 02:01:18 AEST",
            "Thu, 18 Aug 50 02:01:18 GMT",
            "Thu 18 Aug 2050 02:01:18 GMT",
            "Thu, 18  Aug  2050 02:01:18 GMT",
            "Thu, 18-Aug-2050 02:01:18 GMT",
            "Thu, 18 Aug 2050 02.01.18 GMT",
            "Thu, 18 Aug 2050 2:01:18 GMT",
            "Thu, 18 Aug 2050 02:01:18 GMT and then some more text",
            "Mon, 31 Feb 2050 02:01:18 GMT",
            "Thu, 32 Aug 2050 02:01:18 GMT",
            "Foo, 18 Aug 2050 02:01:18 GMT",
            "Thursda, 18-Aug-50 02:01:18 GMT",
            ", 18 Aug 2050 02:01:18 GMT",
            "Thursday, 18 Aug 2050 02:01:18 GMT",
            "Thu, 18-Aug-50 02:01:18 GMT",
            "Thu",
        ];
        for value in invalid {
            assert_eq!(parse_date(value.as_bytes()), None, "{value}");
        }
        assert_eq!(
            parse_date(b"Thu, 18 Aug 2050 02:01:18 GMT"),
            Some(2_544_400_878)
        );
    }

    #[test]
    fn a_date_in_two_lines_counts_when_both_agree() {
        let one = "Sun, 06 Nov 1994 08:49:37 GMT";
        assert_eq!(
            date(
                &map(&[&format!("date: {one}"), &format!("date: {one}")]),
                DATE
            ),
            Some(784_111_777)
        );
        assert_eq!(
            date(&map(&[&format!("expires: {one}"), "expires: 0"]), EXPIRES),
            None
        );
        assert_eq!(date(&map(&[]), DATE), None);
    }

    #[test]
    fn dates_are_written_as_they_are_read() {
        assert_eq!(format_date(784_111_777), "Sun, 06 Nov 1994 08:49:37 GMT");
        assert_eq!(format_date(u64::MAX), "Fri, 31 Dec 9999 23:59:59 GMT");
    }

    proptest! {
        #![proptest_config(testing::seeded())]

        #[test]
        fn dates_survive(seconds in 0u64..253_402_300_799) {
            prop_assert_eq!(parse_date(format_date(seconds).as_bytes()), Some(seconds));
        }

        #[test]
        fn any_day_will_do(seconds in 0u64..253_402_300_799, day in 0usize..7) {
            let written = format_date(seconds);
            let rest = &written.to_str().expect("ASCII")[3..];
            prop_assert_eq!(parse_date(format!("{}{rest}", &DAYS[day][..3]).as_bytes()), Some(seconds));
        }

        #[test]
        fn no_date_panics(text in "[A-Za-z]{0,9}[, ]{0,2}.{0,20}") {
            let _ = parse_date(text.as_bytes());
        }
    }
}

//! The part of C's `strftime` that templates use to write a date, in English as Python writes it without a locale.

use std::fmt::Write;

use time::OffsetDateTime;

/// Formats `now`; a directive this does not know is an error, for a wrong date in a prompt would go unnoticed.
pub(super) fn format(pattern: &str, now: OffsetDateTime) -> Result<String, String> {
    let mut out = String::new();
    let mut chars = pattern.chars();
    while let Some(c) = chars.next() {
        if c != '%' {
            out.push(c);
            continue;
        }
        let mut directive = chars.next();
        let unpadded = directive == Some('-');
        if unpadded {
            directive = chars.next();
        }
        let Some(directive) = directive else {
            return Err(format!("strftime_now: `{pattern}` ends in the middle of a directive"));
        };
        if let Some((number, width)) = numeric(directive, now) {
            let width = if unpadded { 0 } else { width };
            let _ = write!(out, "{number:0width$}");
            continue;
        }
        match directive {
            _ if unpadded => return Err(unknown(directive)),
            'a' => out.push_str(&now.weekday().to_string()[..3]),
            'A' => out.push_str(&now.weekday().to_string()),
            'b' | 'h' => out.push_str(&now.month().to_string()[..3]),
            'B' => out.push_str(&now.month().to_string()),
            'p' => out.push_str(if now.hour() < 12 { "AM" } else { "PM" }),
            'e' => {
                let _ = write!(out, "{:2}", now.day());
            }
            'F' => out.push_str(&format("%Y-%m-%d", now)?),
            'D' => out.push_str(&format("%m/%d/%y", now)?),
            'T' => out.push_str(&format("%H:%M:%S", now)?),
            'R' => out.push_str(&format("%H:%M", now)?),
            // Python's `datetime.now()` carries no time zone, so these are empty there.
            'z' | 'Z' => {}
            '%' => out.push('%'),
            other => return Err(unknown(other)),
        }
    }
    Ok(out)
}

fn unknown(directive: char) -> String {
    format!("strftime_now: the directive `%{directive}` is not supported")
}

/// The value of a numeric directive and the width C pads it to.
fn numeric(directive: char, now: OffsetDateTime) -> Option<(i64, usize)> {
    Some(match directive {
        'Y' => (now.year().into(), 4),
        'y' => ((now.year().rem_euclid(100)).into(), 2),
        'm' => (u8::from(now.month()).into(), 2),
        'd' => (now.day().into(), 2),
        'j' => (now.ordinal().into(), 3),
        'H' => (now.hour().into(), 2),
        'I' => (i64::from((now.hour() + 11) % 12 + 1), 2),
        'M' => (now.minute().into(), 2),
        'S' => (now.second().into(), 2),
        'f' => (now.microsecond().into(), 6),
        'u' => (now.weekday().number_from_monday().into(), 1),
        'w' => (now.weekday().number_days_from_sunday().into(), 1),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::format;
    use time::macros::datetime;

    /// Expected strings: `datetime(2024, 7, 4, 0, 5, 9, 42).strftime(..)` of `CPython`.
    #[test]
    fn agrees_with_python() {
        let now = datetime!(2024-07-04 00:05:09.000042 UTC);
        for (pattern, text) in [
            ("%d %b %Y", "04 Jul 2024"),
            ("%B %-d, %Y", "July 4, 2024"),
            ("%A %a %e %j", "Thursday Thu  4 186"),
            ("%F %T %D %R", "2024-07-04 00:05:09 07/04/24 00:05"),
            ("%I:%M %p %y %u %w %f", "12:05 AM 24 4 4 000042"),
            ("100%% é%z%Z", "100% é"),
        ] {
            assert_eq!(format(pattern, now).unwrap(), text);
        }
        assert!(format("%Q", now).unwrap_err().contains("%Q"));
        assert!(format("%-", now).is_err());
        assert!(format("x%", now).is_err());
    }
}

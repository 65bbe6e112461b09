//! The log's way to the terminal: above the view, which keeps the last warning.

use std::io::{self, Write};

use tracing_subscriber::fmt::MakeWriter;

use super::model::Alert;
use super::screen::SCREEN;

/// Longest text of an alert that is kept, bytes; more than a line.
const MAX_ALERT: usize = 400;

/// Standard error for the log.
#[derive(Debug, Clone, Copy, Default)]
pub struct LogWriter {
    /// Of the line that is written, if it is a warning or worse.
    level: Option<tracing::Level>,
}

impl Write for LogWriter {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let alert = self.level.and_then(|level| alert(level, line));
        SCREEN.log(line, alert)?;
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        io::stderr().flush()
    }
}

impl<'a> MakeWriter<'a> for LogWriter {
    type Writer = Self;

    fn make_writer(&'a self) -> Self {
        *self
    }

    fn make_writer_for(&'a self, meta: &tracing::Metadata<'_>) -> Self {
        Self { level: Some(*meta.level()).filter(|level| *level <= tracing::Level::WARN) }
    }
}

/// What a line of the log says, without time and level.
fn alert(level: tracing::Level, line: &[u8]) -> Option<Alert> {
    let text = without_sequences(&String::from_utf8_lossy(line));
    let (_, text) = text.split_once(level.as_str())?;
    let mut text = text.split_whitespace().collect::<Vec<_>>().join(" ");
    // The whole report is in the log above.
    if text.starts_with("stall report") {
        return None;
    }
    text.truncate(text.floor_char_boundary(MAX_ALERT));
    let at = chrono::Local::now().format("%H:%M:%S").to_string();
    Some(Alert { at, is_error: level == tracing::Level::ERROR, text })
}

/// Text without escape sequences and control characters.
fn without_sequences(text: &str) -> String {
    let mut plain = String::new();
    let mut characters = text.chars();
    while let Some(character) = characters.next() {
        match character {
            // Up to its last letter.
            '\x1b' => drop(characters.by_ref().find(char::is_ascii_alphabetic)),
            '\n' | '\t' => plain.push(' '),
            character if character.is_control() => {}
            character => plain.push(character),
        }
    }
    plain
}

#[cfg(test)]
mod tests {
    use tracing::Level;

    use super::*;

    #[test]
    fn an_alert_is_a_line_without_time_level_and_colours() {
        let line = b"\x1b[2m2026-01-01T00:00:00Z\x1b[0m \x1b[33m WARN\x1b[0m epoch ended \x1b[3mepoch\x1b[0m\x1b[2m=\x1b[0m3\n";
        let found = alert(Level::WARN, line).unwrap();
        assert_eq!((found.text.as_str(), found.is_error), ("epoch ended epoch=3", false));
        assert!(alert(Level::ERROR, b"2026 ERROR it hangs\n").unwrap().is_error);
        assert_eq!(alert(Level::WARN, b"2026  WARN stall report report={}\n"), None);
        let long = format!("2026  WARN {}\n", "ä".repeat(1000));
        assert_eq!(alert(Level::WARN, long.as_bytes()).unwrap().text.len(), MAX_ALERT);
    }
}

//! A picture in the last lines of a terminal, with the log above it.
//!
//! In: a buffer of cells, and bytes of the log. Out: the bytes that bring a terminal from what it shows to that. The
//! terminal's modes are never changed, so there is nothing to restore however the process ends: it stays in line
//! mode, Ctrl-C stays a signal, and the cursor rests on the line below the picture.

use std::fmt::Write as _;

use ratatui::buffer::Buffer;
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::Span;

/// What is on the terminal.
#[derive(Debug, Default)]
pub(super) struct Painter {
    /// Columns that each line of the picture takes; empty if there is none.
    drawn: Vec<usize>,
    /// The bytes of the picture.
    picture: String,
}

/// A line of a buffer as it is written: without the blanks at its end.
struct Row {
    text: String,
    columns: usize,
}

impl Painter {
    /// Replaces the picture; `columns` is the terminal's width now. Empty if nothing has changed.
    pub(super) fn draw(&mut self, buffer: &Buffer, columns: u16) -> String {
        let rows = rows(buffer);
        let mut picture = String::new();
        for row in &rows {
            picture.push_str(&row.text);
            // What the line before had more goes only after the new one is there: nothing flickers.
            picture.push_str("\x1b[K\r\n");
        }
        if picture == self.picture && self.height(columns) == rows.len() {
            return String::new();
        }
        let bytes = format!("{}{picture}\x1b[J", self.to_top(columns));
        self.drawn = rows.iter().map(|row| row.columns).collect();
        self.picture = picture;
        bytes
    }

    /// Puts lines above the picture.
    pub(super) fn above(&self, lines: &str, columns: u16) -> String {
        let end = if lines.ends_with('\n') { "" } else { "\r\n" };
        format!("{}\x1b[J{lines}{end}{}", self.to_top(columns), self.picture)
    }

    /// Takes the picture away.
    pub(super) fn erase(&mut self, columns: u16) -> String {
        let bytes = format!("{}\x1b[J", self.to_top(columns));
        self.forget();
        bytes
    }

    /// Somebody else has written to the terminal: the picture stays where it is, the next one comes below.
    pub(super) fn forget(&mut self) {
        self.drawn.clear();
        self.picture.clear();
    }

    /// Lines that the picture takes: a terminal that has become narrower has wrapped those that are too long.
    fn height(&self, columns: u16) -> usize {
        let columns = usize::from(columns.max(1));
        self.drawn.iter().map(|wide| wide.div_ceil(columns).max(1)).sum()
    }

    fn to_top(&self, columns: u16) -> String {
        match self.height(columns) {
            0 => "\r".to_owned(),
            height => format!("\r\x1b[{height}A"),
        }
    }
}

fn rows(buffer: &Buffer) -> Vec<Row> {
    let area = buffer.area;
    (area.top()..area.bottom()).map(|y| row(buffer, y)).collect()
}

fn row(buffer: &Buffer, y: u16) -> Row {
    let area = buffer.area;
    let cell = |x: u16| &buffer[(x, y)];
    let is_blank = |x: &u16| cell(*x).symbol() == " " && cell(*x).bg == Color::Reset;
    let end = (area.left()..area.right()).rev().find(|x| !is_blank(x)).map_or(area.left(), |x| x + 1);
    let plain = Style::new().fg(Color::Reset).bg(Color::Reset);
    let (mut text, mut style, mut x) = (String::new(), plain, area.left());
    while x < end {
        let now = Style::new().fg(cell(x).fg).bg(cell(x).bg).add_modifier(cell(x).modifier);
        if now != style {
            text.push_str(&sequence(now));
            style = now;
        }
        let symbol = cell(x).symbol();
        text.push_str(symbol);
        // The cell beside a wide character is part of it.
        x += (Span::raw(symbol).width() as u16).max(1);
    }
    if style != plain {
        text.push_str("\x1b[0m");
    }
    Row { text, columns: usize::from(x - area.left()) }
}

/// The escape sequence that begins a style, whatever was before it.
fn sequence(style: Style) -> String {
    let mut text = "\x1b[0".to_owned();
    for (modifier, code) in [(Modifier::BOLD, 1), (Modifier::DIM, 2)] {
        if style.add_modifier.contains(modifier) {
            // Writing to a String cannot fail.
            let _ = write!(text, ";{code}");
        }
    }
    for (color, base) in [(style.fg, 30), (style.bg, 40)] {
        if let Some(code) = color.and_then(code) {
            let _ = write!(text, ";{}", base + code);
        }
    }
    text.push('m');
    text
}

/// The eight colours that every terminal has; the others are not used.
fn code(color: Color) -> Option<u8> {
    match color {
        Color::Red => Some(1),
        Color::Green => Some(2),
        Color::Yellow => Some(3),
        Color::Blue => Some(4),
        Color::Magenta => Some(5),
        Color::Cyan => Some(6),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use ratatui::layout::Rect;

    use super::*;

    fn buffer(lines: &[&str]) -> Buffer {
        Buffer::with_lines(lines.iter().map(|line| (*line).to_owned()))
    }

    #[test]
    fn a_picture_is_written_over_the_one_before() {
        let mut painter = Painter::default();
        assert_eq!(painter.draw(&buffer(&["ab ", "c  "]), 80), "\rab\x1b[K\r\nc\x1b[K\r\n\x1b[J");
        assert_eq!(painter.draw(&buffer(&["ab ", "c  "]), 80), "", "nothing has changed");
        assert_eq!(painter.draw(&buffer(&["d"]), 80), "\r\x1b[2Ad\x1b[K\r\n\x1b[J");
        assert_eq!(painter.erase(80), "\r\x1b[1A\x1b[J");
        assert_eq!(painter.erase(80), "\r\x1b[J");
    }

    #[test]
    fn log_lines_go_above() {
        let mut painter = Painter::default();
        painter.draw(&buffer(&["ab"]), 80);
        assert_eq!(painter.above("log\n", 80), "\r\x1b[1A\x1b[Jlog\nab\x1b[K\r\n");
        assert_eq!(painter.above("half", 80), "\r\x1b[1A\x1b[Jhalf\r\nab\x1b[K\r\n");
    }

    #[test]
    fn lines_that_a_narrower_terminal_has_wrapped_are_counted() {
        let mut painter = Painter::default();
        painter.draw(&buffer(&["1234567890", "12   "]), 80);
        // At 4 columns: three lines and one.
        assert_eq!(painter.above("x\n", 4).split('x').next(), Some("\r\x1b[4A\x1b[J"));
        painter.forget();
        assert_eq!(painter.above("x\n", 4), "\r\x1b[Jx\n");
    }

    #[test]
    fn styles_are_sequences_that_end_with_the_line() {
        let mut buffer = Buffer::empty(Rect::new(0, 0, 6, 1));
        buffer.set_string(0, 0, "ab", Style::new().fg(Color::Green).add_modifier(Modifier::BOLD));
        buffer.set_string(2, 0, "c漢", Style::new());
        assert_eq!(row(&buffer, 0).text, "\x1b[0;1;32mab\x1b[0mc漢");
        assert_eq!(row(&buffer, 0).columns, 5);
    }
}

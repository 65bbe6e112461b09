//! The one terminal of this process: whoever writes to standard error while a view is shown goes through it.

use std::io::{self, Write};
use std::panic;
use std::sync::{Arc, Mutex, MutexGuard, Once, PoisonError, TryLockError};
use std::time::Duration;

use ratatui::buffer::Buffer;
use ratatui::layout::Rect;
use ratatui::text::Line;
use ratatui::widgets::Widget;

use super::layout::{self, Size};
use super::model::Model;
use super::painter::Painter;
use crate::alerts;

/// Of a terminal that does not say how large it is.
const USUAL_SIZE: (u16, u16) = (80, 24);

/// Standard error.
pub(super) static SCREEN: Screen = Screen { shown: Mutex::new(None) };

/// See the module's documentation.
pub(super) struct Screen {
    shown: Mutex<Option<Shown>>,
}

#[derive(Debug)]
struct Shown {
    model: Arc<Mutex<Model>>,
    painter: Painter,
}

impl Screen {
    fn shown(&self) -> MutexGuard<'_, Option<Shown>> {
        self.shown.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn open(&self, model: Arc<Mutex<Model>>) {
        *self.shown() = Some(Shown { model, painter: Painter::default() });
        static HOOK: Once = Once::new();
        HOOK.call_once(|| {
            let before = panic::take_hook();
            panic::set_hook(Box::new(move |info| {
                SCREEN.make_room();
                before(info);
            }));
        });
    }

    /// The picture stays, and nothing is drawn any more.
    pub(super) fn close(&self) {
        *self.shown() = None;
    }

    /// Draws the picture if it has changed.
    pub(super) fn draw(&self, now: Duration) {
        let mut shown = self.shown();
        let Some(shown) = shown.as_mut() else { return };
        let (columns, rows) = size();
        let size = Size { width: columns.into(), height: rows.into() };
        shown.model().alert = alerts::newest();
        let lines = layout::lines(&shown.model(), now, size);
        write(&shown.painter.draw(&picture(lines, columns), columns));
    }

    /// Writes the log's bytes, above the picture if there is one.
    pub(super) fn log(&self, bytes: &[u8]) -> io::Result<()> {
        let mut shown = self.shown();
        let Some(shown) = shown.as_mut() else { return io::stderr().write_all(bytes) };
        let lines = String::from_utf8_lossy(bytes);
        io::stderr().write_all(shown.painter.above(&lines, size().0).as_bytes())
    }

    /// The next picture is drawn where the cursor is.
    pub(super) fn forget(&self) {
        if let Some(shown) = self.shown().as_mut() {
            shown.painter.forget();
        }
    }

    /// Takes the picture away for the words of a panic; it comes back below them. Whoever panics may be drawing.
    fn make_room(&self) {
        let mut shown = match self.shown.try_lock() {
            Ok(shown) => shown,
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            Err(TryLockError::WouldBlock) => return,
        };
        if let Some(shown) = shown.as_mut() {
            write(&shown.painter.erase(size().0));
        }
    }
}

impl Shown {
    fn model(&self) -> MutexGuard<'_, Model> {
        self.model.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Lines as cells.
pub(super) fn picture(lines: Vec<Line<'static>>, columns: u16) -> Buffer {
    let mut buffer = Buffer::empty(Rect::new(0, 0, columns, lines.len() as u16));
    for (y, line) in (0..).zip(lines) {
        line.render(Rect::new(0, y, columns, 1), &mut buffer);
    }
    buffer
}

/// Columns and rows.
fn size() -> (u16, u16) {
    let size = rustix::termios::tcgetwinsize(io::stderr()).ok();
    size.map(|size| (size.ws_col, size.ws_row))
        .filter(|(columns, rows)| *columns > 0 && *rows > 0)
        .unwrap_or(USUAL_SIZE)
}

fn write(bytes: &str) {
    // A terminal that is gone shows nothing; the run goes on.
    let _ = io::stderr().write_all(bytes.as_bytes());
}

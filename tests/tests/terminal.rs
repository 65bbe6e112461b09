//! The live view on a real terminal, started from a shell as a person would.

#![allow(clippy::unwrap_used, reason = "a test ends at the first thing that is not as expected")]

use std::io::{Read, Write};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use g2rl_tests::{cluster, program, root, until};
use portable_pty::{Child, CommandBuilder, MasterPty, PtySize, native_pty_system};

const DEADLINE: Duration = Duration::from_secs(60);

/// A shell on a terminal, and what the terminal shows.
struct Terminal {
    master: Box<dyn MasterPty + Send>,
    shell: Box<dyn Child + Send + Sync>,
    keys: Box<dyn Write + Send>,
    screen: Arc<Mutex<vt100::Parser>>,
}

impl Terminal {
    fn open(columns: u16, rows: u16) -> Self {
        let size = PtySize { rows, cols: columns, pixel_width: 0, pixel_height: 0 };
        let pair = native_pty_system().openpty(size).unwrap();
        let mut shell = CommandBuilder::new("bash");
        shell.args(["--norc", "--noprofile", "-i"]);
        shell.cwd(root());
        for (name, value) in [("TERM", "xterm-256color"), ("PS1", "$ "), ("HISTFILE", "")] {
            shell.env(name, value);
        }
        shell.env("G2RL_WORKER", program("g2rl-worker"));
        // With them there is no view.
        ["CI", "NO_COLOR"].iter().for_each(|name| shell.env_remove(name));
        let shell = pair.slave.spawn_command(shell).unwrap();
        let screen = Arc::new(Mutex::new(vt100::Parser::new(rows, columns, 0)));
        let mut output = pair.master.try_clone_reader().unwrap();
        let shown = screen.clone();
        std::thread::spawn(move || {
            let mut bytes = [0; 4096];
            while let Ok(count @ 1..) = output.read(&mut bytes) {
                shown.lock().unwrap().process(&bytes[..count]);
            }
        });
        let keys = pair.master.take_writer().unwrap();
        Self { master: pair.master, shell, keys, screen }
    }

    fn screen(&self) -> MutexGuard<'_, vt100::Parser> {
        self.screen.lock().unwrap()
    }

    fn text(&self) -> String {
        self.screen().screen().contents()
    }

    fn press(&mut self, keys: &str) {
        self.keys.write_all(keys.as_bytes()).unwrap();
        self.keys.flush().unwrap();
    }

    fn resize(&self, columns: u16, rows: u16) {
        self.screen().screen_mut().set_size(rows, columns);
        self.master.resize(PtySize { rows, cols: columns, pixel_width: 0, pixel_height: 0 }).unwrap();
    }

    /// Waits until the screen is as it should be.
    fn wait(&self, what: &str, is_so: impl Fn(&str) -> bool) -> String {
        let found = until(DEADLINE, || Some(self.text()).filter(|text| is_so(text)));
        found.unwrap_or_else(|| panic!("{what}: the screen shows\n{}", self.text()))
    }

    /// Of the view's second line.
    fn steps_done(text: &str) -> Option<u64> {
        let (_, counts) = text.rsplit_once("\n step ")?;
        counts.split_once('/')?.0.parse().ok()
    }

    /// Waits until the view shows a step after those that it shows now.
    fn wait_for_a_step(&self) -> String {
        let before = Self::steps_done(&self.text()).unwrap_or(0);
        self.wait("a step", |text| Self::steps_done(text).is_some_and(|done| done > before))
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        // Whoever has this terminal hears that it is gone, and ends.
        let _ = self.shell.kill();
    }
}

#[test]
fn the_view_stands_on_a_terminal_and_leaves_it_as_it_was() {
    let dir = tempfile::tempdir().unwrap();
    let more = [
        "run.steps=100000",
        "cluster.min_workers=1",
        "cluster.max_workers=1",
        "cluster.heartbeat_timeout_ms=30000",
    ];
    let settings = cluster::settings(dir.path(), &more).unwrap().join(" ");
    let mut terminal = Terminal::open(110, 30);
    terminal.wait("a prompt", |text| text.trim_end().ends_with('$'));
    let program = program("g2rl-coordinator");
    terminal.press(&format!(
        "clear; {} train --config configs/demo.toml --local-workers 1 {settings}\r",
        program.display()
    ));
    // The pace is known from the second step on.
    terminal.wait_for_a_step();
    let text = terminal.wait_for_a_step();
    for shown in ["reward", "entropy", "orthogonal", "local-0-cpu", "s/step", "left"] {
        assert!(text.contains(shown), "no {shown} in\n{text}");
    }
    assert!(!text.contains("cannot read"), "{text}");
    // One view, and nothing that would have to be undone.
    assert_eq!(text.matches("\n step ").count(), 1, "{text}");
    {
        let parser = terminal.screen();
        let screen = parser.screen();
        assert!(!screen.alternate_screen() && !screen.hide_cursor() && !screen.bracketed_paste(), "{text}");
    }

    terminal.resize(60, 16);
    let text = terminal.wait_for_a_step();
    assert!(text.lines().last().is_some_and(|line| line.chars().count() <= 60), "{text}");

    terminal.resize(110, 40);
    terminal.wait_for_a_step();
    // Ctrl-Z, a word in the shell, and back.
    terminal.press("\x1a");
    terminal.wait("the shell", |text| text.contains("Stopped"));
    terminal.press("clear; echo one $((1 + 1)) three\r");
    terminal.wait("the shell's answer", |text| text.contains("one 2 three"));
    terminal.press("fg\r");
    let text = terminal.wait_for_a_step();
    assert!(text.contains("one 2 three") && text.matches("\n step ").count() == 1, "{text}");

    terminal.press("\x03");
    terminal.wait("the end", |text| text.trim_end().ends_with('$'));
    terminal.press("echo ended with $?\r");
    let text =
        terminal.wait("its code", |text| text.contains("ended with 0") || text.contains("ended with 1"));
    assert!(text.contains("ended with 0"), "{text}");
    // The prompt is on a line of its own, below the last picture.
    assert!(text.lines().any(|line| line.starts_with("$ echo ended")), "{text}");
}

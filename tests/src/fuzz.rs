//! Hostile and broken input: what reads something from outside, given anything at all.
//!
//! Each target takes bytes and either refuses them or accepts them; it never panics, and what it accepts keeps
//! its promises. `fuzz/` holds a cargo-fuzz target for each, and [`run`] gives each a fixed number of mutated
//! corpus entries, the same for the same seed.

use std::path::{Component, Path};
use std::time::{Duration, Instant};

use g2rl_common::config::{BadRow, ColumnNames, RunConfig};
use g2rl_common::seed::CounterRng;
use g2rl_coordinator::dataset::{Dataset, ReadOptions, Source, Template};
use g2rl_coordinator::reward::Reward;
use g2rl_coordinator::reward::countdown::CountdownReward;
use g2rl_coordinator::reward::math::MathReward;
use g2rl_coordinator::state::{Coordinator, Record, RunPlan};
use g2rl_coordinator::wal::{self, Contents, Wal};
use g2rl_coordinator::{checkpoints, journal};
use g2rl_hub::manifest::{FileEntry, MANIFEST_FILE, Manifest};
use g2rl_proto::{Command, WorkerEvent, wire};
use prost::Message;

/// Longest verdict: far above what it takes, far below what would hold up a run.
const LONGEST_VERDICT: Duration = Duration::from_secs(5);

/// Longest input.
const MAX_BYTES: usize = 1 << 16;

/// What can be fuzzed.
#[derive(Debug, Clone, Copy)]
pub struct Target {
    /// Name of its corpus, and of its file in `fuzz/fuzz_targets`.
    pub name: &'static str,
    /// Feeds it; true if the input was accepted.
    pub feed: fn(&[u8]) -> bool,
}

/// All targets.
pub const TARGETS: [Target; 9] = [
    Target { name: "worker_message", feed: worker_message },
    Target { name: "coordinator_message", feed: coordinator_message },
    Target { name: "config", feed: config },
    Target { name: "rows", feed: rows },
    Target { name: "verifier", feed: verifier },
    Target { name: "journal", feed: journal_file },
    Target { name: "write_ahead_log", feed: write_ahead_log },
    Target { name: "manifest", feed: manifest },
    Target { name: "trainer_state", feed: trainer_state },
];

/// A message of a worker: what gets through means the same when it is sent on.
#[must_use]
pub fn worker_message(data: &[u8]) -> bool {
    let Ok(message) = wire::WorkerMessage::decode(data) else { return false };
    let Ok(event) = WorkerEvent::try_from(message) else { return false };
    let sent = wire::WorkerMessage::from(event).encode_to_vec();
    let heard = wire::WorkerMessage::decode(&*sent).expect("what was encoded is decoded");
    let again = WorkerEvent::try_from(heard).expect("what was accepted is accepted again");
    assert_eq!(wire::WorkerMessage::from(again).encode_to_vec(), sent);
    true
}

/// A message of a coordinator.
#[must_use]
pub fn coordinator_message(data: &[u8]) -> bool {
    let Ok(message) = wire::CoordinatorMessage::decode(data) else { return false };
    let Ok(command) = Command::try_from(message) else { return false };
    let sent = wire::CoordinatorMessage::from(command).encode_to_vec();
    let heard = wire::CoordinatorMessage::decode(&*sent).expect("what was encoded is decoded");
    let again = Command::try_from(heard).expect("what was accepted is accepted again");
    assert_eq!(wire::CoordinatorMessage::from(again).encode_to_vec(), sent);
    true
}

/// A configuration: what is accepted is the same after it was written and read, as workers read it.
#[must_use]
pub fn config(data: &[u8]) -> bool {
    let Ok(text) = std::str::from_utf8(data) else { return false };
    let Ok(config) = RunConfig::from_toml(text) else { return false };
    let written = config.to_toml();
    let read = RunConfig::from_toml(&written).expect("a configuration that was accepted is accepted again");
    assert_eq!(read.to_toml(), written);
    true
}

/// A file in a directory of its own; in memory where the system has such a place, since some targets wait for the disk.
fn with_file<T>(name: &str, data: &[u8], read: impl FnOnce(&Path) -> T) -> T {
    let memory = Path::new("/dev/shm");
    let place = if memory.is_dir() { memory.to_owned() } else { std::env::temp_dir() };
    let dir = tempfile::tempdir_in(place).expect("the system has room for a small directory");
    let path = dir.path().join(name);
    std::fs::create_dir_all(path.parent().unwrap_or(dir.path())).expect("a directory can be made");
    std::fs::write(&path, data).expect("a small file can be written");
    read(&path)
}

/// A file of problems, as JSON lines or, where it begins so, as a JSON array: ids are unique and nothing is empty.
#[must_use]
pub fn rows(data: &[u8]) -> bool {
    let name = if data.first() == Some(&b'[') { "rows.json" } else { "rows.jsonl" };
    with_file(name, data, |path| {
        let options = ReadOptions {
            columns: Default::default(),
            on_bad_row: BadRow::Skip,
            max_problems: None,
            needs_solution: false,
            answer_pattern: None,
            template: Template::new(None, &ColumnNames::default()),
            problem_chars: (1, 10_000),
        };
        let strict = ReadOptions { on_bad_row: BadRow::Error, ..options.clone() };
        let strictly = Dataset::read(&Source::file(path), &strict);
        let Ok(dataset) = Dataset::read(&Source::file(path), &options) else {
            assert!(strictly.is_err(), "what cannot be read at all cannot be read strictly");
            return false;
        };
        let mut ids: Vec<&str> = dataset.problems.iter().map(|problem| problem.id.as_str()).collect();
        ids.sort_unstable();
        assert!(ids.windows(2).all(|pair| pair[0] != pair[1]), "two problems have one id");
        assert!(dataset.problems.iter().all(|problem| !problem.problem.is_empty()));
        assert_eq!(strictly.is_ok(), dataset.skipped == 0);
        true
    })
}

/// An answer, after the reference in the first line: the verdict comes soon and is always the same.
#[must_use]
pub fn verifier(data: &[u8]) -> bool {
    let text = String::from_utf8_lossy(data);
    let (gold, response) = text.split_once('\n').unwrap_or((&text, ""));
    let start = Instant::now();
    let verdict = MathReward { last_number: true }.verify(gold, response);
    assert!(start.elapsed() < LONGEST_VERDICT, "{:?} for {text:?}", start.elapsed());
    assert_eq!(MathReward { last_number: true }.verify(gold, response), verdict);
    let countdown = CountdownReward.verify(gold, response);
    assert!(verdict.extracted.is_some() || !verdict.correct, "right without an answer: {text:?}");
    verdict.extracted.is_some() || countdown.extracted.is_some()
}

/// A journal's file.
#[must_use]
pub fn journal_file(data: &[u8]) -> bool {
    with_file("journal.sqlite", data, |path| {
        let dir = path.parent().unwrap_or(path);
        journal::response_lengths(dir).is_ok_and(|lengths| !lengths.is_empty())
    })
}

/// The run that the write-ahead logs of the corpus belong to.
const LOGGED_RUN: &str = "
[run]
name = 'fuzz'
dir = 'runs/fuzz'
steps = 2
[model]
path = 'model'
[data]
train = 'train.jsonl'
[rollout]
prompts_per_step = 2
group_size = 2
[update]
sequences_per_minibatch = 2
";

/// Training problems of that run.
const LOGGED_PROBLEMS: u32 = 8;

/// A segment of a write-ahead log, as it is and with the checksums that its frames should have: what is read of it
/// can be gone on from, and a machine is restored from its records or says why not.
#[must_use]
pub fn write_ahead_log(data: &[u8]) -> bool {
    let as_it_is = read_log(data);
    let mut checked = data.to_vec();
    put_checksums(&mut checked);
    read_log(&checked) || as_it_is
}

fn read_log(data: &[u8]) -> bool {
    with_file("wal/000001.log", data, |path| {
        let dir = path.ancestors().nth(2).unwrap_or(path);
        let Ok(Some(contents)) = wal::read(dir) else { return false };
        go_on(dir, &contents);
        let config = RunConfig::from_toml(LOGGED_RUN).expect("the configuration is one");
        let plan = RunPlan::from_config(&config, LOGGED_PROBLEMS, 0, None);
        let records: Vec<Record> = contents.entries.iter().map(|entry| entry.record.clone()).collect();
        Coordinator::restore(plan, &records).is_ok()
    })
}

/// Writes the last entry once more and reads the log again.
fn go_on(dir: &Path, contents: &Contents) {
    let mut expected = contents.entries.clone();
    let last = expected.last().expect("what is read begins with a position").clone();
    if matches!(last.record, Record::Position { .. }) {
        expected.clear();
    }
    expected.push(last.clone());
    let mut log = Wal::append_to(dir, contents).expect("a log that was read can be gone on from");
    log.append(&last).and_then(|()| log.sync()).expect("a small file can be written");
    let again = wal::read(dir).expect("it was read before").expect("it was there before");
    assert_eq!(again.torn, 0);
    // As text: a number may be none, which equals nothing.
    assert_eq!(format!("{:?}", again.entries), format!("{expected:?}"));
}

/// Gives each frame (length, checksum, payload) its checksum, so that what is mutated inside is looked at.
fn put_checksums(data: &mut [u8]) {
    let mut rest = data;
    while let Some((head, after)) = std::mem::take(&mut rest).split_at_mut_checked(8) {
        let length = u32::from_le_bytes([head[0], head[1], head[2], head[3]]) as usize;
        let Some((payload, next)) = after.split_at_mut_checked(length) else { return };
        head[4..].copy_from_slice(&crc32fast::hash(payload).to_le_bytes());
        rest = next;
    }
}

/// A checkpoint's manifest: what is accepted is written and read again, and names files of its own directory only.
#[must_use]
pub fn manifest(data: &[u8]) -> bool {
    let Ok(manifest) = Manifest::parse(data, Path::new(MANIFEST_FILE)) else { return false };
    with_file("weights", b"", |path| {
        let dir = path.parent().unwrap_or(path);
        manifest.write(dir).expect("a small file can be written");
        let again = Manifest::read(dir).expect("a manifest that was accepted is accepted again");
        // Whether they are there is of no interest here.
        let _ = again.check(dir, |name| {
            let parts: Vec<Component<'_>> = Path::new(name).components().collect();
            assert!(matches!(parts[..], [Component::Normal(_)]), "{name:?} leads elsewhere");
            true
        });
    });
    true
}

/// The coordinator's state inside a checkpoint that is what was written.
#[must_use]
pub fn trainer_state(data: &[u8]) -> bool {
    with_file("checkpoints/step-000003/trainer_state.json", data, |path| {
        let checkpoint = path.parent().unwrap_or(path);
        let entry = FileEntry::of_file(path).expect("the file is there");
        let manifest = Manifest::new(serde_json::json!({}), [("trainer_state.json".to_owned(), entry)]);
        manifest.write(checkpoint).expect("a small file can be written");
        checkpoints::latest(path.ancestors().nth(3).unwrap_or(path)).is_ok()
    })
}

/// Pieces that parsers care about.
const PIECES: [&[u8]; 24] = [
    b"\\boxed{",
    b"}",
    b"{",
    b"[",
    b"]",
    b"\"",
    b"=",
    b"\n",
    b"\\frac",
    b"^",
    b"_",
    b"\\sqrt",
    b"1e999",
    b"-0",
    b"18446744073709551616",
    b"nan",
    b"\\begin{pmatrix}",
    b"&",
    b"\xff\xfe",
    b"\xf0\x9d\x9f\x99",
    b"\0",
    b"((((((((",
    b"\\infty",
    b"0.1",
];

/// Changes an input a little, or a lot.
fn mutate(data: &mut Vec<u8>, other: &[u8], random: &mut CounterRng) {
    let mut below = |bound: usize| random.below(bound.max(1) as u64) as usize;
    for _ in 0..=below(6) {
        let at = below(data.len() + 1);
        let length = below(16).min(data.len() - at);
        match below(9) {
            0 if at < data.len() => data[at] ^= 1 << below(8),
            1 if at < data.len() => data[at] = [0, 1, 0x7f, 0x80, 0xff, b'0', b'9', b' '][below(8)],
            2 => drop(data.drain(at..at + length)),
            3 => {
                let copy = data[at..at + length].to_vec();
                drop(data.splice(at..at, copy));
            }
            4 => {
                let piece = PIECES[below(PIECES.len())];
                drop(data.splice(at..at, piece.iter().copied()));
            }
            5 => data.truncate(at),
            6 => {
                let from = below(other.len() + 1);
                data.truncate(at);
                data.extend_from_slice(&other[from..]);
            }
            7 => {
                let copy = data[at..at + length].repeat(1 + below(200));
                drop(data.splice(at..at, copy));
            }
            _ => {
                let bytes: Vec<u8> = (0..below(8)).map(|_| below(256) as u8).collect();
                drop(data.splice(at..at, bytes));
            }
        }
        data.truncate(MAX_BYTES);
    }
}

/// Shows an input if it makes its target panic.
struct Shown<'a> {
    target: &'static str,
    iteration: u64,
    data: &'a [u8],
}

impl Drop for Shown<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let Self { target, iteration, data } = self;
            eprintln!("{target}, input {iteration}: b\"{}\"", data.escape_ascii());
        }
    }
}

/// How many inputs a target refused and accepted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Inputs.
    pub inputs: u64,
    /// Those that were accepted.
    pub accepted: u64,
}

/// Feeds a target its corpus and then mutations of it.
///
/// # Panics
/// If the target does, or the corpus is empty.
#[must_use]
pub fn run(target: &Target, iterations: u64, seed: u64) -> Counts {
    let folder = crate::root().join("fuzz/corpus").join(target.name);
    let entries = std::fs::read_dir(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    let mut paths: Vec<_> = entries.filter_map(|entry| Some(entry.ok()?.path())).collect();
    paths.sort();
    let corpus: Vec<Vec<u8>> = paths.iter().filter_map(|path| std::fs::read(path).ok()).collect();
    let mut random = CounterRng::new(seed, target.name);
    let mut counts = Counts::default();
    for iteration in 0..iterations {
        let entry = |at: u64| &corpus[at as usize % corpus.len()];
        let mut data = entry(iteration).clone();
        if iteration >= corpus.len() as u64 {
            let other = entry(random.next_u64()).clone();
            mutate(&mut data, &other, &mut random);
        }
        let shown = Shown { target: target.name, iteration, data: &data };
        counts.inputs += 1;
        counts.accepted += u64::from((target.feed)(shown.data));
    }
    counts
}

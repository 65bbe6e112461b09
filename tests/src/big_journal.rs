//! A journal as a long run leaves it, made up: for what has to stay fast however long a run is.
//!
//! The numbers look like those of a run (rewards rise, responses grow, some are cut off) and are the same each time. No
//! step of it was ever trained.

use std::path::Path;

use anyhow::Context;
use g2rl_common::geometry::HISTOGRAM_BINS;
use g2rl_coordinator::journal;
use rusqlite::{Transaction, params};

/// How long a run.
#[derive(Debug, Clone, Copy)]
pub struct Size {
    /// Training steps.
    pub steps: u64,
    /// Groups of each.
    pub groups: u64,
    /// Rollouts of each group.
    pub group_size: u64,
}

impl Size {
    /// Rollouts of all steps.
    #[must_use]
    pub fn rollouts(&self) -> u64 {
        self.steps * self.groups * self.group_size
    }
}

/// Responses that look like markup: one in [`MARKUP_EVERY`] groups has them.
pub const MARKUP: &str =
    "<script>window.markupRan = true</script><img src=x onerror=\"window.markupRan = true\">";

/// See [`MARKUP`]; the first group is one of them.
pub const MARKUP_EVERY: u64 = 1000;

/// A row of small numbers that look random.
struct Noise(u64);

impl Noise {
    /// In [0, 1).
    fn next(&mut self) -> f64 {
        // xorshift64*: Vigna, "An experimental exploration of Marsaglia's xorshift generators", 2016.
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 11) as f64 / (1u64 << 53) as f64
    }
}

/// Makes a run directory with a journal, a configuration and the problems that it names.
///
/// # Errors
/// If it cannot be written.
pub fn write(dir: &Path, size: Size) -> anyhow::Result<()> {
    std::fs::create_dir_all(dir)?;
    let problems = dir.join("train.jsonl");
    let lines: Vec<String> = (0..PROBLEMS)
        .map(|at| {
            let text = format!(
                "A train leaves at {at} o'clock and <b>stops</b> {} times. When does it arrive?",
                at % 7
            );
            serde_json::json!({ "id": format!("p{at}"), "problem": text, "answer": at.to_string() })
                .to_string()
        })
        .collect();
    std::fs::write(&problems, lines.join("\n"))?;
    let config = format!(
        "[run]\nname = 'long'\ndir = '{}'\nsteps = {}\n[model]\npath = 'm'\n[data]\ntrain = '{}'\n\
         [rollout]\nprompts_per_step = {}\ngroup_size = {}\n",
        dir.display(),
        size.steps,
        problems.display(),
        size.groups,
        size.group_size
    );
    std::fs::write(dir.join("config.toml"), config)?;
    let mut db = journal::create(dir).context("journal")?;
    db.pragma_update(None, "synchronous", "OFF")?;
    let mut noise = Noise(0x9E37_79B9_7F4A_7C15);
    for first in (0..size.steps).step_by(100) {
        let rows = db.transaction()?;
        for step in first..size.steps.min(first + 100) {
            self::step(&rows, step, size, &mut noise)?;
        }
        rows.commit()?;
    }
    Ok(())
}

const PROBLEMS: u64 = 500;

/// 2026-01-01, milliseconds since 1970; a step takes a minute.
const BEGIN_MS: u64 = 1_767_225_600_000;
const STEP_MS: u64 = 60_000;

fn step(db: &Transaction<'_>, step: u64, size: Size, noise: &mut Noise) -> rusqlite::Result<()> {
    let progress = step as f64 / size.steps as f64;
    let right = 0.2 + 0.6 * progress.sqrt();
    let mut histogram = [0u64; HISTOGRAM_BINS];
    for at in 0..size.groups {
        let group = step * size.groups + at;
        self::group(db, (group, step), size.group_size, (right, &mut histogram), noise)?;
    }
    let pairs = histogram.iter().sum::<u64>().max(1) as f64;
    let share = |bins: std::ops::Range<usize>| histogram[bins].iter().sum::<u64>() as f64 / pairs;
    let mut about = |value: f64, spread: f64| value * (1.0 + spread * (noise.next() - 0.5));
    let seconds = [about(38_000.0, 0.2), about(1_500.0, 0.5), about(17_000.0, 0.1)];
    let spike = if step % 997 == 996 { 40.0 } else { 1.0 };
    db.prepare_cached("INSERT INTO step VALUES (?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?)")?
        .execute(params![
            step,
            2 * (step + 1),
            about(0.02 - 0.05 * progress, 0.8),
            about(0.001 + 0.03 * progress, 0.3),
            about(0.012, 0.5),
            about(1.1 - 0.6 * progress, 0.08),
            about(0.0006, 0.4),
            about(0.05, 0.8),
            about(0.4, 0.5) * spike,
            1e-6 * (progress * 20.0).min(1.0),
            size.groups * size.group_size * 300,
            seconds[0] as u64,
            seconds[1] as u64,
            seconds[2] as u64,
            about(2.0 * right - 1.0, 0.1),
            about(right, 0.1),
            about(180.0 + 240.0 * progress, 0.1),
            about(0.55 + 0.15 * progress, 0.1),
            about(0.45 - 0.3 * progress, 0.1),
            about(0.44 - 0.3 * progress, 0.1),
            share(0..20),
            share(18..22),
            about(0.02, 0.6),
            (size.groups as f64 * 0.2) as u64,
            serde_json::json!(histogram.to_vec()).to_string(),
            about(right, 0.1),
            (0.8 * seconds[1]) as u64,
        ])?;
    let finished = BEGIN_MS + (step + 1) * STEP_MS;
    db.prepare_cached("INSERT INTO clock VALUES (?,?)")?.execute(params![step, finished])?;
    if step.is_multiple_of(50) {
        let mut insert = db.prepare_cached("INSERT INTO evaluation VALUES (?,?,?,?,?,?,?)")?;
        for (name, gain) in [("pass@1", 0.0), ("pass@8", 0.15)] {
            let mean = (right + gain).min(1.0);
            insert.execute(params![step, name, mean, mean - 0.03, mean + 0.03, 200, 8])?;
        }
    }
    Ok(())
}

fn group(
    db: &Transaction<'_>,
    (group, step): (u64, u64),
    size: u64,
    (right, histogram): (f64, &mut [u64; HISTOGRAM_BINS]),
    noise: &mut Noise,
) -> rusqlite::Result<()> {
    let mut cosines = Vec::new();
    for _ in 0..size * (size - 1) / 2 {
        let cosine = (0.9 - 0.5 * right - 0.9 * noise.next() * noise.next()).clamp(-1.0, 1.0);
        histogram[(((cosine + 1.0) * HISTOGRAM_BINS as f64 / 2.0) as usize).min(HISTOGRAM_BINS - 1)] += 1;
        cosines.extend(((cosine * f64::from(i16::MAX)) as i16).to_le_bytes());
    }
    db.prepare_cached("INSERT INTO grp VALUES (?,?,?,?,?,?)")?.execute(params![
        group,
        step,
        group * 7 % PROBLEMS,
        false,
        false,
        0.9 - 0.6 * right
    ])?;
    db.prepare_cached("INSERT INTO geometry VALUES (?,?,?)")?.execute(params![group, step, cosines])?;
    let mut insert = db.prepare_cached("INSERT INTO rollout VALUES (?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?)")?;
    for index in 0..size {
        let correct = noise.next() < right;
        let cut = !correct && noise.next() < 0.1;
        let novelty = (0.3 + 0.7 * noise.next()) * if correct { 0.9 } else { 1.0 };
        let reward = if correct { 1.0 } else { -1.0 };
        let length = 40 + (noise.next() * 120.0) as u64;
        let text = match group.is_multiple_of(MARKUP_EVERY) {
            true => format!("{MARKUP} of group {group}"),
            false => format!(
                "We look at group {group}. {}So it is {index}.",
                "Then we add the hours. ".repeat((length / 8) as usize)
            ),
        };
        insert.execute(params![
            group,
            index,
            step,
            2 * step,
            text,
            length,
            64,
            if cut { "length" } else { "end_token" },
            0.4 + noise.next(),
            correct,
            index.to_string(),
            index.to_string(),
            if correct { "equal" } else { "different" },
            reward,
            reward * (1.0 + novelty),
            reward * novelty,
            novelty,
            f64::from(u8::from(correct)),
        ])?;
    }
    Ok(())
}

//! Many runs, each decided by its seed: sizes, delays, loss, duplicates, and what goes wrong.
//! [`super::support::checks`] looks at every effect of every event.
//!
//! A run that breaks an invariant is replayed, in readable lines, by the command that its failure prints.

mod planted;
mod schedule;

use std::collections::BTreeMap;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use super::support::worker::Behavior;
use super::support::{Sim, plan};
use crate::state::{Effect, Outcome};
use schedule::{Kind, Report, Schedule};

const SCHEDULES: u64 = 10_000;

/// Failures that are reported; several show what they have in common.
const MOST_FAILURES: usize = 20;

/// Runs one schedule.
///
/// # Errors
/// Which invariant it breaks.
fn run(seed: u64) -> Result<Report, String> {
    catch_unwind(AssertUnwindSafe(|| Schedule::new(seed).run())).map_err(|panic| {
        let text = panic.downcast_ref::<String>().map(String::as_str);
        text.or(panic.downcast_ref::<&str>().copied()).unwrap_or("it panicked").to_owned()
    })
}

/// The first schedule that breaks an invariant.
fn first_failure(mut seeds: Range<u64>) -> Option<(u64, String)> {
    seeds.find_map(|seed| run(seed).err().map(|message| (seed, message)))
}

/// How a schedule is run alone.
fn replay(seed: u64) -> String {
    format!(
        "G2RL_SIMULATOR_SEED={seed} G2RL_SIMULATOR_TRACE=1 \\\n    cargo test -p g2rl-coordinator --lib \
         schedules_keep_every_invariant -- --nocapture"
    )
}

/// What many schedules came to.
#[derive(Debug, Default)]
struct Tally {
    /// Completed, stopped, failed.
    outcomes: BTreeMap<Kind, [u64; 3]>,
    events: u64,
    epochs_failed: u64,
    restarts: u64,
    started_over: u64,
    skipped_minibatches: u64,
}

impl Tally {
    fn add(&mut self, report: &Report) {
        let outcome = match report.outcome {
            Outcome::Completed => 0,
            Outcome::Stopped => 1,
            Outcome::Failed(_) => 2,
        };
        self.outcomes.entry(report.kind).or_default()[outcome] += 1;
        self.events += report.events;
        self.epochs_failed += report.epochs_failed;
        self.restarts += u64::from(report.restarts);
        self.started_over += u64::from(report.started_over);
        self.skipped_minibatches += report.skipped_minibatches;
    }
}

/// Runs all schedules on all processors, until so many have failed.
fn run_all() -> Tally {
    let (next, tally, failures) =
        (AtomicU64::new(0), Mutex::new(Tally::default()), Mutex::new(BTreeMap::new()));
    let work = || loop {
        let seed = next.fetch_add(1, Ordering::Relaxed);
        if seed >= SCHEDULES || failures.lock().unwrap().len() >= MOST_FAILURES {
            return;
        }
        match run(seed) {
            Ok(report) => tally.lock().unwrap().add(&report),
            Err(message) => {
                failures.lock().unwrap().insert(seed, message);
            }
        }
    };
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| (0..threads).for_each(|_| drop(scope.spawn(work))));
    let failures = failures.into_inner().unwrap();
    if let Some(first) = failures.keys().next() {
        let lines = failures.iter().map(|(seed, message)| format!("schedule {seed}: {message}\n"));
        panic!(
            "invariants are broken:\n{}\nReplay the first:\n{}",
            lines.collect::<String>(),
            replay(*first)
        );
    }
    tally.into_inner().unwrap()
}

#[test]
fn schedules_keep_every_invariant() {
    if let Ok(seed) = std::env::var("G2RL_SIMULATOR_SEED") {
        let seed = seed.parse().expect("G2RL_SIMULATOR_SEED is a number");
        let report = run(seed).unwrap_or_else(|message| panic!("schedule {seed}: {message}"));
        return println!("schedule {seed}: {report:?}");
    }
    let start = std::time::Instant::now();
    let tally = run_all();
    println!("{SCHEDULES} schedules in {:.1} s: {tally:?}", start.elapsed().as_secs_f64());
    for (kind, [completed, stopped, failed]) in &tally.outcomes {
        assert!(*completed > 50 && *stopped > 20 && *failed > 20, "{kind:?} is not exercised: {tally:?}");
    }
    let [completed, _, failed] = tally.outcomes[&Kind::Storm];
    assert!(completed > 2 * failed, "most runs go on: {tally:?}");
    let exercised = [tally.epochs_failed, tally.restarts, tally.skipped_minibatches];
    assert!(exercised.iter().all(|&count| count > 1_000), "something does not happen: {tally:?}");
    assert!(tally.started_over > 5, "no run goes back to its checkpoint: {tally:?}");
}

#[test]
fn the_same_seed_gives_the_same_effects() {
    for seed in 0..20 {
        let effects = || {
            let mut schedule = Schedule::new(seed);
            schedule.run();
            schedule.sim.log
        };
        assert_eq!(effects(), effects(), "seed {seed}");
    }
}

/// Rollouts and mini-batches do not depend on workers, delays or the order of arrival.
#[test]
fn the_number_of_workers_changes_neither_prompts_nor_minibatches() {
    let minibatches = |workers: u32, delay| {
        let mut sim = Sim::new(plan(workers), 9);
        sim.weather.max_delay_ms = delay;
        for rank in 0..workers {
            sim.connect(&format!("w{rank}"), 0, Behavior { slots: 3 + workers, ..Behavior::default() });
        }
        assert_eq!(sim.run(), Outcome::Completed);
        let mut trained: Vec<_> = sim
            .log
            .iter()
            .filter_map(|effect| match effect {
                Effect::TrainMinibatch { step, minibatch, sequences, .. } => {
                    Some((step, minibatch, sequences))
                }
                _ => None,
            })
            .flat_map(|(step, minibatch, sequences)| {
                sequences.iter().map(|order| {
                    (
                        *step,
                        *minibatch,
                        order.rollout,
                        order.policy_weight.to_bits(),
                        order.advantage.to_bits(),
                    )
                })
            })
            .collect();
        trained.sort_unstable();
        trained
    };
    let expected = minibatches(1, 1);
    assert_eq!(expected.len(), 3 * 16);
    for workers in 2..=4 {
        assert_eq!(minibatches(workers, 50), expected, "{workers} workers");
    }
}

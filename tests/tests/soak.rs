//! A run whose processes die all the time, at points and in ways drawn from a seed, ends like one that is left
//! alone. `G2RL_SOAK_SEED` replays a seed.

#![allow(clippy::unwrap_used, reason = "a test ends at the first thing that is not as expected")]

use std::time::Instant;

use g2rl_common::seed::CounterRng;
use g2rl_tests::cluster::{Cluster, Run, WorkerOptions};
use g2rl_tests::journal::StepShape;

/// Steps between two blows.
const EVERY: u64 = 2;
/// Steps at the end in which nobody dies any more: a blow that takes long would find the run over.
const LAST: u64 = 2 * EVERY;
const SHAPE: StepShape = StepShape { groups: 6, group_size: 4, minibatches: 2 };

/// How a process dies.
#[derive(Debug)]
enum Blow {
    /// The coordinator, so many hundredths of a step after a step's end, and the oldest rank when it is back.
    Coordinator(u64),
    /// The youngest rank, at a failpoint it was started with.
    AtPoint(String),
    /// By a signal, whatever it does.
    Signal(Victim, &'static str),
}

/// Who gets a signal.
#[derive(Debug)]
enum Victim {
    OldestRank,
    YoungestRank,
}

impl Blow {
    fn draw(random: &mut CounterRng) -> Self {
        // So often does a rank come to each point in about two steps.
        let points = [
            ("prefill", 6),
            ("rollout", 24),
            ("gradients", 4),
            ("all_reduce", 4),
            ("ready", 4),
            ("apply", 4),
        ];
        let signal = if random.below(3) == 0 { "-STOP" } else { "-KILL" };
        match random.below(5) {
            4 => Self::Coordinator(random.below(100)),
            0 => Self::Signal(Victim::OldestRank, signal),
            1 => Self::Signal(Victim::YoungestRank, signal),
            _ => {
                let (point, most) = points[random.below(points.len() as u64) as usize];
                let stop = if signal == "-STOP" { ":stop" } else { "" };
                Self::AtPoint(format!("{point}:{}{stop}", 1 + random.below(most)))
            }
        }
    }

    fn failpoint(&self) -> Option<&str> {
        match self {
            Self::AtPoint(failpoint) => Some(failpoint),
            Self::Coordinator(_) | Self::Signal(..) => None,
        }
    }
}

/// Two ranks: while one is missing the run waits, so that its steps do not depend on how long others take to start.
fn start(steps: u64, run_seed: u64) -> Cluster {
    let (steps, seed) = (format!("run.steps={steps}"), format!("run.seed={run_seed}"));
    let settings = [
        "checkpoint.every=10",
        "cluster.min_workers=2",
        "cluster.max_workers=3",
        // A rank needs up to two seconds to find a new coordinator.
        "cluster.heartbeat_timeout_ms=4000",
        &steps,
        &seed,
    ];
    Cluster::start(&settings, None).unwrap()
}

fn left_alone(steps: u64, run_seed: u64) -> Run {
    let mut cluster = start(steps, run_seed);
    for name in ["a", "b"] {
        cluster.add(name, &WorkerOptions::default()).unwrap();
    }
    cluster.finish().unwrap()
}

/// A rank dies within [`EVERY`] steps and is replaced, again and again; now and then the coordinator is killed
/// before it.
fn disturbed(steps: u64, run_seed: u64, soak_seed: u64) -> Run {
    let mut random = CounterRng::new(soak_seed, "soak");
    let mut cluster = start(steps, run_seed);
    // The oldest first. Ranks go by name: who comes is rank 0 as often as rank 1.
    let mut names = vec!["m-0".to_owned()];
    cluster.add(&names[0], &WorkerOptions::default()).unwrap();
    for number in 1.. {
        if cluster.steps_done().unwrap() + LAST >= steps {
            break;
        }
        let blow = Blow::draw(&mut random);
        let name = format!("{}-{number}", if random.below(2) == 0 { "a" } else { "z" });
        println!("soak {soak_seed}, {number}: {name} comes; {blow:?}");
        let options = WorkerOptions { failpoint: blow.failpoint(), ..WorkerOptions::default() };
        cluster.add(&name, &options).unwrap();
        names.push(name);
        cluster.wait_for("all ranks are in place").unwrap();
        let dead = match blow {
            Blow::AtPoint(_) => names.pop().unwrap(),
            Blow::Coordinator(hundredths) => {
                cluster.wait_for("step ").unwrap();
                let begin = Instant::now();
                cluster.wait_for("step ").unwrap();
                std::thread::park_timeout(begin.elapsed().mul_f64(hundredths as f64 / 100.0));
                cluster.kill_coordinator().unwrap();
                cluster.restart(None).unwrap();
                cluster.wait_for("all ranks are in place").unwrap();
                let name = names.remove(0);
                cluster.signal(&name, "-KILL").unwrap();
                name
            }
            Blow::Signal(victim, signal) => {
                cluster.wait_for("step ").unwrap();
                let name = match victim {
                    Victim::OldestRank => names.remove(0),
                    Victim::YoungestRank => names.pop().unwrap(),
                };
                cluster.signal(&name, signal).unwrap();
                name
            }
        };
        cluster.wait_for("epoch ended").unwrap();
        cluster.remove(&dead);
    }
    cluster.add("last", &WorkerOptions::default()).unwrap();
    cluster.finish().unwrap_or_else(|error| panic!("soak {soak_seed}: {error}"))
}

/// A disturbed run, and one that was left alone: they are the same.
fn soak(steps: u64) -> (Run, Run) {
    let seed = std::env::var("G2RL_SOAK_SEED").map_or(1, |seed| seed.parse().unwrap());
    println!("G2RL_SOAK_SEED={seed} replays this");
    // That a run ends well says that all digests agreed after each mini-batch.
    let (run, alone) = (disturbed(steps, 1, seed), left_alone(steps, 1));
    // Of all its coordinators.
    let recoveries = run.log().matches("epoch ended").count() as u64;
    let restarts = run.log().matches("goes on where its coordinator stopped").count();
    println!("{recoveries} recoveries in {steps} steps, and {restarts} coordinators that went on");
    assert!(recoveries >= steps / EVERY - 1);
    for run in [&run, &alone] {
        run.journal().unwrap().check(steps, SHAPE).unwrap();
    }
    let rollouts = |run: &Run| run.journal().unwrap().rollouts().unwrap();
    assert_eq!(rollouts(&run), rollouts(&alone));
    assert_eq!(run.difference(&alone, steps).unwrap().largest, 0.0);
    (run, alone)
}

#[test]
fn thirty_steps_with_a_death_every_two_end_as_if_left_alone() {
    const STEPS: u64 = 30;
    const WINDOW: usize = 10;
    let (run, alone) = soak(STEPS);
    let curve = |run: &Run| -> Vec<f64> {
        let rewards = run.journal().unwrap().rewards().unwrap();
        rewards.chunks(WINDOW).map(|window| window.iter().sum::<f64>() / window.len() as f64).collect()
    };
    let curves = [curve(&alone), curve(&left_alone(STEPS, 2)), curve(&left_alone(STEPS, 3))];
    println!("mean rewards of {WINDOW} steps: {:.3?}; undisturbed seeds {curves:.3?}", curve(&run));
    for (at, reward) in curve(&run).into_iter().enumerate() {
        let of_seeds = curves.iter().map(|curve| curve[at]);
        let (low, high) = of_seeds.fold((f64::MAX, f64::MIN), |(low, high), x| (low.min(x), high.max(x)));
        assert!((low..=high).contains(&reward), "{reward} is not in {low}..={high}");
    }
}

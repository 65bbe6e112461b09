//! Every fuzz target for a fixed number of inputs: always the same ones.

use g2rl_tests::fuzz::{TARGETS, run};

/// More of them, or others: `G2RL_FUZZ_ITERATIONS`, `G2RL_FUZZ_SEED`.
fn number(name: &str, otherwise: u64) -> u64 {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(otherwise)
}

#[test]
fn no_input_breaks_what_reads_it() {
    let (iterations, seed) = (number("G2RL_FUZZ_ITERATIONS", 3_000), number("G2RL_FUZZ_SEED", 1));
    println!("| target | inputs | accepted |\n|---|---|---|");
    for target in &TARGETS {
        let counts = run(target, iterations, seed);
        println!("| {} | {} | {} |", target.name, counts.inputs, counts.accepted);
        // Both ways are taken, or the corpus is of no use.
        assert!(counts.accepted > 0 && counts.accepted < counts.inputs, "{}: {counts:?}", target.name);
    }
}

/// What finds nothing must at least be able to.
#[test]
fn the_same_seed_gives_the_same_inputs() {
    let target = &TARGETS[0];
    assert_eq!(run(target, 300, 7), run(target, 300, 7));
}

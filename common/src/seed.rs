//! Random numbers that depend on what they are for, not on when they are asked for.
//!
//! Every number is a block of the counter-based generator Threefry2x64-20 (Salmon et al.,
//! "Parallel Random Numbers: As Easy as 1, 2, 3", SC 2011). A rollout's draw at a position is a
//! pure function of (run seed, policy version, prompt, rollout index, position), so it is the same
//! on every rank, in every batch and after every crash.
//!
//! Invariants: no state shared between streams; nothing here may change without changing the
//! rollouts of every run (known-answer tests hold it).

/// Threefry2x64-20: 128 bits of key and 128 bits of counter to 128 random bits.
#[must_use]
pub fn threefry2x64(key: [u64; 2], counter: [u64; 2]) -> [u64; 2] {
    /// Rotations of eight successive rounds (table 2 of the paper).
    const ROTATIONS: [u32; 8] = [16, 42, 12, 31, 16, 32, 24, 21];
    /// Parity of the key schedule, from Skein.
    const PARITY: u64 = 0x1BD1_1BDA_A9FC_1A22;

    let schedule = [key[0], key[1], PARITY ^ key[0] ^ key[1]];
    let mut x = [counter[0].wrapping_add(schedule[0]), counter[1].wrapping_add(schedule[1])];
    for round in 0..20 {
        x[0] = x[0].wrapping_add(x[1]);
        x[1] = x[1].rotate_left(ROTATIONS[round % 8]) ^ x[0];
        // A key is injected after every fourth round.
        if round % 4 == 3 {
            let injection = round / 4 + 1;
            x[0] = x[0].wrapping_add(schedule[injection % 3]);
            x[1] = x[1].wrapping_add(schedule[(injection + 1) % 3]).wrapping_add(injection as u64);
        }
    }
    x
}

/// The upper 53 bits as a number in [0, 1); every result is a multiple of 2^-53.
fn unit_interval(bits: u64) -> f64 {
    const SCALE: f64 = 1.0 / (1u64 << 53) as f64;
    (bits >> 11) as f64 * SCALE
}

/// What a rollout's random numbers depend on, besides the position.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct StreamKey {
    /// Seed of the run.
    pub run_seed: u64,
    /// Optimizer steps of the policy that generates.
    pub policy_version: u64,
    /// [`prompt_hash`] of the prompt's id.
    pub prompt: u64,
    /// Place of the rollout in its group (stream offset included).
    pub rollout_index: u64,
}

/// The random numbers of one rollout; cheap to copy, holds no position.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct RolloutStream {
    key: [u64; 2],
}

impl RolloutStream {
    /// The stream of a rollout. The four parts are folded into 128 bits by one block, so that two
    /// rollouts share a stream with probability 2^-128 only.
    #[must_use]
    pub fn new(key: &StreamKey) -> Self {
        Self { key: threefry2x64([key.run_seed, key.policy_version], [key.prompt, key.rollout_index]) }
    }

    /// The draw at a position of the response (0 for its first token), in [0, 1), 53 bits.
    #[must_use]
    pub fn uniform(&self, position: u64) -> f64 {
        unit_interval(threefry2x64(self.key, [position, 0])[0])
    }
}

/// The draw of one rollout at one position, in [0, 1), 53 bits. Same as
/// [`RolloutStream::uniform`], which saves half of the work over many positions.
#[must_use]
pub fn uniform(key: StreamKey, position: u64) -> f64 {
    RolloutStream::new(&key).uniform(position)
}

/// Stable hash of a prompt's id or a stream's name: FNV-1a, then the 64-bit finaliser of
/// MurmurHash3, because FNV alone leaves similar ids close together.
#[must_use]
pub fn prompt_hash(id: &str) -> u64 {
    let mut x = fnv1a(id.as_bytes());
    x = (x ^ (x >> 33)).wrapping_mul(0xFF51_AFD7_ED55_8CCD);
    x = (x ^ (x >> 33)).wrapping_mul(0xC4CE_B9FE_1A85_EC53);
    x ^ (x >> 33)
}

fn fnv1a(bytes: &[u8]) -> u64 {
    bytes
        .iter()
        .fold(0xCBF2_9CE4_8422_2325, |hash, &byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01B3))
}

/// A sequential generator for shuffles and resampling: the stream named `name` of a seed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CounterRng {
    key: [u64; 2],
    block: u64,
    /// The second half of the last block, if not yet given out.
    spare: Option<u64>,
}

impl CounterRng {
    /// The stream `name` of `seed`, from its beginning. Streams of different names are independent.
    #[must_use]
    pub fn new(seed: u64, name: &str) -> Self {
        Self { key: [seed, prompt_hash(name)], block: 0, spare: None }
    }

    /// 64 random bits.
    pub fn next_u64(&mut self) -> u64 {
        if let Some(bits) = self.spare.take() {
            return bits;
        }
        let [first, second] = threefry2x64(self.key, [self.block, 1]);
        self.block += 1;
        self.spare = Some(second);
        first
    }

    /// A number in [0, 1), 53 bits.
    pub fn next_f64(&mut self) -> f64 {
        unit_interval(self.next_u64())
    }

    /// A number in `0..n`, each with the same probability (Lemire 2019: multiply, reject the few
    /// products that would favour small numbers).
    ///
    /// # Panics
    /// If `n` is 0.
    pub fn below(&mut self, n: u64) -> u64 {
        assert!(n > 0, "below(0) has no possible result");
        let rejected_below = n.wrapping_neg() % n;
        loop {
            let product = u128::from(self.next_u64()) * u128::from(n);
            if product as u64 >= rejected_below {
                return (product >> 64) as u64;
            }
        }
    }

    /// Puts the items into a random order, each with the same probability (Fisher-Yates).
    pub fn shuffle<T>(&mut self, items: &mut [T]) {
        for last in (1..items.len()).rev() {
            let other = self.below(last as u64 + 1) as usize;
            items.swap(last, other);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `kat_vectors` of Random123 1.14 (counter, key -> output).
    #[test]
    fn threefry_gives_the_published_answers() {
        let ones = u64::MAX;
        assert_eq!(threefry2x64([0, 0], [0, 0]), [0xc2b6_e3a8_c2c6_9865, 0x6f81_ed42_f350_084d]);
        assert_eq!(threefry2x64([ones; 2], [ones; 2]), [0xe02c_b7c4_d95d_277a, 0xd066_33d0_893b_8b68]);
        assert_eq!(
            threefry2x64(
                [0xa409_3822_299f_31d0, 0x082e_fa98_ec4e_6c89],
                [0x243f_6a88_85a3_08d3, 0x1319_8a2e_0370_7344]
            ),
            [0x263c_7d30_bb0f_0af1, 0x56be_8361_d331_1526]
        );
    }

    /// From the FNV reference (draft-eastlake-fnv, appendix C).
    #[test]
    fn fnv1a_gives_the_published_answers() {
        assert_eq!(fnv1a(b""), 0xcbf2_9ce4_8422_2325);
        assert_eq!(fnv1a(b"a"), 0xaf63_dc4c_8601_ec8c);
        assert_eq!(fnv1a(b"foobar"), 0x8594_4171_f739_67e8);
    }

    #[test]
    fn every_part_of_the_key_changes_the_draw() {
        let key = StreamKey { run_seed: 1, policy_version: 2, prompt: 3, rollout_index: 4 };
        let draws = [
            uniform(key, 5),
            uniform(key, 6),
            uniform(StreamKey { run_seed: 9, ..key }, 5),
            uniform(StreamKey { policy_version: 9, ..key }, 5),
            uniform(StreamKey { prompt: 9, ..key }, 5),
            uniform(StreamKey { rollout_index: 9, ..key }, 5),
            uniform(StreamKey { prompt: 4, rollout_index: 3, ..key }, 5),
        ];
        for (i, a) in draws.iter().enumerate() {
            assert!((0.0..1.0).contains(a));
            assert!(draws[..i].iter().all(|b| a != b), "draw {i} repeats an earlier one");
        }
    }

    /// Mean 1/2 and variance 1/12 of 100,000 draws, within five standard errors: 5 x 0.2887 /
    /// sqrt(1e5) = 0.0046 and 5 x 0.0745 / sqrt(1e5) = 0.0012.
    #[test]
    fn draws_are_uniform() {
        let n = 100_000;
        let key = StreamKey { run_seed: 7, policy_version: 0, prompt: prompt_hash("p"), rollout_index: 0 };
        let draws: Vec<f64> = (0..n).map(|t| uniform(key, t)).collect();
        let mean = draws.iter().sum::<f64>() / n as f64;
        let variance = draws.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / n as f64;
        assert!((mean - 0.5).abs() < 0.0046, "mean {mean}");
        assert!((variance - 1.0 / 12.0).abs() < 0.0012, "variance {variance}");
    }

    /// 60,000 draws of six: 10,000 each, within five standard deviations of sqrt(60,000 x 5/36).
    #[test]
    fn below_is_unbiased() {
        let mut rng = CounterRng::new(3, "dice");
        let mut counts = [0i64; 6];
        for _ in 0..60_000 {
            counts[rng.below(6) as usize] += 1;
        }
        assert!(counts.iter().all(|c| (c - 10_000).abs() < 457), "{counts:?}");
        assert_eq!(rng.below(1), 0);
    }

    #[test]
    fn shuffles_are_permutations_that_depend_on_seed_and_name() {
        let shuffled = |seed, name| {
            let mut items: Vec<u32> = (0..100).collect();
            CounterRng::new(seed, name).shuffle(&mut items);
            items
        };
        let order = shuffled(1, "data");
        let mut sorted = order.clone();
        sorted.sort_unstable();
        assert_eq!(sorted, (0..100).collect::<Vec<_>>());
        assert_eq!(order, shuffled(1, "data"));
        assert_ne!(order, shuffled(2, "data"));
        assert_ne!(order, shuffled(1, "bootstrap"));
    }
}

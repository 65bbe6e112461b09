//! `g2rl-coordinator data`: make problems.

use std::path::PathBuf;

use anyhow::bail;
use clap::{Args, Subcommand, ValueEnum};

use super::lines;
use crate::problems::countdown::Countdown;
use crate::problems::family::{self, DrawOptions, Family, Split};
use crate::problems::ladder::{Ladder, Thinking};
use crate::problems::{ProblemRow, arithmetic};

/// Make problems with verifiable answers.
///
/// Writes {"id","problem","answer","solution"}, one object a line. The same seed gives the same rows.
#[derive(Debug, Args)]
#[command(after_long_help = "Examples:
  g2rl-coordinator data countdown --count 2000 --seed 1 --out train.jsonl
  g2rl-coordinator data countdown --split heldout --distinct --count all --seed 1 --out heldout.jsonl
  g2rl-coordinator data ladder --count 180000 --unsure 0.25 --seed 7 --out warmstart.jsonl
  g2rl-coordinator data arithmetic --count 1000 --seed 1 --out arithmetic.jsonl")]
pub struct DataArgs {
    #[command(subcommand)]
    kind: Kind,
}

#[derive(Debug, Subcommand)]
enum Kind {
    /// Reach a target with given numbers: `4,7,2>30:`.
    Countdown(CountdownArgs),
    /// From a start to a target in at most three steps: `7>52:`.
    Ladder(LadderArgs),
    /// Sums and products: `12+30*2=`.
    Arithmetic(ArithmeticArgs),
}

#[derive(Debug, Args)]
struct CountdownArgs {
    #[command(flatten)]
    draw: DrawArgs,
    /// How many numbers a problem has.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(2..=4))]
    numbers: u32,
    /// Numbers are 1 to this.
    #[arg(long, default_value_t = 12, value_parser = clap::value_parser!(u32).range(1..=99))]
    max_number: u32,
}

#[derive(Debug, Args)]
struct LadderArgs {
    #[command(flatten)]
    draw: DrawArgs,
    /// Solutions try up to this often in <think> tags, until they are right, and then answer.
    #[arg(long, conflicts_with = "unsure", value_parser = clap::value_parser!(u32).range(1..=100))]
    tries: Option<u32>,
    /// No try ends further than this from the target.
    #[arg(long, default_value_t = 3, requires = "tries")]
    near: u32,
}

/// Which rows of a family of problems.
#[derive(Debug, Args)]
struct DrawArgs {
    /// Number of rows, or `all` with --distinct.
    #[arg(long, default_value = "1000")]
    count: String,
    /// The same seed gives the same rows.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// File to write; - is standard output.
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
    /// Which problems: a hash of the problem decides, so that splits never overlap.
    #[arg(long, value_enum, default_value_t = SplitArg::Train)]
    split: SplitArg,
    /// Each problem at most once, whatever the order of its numbers.
    #[arg(long)]
    distinct: bool,
    /// Share of rows whose solution ends at a wrong target, for a model that shall be unsure.
    #[arg(long, default_value_t = 0.0)]
    unsure: f64,
}

#[derive(Debug, Args)]
struct ArithmeticArgs {
    /// Number of rows.
    #[arg(long, default_value_t = 1000)]
    count: usize,
    /// The same seed gives the same rows.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// File to write; - is standard output.
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
    /// Numbers are 1 to this.
    #[arg(long, default_value_t = 50)]
    max_number: u32,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum SplitArg {
    Train,
    Heldout,
    Tune,
    All,
}

/// Runs the command.
///
/// # Errors
/// If there are fewer problems than asked for, or the file cannot be written.
pub fn run(args: &DataArgs) -> anyhow::Result<()> {
    let (out, rows) = match &args.kind {
        Kind::Countdown(CountdownArgs { draw: args, numbers, max_number }) => {
            let family = Countdown { numbers: *numbers as usize, max_number: *max_number };
            (&args.out, rows(&family, args)?)
        }
        Kind::Ladder(LadderArgs { draw: args, tries, near }) => {
            let thinking = tries.map(|tries| Thinking { tries, near: *near });
            (&args.out, rows(&thinking.map_or_else(Ladder::default, Ladder::thinking), args)?)
        }
        Kind::Arithmetic(args) => (&args.out, arithmetic::problems(args.count, args.max_number, args.seed)),
    };
    if let Some(parent) = out.parent().filter(|p| !p.as_os_str().is_empty()) {
        std::fs::create_dir_all(parent)?;
    }
    lines::write(Some(out), rows)
}

fn rows<F: Family>(family: &F, args: &DrawArgs) -> anyhow::Result<Vec<ProblemRow>> {
    if !(0.0..=1.0).contains(&args.unsure) {
        bail!("--unsure must be between 0 and 1");
    }
    let options = DrawOptions {
        split: match args.split {
            SplitArg::Train => Split::Train,
            SplitArg::Heldout => Split::Heldout,
            SplitArg::Tune => Split::Tune,
            SplitArg::All => Split::All,
        },
        unsure: args.unsure,
        seed: args.seed,
    };
    let count = match args.count.as_str() {
        "all" if args.distinct => None,
        "all" => bail!("--count all needs --distinct"),
        text => Some(
            text.parse::<usize>()
                .map_err(|_| anyhow::anyhow!("--count takes a number or all, not {text}"))?,
        ),
    };
    if !args.distinct {
        return Ok(family::fresh(family, &options, count.unwrap_or(0)));
    }
    let mut rows = family::every_distinct(family, &options);
    let count = count.unwrap_or(rows.len());
    if count > rows.len() {
        bail!("--count {count}: this family and split have {} distinct problems", rows.len());
    }
    rows.truncate(count);
    Ok(rows)
}

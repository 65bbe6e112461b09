//! One table of ratios, for the terminal and for `docs/performance.md`.

use std::fmt::{self, Write as _};
use std::fs::OpenOptions;
use std::io::Write as _;

use anyhow::Context;
use serde_json::Value;

use super::ours::Measured;
use super::peers::{Best, Limits, Theirs};
use super::profile::Profiles;
use super::workload::Workload;
use crate::run::{output, root};

const FILE: &str = "docs/performance.md";

/// Rows of measurements.
pub(super) struct Report {
    workload: Workload,
    rows: Vec<[String; 5]>,
    profile: String,
}

/// Higher or lower is better.
#[derive(Clone, Copy, PartialEq)]
enum Better {
    Higher,
    Lower,
}

impl Report {
    pub(super) fn new(workload: Workload) -> Self {
        Self { workload, rows: Vec::new(), profile: String::new() }
    }

    fn row(&mut self, what: &str, ours: String, other: String, ratio: String, bar: &str) {
        self.rows.push([what.to_owned(), ours, other, ratio, bar.to_owned()]);
    }

    fn against(&mut self, what: &str, better: Better, (ours, unit): (f64, &str), best: &Best, bar: &str) {
        let digits = if ours < 100.0 { 2 } else { 0 };
        let (other, ratio) = match &best.0 {
            Some((value, name)) => {
                let ratio = if better == Better::Higher { ours / value } else { value / ours };
                (format!("{value:.digits$} ({name})"), format!("{ratio:.2}x"))
            }
            None => ("-".to_owned(), "-".to_owned()),
        };
        self.row(what, format!("{ours:.digits$} {unit}"), other, ratio, bar);
    }

    fn of_limit(&mut self, what: &str, gflops: f64, limit: Option<f64>) {
        let (limit, share) = match limit {
            Some(limit) => (format!("{limit:.0} (torch.mm)"), format!("{:.0} %", 100.0 * gflops / limit)),
            None => ("-".to_owned(), "-".to_owned()),
        };
        self.row(what, format!("{gflops:.0} GFLOP/s"), limit, share, "");
    }

    /// Ours beside the others'.
    pub(super) fn compare(&mut self, ours: &Measured, theirs: &Theirs, limits: &Limits) {
        use Better::{Higher, Lower};
        let (workload, batch) = (self.workload, self.workload.batch());
        let speed = "tokens/s";
        self.against(
            &format!("rollout, batch {batch}, f32, with features"),
            Higher,
            (ours.rollout, speed),
            &theirs.rollout,
            "3x",
        );
        self.against(
            "rollout, batch 16, f32, with features",
            Higher,
            (ours.rollout_16, speed),
            &theirs.rollout_16,
            "3x",
        );
        self.against(
            "rollout, batch 1, f32, with features",
            Higher,
            (ours.rollout_1, speed),
            &theirs.rollout_1,
            "1.5x",
        );
        self.against(
            &format!("rollout, batch {batch}, bf16"),
            Higher,
            (ours.rollout_bf16, speed),
            &theirs.rollout,
            "",
        );
        self.against("step, f32", Lower, (ours.step, "s"), &theirs.step_f32, "1.7x");
        self.against("step, bf16", Lower, (ours.step_bf16, "s"), &theirs.step_any, "3x");
        let megabytes = |best: &Best| Best(best.0.clone().map(|(bytes, name)| (bytes / 1e6, name)));
        self.against(
            "peak memory of the step, f32",
            Lower,
            (ours.peak_memory / 1e6, "MB"),
            &megabytes(&theirs.peak_memory),
            "1.43x (0.7 of it)",
        );
        let features = 100.0 * (ours.feature_cost - 1.0);
        self.row(
            "features",
            format!("{features:+.1} % of a rollout"),
            "without".to_owned(),
            String::new(),
            "at most 3 %",
        );
        let ranks = ours.step / ours.two_ranks;
        self.row(
            "two ranks of one thread",
            format!("{:.2} s", ours.two_ranks),
            format!("{:.2} s (one rank of two)", ours.step),
            format!("{ranks:.2}x"),
            "0.9x",
        );
        let (bytes, seconds) = ours.collective;
        let gloo = limits.gloo.map_or("-".to_owned(), |limit| format!("{limit:.2} GB/s (torch, 100 MB)"));
        self.row(
            "sum of a gradient over two ranks",
            format!("{:.2} GB/s", bytes / seconds / 1e9),
            gloo,
            String::new(),
            "",
        );
        self.of_limit(
            "products of a rollout, f32",
            workload.decode_flops() * ours.rollout / 1e9,
            limits.gflops_f32,
        );
        self.of_limit(
            "products of a rollout, bf16",
            workload.decode_flops() * ours.rollout_bf16 / 1e9,
            limits.gflops_bf16,
        );
        self.of_limit(
            "products of an update, f32",
            workload.update_flops() / ours.update / 1e9,
            limits.gflops_f32,
        );
        self.of_limit(
            "products of an update, bf16",
            workload.update_flops() / ours.update_bf16 / 1e9,
            limits.gflops_bf16,
        );
    }

    /// Where the time goes.
    pub(super) fn profile(&mut self, profiles: &Profiles) -> anyhow::Result<()> {
        self.profile = profiles.table(&self.workload)?;
        Ok(())
    }

    /// The coordinator's load.
    pub(super) fn load(&mut self, loads: &[Value]) {
        let number = |value: &Value, key: &str| value[key].as_f64().unwrap_or(f64::NAN);
        let first = loads.first().map_or(f64::NAN, |load| number(load, "seconds") / number(load, "ranks"));
        for load in loads {
            let (ranks, seconds) = (number(load, "ranks"), number(load, "seconds"));
            let bar = if ranks > 1000.0 { "10 s, 2 GB, 50 ms" } else { "" };
            self.row(
                &format!("coordinator, {ranks} ranks"),
                format!(
                    "{seconds:.2} s a step, {:.0} MB, apply {:.0} ms (99 %)",
                    number(load, "peak_rss_bytes") / 1e6,
                    number(load, "apply_ms_p99")
                ),
                "a rank's cost against the fewest".to_owned(),
                format!("{:.2}x", seconds / ranks / first),
                bar,
            );
        }
    }

    /// Appends the table to the performance page, with machine and date.
    pub(super) fn append(&self) -> anyhow::Result<()> {
        let path = root().join(FILE);
        let mut file = OpenOptions::new()
            .append(true)
            .open(&path)
            .with_context(|| format!("cannot open {}", path.display()))?;
        write!(file, "\n{self}").with_context(|| format!("cannot write {}", path.display()))?;
        eprintln!("bench: appended to {FILE}");
        Ok(())
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let w = &self.workload;
        writeln!(f, "## {} on {}, {}\n", w.name, machine(), date())?;
        let mut about = String::new();
        write!(
            about,
            "Hidden {}, {} layers, {} heads, {} key heads of {}, intermediate {}, vocabulary {}, tied; {} prompts of {} tokens, \
             {} responses each of exactly {} tokens; two threads; `cargo xtask bench --workload {}`.",
            w.hidden,
            w.layers,
            w.heads,
            w.kv_heads,
            w.head_dim,
            w.inner,
            w.vocab,
            w.prompts,
            w.prompt_tokens,
            w.group_size,
            w.new_tokens,
            w.name
        )?;
        writeln!(f, "{about}\n\n| what | here | other | ratio | wanted |\n|---|---|---|---|---|")?;
        self.rows.iter().try_for_each(|row| writeln!(f, "| {} |", row.join(" | ")))?;
        write!(f, "\n{}", self.profile)
    }
}

/// The processor, as Linux names it.
fn machine() -> String {
    let text = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let name =
        text.lines().find_map(|line| line.strip_prefix("model name")).unwrap_or(": an unknown processor");
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    format!("{} ({cores} cores)", name.trim_start_matches(['\t', ' ', ':']))
}

fn date() -> String {
    output(std::process::Command::new("date").args(["--utc", "+%Y-%m-%d"])).unwrap_or_default()
}

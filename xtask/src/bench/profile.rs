//! Where the time of a rollout and of an update goes, and how close each phase is to the machine.

use std::fmt::{self, Write as _};

use serde_json::Value;

use super::peers::Limits;
use super::workload::Workload;

/// One profiled measurement.
pub(super) struct Profiled {
    /// For people: `rollout, f32`.
    pub(super) name: String,
    /// What `g2rl-worker bench` printed.
    pub(super) report: Value,
    /// Floating-point operations of what the profile calls `products`.
    pub(super) product_flops: f64,
    /// Bytes of keys and values that attention reads; `None` where it is not bound by them.
    pub(super) cache_bytes: Option<f64>,
    pub(super) bf16: bool,
}

impl Profiled {
    fn seconds(&self, phase: &str) -> Option<f64> {
        self.report["profile"][phase].as_f64()
    }

    /// Milliseconds of a phase, and its share of all.
    fn cell(&self, phase: &str) -> String {
        let all: f64 = self.report["profile"]
            .as_object()
            .map_or(f64::NAN, |phases| phases.values().filter_map(Value::as_f64).sum());
        match self.seconds(phase) {
            Some(seconds) => format!("{:.0} ms ({:.0} %)", 1e3 * seconds, 100.0 * seconds / all),
            None => String::new(),
        }
    }

    fn rate(&self, phase: &str, amount: Option<f64>, unit: &str, limit: Option<f64>) -> String {
        let Some((seconds, amount)) = self.seconds(phase).zip(amount) else { return String::new() };
        let rate = amount / seconds / 1e9;
        let share = limit.map_or(String::new(), |limit| format!(" ({:.0} %)", 100.0 * rate / limit));
        format!("{rate:.0} {unit}{share}")
    }
}

/// The measurements side by side.
#[derive(Default)]
pub(super) struct Profiles {
    columns: Vec<Profiled>,
    limits: Limits,
}

impl Profiles {
    pub(super) fn new(columns: Vec<Profiled>, limits: Limits) -> Self {
        Self { columns, limits }
    }

    /// Phases in the order in which the measurements name them, what belongs to none last.
    fn phases(&self) -> Vec<&str> {
        let mut phases: Vec<&str> = Vec::new();
        let named = self.columns.iter().filter_map(|column| column.report["profile"].as_object());
        for phase in named.flat_map(|object| object.keys()) {
            if phase != "rest" && !phases.contains(&phase.as_str()) {
                phases.push(phase);
            }
        }
        phases.push("rest");
        phases
    }

    fn row(&self, text: &mut String, name: &str, cell: impl Fn(&Profiled) -> String) -> fmt::Result {
        let cells: Vec<String> = self.columns.iter().map(cell).collect();
        writeln!(text, "| {name} | {} |", cells.join(" | "))
    }

    /// The table, as Markdown.
    pub(super) fn table(&self, workload: &Workload) -> Result<String, fmt::Error> {
        let mut text = String::new();
        let names: Vec<&str> = self.columns.iter().map(|column| column.name.as_str()).collect();
        writeln!(
            text,
            "Where the time goes (the fastest repetition; percentages in the last two rows are of what torch.mm and \
             torch.mv reach on this machine; {} sequences):\n",
            workload.batch()
        )?;
        writeln!(text, "| phase | {} |", names.join(" | "))?;
        writeln!(text, "|---{}|", "|---".repeat(names.len()))?;
        for phase in self.phases() {
            self.row(&mut text, phase, |column| column.cell(phase))?;
        }
        self.row(&mut text, "products reach", |column| {
            let limit = if column.bf16 { self.limits.gflops_bf16 } else { self.limits.gflops_f32 };
            column.rate("products", Some(column.product_flops), "GFLOP/s", limit)
        })?;
        self.row(&mut text, "attention reads", |column| {
            column.rate("attention", column.cache_bytes, "GB/s", self.limits.read)
        })?;
        Ok(text)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn phases_stand_once_with_shares_and_rates() {
        let column = |name: &str, report| Profiled {
            name: name.to_owned(),
            report,
            product_flops: 6e9,
            cache_bytes: Some(1e9),
            bf16: false,
        };
        let limits = Limits { gflops_f32: Some(40.0), ..Limits::default() };
        let columns = vec![
            column("a", json!({"profile": {"products": 0.3, "rest": 0.1}})),
            column("b", json!({"profile": {"attention": 0.5, "products": 0.5, "rest": 0.0}})),
        ];
        let table = Profiles::new(columns, limits).table(&Workload::named("W1")).unwrap();
        let rows: Vec<&str> = table.lines().skip_while(|line| !line.starts_with("| phase")).collect();
        assert_eq!(
            rows[2..],
            [
                "| products | 300 ms (75 %) | 500 ms (50 %) |",
                "| attention |  | 500 ms (50 %) |",
                "| rest | 100 ms (25 %) | 0 ms (0 %) |",
                "| products reach | 20 GFLOP/s (50 %) | 12 GFLOP/s (30 %) |",
                "| attention reads |  | 2 GB/s |",
            ]
        );
    }
}

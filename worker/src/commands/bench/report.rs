//! What a measurement prints.

use std::time::Instant;

use serde_json::{Map, Value, json};

use super::SizeArgs;
use crate::commands::DtypeArg;
use crate::memory;
use crate::planner::MemoryPlan;
use crate::profile::{self, Phase, Profile};

/// Times of repetitions, and what they are of.
#[derive(Debug)]
pub(super) struct Report {
    name: &'static str,
    sizes: Value,
    seconds: Vec<f64>,
    tokens: Option<u64>,
    extra: Map<String, Value>,
    dtype: &'static str,
}

impl Report {
    pub(super) fn new(name: &'static str, sizes: &SizeArgs) -> Self {
        let values = json!({
            "batch": sizes.batch,
            "prompt_tokens": sizes.prompt_tokens,
            "new_tokens": sizes.new_tokens,
            "group_size": sizes.group_size,
        });
        let dtype = match sizes.dtype {
            DtypeArg::F32 => "f32",
            DtypeArg::Bf16 => "bf16",
        };
        Self { name, sizes: values, seconds: Vec::new(), tokens: None, extra: Map::new(), dtype }
    }

    /// Tokens of one repetition.
    pub(super) fn tokens(&mut self, tokens: u64) {
        self.tokens = Some(tokens);
    }

    /// A further value.
    pub(super) fn set(&mut self, key: &str, value: Value) {
        self.extra.insert(key.to_owned(), value);
    }

    /// The memory plan behind it, to compare with the peak.
    pub(super) fn plan(&mut self, plan: &MemoryPlan) {
        self.set("planned_peak_bytes", plan.peak().into());
        self.set("planned_base_bytes", plan.base.into());
        self.set("tokens_per_microbatch", plan.microbatch.into());
    }

    /// Runs once to warm up, then measures each repetition.
    pub(super) fn repeat(
        &mut self,
        repetitions: usize,
        mut body: impl FnMut() -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        body()?;
        let mut fastest = f64::INFINITY;
        for _ in 0..repetitions {
            let start = Instant::now();
            let (result, profile) = profile::record(&mut body);
            result?;
            let seconds = start.elapsed().as_secs_f64();
            if seconds < fastest {
                fastest = seconds;
                self.set("profile", profile_of(&profile, seconds));
            }
            self.seconds.push(seconds);
        }
        Ok(())
    }

    pub(super) fn print(mut self, one_line: bool) -> anyhow::Result<()> {
        self.seconds.sort_by(f64::total_cmp);
        let median = median(&self.seconds);
        let mut object = Map::new();
        object.insert("bench".into(), json!(self.name));
        if let Some(tokens) = self.tokens {
            object.insert("tokens_per_s".into(), json!(tokens as f64 / median));
        }
        object.insert("seconds".into(), json!(median));
        object.insert("seconds_min".into(), json!(self.seconds.first()));
        object.insert("seconds_max".into(), json!(self.seconds.last()));
        object.insert("peak_rss_bytes".into(), json!(memory::peak_resident_bytes()));
        object.insert("threads".into(), json!(tch::get_num_threads()));
        object.insert("dtype".into(), json!(self.dtype));
        object.insert("sizes".into(), self.sizes);
        object.append(&mut self.extra);
        let object = Value::Object(object);
        if one_line {
            println!("{object}");
        } else {
            println!("{object:#}");
        }
        Ok(())
    }
}

/// Seconds of each phase of a repetition that took `seconds`, and of what belongs to none.
fn profile_of(profile: &Profile, seconds: f64) -> Value {
    let phases = Phase::ALL.iter().filter(|phase| !profile.of(**phase).is_zero());
    let mut object: Map<String, Value> =
        phases.map(|phase| (phase.as_str().to_owned(), json!(profile.of(*phase).as_secs_f64()))).collect();
    object.insert("rest".into(), json!((seconds - profile.sum().as_secs_f64()).max(0.0)));
    Value::Object(object)
}

/// The median of sorted values.
fn median(sorted: &[f64]) -> f64 {
    match sorted.len() {
        0 => f64::NAN,
        n if n % 2 == 1 => sorted[n / 2],
        n => (sorted[n / 2 - 1] + sorted[n / 2]) / 2.0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians() {
        assert_eq!(median(&[1.0, 2.0, 9.0]), 2.0);
        assert_eq!(median(&[1.0, 2.0, 4.0, 9.0]), 3.0);
    }
}

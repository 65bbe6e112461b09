//! Reports of made-up journals.

use std::path::Path;

use rusqlite::{Connection, params};

use super::data::{METRICS, RunData};
use super::*;

/// A run whose first metric has these values after steps 1, 2, ...; nothing else.
pub(super) fn run(method: &str, label: &str, values: &[f64]) -> RunData {
    let mut all = vec![vec![None; values.len()]; METRICS.len()];
    all[0] = values.iter().map(|value| Some(*value)).collect();
    RunData {
        method: method.to_owned(),
        label: label.to_owned(),
        dir: PathBuf::new(),
        steps: (1..=values.len() as u64).collect(),
        values: all,
        cosines: None,
        scores: Vec::new(),
        evaluations: [].into(),
        config: None,
        rollouts: 0,
        seconds: 0.0,
        complete: true,
    }
}

const HOSTILE: &str = "</pre><script>alert(1)</script><img src=x onerror=alert(2)>&\"'";

/// A complete run's directory: so many steps of one group of `responses` responses.
pub(crate) fn write_run(dir: &Path, steps: u64, responses: u64, text: &str) {
    std::fs::create_dir_all(dir.join("evaluations")).unwrap();
    let mut db = Connection::open(journal::path(dir)).unwrap();
    db.execute_batch(journal::SCHEMA).unwrap();
    let writing = db.transaction().unwrap();
    for step in 0..steps {
        let y = (step as f64 * 0.7 + dir.as_os_str().len() as f64).sin();
        writing
            .execute(
                "INSERT INTO step (step, reward, correct, length, entropy, kl, novelty, negative_ratio, orthogonal_ratio,
                 duplicate_ratio, mean_cosine, mean_cosine_distinct, cosine_histogram, rollout_ms, shaping_ms, update_ms)
                 VALUES (?1, ?2, ?3, 9, 0.3, 0, ?3, ?3, 0.1, 0.2, ?2, ?2, '[1, 2, 3, 4]', 500, 0, 500)",
                params![step, y, (1.0 + y) / 2.0],
            )
            .unwrap();
        if ![0, (steps - 1) / 2, steps - 1].contains(&step) {
            continue;
        }
        writing.execute("INSERT INTO grp (grp, step, problem) VALUES (?1, ?1, 0)", [step]).unwrap();
        for idx in 0..responses {
            writing
                .execute(
                    "INSERT INTO rollout (grp, idx, step, text, tokens, finish_reason, correct, reason, reward, advantage,
                     novelty) VALUES (?1, ?2, ?1, ?3, 7, 'end_token', ?4, ?3, 1, -0.5, 0.25)",
                    params![step, idx, text, idx % 2],
                )
                .unwrap();
        }
    }
    for (score, mean) in [("pass@1", 0.5), ("pass@2", 0.75), ("length", 9.0)] {
        writing
            .execute("INSERT INTO evaluation VALUES (?1, ?2, ?3, 0, 1, 2, 2)", params![steps, score, mean])
            .unwrap();
    }
    writing.commit().unwrap();
    let answer = |correct: bool| {
        format!(
            "{{\"text\":\"x\",\"correct\":{correct},\"score\":1.0,\"extracted\":null,\"canonical\":\"{correct}\",\
             \"tokens\":3,\"finish_reason\":\"end_token\"}}"
        )
    };
    let row = |id: &str, one: bool, two: bool| {
        let correct = u8::from(one) + u8::from(two);
        format!(
            "{{\"id\":\"{id}\",\"samples\":2,\"correct\":{correct},\"answers\":[{},{}],\"duplicate_of\":[0,1]}}\n",
            answer(one),
            answer(two)
        )
    };
    let rows = row("a", true, false) + &row("b", false, false);
    std::fs::write(dir.join(format!("evaluations/step-{steps:06}.jsonl")), rows).unwrap();
    std::fs::write(dir.join("summary.json"), "{\"outcome\": \"completed\", \"seconds\": 90.0}").unwrap();
}

use crate::journal;

fn options(runs: &[(&str, &Path)]) -> ReportOptions {
    ReportOptions {
        runs: runs.iter().map(|(name, dir)| ((*name).to_owned(), (*dir).to_owned())).collect(),
        data_name: Some("made-up & small".to_owned()),
        ..ReportOptions::default()
    }
}

#[test]
fn texts_of_models_stay_texts() {
    let dir = tempfile::tempdir().unwrap();
    write_run(dir.path(), 5, 4, HOSTILE);
    let page = html(&Report::read(&options(&[("<b>m</b>", dir.path())])).unwrap()).unwrap();
    assert_eq!(page.matches("<script").count(), 1, "the page's own");
    assert!(!page.contains("<img") && !page.contains("<b>m"));
    let escaped =
        "&lt;/pre&gt;&lt;script&gt;alert(1)&lt;/script&gt;&lt;img src=x onerror=alert(2)&gt;&amp;&quot;'";
    assert!(page.contains(escaped));
    assert!(page.contains("Data: made-up &amp; small"));
}

#[test]
fn a_page_needs_nothing_else_and_says_what_there_is() {
    let dir = tempfile::tempdir().unwrap();
    let (a, b, c) = (dir.path().join("a"), dir.path().join("b"), dir.path().join("c"));
    [&a, &b, &c].iter().for_each(|dir| write_run(dir, 40, 4, "1+1=2"));
    let options = options(&[("m", &a), ("m", &b), ("n", &c)]);
    let report = Report::read(&options).unwrap();
    let page = html(&report).unwrap();
    for outside in ["http:", "https:", "src=", "@import", "url("] {
        assert!(!page.contains(outside), "{outside}");
    }
    for part in [
        // One of two problems has one right answer of two: 1/2 x 1/2.
        "pass@1 in the last evaluation: m 25.0 [",
        "n 25.0 [0.0, 50.0] % after 40 steps (one run)",
        "no difference is claimed",
        "centred moving average over 3 steps",
        "0 in every step: KL to the reference policy.",
        "Cosines of gradient features",
        "not hold the cosines of a group",
        "<td class=\"n\">2 of 2</td>",
        "prefers-color-scheme: dark",
        "role=\"img\"",
    ] {
        assert!(page.contains(part), "{part} in\n{page}");
    }
    // Same input, same bytes; ids are unique.
    assert_eq!(page, html(&Report::read(&options).unwrap()).unwrap());
    let ids: Vec<&str> = page.split(" id=\"").skip(1).filter_map(|rest| rest.split('"').next()).collect();
    let unique: std::collections::BTreeSet<&&str> = ids.iter().collect();
    assert_eq!(unique.len(), ids.len());
    let plots = plot_files(&report).unwrap();
    assert!(plots.iter().any(|plot| plot.name == "evaluation-pass-1"));
    assert!(plots.iter().all(|plot| plot.png.starts_with(b"\x89PNG") && plot.svg.starts_with("<svg")));
}

/// Twenty methods with five runs each, of long texts that all have to be escaped.
#[test]
fn a_hundred_runs_fit() {
    const MOST: usize = 5_000_000;
    let dir = tempfile::tempdir().unwrap();
    let first = dir.path().join("0");
    write_run(&first, 400, 64, &"<&\"".repeat(2_000));
    let mut runs = vec![("method-00".to_owned(), first.clone())];
    for at in 1..100 {
        let copy = dir.path().join(at.to_string());
        std::fs::create_dir_all(copy.join("evaluations")).unwrap();
        for file in ["journal.sqlite", "summary.json", "evaluations/step-000400.jsonl"] {
            std::fs::copy(first.join(file), copy.join(file)).unwrap();
        }
        runs.push((format!("method-{:02}", at / 5), copy));
    }
    let report = Report::read(&ReportOptions { runs, ..ReportOptions::default() }).unwrap();
    let page = html(&report).unwrap();
    assert!(page.len() < MOST, "{} bytes", page.len());
}

#[test]
fn what_is_missing_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let error = format!("{:#}", Report::read(&options(&[("m", dir.path())])).unwrap_err());
    assert!(error.contains("journal.sqlite"), "{error}");
    assert!(Report::read(&ReportOptions::default()).is_err());
}

//! However long a run is, each answer comes in 300 ms.

use std::time::{Duration, Instant};

use g2rl_tests::big_journal::Size;
use g2rl_tests::http::{encode, get};

use super::shown::Shown;

/// Of each answer.
const LIMIT: Duration = Duration::from_millis(300);

/// Times that each answer is measured; what counts is the median.
const TIMES: usize = 5;

/// 10,000 steps and a million rollouts if the variable `G2RL_TEST_BIG_JOURNAL` is set; a tenth of them otherwise, for the
/// sake of the time that it takes to write them.
fn size() -> Size {
    match std::env::var_os("G2RL_TEST_BIG_JOURNAL") {
        Some(_) => Size { steps: 10_000, groups: 25, group_size: 4 },
        None => Size { steps: 2_000, groups: 10, group_size: 5 },
    }
}

#[test]
fn every_answer_about_a_long_run_comes_at_once() {
    let size = size();
    let begin = Instant::now();
    let shown = Shown::start(size, None);
    println!(
        "{} steps and {} rollouts written and read in {:?}",
        size.steps,
        size.rollouts(),
        begin.elapsed()
    );
    let last = size.steps * size.groups - 1;
    let second = shown.api("groups?limit=20")["next"].as_str().unwrap().to_owned();
    let paths = [
        "/".to_owned(),
        "/assets/vendor/uplot-1.6.32/uPlot.esm.js".to_owned(),
        "/api/run".to_owned(),
        "/api/curves".to_owned(),
        "/api/curves?points=1000".to_owned(),
        format!("/api/curves?from={}", size.steps / 2),
        "/api/geometry".to_owned(),
        "/api/stalls".to_owned(),
        "/api/config".to_owned(),
        "/api/groups".to_owned(),
        format!("/api/groups?cursor={second}"),
        "/api/groups?cursor=10-100&limit=100".to_owned(),
        "/api/groups?filter=wrong_novel".to_owned(),
        "/api/groups?filter=right_redundant".to_owned(),
        "/api/groups?filter=truncated".to_owned(),
        "/api/groups?filter=all_wrong&from=5&to=1500".to_owned(),
        format!("/api/groups?search={}", encode(&format!("group {}.", last - 3))),
        // Nowhere: the search gives up in time and says so.
        "/api/groups?search=nowhere".to_owned(),
        "/api/groups/0".to_owned(),
        format!("/api/groups/{last}"),
        format!("/api/groups/{}/0/text", last / 2),
    ];
    for path in paths {
        let mut took: Vec<Duration> = (0..TIMES)
            .map(|_| {
                let begin = Instant::now();
                let (status, body) = get(&shown.address, &path).unwrap();
                assert_eq!(status, 200, "{path}: {body}");
                begin.elapsed()
            })
            .collect();
        took.sort();
        println!("{path}: median {:?}, at most {:?}", took[TIMES / 2], took[TIMES - 1]);
        assert!(took[TIMES / 2] < LIMIT, "{path} takes {took:?}");
    }
}

#[test]
fn what_the_api_says_is_what_the_journal_has() {
    let size = Size { steps: 100, groups: 4, group_size: 4 };
    let shown = Shown::start(size, None);
    let curves = shown.api("curves?points=10");
    assert_eq!(curves["steps_per_point"], 10);
    assert_eq!(curves["steps"].as_array().unwrap().last().unwrap(), 100);
    assert_eq!(curves["series"]["reward"]["mean"].as_array().unwrap().len(), 10);
    assert_eq!(curves["evaluations"].as_array().unwrap().len(), 4);
    // A step takes a minute, less than that in phases.
    let wait = curves["series"]["wait_seconds"]["mean"][5].as_f64().unwrap();
    assert!((0.0..20.0).contains(&wait), "{wait}");
    let geometry = shown.api("geometry");
    let shares = geometry["cosines"][0].as_array().unwrap();
    let sum: f64 = shares.iter().map(|share| share.as_f64().unwrap()).sum();
    assert!(shares.len() == 40 && (sum - 1.0).abs() < 1e-4, "{sum}");
    let novelty =
        |name: &str| geometry[name].as_array().unwrap().iter().map(|n| n.as_u64().unwrap()).sum::<u64>();
    assert_eq!(novelty("novelty_right") + novelty("novelty_wrong"), size.rollouts());

    // Filters agree with what the groups themselves say.
    for (filter, holds) in [
        ("truncated", (|r| r["finish_reason"] == "length") as fn(&serde_json::Value) -> bool),
        ("wrong_novel", |r| r["correct"] == false && r["novelty_in_group"].as_f64() >= Some(0.8)),
        ("right_redundant", |r| r["correct"] == true && r["novelty_in_group"].as_f64() <= Some(0.2)),
    ] {
        let page = shown.api(&format!("groups?filter={filter}&limit=100"));
        let found: Vec<u64> =
            page["groups"].as_array().unwrap().iter().map(|g| g["group"].as_u64().unwrap()).collect();
        let oldest = *found.last().unwrap_or(&0);
        let expected: Vec<u64> = (oldest..400)
            .rev()
            .filter(|group| {
                let group = shown.api(&format!("groups/{group}"));
                group["rollouts"].as_array().unwrap().iter().any(holds)
            })
            .collect();
        assert_eq!(found, expected, "{filter}");
    }
    let group = shown.api("groups/7");
    assert_eq!(group["cosine"].as_array().unwrap().len(), 4);
    assert!(group["prompt"].as_str().unwrap().contains("<b>stops</b>"));
    let (status, _) = get(&shown.address, "/api/groups/400").unwrap();
    assert_eq!(status, 404);
    for question in ["groups?cursor=x", "groups?filter=none", "groups?unknown=1", "curves?from=-1"] {
        let (status, body) = get(&shown.address, &format!("/api/{question}")).unwrap();
        assert!(status == 400 && body.contains("\"error\""), "{question}: {status} {body}");
    }
}

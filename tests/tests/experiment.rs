//! Evaluations, geometries and experiments as a user runs them.

#![allow(clippy::unwrap_used, reason = "a test ends at the first thing that is not as expected")]

use std::path::Path;

use g2rl_tests::cluster::DEADLINE;
use g2rl_tests::{Finished, coordinator, finish};
use serde_json::Value;

fn run(arguments: &[&str]) -> Finished {
    finish(coordinator(arguments), DEADLINE).unwrap()
}

fn completes(arguments: &[&str]) -> String {
    let finished = run(arguments);
    assert!(finished.success, "{arguments:?}: {}", finished.text);
    finished.text
}

/// A file of so many held-out problems.
fn problems(dir: &Path, name: &str, count: &str, seed: &str) -> String {
    let out = dir.join(name).display().to_string();
    let split = ["data", "countdown", "--distinct", "--split", "heldout"];
    completes(&[split.as_slice(), &["--count", count, "--seed", seed, "--out", &out]].concat());
    out
}

const ONE_WORKER: [&str; 6] =
    ["--set", "cluster.min_workers=1", "--set", "cluster.max_workers=1", "--local-workers", "1"];

#[test]
fn an_evaluation_of_two_sets_goes_on_where_it_was_killed() {
    let dir = tempfile::tempdir().unwrap();
    let (one, two) =
        (problems(dir.path(), "one.jsonl", "6", "1"), problems(dir.path(), "two.jsonl", "4", "2"));
    let two = format!("more={two}");
    let out = |name: &str| dir.path().join(name).display().to_string();
    let (whole, killed) = (out("whole"), out("killed"));
    let arguments = |out: &str| -> Vec<String> {
        let eval =
            ["eval", "--config", "configs/demo.toml", "--model", "configs/demo/model", "--samples", "8"];
        let sets = ["--k", "1,8", "--data", &one, "--data", &two, "--out", out];
        eval.iter().chain(&sets).chain(&ONE_WORKER).map(|s| (*s).to_owned()).collect()
    };
    let all = |arguments: &[String]| completes(&arguments.iter().map(String::as_str).collect::<Vec<_>>());

    let table = all(&arguments(&whole));
    for word in ["one: 6 problems, 8 answers each", "more: 4 problems", "maj@8", "response length, tokens"] {
        assert!(table.contains(word), "{word} in {table}");
    }
    let summary: Value =
        serde_json::from_str(&std::fs::read_to_string(Path::new(&whole).join("summary.json")).unwrap())
            .unwrap();
    assert_eq!((&summary["outcome"], &summary["after"]["problems"]), (&"completed".into(), &6.into()));
    assert!(summary["after"]["sets"]["more"]["pass@8_interval"].is_array(), "{summary}");

    // 80 answers; killed at the 40th, with half of them kept.
    let arguments = arguments(&killed);
    let mut command = coordinator(&arguments.iter().map(String::as_str).collect::<Vec<_>>());
    command.env("G2RL_COORDINATOR_FAILPOINT", "accepted:40");
    assert!(finish(command, DEADLINE).is_err(), "it was killed");
    let resumed = [arguments, vec!["--resume".to_owned()]].concat();
    all(&resumed);
    for file in ["evaluations/step-000000.jsonl", "evaluations/step-000000-more.jsonl"] {
        let read = |dir: &str| std::fs::read_to_string(Path::new(dir).join(file)).unwrap();
        assert_eq!(read(&whole), read(&killed), "{file}");
    }
    assert!(all(&resumed).contains("is complete"));
}

#[test]
fn geometry_compares_models_and_asks_only_once() {
    let dir = tempfile::tempdir().unwrap();
    let (data, out) = (problems(dir.path(), "data.jsonl", "5", "1"), dir.path().join("geometry"));
    let out_name = out.display().to_string();
    let geometry = ["geometry", "--config", "configs/demo.toml", "--data", &data, "--out", &out_name];
    let models = ["--model", "a=configs/demo/model", "--compare", "b=configs/demo/model", "--samples", "4"];
    let arguments = [geometry.as_slice(), &models, &ONE_WORKER].concat();
    let text = completes(&arguments);
    for word in
        ["5 problems, 4 answers each, temperature 1", "gradient cosines", "b: wrong-wrong, not identical"]
    {
        assert!(text.contains(word), "{word} in {text}");
    }
    let report = || -> Value {
        serde_json::from_str(&std::fs::read_to_string(out.join("geometry.json")).unwrap()).unwrap()
    };
    let (a, b) = (report()[0].clone(), report()[1].clone());
    // 5 x C(4, 2) pairs; the same model with the same seed answers the same.
    assert_eq!(a["gradient"][0]["with_identical"]["pairs"], 30);
    assert_eq!(a["gradient"], b["gradient"]);
    let answers = out.join("a/evaluations/step-000000.jsonl");
    let before = std::fs::metadata(&answers).unwrap().modified().unwrap();
    completes(&arguments);
    assert_eq!(std::fs::metadata(&answers).unwrap().modified().unwrap(), before);
}

/// Two methods, one seed, two steps.
fn experiment(dir: &Path) -> String {
    let path = |name: &str| dir.join(name).display().to_string();
    let text = format!(
        "name = 'small'\ndir = '{}'\nconfig = 'configs/demo.toml'\nseeds = [1]\nbaseline = 'grpo'\n\
         scores = ['pass@1', 'pass@4']\nlocal_workers = 1\n\
         set = ['run.steps=2', 'rollout.prompts_per_step=4', 'rollout.group_size=4', 'cluster.min_workers=1',\n\
         'cluster.max_workers=1', 'evaluation.samples=4', 'evaluation.k=[1,4]', 'evaluation.every=1',\n\
         'checkpoint.best_by=pass@1', 'data.train={train}', 'evaluation.data={heldout}']\n\
         [[data]]\nfile = '{train}'\narguments = ['countdown', '--distinct', '--count', '32', '--split', 'train']\n\
         [[data]]\nfile = '{heldout}'\narguments = ['countdown', '--distinct', '--count', '5', '--split', 'heldout']\n\
         [[warm_starts]]\nname = 'demo'\nmodel = 'configs/demo/model'\n\
         [[methods]]\nname = 'grpo'\nset = ['algorithm.kind=grpo']\n\
         [[methods]]\nname = 'g2rl'\nset = ['algorithm.kind=g2rl']\n",
        path("experiment"),
        train = path("train.jsonl"),
        heldout = path("heldout.jsonl"),
    );
    let file = path("experiment.toml");
    std::fs::write(&file, text).unwrap();
    file
}

#[test]
fn an_experiment_runs_side_by_side() {
    let dir = tempfile::tempdir().unwrap();
    let file = experiment(dir.path());
    let text = completes(&["experiment", "--config", &file, "--parallel", "2"]);
    for word in ["| grpo | 1 of 1 |", "| g2rl | 1 of 1 |", "## Difference to grpo"] {
        assert!(text.contains(word), "{word} in {text}");
    }
    let mut times = Vec::new();
    for method in ["grpo", "g2rl"] {
        let run = dir.path().join(format!("experiment/runs/{method}/demo-seed1"));
        let log = std::fs::read_to_string(run.join("train.log")).unwrap();
        assert!(log.contains("step 2/2"), "{log}");
        let chronicle = std::fs::read_to_string(run.join("chronicle.jsonl")).unwrap();
        let at = |line: &str| serde_json::from_str::<Value>(line).unwrap()["at_s"].as_f64().unwrap();
        times.push((at(chronicle.lines().next().unwrap()), at(chronicle.lines().last().unwrap())));
    }
    assert!(times[0].0 < times[1].1 && times[1].0 < times[0].1, "at the same time: {times:?}");
}

#[test]
fn an_experiment_goes_on_and_compares() {
    let dir = tempfile::tempdir().unwrap();
    let file = experiment(dir.path());
    let first = completes(&["experiment", "--config", &file, "--only", "grpo"]);
    assert!(first.contains("| grpo | 1 of 1 |") && !first.contains("| g2rl |"), "{first}");
    let of = |method: &str| dir.path().join(format!("experiment/runs/{method}/demo-seed1"));
    let summary = of("grpo").join("summary.json");
    let before = std::fs::metadata(&summary).unwrap().modified().unwrap();

    let second = completes(&["experiment", "--config", &file]);
    assert_eq!(
        std::fs::metadata(&summary).unwrap().modified().unwrap(),
        before,
        "a complete run is left alone"
    );
    for word in ["| grpo | 1 of 1 |", "| g2rl | 1 of 1 |", "## Difference to grpo", "## At equal pass@1"] {
        assert!(second.contains(word), "{word} in {second}");
    }
    let text = std::fs::read_to_string(dir.path().join("experiment/summary.json")).unwrap();
    let comparison: Value = serde_json::from_str(&text).unwrap();
    // Two steps of 16 rollouts; evaluated after 0, 1 and 2 of them.
    assert_eq!(comparison["methods"][1]["rollouts"], 32);
    assert_eq!(comparison["methods"][1]["curve"].as_array().unwrap().len(), 3);
    // The best checkpoint of each run is linked to.
    assert!(of("g2rl").join("checkpoints/best/model.safetensors").exists());

    let changed = std::fs::read_to_string(&file).unwrap().replace("run.steps=2", "run.steps=3");
    std::fs::write(&file, changed).unwrap();
    let refused = run(&["experiment", "--config", &file]);
    assert!(!refused.success && refused.text.contains("other settings"), "{}", refused.text);
}

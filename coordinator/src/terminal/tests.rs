//! Pictures of a run in terminals of several sizes.

use g2rl_common::ids::{PolicyVersion, Rank, WorkerId};
use g2rl_common::update::UpdateStats;
use g2rl_proto::{Phase, WorkerStatus};
use ratatui::Terminal;
use ratatui::backend::TestBackend;

use super::layout::{self, Size};
use super::*;
use crate::alerts::Alert;
use crate::evaluate::Score;
use crate::state::{RankStatus, RunPhase, StepTimes};

const CONFIG: &str = "[run]\nname = 'math'\ndir = 'd'\nsteps = 40\n[model]\npath = '/models/Qwen/Qwen3-1.7B'\n\
                      [data]\ntrain = 't'\n[rollout]\nprompts_per_step = 16\ngroup_size = 16\n";

/// The time at which all pictures are taken.
const NOW: Duration = Duration::from_secs(200);

fn record(step: u64) -> StepRecord {
    let stats = UpdateStats {
        tokens: 100,
        entropy: 50.0 - step as f64,
        kl: 0.01 * step as f64,
        ..UpdateStats::default()
    };
    StepRecord {
        step: StepIndex(step),
        policy_version: PolicyVersion(step + 1),
        groups: Vec::new(),
        imitated: Vec::new(),
        stats,
        first_minibatch_stats: stats,
        gradient_norm: 1.0,
        learning_rate: 1e-6,
        response_tokens: 120_000,
        rollout_idle_ratio: 0.1,
        times: StepTimes { rollout_ms: 6_000, reward_ms: 400, shaping_ms: 100, update_ms: 3_000 },
    }
}

fn summary(step: u64) -> StepSummary {
    let pairs = g2rl_common::geometry::PairStatistics {
        pairs: 1_000,
        orthogonal_pairs: 100 + step,
        negative_pairs: 31,
        ..Default::default()
    };
    StepSummary {
        reward: -0.5 + 0.05 * step as f64,
        correct: 0.25 + 0.025 * step as f64,
        score: 0.5,
        length: 400.0 + 10.0 * step as f64,
        novelty: Some(0.4),
        pairs: Some(pairs),
        equal_reward_groups: 0,
        groups: 16,
        tokens_per_s: 20_000.0,
        seconds: 9.5,
    }
}

fn rank(rank: u32, phase: Phase, slots_in_use: u32, last_seen: u64, generated_tokens: u64) -> RankStatus {
    RankStatus {
        rank: Rank(rank),
        worker: WorkerId(format!("node{rank}-cuda0")),
        host: format!("node{rank}"),
        device: "cuda:0".into(),
        decode_slots: 64,
        outstanding_rollouts: slots_in_use,
        last_seen: Millis(last_seen),
        reported: WorkerStatus { phase, slots_in_use, generated_tokens, ..WorkerStatus::default() },
    }
}

fn status(phase: RunPhase, ranks: Vec<RankStatus>) -> RunStatus {
    RunStatus {
        phase,
        since: Millis(195_000),
        steps_done: StepIndex(10),
        steps: 40,
        policy_version: PolicyVersion(10),
        epoch: g2rl_common::ids::GroupEpoch(1),
        epoch_stands: true,
        ranks,
        waiting_workers: Vec::new(),
        free_slots: 0,
        outstanding_leases: 0,
        outstanding_rollouts: 60,
        queued_rollouts: 100,
        epochs_failed: 0,
        disagreements: 0,
        rollouts_redone: 0,
        waiting_ms: 0,
        waiting_for: "node0-cuda0 (rank 0): 60 rollouts".to_owned(),
    }
}

/// Ten steps of ten seconds each, the last at 195 s.
fn run() -> Model {
    let mut model = Model::new(&RunConfig::from_toml(CONFIG).unwrap());
    for step in 0..10 {
        model.step(&record(step), &summary(step), Duration::from_secs(105 + 10 * step));
    }
    let score = Score { mean: 0.625, interval: [0.6, 0.65] };
    model.evaluation(
        StepIndex(10),
        &Evaluation {
            set: "heldout".into(),
            problems: 500,
            samples: 8,
            scores: vec![("pass@1".into(), score)],
            length: Score { mean: 400.0, interval: [390.0, 410.0] },
            reward_score: Score { mean: 0.6, interval: [0.5, 0.7] },
            distinct_correct: Score { mean: 1.0, interval: [0.9, 1.1] },
            finish_reasons: Default::default(),
        },
    );
    let ranks = |at: u64| {
        vec![rank(0, Phase::Rollout, 60, at - 300, 9_000 * at / 1_000), rank(1, Phase::Idle, 0, 180_000, 70)]
    };
    for at in [190_000, 200_000] {
        model.status(&status(RunPhase::Rollout(StepIndex(10)), ranks(at)), Millis(at));
    }
    model
}

/// What a terminal of this size shows, without blanks at the ends of lines.
fn shown(model: &Model, width: u16, height: u16) -> Vec<String> {
    let size = Size { width: width.into(), height: height.into() };
    let lines = layout::lines(model, NOW, size);
    assert!(lines.len() < usize::from(height).max(2), "{} lines of {height}", lines.len());
    let mut terminal = Terminal::new(TestBackend::new(width, lines.len() as u16)).unwrap();
    terminal.draw(|frame| frame.buffer_mut().merge(&screen::picture(lines, width))).unwrap();
    let cells = terminal.backend().buffer();
    let row = |y: u16| (0..width).map(|x| cells[(x, y)].symbol()).collect::<String>().trim_end().to_owned();
    (0..cells.area.height).map(row).collect()
}

fn with_alerts() -> Model {
    let mut model = run();
    let text = "epoch ended epoch=1 cause=node1-cuda0 (rank 1) is lost: silent for 30 s".to_owned();
    // Shown as local time.
    let at = chrono::NaiveDate::from_ymd_opt(2026, 1, 1).unwrap().and_hms_opt(20, 15, 3).unwrap();
    let at_ms = at.and_local_timezone(chrono::Local).unwrap().timestamp_millis();
    model.alert = Some(Alert { at_ms, is_error: false, text });
    model.stalls(&[Stall {
        who: "rank 1 (worker node1-cuda0)".into(),
        what: "60 rollouts".into(),
        for_ms: 20_000,
    }]);
    model
}

#[test]
fn a_wide_terminal_shows_everything() {
    let lines = shown(&with_alerts(), 110, 40);
    assert_eq!(
        lines,
        [
            "── math · g2rl · Qwen/Qwen3-1.7B ─────────────────────────────────────────────────────────────── 3 min 20 s ──",
            " step 10/40 ━━━━━━━━━━━━━━━╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌  25 %  left 4 min 55 s",
            " rollout of step 11 · 96/256 rollouts · 5 s",
            " 20:15:03 epoch ended epoch=1 cause=node1-cuda0 (rank 1) is lost: silent for 30 s",
            " rank 1 (worker node1-cuda0): nothing moves for 20 s: 60 rollouts",
            " reward      -0.050 ▁▂▃▃▄▅▆▆▇█       length         490 ▁▂▃▃▄▅▆▆▇█       novelty      0.400 ▁▁▁▁▁▁▁▁▁▁",
            " correct     47.5 % ▁▂▃▃▄▅▆▆▇█       entropy      0.410 █▇▆▆▅▄▃▃▂▁       orthogonal  10.9 % ▁▂▃▃▄▅▆▆▇█",
            " held out    62.5 % ▁                KL          9.0e-4 ▁▂▃▃▄▅▆▆▇█       negative     3.1 % ▁▁▁▁▁▁▁▁▁▁",
            " 10.00 s/step  20,000 tokens/s ■■■■■■■■■■■■■■■■■■■■■ ■ rollout 60 %  ■ reward 5 %  ■ update 30 %  ■ wait 5 %",
            " rank  worker       state          slots   tokens/s   heard",
            "    0  node0-cuda0  rollout        60/64      9,000   0.3 s",
            "    1  node1-cuda0  idle            0/64          -  20.0 s",
        ],
        "\n{}",
        lines.join("\n")
    );
}

#[test]
fn a_terminal_of_80_columns() {
    let lines = shown(&run(), 80, 24);
    assert_eq!(
        lines,
        [
            "── math · g2rl · Qwen/Qwen3-1.7B ───────────────────────────────── 3 min 20 s ──",
            " step 10/40 ━━━━━━━━━━━╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌  25 %  left 4 min 55 s",
            " rollout of step 11 · 96/256 rollouts · 5 s",
            " reward      -0.050 ▁▂▃▃▄▅▆▆▇█           KL          9.0e-4 ▁▂▃▃▄▅▆▆▇█",
            " correct     47.5 % ▁▂▃▃▄▅▆▆▇█           novelty      0.400 ▁▁▁▁▁▁▁▁▁▁",
            " held out    62.5 % ▁                    orthogonal  10.9 % ▁▂▃▃▄▅▆▆▇█",
            " length         490 ▁▂▃▃▄▅▆▆▇█           negative     3.1 % ▁▁▁▁▁▁▁▁▁▁",
            " entropy      0.410 █▇▆▆▅▄▃▃▂▁",
            " 10.00 s/step  20,000 tokens/s ■■■■■■■■■■■■■■■■■■■■■■■■",
            " ■ rollout 60 %  ■ reward 5 %  ■ update 30 %  ■ wait 5 %",
            " rank  worker       state          slots   tokens/s   heard",
            "    0  node0-cuda0  rollout        60/64      9,000   0.3 s",
            "    1  node1-cuda0  idle            0/64          -  20.0 s",
        ],
        "\n{}",
        lines.join("\n")
    );
}

#[test]
fn a_narrow_terminal() {
    let lines = shown(&run(), 60, 24);
    assert_eq!(
        lines,
        [
            "── math · g2rl · Qwen/Qwen3-1.7B ───────────── 3 min 20 s ──",
            " step 10/40 ━━━━━━╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌  25 %  left 4 min 55 s",
            " rollout of step 11 · 96/256 rollouts · 5 s",
            " reward      -0.050 ▁▂▃▃▄▅▆▇█  KL          9.0e-4 ▁▂▃▃▄▅▆▇█",
            " correct     47.5 % ▁▂▃▃▄▅▆▇█  novelty      0.400 ▁▁▁▁▁▁▁▁▁",
            " held out    62.5 % ▁          orthogonal  10.9 % ▁▂▃▃▄▅▆▇█",
            " length         490 ▁▂▃▃▄▅▆▇█  negative     3.1 % ▁▁▁▁▁▁▁▁▁",
            " entropy      0.410 █▇▆▆▅▄▃▂▁",
            " 10.00 s/step  20,000 tokens/s ■■■■■■■■■■■■■■■■■■■■■■■■",
            " ■ rollout 60 %  ■ reward 5 %  ■ update 30 %  ■ wait 5 %",
            " rank  worker       state          slots   tokens/s   heard",
            "    0  node0-cuda0  rollout        60/64      9,000   0.3 s",
            "    1  node1-cuda0  idle            0/64          -  20.0 s",
        ],
        "\n{}",
        lines.join("\n")
    );
}

#[test]
fn a_low_terminal_keeps_what_matters_most() {
    let lines = shown(&with_alerts(), 80, 8);
    assert_eq!(
        lines,
        [
            "── math · g2rl · Qwen/Qwen3-1.7B ───────────────────────────────── 3 min 20 s ──",
            " step 10/40 ━━━━━━━━━━━╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌  25 %  left 4 min 55 s",
            " rollout of step 11 · 96/256 rollouts · 5 s",
            " 20:15:03 epoch ended epoch=1 cause=node1-cuda0 (rank 1) is lost: silent for 30…",
            " rank 1 (worker node1-cuda0): nothing moves for 20 s: 60 rollouts",
            " 10.00 s/step  20,000 tokens/s ■■■■■■■■■■■■■■■■■■■■■■■■",
            " ■ rollout 60 %  ■ reward 5 %  ■ update 30 %  ■ wait 5 %",
        ],
        "\n{}",
        lines.join("\n")
    );
}

#[test]
fn a_run_that_begins_says_what_it_waits_for() {
    let mut model = Model::new(&RunConfig::from_toml(CONFIG).unwrap());
    let begins = RunStatus {
        steps_done: StepIndex(0),
        waiting_for: "workers (1 of 2)".into(),
        ..status(RunPhase::Gathering, Vec::new())
    };
    model.status(&begins, Millis(200_000));
    let lines = shown(&model, 80, 24);
    assert_eq!(
        lines,
        [
            "── math · g2rl · Qwen/Qwen3-1.7B ───────────────────────────────── 3 min 20 s ──",
            " step 0/40 ╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌╌   0 %  left -",
            " gathering of workers · waits for workers (1 of 2) · 5 s",
            " reward           -                      KL               -",
            " correct          -                      novelty          -",
            " held out         -                      orthogonal       -",
            " length           -                      negative         -",
            " entropy          -",
        ],
        "\n{}",
        lines.join("\n")
    );
}

/// Whatever the size, it can be drawn, and there is always something.
#[test]
fn every_size_can_be_drawn() {
    let mut model = with_alerts();
    let ranks = (0..100).map(|at| rank(at, Phase::Update, 3, 190_000, 0)).collect();
    model.status(&status(RunPhase::Rollout(StepIndex(10)), ranks), Millis(200_000));
    for width in 1..130 {
        for height in [1, 2, 3, 5, 8, 13, 21, 50] {
            let size = Size { width, height };
            let lines = layout::lines(&model, NOW, size);
            assert!(!lines.is_empty() && lines.len() <= height.saturating_sub(1).max(1), "{size:?}");
            screen::picture(lines, width as u16);
        }
    }
}

#[test]
fn a_rank_that_is_silent_is_among_the_few_that_are_named() {
    let mut model = run();
    let ranks =
        (0..40).map(|at| rank(at, Phase::Rollout, 64, if at == 33 { 150_000 } else { 199_900 }, 0)).collect();
    model.status(&status(RunPhase::Rollout(StepIndex(10)), ranks), Millis(200_000));
    let lines = shown(&model, 80, 24);
    let at = lines.iter().position(|line| line.contains("rank  worker")).unwrap();
    assert!(lines[at + 1].contains("  33  node33-cuda0") && lines[at + 1].ends_with("50.0 s"), "{lines:#?}");
    assert_eq!(lines.last().unwrap(), " and 33 ranks: 33 rollout");
}

#[test]
fn time_left_follows_the_pace_of_the_last_steps() {
    let model = run();
    // 30 steps of 10 s are left; 5 s of the next have passed.
    assert_eq!(model.pace(NOW), Some((10.0, 295.0)));
    let split = model.split().unwrap();
    assert_eq!((split.rollout, split.reward, split.update, split.wait), (54_000, 4_500, 27_000, 4_500));
    assert_eq!(Model::default().pace(NOW), None);
}

use g2rl_common::ids::{GroupEpoch, GroupId, PolicyVersion, RolloutId, StepIndex};
use g2rl_common::rollout::FinishReason;
use proptest::prelude::*;

use super::*;
use crate::reward::Verdict;
use crate::state::{Position, ResumeState};

fn header() -> Header {
    Header { run: "demo-1.1".into(), setup: "seed = 1".into() }
}

fn position(steps: u64) -> Entry {
    let state = ResumeState {
        steps_done: StepIndex(steps),
        policy_version: PolicyVersion(2 * steps),
        prompts_drawn: 16 * steps,
        policy_since_prompt: 16 * steps,
        next_group: GroupId(16 * steps),
    };
    let last_evaluation = Some(StepIndex(0));
    let position = Position { state, weights_digest: Some(u64::MAX), last_evaluation, skipped_in_a_row: 1 };
    Entry { record: Record::Position { epoch: GroupEpoch(1), position }, rollout: None, judgement: None }
}

fn rollout(index: u32) -> Entry {
    let rollout = RolloutId { group: GroupId(3), index };
    let record = Record::RolloutAccepted { rollout, prompt_tokens: 2, response_tokens: 3 };
    let kept = Rollout {
        id: rollout,
        policy_version: PolicyVersion(7),
        prompt_tokens: vec![1, 2],
        response_tokens: vec![3, 4, u32::MAX],
        behavior_logprobs: vec![-0.1, f32::MIN_POSITIVE, -1.0e-30],
        mean_entropy: 0.3,
        text: "forty-two\n".into(),
        finish_reason: FinishReason::EndToken,
        feature: Some(vec![0.1, f32::EPSILON, -3.5]),
    };
    Entry { record, rollout: Some(Arc::new(kept)), judgement: None }
}

fn judged(index: u32) -> Entry {
    let record = Record::RolloutVerified { rollout: RolloutId { group: GroupId(3), index } };
    // A score that has no short decimal form.
    let judgement = Judgement { score: 0.1 + 0.2, ..Judgement::from(Verdict::plain(true, "equal")) };
    Entry { record, rollout: None, judgement: Some(judgement) }
}

/// A log of one position, two rollouts and a judgement.
fn written(dir: &Path) -> Vec<Entry> {
    let entries = vec![position(1), rollout(0), rollout(1), judged(0)];
    let mut wal = Wal::create(dir, header()).unwrap();
    entries.iter().for_each(|entry| wal.append(entry).unwrap());
    wal.sync().unwrap();
    entries
}

fn segments(dir: &Path) -> Vec<u64> {
    segment::serials(&path(dir)).unwrap()
}

#[test]
fn a_log_is_read_as_it_was_written_and_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    assert_eq!(read(dir.path()).unwrap(), None);
    let mut entries = written(dir.path());
    let contents = read(dir.path()).unwrap().unwrap();
    assert_eq!((&contents.header, &contents.entries, contents.torn), (&header(), &entries, 0));
    let mut wal = Wal::append_to(dir.path(), &contents).unwrap();
    wal.append(&judged(1)).unwrap();
    wal.flush().unwrap();
    entries.push(judged(1));
    assert_eq!(read(dir.path()).unwrap().unwrap().entries, entries);
}

#[test]
fn a_position_takes_the_place_of_what_was_before() {
    let dir = tempfile::tempdir().unwrap();
    written(dir.path());
    assert_eq!(segments(dir.path()), [1]);
    let contents = read(dir.path()).unwrap().unwrap();
    let mut wal = Wal::append_to(dir.path(), &contents).unwrap();
    wal.append(&position(2)).unwrap();
    assert_eq!(
        (segments(dir.path()), read(dir.path()).unwrap().unwrap().entries),
        (vec![2], vec![position(2)])
    );
    // Another run in the same directory: the old log is there until the new one has a position.
    let mut wal = Wal::create(dir.path(), Header { run: "demo-1.2".into(), ..header() }).unwrap();
    assert_eq!(read(dir.path()).unwrap().unwrap().header, header());
    wal.append(&position(0)).unwrap();
    let contents = read(dir.path()).unwrap().unwrap();
    assert_eq!((contents.header.run.0.as_str(), contents.entries), ("demo-1.2", vec![position(0)]));
    assert_eq!(segments(dir.path()), [3]);
}

#[test]
fn a_segment_without_a_whole_position_is_passed_over() {
    let dir = tempfile::tempdir().unwrap();
    let entries = written(dir.path());
    let whole = std::fs::read(path(dir.path()).join("000001.log")).unwrap();
    // The header alone, and nothing at all.
    for cut in [60, 0] {
        std::fs::write(path(dir.path()).join("000002.log"), &whole[..cut.min(whole.len())]).unwrap();
        assert_eq!(read(dir.path()).unwrap().unwrap().entries, entries);
    }
}

#[test]
fn another_format_is_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir(path(dir.path())).unwrap();
    let mut bytes = Vec::new();
    frame::write(&mut bytes, &postcard::to_stdvec(&(FORMAT + 1)).unwrap()).unwrap();
    std::fs::write(path(dir.path()).join("000001.log"), bytes).unwrap();
    let error = read(dir.path()).unwrap_err().to_string();
    assert!(error.contains("000001.log has format 2, this version reads 1"), "{error}");
}

proptest! {
    /// Wherever the end is torn or a bit is flipped: what comes out is the beginning of what was written, and the
    /// log goes on from there.
    #[test]
    fn damage_costs_the_end_and_nothing_else(at in 0usize..10_000, flip in proptest::option::of(0u8..8)) {
        let dir = tempfile::tempdir().unwrap();
        let mut entries = written(dir.path());
        let file = path(dir.path()).join("000001.log");
        let mut bytes = std::fs::read(&file).unwrap();
        let at = at % bytes.len();
        match flip {
            Some(bit) => bytes[at] ^= 1 << bit,
            None => bytes.truncate(at),
        }
        std::fs::write(&file, bytes).unwrap();
        let Some(contents) = read(dir.path()).unwrap() else { return Ok(()) };
        prop_assert!(contents.entries.len() < entries.len() || contents.torn == 0);
        entries.truncate(contents.entries.len());
        prop_assert_eq!(&contents.entries, &entries);
        Wal::append_to(dir.path(), &contents).unwrap().append(&judged(1)).unwrap();
        entries.push(judged(1));
        let again = read(dir.path()).unwrap().unwrap();
        prop_assert_eq!((again.entries, again.torn), (entries, 0));
    }
}

//! Checkpoints on real disks: what is written, what is refused when it is read, what a failure leaves.

#![allow(clippy::unwrap_used, reason = "a test ends at the first thing that is not as expected")]

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

use g2rl_common::config::{Dtype, OptimizerConfig};
use g2rl_common::ids::{GroupEpoch, StepIndex};
use g2rl_hub::manifest::{MANIFEST_FILE, Manifest};
use g2rl_proto::WorkerEvent;
use g2rl_worker::checkpoint::Checkpoint;
use g2rl_worker::checkpoint::background::{Job, Writer};
use g2rl_worker::model::{Placement, Weights};
use g2rl_worker::update::optimizer::{Optimizer, OptimizerState};
use serde_json::json;
use tch::{Device, Kind};
use tokio::sync::mpsc;

/// A model with random moments, in bf16 so that the f32 master weights say more than the model's files.
struct Trained {
    weights: Weights,
    optimizer: Optimizer,
    model_dir: PathBuf,
}

fn trained() -> Trained {
    let model_dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/qwen3_tied");
    let placement = Placement { device: Device::Cpu, dtype: Dtype::Bf16, trainable: true, offload: false };
    let mut weights = Weights::load(&model_dir, placement).unwrap();
    let optimizer = Optimizer::new(OptimizerConfig::default(), &weights).unwrap();
    let _ = weights.master().shallow_clone().g_mul_scalar_(1.003);
    weights.refresh_compute();
    for moment in optimizer.state() {
        let _ = moment.shallow_clone().uniform_(0.1, 1.0);
    }
    Trained { weights, optimizer, model_dir }
}

impl Trained {
    fn checkpoint(&self, trainer_state: &str) -> Checkpoint {
        Checkpoint {
            config: self.weights.config().clone(),
            layout: self.weights.layout().clone(),
            dtype: self.weights.dtype(),
            model_dir: self.model_dir.clone(),
            trainer_state_json: trainer_state.to_owned(),
            about: json!({"step": 5, "policy_version": 7, "ranks": 2}),
        }
    }

    fn state(&self) -> OptimizerState {
        self.optimizer.whole_state(&self.weights, None).unwrap().unwrap()
    }

    fn write(&self, path: &Path, trainer_state: &str) -> Result<(), String> {
        self.checkpoint(trainer_state).write(&self.state(), path).map_err(|error| error.to_string())
    }
}

/// Model and optimizer state of a checkpoint.
fn load(dir: &Path) -> Result<(Weights, Optimizer), String> {
    let placement = Placement { device: Device::Cpu, dtype: Dtype::Bf16, trainable: true, offload: false };
    let mut weights = Weights::load(dir, placement).map_err(|error| error.to_string())?;
    let mut optimizer = Optimizer::new(OptimizerConfig::default(), &weights).unwrap();
    optimizer.load(&dir.join("optimizer.safetensors"), &mut weights, 7).map_err(|error| error.to_string())?;
    Ok((weights, optimizer))
}

fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<_> =
        fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn a_checkpoint_holds_what_was_trained_and_says_what_it_is() {
    let dir = tempfile::tempdir().unwrap();
    let (trained, path) = (trained(), dir.path().join("step-000005"));
    trained.write(&path, "{}").unwrap();
    assert_eq!(names(dir.path()), ["step-000005"]);
    let manifest = Manifest::read(&path).unwrap();
    assert_eq!(manifest.about, json!({"step": 5, "policy_version": 7, "ranks": 2}));
    manifest.check(&path, |_| true).unwrap();
    let (weights, optimizer) = load(&path).unwrap();
    assert!(weights.compute().equal(trained.weights.compute()));
    assert!(weights.master().equal(trained.weights.master()));
    // The model's files alone have lost the low bits.
    assert!(!weights.compute().to_kind(Kind::Float).equal(weights.master()));
    for (moment, expected) in optimizer.state().into_iter().zip(trained.optimizer.state()) {
        assert!(moment.equal(expected));
    }
}

#[test]
fn a_damaged_file_is_refused_with_its_name_by_who_reads_it() {
    let dir = tempfile::tempdir().unwrap();
    let trained = trained();
    type Fault = fn(&mut Vec<u8>);
    let faults: [(&str, Fault); 2] = [
        ("truncated", |bytes| bytes.truncate(bytes.len() - 1)),
        ("flipped", |bytes| *bytes.last_mut().unwrap() ^= 1),
    ];
    for file in ["model.safetensors", "optimizer.safetensors", "config.json"] {
        for (fault, damage) in faults {
            let path = dir.path().join(format!("{file}-{fault}"));
            trained.write(&path, "{}").unwrap();
            let mut bytes = fs::read(path.join(file)).unwrap();
            damage(&mut bytes);
            fs::write(path.join(file), bytes).unwrap();
            let error = load(&path).map(|_| ()).unwrap_err();
            assert!(error.contains(&path.join(file).display().to_string()), "{file} {fault}: {error}");
        }
    }
    // A copy without manifest is a model like any other.
    let path = dir.path().join("copy");
    trained.write(&path, "{}").unwrap();
    fs::remove_file(path.join(MANIFEST_FILE)).unwrap();
    load(&path).unwrap();
}

#[test]
fn the_same_moment_is_written_once_and_another_run_is_replaced() {
    let dir = tempfile::tempdir().unwrap();
    let (trained, path) = (trained(), dir.path().join("step-000005"));
    trained.write(&path, "run 1").unwrap();
    let written = || fs::metadata(path.join("trainer_state.json")).unwrap().modified().unwrap();
    let first = written();
    trained.write(&path, "run 1").unwrap();
    assert_eq!(written(), first);
    trained.write(&path, "run 2").unwrap();
    assert_eq!(fs::read_to_string(path.join("trainer_state.json")).unwrap(), "run 2");
    // Half of a checkpoint with its name cannot be, but for the hands of others.
    fs::remove_file(path.join(MANIFEST_FILE)).unwrap();
    trained.write(&path, "run 2").unwrap();
    Manifest::read(&path).unwrap().check(&path, |_| true).unwrap();
    assert_eq!(names(dir.path()), ["step-000005"]);
}

#[test]
fn a_directory_that_cannot_be_written_is_named_and_nothing_is_left() {
    let dir = tempfile::tempdir().unwrap();
    // Also root cannot make a directory inside a file.
    fs::write(dir.path().join("checkpoints"), "a file").unwrap();
    let error = trained().write(&dir.path().join("checkpoints/step-000005"), "{}").unwrap_err();
    assert!(error.contains("checkpoints/step-000005") && error.contains("Not a directory"), "{error}");
    assert_eq!(names(dir.path()), ["checkpoints"]);
}

/// A file system of this many kilobytes, until it is dropped.
struct SmallDisk(tempfile::TempDir);

impl SmallDisk {
    fn mount(kilobytes: u64) -> Option<Self> {
        let dir = tempfile::tempdir().unwrap();
        let size = format!("size={kilobytes}k");
        let mounted =
            Command::new("mount").args(["-t", "tmpfs", "-o", &size, "none"]).arg(dir.path()).output();
        mounted.is_ok_and(|output| output.status.success()).then_some(Self(dir))
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(self.0.path()).output();
    }
}

#[test]
fn a_full_disk_keeps_the_checkpoint_before_and_nothing_of_the_next() {
    let trained = trained();
    let elsewhere = tempfile::tempdir().unwrap();
    trained.write(&elsewhere.path().join("size"), "{}").unwrap();
    let size = fs::read_dir(elsewhere.path().join("size")).unwrap();
    let bytes: u64 = size.map(|entry| entry.unwrap().metadata().unwrap().len().next_multiple_of(4096)).sum();
    // Room for one and a half.
    let Some(disk) = SmallDisk::mount(bytes * 3 / 2 / 1024) else {
        println!("skipped: a tmpfs cannot be mounted here");
        return;
    };
    let folder = disk.0.path();
    trained.write(&folder.join("step-000005"), "5").unwrap();
    let error = trained.write(&folder.join("step-000010"), "10").unwrap_err();
    assert!(error.contains("step-000010") && error.contains("No space left on device"), "{error}");
    assert_eq!(names(folder), ["step-000005"]);
    load(&folder.join("step-000005")).unwrap();
}

#[test]
fn a_copy_is_written_while_its_original_changes_and_its_memory_is_used_again() {
    let dir = tempfile::tempdir().unwrap();
    let trained = trained();
    let mut writer = Writer::default();
    let (events_in, mut events) = mpsc::channel(4);
    let mut places = Vec::new();
    for step in [5, 10] {
        let memory = writer.take_memory().filter(|memory| memory.fits(&trained.weights));
        assert_eq!(memory.is_some(), step == 10);
        let memory = memory.unwrap_or_else(|| OptimizerState::empty(&trained.weights).unwrap());
        let copy = trained.optimizer.copy_state(&trained.weights, None, Some(memory)).unwrap().unwrap();
        places.push(copy.master().data_ptr());
        let expected = trained.weights.master().copy();
        let (epoch, step) = (GroupEpoch(1), StepIndex(step));
        let path = dir.path().join(format!("step-{step}"));
        let job = Job { checkpoint: trained.checkpoint("{}"), path: path.clone(), epoch, step };
        writer.start(job, copy, events_in.clone()).unwrap();
        // Training goes on.
        let _ = trained.weights.master().shallow_clone().g_add_scalar_(1.0);
        let done = events.blocking_recv().unwrap();
        assert_eq!(done, WorkerEvent::CheckpointDone { epoch, step, error: None });
        assert!(load(&path).unwrap().0.master().equal(&expected));
    }
    assert_eq!(places[0], places[1]);
}

/// The one who asked first is gone; the disk is so slow that the checkpoint is still under way.
#[test]
fn who_asks_for_what_is_being_written_hears_of_its_end() {
    let dir = tempfile::tempdir().unwrap();
    let trained = trained();
    let path = dir.path().join("step-5");
    // A file too long to be copied to its end, until it is cut off.
    let model_dir = dir.path().join("model");
    fs::create_dir(&model_dir).unwrap();
    let endless = File::create(model_dir.join("tokenizer.json")).unwrap();
    endless.set_len(1 << 40).unwrap();
    let about = json!({"run": "run.1", "step": 5});
    let checkpoint = Checkpoint { model_dir, about, ..trained.checkpoint("{}") };
    let (epoch, step) = (GroupEpoch(1), StepIndex(5));
    let (events_in, mut events) = mpsc::channel(4);
    let mut writer = Writer::default();
    writer.start(Job { checkpoint, path: path.clone(), epoch, step }, trained.state(), events_in).unwrap();
    assert!(writer.is_busy());
    // Another course of the run has another policy of that name.
    assert!(!writer.goes_on(&"run.2".into(), &path, GroupEpoch(6)));
    assert!(!writer.goes_on(&"run.1".into(), &dir.path().join("step-6"), GroupEpoch(6)));
    assert!(writer.goes_on(&"run.1".into(), &path, GroupEpoch(7)));
    endless.set_len(0).unwrap();
    let done = events.blocking_recv().unwrap();
    assert_eq!(done, WorkerEvent::CheckpointDone { epoch: GroupEpoch(7), step, error: None });
    assert!(!writer.is_busy() && !writer.goes_on(&"run.1".into(), &path, GroupEpoch(8)));
    load(&path).unwrap();
}

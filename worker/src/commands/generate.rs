//! `g2rl-worker generate`: answers to prompts, with log-probabilities.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, bail};
use clap::Args;
use g2rl_common::config::{PromptConfig, PromptFormat};
use g2rl_common::ids::{GroupId, LeaseId, PolicyVersion};
use g2rl_common::rollout::{GroupLease, Purpose, Sampling};
use g2rl_hub::HubOptions;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::jsonl::{self, Place, Writer};
use super::{DtypeArg, one_device};
use crate::model::{Model, Placement};
use crate::rollout::{DeviceOptions, EngineOptions, FinishedRollout, RolloutEngine, RolloutRequest};
use crate::tokenizer::{Message, Tokenizer};

/// Generate answers to prompts.
///
/// Reads {"id","prompt"} or {"id","messages":[{"role","content"}]}, one object a line, and writes
/// {"id","sample","text","tokens","logprobs","finish_reason"} for each sample. A prompt is encoded as
/// it is; messages go through the model's chat template.
#[derive(Debug, Args)]
#[command(after_long_help = "Examples:
  g2rl-worker generate --model configs/demo/model --input prompts.jsonl --samples 8
  echo '{\"id\":\"1\",\"prompt\":\"4,7,2>30:\"}' | g2rl-worker generate --model configs/demo/model --input -")]
pub struct GenerateArgs {
    /// Model directory, or a name of the Hugging Face hub.
    #[arg(long, value_name = "MODEL")]
    model: String,
    /// Prompts; - is standard input.
    #[arg(long, value_name = "FILE")]
    input: PathBuf,
    /// Where to write; standard output by default.
    #[arg(long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Answers for each prompt.
    #[arg(long, default_value_t = 1)]
    samples: u32,
    /// Softmax temperature; 0 takes the most likely token.
    #[arg(long, default_value_t = 1.0)]
    temperature: f64,
    /// Keep the k most likely tokens.
    #[arg(long)]
    top_k: Option<u32>,
    /// Keep the most likely tokens up to this probability.
    #[arg(long, default_value_t = 1.0)]
    top_p: f64,
    /// Drop tokens less likely than this share of the most likely one.
    #[arg(long, default_value_t = 0.0)]
    min_p: f64,
    /// Longest answer, tokens.
    #[arg(long, default_value_t = 256)]
    max_new_tokens: u32,
    /// Text that ends an answer; may be given several times.
    #[arg(long, value_name = "TEXT")]
    stop: Vec<String>,
    /// Passed to the chat template as enable_thinking.
    #[arg(long)]
    thinking: Option<bool>,
    /// The same seed gives the same answers.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Answers that are generated at the same time.
    #[arg(long, default_value_t = 64)]
    slots: usize,
    /// cpu or cuda:N.
    #[arg(long, default_value = "cpu")]
    device: String,
    /// Number format of the computation.
    #[arg(long, value_enum, default_value_t = DtypeArg::F32)]
    dtype: DtypeArg,
    /// CPU threads; by default libtorch decides.
    #[arg(long, env = "G2RL_THREADS")]
    threads: Option<i32>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct PromptRow {
    id: Value,
    prompt: Option<String>,
    messages: Option<Vec<Turn>>,
}

#[derive(Debug, Deserialize)]
struct Turn {
    role: String,
    content: String,
}

#[derive(Debug, Serialize)]
struct AnswerRow<'a> {
    id: &'a Value,
    sample: u32,
    text: &'a str,
    tokens: &'a [u32],
    logprobs: &'a [f32],
    finish_reason: &'static str,
}

/// Runs the command.
///
/// # Errors
/// If the model or a row cannot be used; names file and line.
pub fn run(args: &GenerateArgs) -> anyhow::Result<ExitCode> {
    if args.samples == 0 || args.slots == 0 || args.max_new_tokens == 0 {
        bail!("--samples, --slots and --max-new-tokens must be at least 1");
    }
    if let Some(threads) = args.threads {
        tch::set_num_threads(threads);
    }
    let dir = g2rl_hub::model(&args.model, &HubOptions::from_env())?;
    let rows: Vec<(Place, PromptRow)> = jsonl::read(&args.input)?;
    let tokenizer = Tokenizer::load(&dir)?;
    let placement = Placement {
        device: one_device(&args.device)?,
        dtype: args.dtype.into(),
        trainable: false,
        offload: false,
    };
    let model = Model::load(&dir, placement)?;
    let mut prompts = Vec::with_capacity(rows.len());
    for (place, row) in &rows {
        prompts.push(encode(args, &tokenizer, row).with_context(|| place.to_string())?);
    }
    let longest = prompts.iter().map(Vec::len).max().unwrap_or(1);
    let (slots, samples) = (args.slots as u64, u64::from(args.samples));
    let options = EngineOptions {
        slots: args.slots,
        features: false,
        evaluation_features: false,
        run_seed: args.seed,
        end_tokens: tokenizer.end_tokens().to_vec(),
        cpu_decoder: true,
        device: DeviceOptions::new(slots, longest as u64, args.max_new_tokens.into(), samples),
    };
    let mut engine = RolloutEngine::new(&model, options)?;
    for (index, ((place, row), prompt_tokens)) in rows.iter().zip(prompts).enumerate() {
        let lease = lease(args, index as u64, row);
        engine
            .submit(RolloutRequest { lease, prompt_tokens: prompt_tokens.into() })
            .with_context(|| place.to_string())?;
    }

    let mut writer = Writer::create(args.output.as_deref())?;
    // Answers come in the order in which they end and are written in the order of the input.
    let mut ready: std::collections::BTreeMap<(GroupId, u32), FinishedRollout> = Default::default();
    let mut next = (GroupId(0), 0);
    while !engine.is_idle() {
        for done in engine.step(&model, &tokenizer)? {
            ready.insert((done.rollout.id.group, done.rollout.id.index), done);
        }
        while let Some(done) = ready.remove(&next) {
            write(&mut writer, &rows[next.0.0 as usize].1.id, &done)?;
            next = if next.1 + 1 < args.samples { (next.0, next.1 + 1) } else { (next.0.next(), 0) };
        }
    }
    writer.finish()?;
    Ok(ExitCode::SUCCESS)
}

fn write(writer: &mut Writer, id: &Value, done: &FinishedRollout) -> anyhow::Result<()> {
    let rollout = &done.rollout;
    writer.write(&AnswerRow {
        id,
        sample: rollout.id.index,
        text: &rollout.text,
        tokens: &rollout.response_tokens,
        logprobs: &rollout.behavior_logprobs,
        finish_reason: rollout.finish_reason.as_str(),
    })
}

fn lease(args: &GenerateArgs, index: u64, row: &PromptRow) -> GroupLease {
    GroupLease {
        lease: LeaseId(index),
        group: GroupId(index),
        purpose: Purpose::Evaluate,
        policy_version: PolicyVersion(0),
        prompt_id: row.id.to_string().as_str().into(),
        problem: String::new(),
        first_rollout: 0,
        rollouts: args.samples,
        stream_offset: 0,
        given_response: None,
        sampling: Sampling {
            temperature: args.temperature,
            top_k: args.top_k,
            top_p: args.top_p,
            min_p: args.min_p,
            max_new_tokens: args.max_new_tokens,
            stop: args.stop.clone(),
        },
    }
}

fn encode(args: &GenerateArgs, tokenizer: &Tokenizer, row: &PromptRow) -> anyhow::Result<Vec<u32>> {
    match (&row.prompt, &row.messages) {
        (Some(prompt), None) => {
            let config = PromptConfig { format: PromptFormat::Raw, ..PromptConfig::default() };
            Ok(tokenizer.encode_prompt(&config, prompt)?)
        }
        (None, Some(turns)) => {
            let template =
                tokenizer.template().context("messages need a chat template; this model has none")?;
            let messages: Vec<Message<'_>> =
                turns.iter().map(|t| Message { role: &t.role, content: &t.content }).collect();
            Ok(tokenizer.encode(&template.render(&messages, args.thinking)?, false)?)
        }
        _ => bail!("a row needs either prompt or messages"),
    }
}

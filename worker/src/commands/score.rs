//! `g2rl-worker score`: log-probabilities, entropies and features of given tokens.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::bail;
use clap::Args;
use g2rl_common::rollout::Sampling;
use g2rl_ffi::attention::Segments;
use g2rl_hub::HubOptions;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tch::{Device, Tensor};

use super::jsonl::{self, Place, Writer};
use super::{DtypeArg, one_device};
use crate::model::{Model, Placement};
use crate::rollout::{Draw, Residuals, RowOptions, sample};

/// Rows of logits that exist at a time.
const CHUNK: i64 = 512;

/// Score given responses.
///
/// Reads {"tokens" (a list of ids),"prompt_tokens"}, one object a line, with an "id" if you like, and writes
/// {"id","logprobs","entropy","feature"}: one log-probability and one entropy (nats) for each response
/// token, and the response's last-layer sensitivity feature. Needs no tokenizer.
#[derive(Debug, Args)]
#[command(after_long_help = "Examples:
  g2rl-worker score --model configs/demo/model --input sequences.jsonl
  echo '{\"id\":1,\"tokens\":[14,7,17,9,14,1],\"prompt_tokens\":4}' \\
    | g2rl-worker score --model configs/demo/model --input - --temperature 0.7")]
pub struct ScoreArgs {
    /// Model directory, or a name of the Hugging Face hub.
    #[arg(long, value_name = "MODEL")]
    model: String,
    /// Sequences; - is standard input.
    #[arg(long, value_name = "FILE")]
    input: PathBuf,
    /// Where to write; standard output by default.
    #[arg(long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Softmax temperature, above 0.
    #[arg(long, default_value_t = 1.0)]
    temperature: f64,
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
struct SequenceRow {
    id: Option<Value>,
    tokens: Vec<u32>,
    prompt_tokens: usize,
}

#[derive(Debug, Serialize)]
struct ScoreRow {
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<Value>,
    logprobs: Vec<f32>,
    entropy: Vec<f32>,
    feature: Vec<f32>,
}

/// Runs the command.
///
/// # Errors
/// If the model or a row cannot be used; names file and line.
pub fn run(args: &ScoreArgs) -> anyhow::Result<ExitCode> {
    if !(args.temperature > 0.0 && args.temperature.is_finite()) {
        bail!("--temperature must be above 0");
    }
    if let Some(threads) = args.threads {
        tch::set_num_threads(threads);
    }
    let dir = g2rl_hub::model(&args.model, &HubOptions::from_env())?;
    let rows: Vec<(Place, SequenceRow)> = jsonl::read(&args.input)?;
    let placement = Placement {
        device: one_device(&args.device)?,
        dtype: args.dtype.into(),
        trainable: false,
        offload: false,
    };
    let model = Model::load(&dir, placement)?;
    let mut residuals = Residuals::new(1, &model)?;
    let mut writer = Writer::create(args.output.as_deref())?;
    for (place, row) in rows {
        check(&row, &model).map_err(|problem| anyhow::anyhow!("{place}: {problem}"))?;
        writer.write(&score(&model, &mut residuals, row, args.temperature)?)?;
    }
    writer.finish()?;
    Ok(ExitCode::SUCCESS)
}

fn check(row: &SequenceRow, model: &Model) -> Result<(), String> {
    let config = model.config();
    let length = row.tokens.len();
    if row.prompt_tokens == 0 || row.prompt_tokens >= length {
        return Err(format!(
            "prompt_tokens is {} of {length} tokens; prompt and response need at least one",
            row.prompt_tokens
        ));
    }
    if length as i64 > config.max_positions {
        return Err(format!("{length} tokens, the model has {} positions", config.max_positions));
    }
    match row.tokens.iter().find(|t| i64::from(**t) >= config.vocab_size) {
        Some(token) => {
            Err(format!("token id {token} is not below the vocabulary size {}", config.vocab_size))
        }
        None => Ok(()),
    }
}

fn score(
    model: &Model,
    residuals: &mut Residuals,
    row: SequenceRow,
    temperature: f64,
) -> anyhow::Result<ScoreRow> {
    let _guard = tch::no_grad_guard();
    let tokens: Vec<i64> = row.tokens.iter().map(|t| i64::from(*t)).collect();
    let device: Device = model.weights().device();
    let mut segments = Segments::default();
    segments.push(tokens.len() as i64, None);
    let hidden = model.hidden_states(&Tensor::from_slice(&tokens).to_device(device), &segments)?;
    let responses = (tokens.len() - row.prompt_tokens) as i64;
    let normed = model.final_norm(&hidden.narrow(0, row.prompt_tokens as i64 - 1, responses))?;
    let sampling = Sampling { temperature, ..Sampling::default() };
    residuals.clear(0);
    let (mut logprobs, mut entropy) = (Vec::new(), Vec::new());
    let mut start = 0;
    while start < responses {
        let count = CHUNK.min(responses - start);
        let logits = model.logits(&normed.narrow(0, start, count));
        // One row at a time: all of them add to the same residual.
        for at in 0..count {
            let token = row.tokens[row.prompt_tokens + (start + at) as usize];
            let options = RowOptions { sampling: &sampling, draw: Draw::Given(token), residual_row: Some(0) };
            let scored = sample(&logits.narrow(0, at, 1), &[options], Some(residuals.sums()))?;
            logprobs.extend(scored.logprobs);
            entropy.extend(scored.entropies);
        }
        start += count;
    }
    let feature = residuals.features(model, &[(0, responses as usize)])?.remove(0);
    Ok(ScoreRow { id: row.id, logprobs, entropy, feature })
}

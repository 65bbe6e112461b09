//! Everything a rank holds of the policy: model, tokenizer, optimizer, rollouts in flight.

use std::path::PathBuf;

use g2rl_common::algorithm;
use g2rl_common::config::RunConfig;
use g2rl_common::ids::{PolicyVersion, RunId};
use g2rl_hub::HubOptions;
use g2rl_proto::Welcome;
use tch::Device;

use super::EngineError;
use crate::model::files::{OPTIMIZER_FILE, WeightsError};
use crate::model::shard::Shard;
use crate::model::{Model, ModelConfig, Placement};
use crate::planner::{MemoryPlan, PlanInput};
use crate::rollout::{EngineOptions as RolloutOptions, RolloutEngine};
use crate::tokenizer::Tokenizer;
use crate::update::optimizer::Optimizer;
use crate::update::{Updater, UpdaterOptions};

/// The policy on this rank.
pub(super) struct Policy {
    /// Whose policy it is.
    pub(super) run: RunId,
    pub(super) config: RunConfig,
    pub(super) model: Model,
    pub(super) tokenizer: Tokenizer,
    /// Where the tokenizer came from.
    pub(super) model_dir: PathBuf,
    pub(super) updater: Updater,
    pub(super) rollouts: RolloutEngine,
    pub(super) version: PolicyVersion,
    /// Other ranks may hold parts of the optimizer state.
    pub(super) divided: bool,
    pub(super) slots: u32,
    /// Of the mini-batch whose gradients wait to be applied.
    pub(super) learning_rate: f64,
}

impl Policy {
    /// Loads what the coordinator's welcome names: a model directory, or a checkpoint with
    /// optimizer state.
    pub(super) fn load(config: RunConfig, welcome: &Welcome, device: Device) -> Result<Self, EngineError> {
        let hub = HubOptions::from_env();
        let model_dir = g2rl_hub::model(&welcome.model_path, &hub)?;
        let placement = Placement {
            device,
            dtype: config.model.dtype,
            trainable: true,
            offload: config.optimizer.offload && device != Device::Cpu,
        };
        let tokenizer = Tokenizer::load(&model_dir)?;
        // What cannot fit is refused before anything large is read.
        let shape = ModelConfig::load(&model_dir).map_err(WeightsError::from)?;
        let plan = MemoryPlan::new(&PlanInput::from_config(&shape, &config, device))?;
        tracing::info!(
            path = %model_dir.display(),
            parameters = shape.parameters(),
            slots = plan.slots,
            "{plan}"
        );
        let mut model = Model::load(&model_dir, placement)?;

        // Whose part of the state a rank keeps is known when the ranks are: until then there is none.
        let sharded = config.optimizer.shard;
        let mut optimizer = match sharded {
            true => {
                let nothing = Shard::nothing();
                Optimizer::of_shard(config.optimizer.clone(), model.weights(), nothing)?
            }
            false => Optimizer::new(config.optimizer.clone(), model.weights())?,
        };
        if welcome.policy_version != PolicyVersion(0) && !sharded {
            let state = model_dir.join(OPTIMIZER_FILE);
            optimizer.load(&state, model.weights_mut(), welcome.policy_version.0)?;
        }
        // The reference is the policy the run began with, also after a resume.
        let reference =
            if config.objective.needs_reference() && algorithm::build(&config.algorithm).needs_rollouts() {
                let frozen = Placement { trainable: false, ..placement };
                Some(Model::load(&g2rl_hub::model(&config.model.path, &hub)?, frozen)?)
            } else {
                None
            };
        let updater =
            Updater::new(UpdaterOptions::from_config(&config, &plan), optimizer, model.weights(), reference)?;
        let rollouts =
            RolloutEngine::new(&model, RolloutOptions::from_config(&config, &tokenizer, plan.slots))?;
        Ok(Self {
            run: welcome.run.clone(),
            model,
            tokenizer,
            model_dir,
            updater,
            rollouts,
            version: welcome.policy_version,
            divided: false,
            slots: plan.slots,
            learning_rate: 0.0,
            config,
        })
    }
}

//! The sections `[algorithm]` and `[objective]` as a user writes them.

use g2rl_common::algorithm::{AlgorithmKind, AlgorithmOptions, build};
use g2rl_common::config::RunConfig;
use g2rl_common::objective::{Aggregation, ObjectiveOptions, RatioKind};
use g2rl_common::shaping::{DegenerateGroups, Scaler};

#[test]
fn every_key_reads_as_documented() {
    let algorithm: AlgorithmOptions = toml::from_str(
        "kind = 'grpo'\nadvantage = 'mean_only'\nnovelty = 'linear'\nscaler = 'equation'\n\
         lambda = 0.5\nclip = 2\ndegenerate_groups = 'centered'",
    )
    .unwrap();
    assert_eq!(algorithm.kind, AlgorithmKind::Grpo);
    assert_eq!(algorithm.shaping().scaler, Scaler::Equation);
    assert_eq!(algorithm.shaping().degenerate_groups, DegenerateGroups::Centered);
    assert_eq!(algorithm.shaping().clip, 2.0);

    let objective: ObjectiveOptions = toml::from_str(
        "clip_high = 0.28\ndual_clip = 3.0\nratio = 'sequence'\nkl_coef = 0\n\
         aggregation = { constant = { tokens = 4096 } }",
    )
    .unwrap();
    assert_eq!(objective.aggregation, Aggregation::Constant { tokens: 4096 });
    assert_eq!((objective.ratio, objective.dual_clip), (RatioKind::Sequence, Some(3.0)));
    assert!(!objective.needs_reference());
}

#[test]
fn empty_sections_have_the_papers_settings() {
    let algorithm: AlgorithmOptions = toml::from_str("").unwrap();
    assert_eq!(algorithm, AlgorithmOptions::default());
    assert_eq!(build(&algorithm).name(), "g2rl");
    assert_eq!((algorithm.lambda, algorithm.clip), (1.0, 3.0));
    let objective: ObjectiveOptions = toml::from_str("").unwrap();
    assert_eq!((objective.clip_low, objective.clip_high, objective.kl_coef), (0.2, 0.2, 0.001));
}

#[test]
fn unknown_keys_and_values_out_of_range_are_named() {
    let unknown = toml::from_str::<AlgorithmOptions>("lamda = 1").unwrap_err().to_string();
    assert!(unknown.contains("lamda"), "{unknown}");
    assert!(toml::from_str::<ObjectiveOptions>("aggregation = 'mean'").is_err());
    assert!(toml::from_str::<ObjectiveOptions>("aggregation = { constant = { token = 1 } }").is_err());

    let key = |toml: &str| toml::from_str::<ObjectiveOptions>(toml).unwrap().validate().map_err(|e| e.key);
    assert_eq!(key("clip_low = 1.5"), Err("clip_low"));
    assert_eq!(key("clip_high = -0.1"), Err("clip_high"));
    assert_eq!(key("dual_clip = 1.0"), Err("dual_clip"));
    assert_eq!(key("kl_coef = nan"), Err("kl_coef"));
    assert_eq!(key("entropy_coef = -1.0"), Err("entropy_coef"));
    assert_eq!(key("aggregation = { constant = { tokens = 0 } }"), Err("aggregation.constant.tokens"));
    assert_eq!(key("clip_high = 0.28"), Ok(()));
}

/// A configuration is sent to workers as TOML, so the nested form must survive writing, too.
#[test]
fn a_run_configuration_keeps_them() {
    let text = "[run]\nname = 't'\ndir = 'runs/t'\nsteps = 1\n[model]\npath = 'm'\n[data]\ntrain = 'd.jsonl'\n\
                [algorithm]\nkind = 'sft'\n\
                [objective]\naggregation = { constant = { tokens = 4096 } }\ndual_clip = 3.0";
    let config = RunConfig::from_toml(text).unwrap();
    assert_eq!(config.algorithm.kind, AlgorithmKind::Sft);
    assert_eq!(config.objective.aggregation, Aggregation::Constant { tokens: 4096 });
    assert_eq!(RunConfig::from_toml(&config.to_toml()).unwrap(), config);
    let error = RunConfig::from_toml(&format!("{text}\nclip_low = 2.0")).unwrap_err().to_string();
    assert!(error.contains("objective") && error.contains("clip_low"), "{error}");
}

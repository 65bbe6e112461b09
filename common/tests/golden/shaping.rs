//! Geometry, novelty, shaping and advantages against `golden_features.json` and
//! `golden_shaping.json`.

use crate::support::{assert_close, cases, flat, golden, number, rows};
use g2rl_common::advantage::AdvantageKind;
use g2rl_common::geometry::GroupGeometry;
use g2rl_common::novelty::{NoveltyKind, NoveltyScores};
use g2rl_common::shaping::{Scaler, ShapingOptions};

#[test]
fn cosines_of_features() {
    for case in cases(&golden("golden_features.json")) {
        let geometry = GroupGeometry::from_features(&rows(&case["Phi"])).unwrap();
        assert_close(&format!("{} S", case["name"]), geometry.matrix(), &flat(&case["S"]));
    }
}

#[test]
fn weights_novelty_shaped_rewards_and_advantages() {
    let file = golden("golden_shaping.json");
    assert_eq!(cases(&file).len(), 22);
    for case in cases(&file) {
        let name = &case["name"];
        let rewards = flat(&case["rewards"]);
        let geometry = GroupGeometry::from_cosine(rewards.len(), flat(&case["S"]));
        for (kind, kind_name) in [(NoveltyKind::Linear, "linear"), (NoveltyKind::Sqrt, "sqrt")] {
            let expected = &case[kind_name];
            let scores = NoveltyScores::new(&geometry, &rewards, kind);
            assert_close(&format!("{name} w"), &scores.weights, &flat(&case["w"]));
            assert_close(&format!("{name} explained"), &scores.explained, &flat(&case["explained"]));
            assert_eq!(Some(scores.degenerate), case["degenerate"].as_bool(), "{name} degenerate");
            assert_close(&format!("{name} {kind_name} nu"), &scores.novelty, &flat(&expected["nu"]));
            let nu_bar = &scores.novelty_normalized;
            assert_close(&format!("{name} {kind_name} nubar"), nu_bar, &flat(&expected["nubar"]));

            for (scaler, scaler_name) in [(Scaler::Equation, "equation13"), (Scaler::Amplify, "amplify")] {
                let (lambda, clip) = (number(&case["lambda"]), number(&case["c"]));
                let options =
                    ShapingOptions { novelty: kind, scaler, lambda, clip, ..ShapingOptions::default() };
                let shaped: Vec<f64> =
                    rewards.iter().zip(nu_bar).map(|(&r, &nu)| options.shape(r, nu)).collect();
                let expected = &expected[scaler_name];
                let what = format!("{name} {kind_name} {scaler_name}");
                assert_close(&format!("{what} shaped"), &shaped, &flat(&expected["shaped_reward"]));
                let advantages = AdvantageKind::Std.advantages(&shaped);
                assert_close(&format!("{what} advantage"), &advantages, &flat(&expected["advantage"]));
            }
        }
        let plain = AdvantageKind::Std.advantages(&rewards);
        assert_close(&format!("{name} plain"), &plain, &flat(&case["plain_advantage"]));
    }
}

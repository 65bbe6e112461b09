//! What the machine keeps is bounded by the plan and the slots of the ranks.

use g2rl_common::ids::WorkerId;

use crate::state::{Activity, Coordinator, RunPlan};

/// Commands of an epoch that may wait for a rank besides its leases: to prepare, form, train, apply and save,
/// in the epoch under way and in the one before.
const COMMANDS: usize = 10;

/// Rollouts a rank may have at a time.
fn most_rollouts(slots: u32) -> u32 {
    slots + (slots / 4).max(1)
}

/// Rollouts of a step or an evaluation, whichever is larger.
fn most_of_an_activity(plan: &RunPlan) -> u32 {
    let evaluated = plan.evaluation.as_ref().map_or(0, |evaluation| evaluation.problems * evaluation.samples);
    // A group that replaces a skipped one begins when all rollouts of that are back.
    (plan.prompts_per_step * plan.group_size + plan.imitation.solutions_per_step).max(evaluated)
}

/// Commands that may wait for a worker.
pub(super) fn most_commands(machine: &Coordinator, worker: &WorkerId) -> usize {
    let slots = machine.members.rank_of(worker).map_or(0, |rank| machine.leases.slots_of(rank));
    COMMANDS + most_rollouts(slots).max(most_of_an_activity(&machine.plan)) as usize
}

pub(super) fn check(machine: &Coordinator, effects: usize) {
    let plan = &machine.plan;
    let (members, most) = (machine.members.members().len(), plan.cluster.max_workers as usize);
    assert!(members <= most, "{members} members, cluster.max_workers is {most}");
    let mut outstanding = 0;
    for (rank, worker) in machine.members.ranks() {
        let (held, slots) = (machine.leases.outstanding_of(rank), machine.leases.slots_of(rank));
        assert!(held <= most_rollouts(slots), "{held} rollouts at {worker} with {slots} slots");
        outstanding += held;
    }
    let leases = machine.leases.outstanding().count();
    assert!(leases <= outstanding as usize, "{leases} leases for {outstanding} rollouts");
    let (all, most) = (outstanding + machine.leases.queued_rollouts(), most_of_an_activity(plan));
    assert!(all <= most, "{all} rollouts are out or queued, a step or evaluation has {most}");
    let collects = matches!(machine.activity, Activity::Evaluating(_) | Activity::Collecting(_));
    assert!(collects || all == 0, "{all} rollouts are out or queued while none are collected");
    // A lease for each rollout, or three commands for each member and what an event leads to besides.
    let most = most_of_an_activity(plan) as usize + 3 * plan.cluster.max_workers as usize + 16;
    assert!(effects <= most, "{effects} effects of one event");
    let idle = machine.members.stands() && machine.leases.free_slots() > 0;
    assert!(!idle || machine.leases.queued_rollouts() == 0, "idle slots: {:?}", machine.status());
}
